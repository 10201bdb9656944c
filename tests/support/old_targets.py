"""Turns a published target back to manifest format 2, in which `rejects` had a row per run that saw the contact."""

# ruff: noqa: S608 - SQL is made of our own names.

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from etl.sinks.manifest import DataFile, Manifest, decode, digest, encode
from etl.storage import duck
from tests.support.publishing import Row

COLUMNS = ("account", "seq", "observed_at", "contact_id", "reason", "path", "raw")
_SCHEMA = pa.schema(
    [(name, {"seq": pa.int64(), "observed_at": pa.timestamp("us", "UTC")}.get(name, pa.string())) for name in COLUMNS]
)


def age(path: Path, sightings: Sequence[Row]) -> None:
    """Make the target one of format 2 whose `rejects` holds these rows."""
    _age_folder(path, sightings) if path.is_dir() else _age_file(path, sightings)


def _age_file(path: Path, sightings: Sequence[Row]) -> None:
    rows = pa.Table.from_pylist(list(sightings), schema=_SCHEMA)
    with duckdb.connect(str(path)) as connection:
        connection.register("sightings", rows)
        connection.execute("ALTER TABLE rejects DROP COLUMN first_seq")
        connection.execute("ALTER TABLE rejects DROP COLUMN last_seq")
        connection.execute("ALTER TABLE rejects DROP COLUMN seen")
        connection.execute("DELETE FROM rejects")
        connection.execute(f"INSERT INTO rejects ({duck.listed(COLUMNS)}) SELECT {duck.listed(COLUMNS)} FROM sightings")
        before = ""
        for seq, document in connection.execute("SELECT seq, document FROM etl.manifests ORDER BY seq").fetchall():
            aged = _aged(decode(document.encode()), before)
            before = digest(aged)
            connection.execute(
                "UPDATE etl.manifests SET digest = ?, document = ? WHERE seq = ?", [before, aged.decode(), seq]
            )


def _age_folder(path: Path, sightings: Sequence[Row]) -> None:
    if (path / "rejects").exists():
        shutil.rmtree(path / "rejects")
    before = ""
    for file in sorted(path.glob("manifests/*.json")):
        manifest = decode(file.read_bytes())
        files = [each for each in manifest.files if not each.path.startswith("rejects/")]
        if seen := [row for row in sightings if row["seq"] == manifest.seq]:
            part = path / f"rejects/seq={manifest.seq:08d}/part-000001.parquet"
            part.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(seen, schema=_SCHEMA), part)
            content = part.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(DataFile(str(part.relative_to(path)), len(seen), len(content), sha256))
        aged = _aged(replace(manifest, files=tuple(files)), before)
        before = digest(aged)
        file.write_bytes(aged)


def _aged(manifest: Manifest, previous: str) -> bytes:
    return encode(replace(manifest, format=2, previous=previous))
