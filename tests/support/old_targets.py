"""Turns a published target back to an older manifest format.

In format 2, `rejects` had a row per run that saw the contact; up to format 3, fingerprints had another definition.
"""

# ruff: noqa: S608 - SQL is made of our own names.

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from etl.sinks.manifest import DataFile, Manifest, decode, digest, encode
from etl.storage import duck
from etl.storage.row_hash import FORMER_SQL
from tests.support.publishing import Row

COLUMNS = ("account", "seq", "observed_at", "contact_id", "reason", "path", "raw")
_SCHEMA = pa.schema(
    [(name, {"seq": pa.int64(), "observed_at": pa.timestamp("us", "UTC")}.get(name, pa.string())) for name in COLUMNS]
)


def age(path: Path, sightings: Sequence[Row]) -> None:
    """Make the target one of format 2 whose `rejects` holds these rows."""
    _age_folder(path, sightings) if path.is_dir() else _age_file(path, sightings)


def age_fingerprints(path: Path) -> None:
    """Make the target one of format 3, in which every fingerprint has the former definition."""
    if path.is_dir():
        _rewrite_manifests(path, _with_former_fingerprints)
        return
    with duckdb.connect(str(path)) as connection:
        for table in ("contacts", "contact_versions"):
            connection.execute(f"UPDATE {table} SET row_hash = {FORMER_SQL}")
        _rewrite_documents(connection, 3)


def _with_former_fingerprints(path: Path, manifest: Manifest) -> Manifest:
    files = []
    for file in manifest.files:
        part = path / file.path
        if file.path.startswith(("current/", "versions/")):
            new = part.with_suffix(".new")
            rows = f"read_parquet([{duck.literal(part)}], hive_partitioning = false)"
            query = f"SELECT * REPLACE ({FORMER_SQL} AS row_hash) FROM {rows}"
            with duckdb.connect() as connection:
                connection.execute("SET TimeZone = 'UTC'")
                connection.execute(f"COPY ({query}) TO {duck.literal(new)} (FORMAT parquet)")
            new.rename(part)
        files.append(_described(path, part, file.rows))
    return replace(manifest, files=tuple(files), format=3)


def _described(path: Path, part: Path, rows: int) -> DataFile:
    content = part.read_bytes()
    return DataFile(str(part.relative_to(path)), rows, len(content), hashlib.sha256(content).hexdigest())


def _age_file(path: Path, sightings: Sequence[Row]) -> None:
    rows = pa.Table.from_pylist(list(sightings), schema=_SCHEMA)
    with duckdb.connect(str(path)) as connection:
        connection.register("sightings", rows)
        connection.execute("ALTER TABLE rejects DROP COLUMN first_seq")
        connection.execute("ALTER TABLE rejects DROP COLUMN last_seq")
        connection.execute("ALTER TABLE rejects DROP COLUMN seen")
        connection.execute("DELETE FROM rejects")
        connection.execute(f"INSERT INTO rejects ({duck.listed(COLUMNS)}) SELECT {duck.listed(COLUMNS)} FROM sightings")
        _rewrite_documents(connection, 2)


def _rewrite_documents(connection: duckdb.DuckDBPyConnection, format: int) -> None:  # noqa: A002 - the manifest's word
    before = ""
    for seq, document in connection.execute("SELECT seq, document FROM etl.manifests ORDER BY seq").fetchall():
        aged = encode(replace(decode(document.encode()), format=format, previous=before))
        before = digest(aged)
        connection.execute(
            "UPDATE etl.manifests SET digest = ?, document = ? WHERE seq = ?", [before, aged.decode(), seq]
        )


def _age_folder(path: Path, sightings: Sequence[Row]) -> None:
    if (path / "rejects").exists():
        shutil.rmtree(path / "rejects")
    _rewrite_manifests(path, partial(_with_sightings, sightings))


def _with_sightings(sightings: Sequence[Row], path: Path, manifest: Manifest) -> Manifest:
    files = [each for each in manifest.files if not each.path.startswith("rejects/")]
    if seen := [row for row in sightings if row["seq"] == manifest.seq]:
        part = path / f"rejects/seq={manifest.seq:08d}/part-000001.parquet"
        part.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(seen, schema=_SCHEMA), part)
        files.append(_described(path, part, len(seen)))
    return replace(manifest, files=tuple(files), format=2)


def _rewrite_manifests(path: Path, aged: Callable[[Path, Manifest], Manifest]) -> None:
    before = ""
    for file in sorted(path.glob("manifests/*.json")):
        document = encode(replace(aged(path, decode(file.read_bytes())), previous=before))
        before = digest(document)
        file.write_bytes(document)
