"""An independent reader of a target: DuckDB, PyArrow, deltalake and JSON, no code of the product.

It returns one digest per table, so that two states can be compared; a target that is in no consistent state is `Torn`.
"""

# ruff: noqa: S608 - SQL is made of the names in this file.

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

Look = dict[str, str]
"""The content of each table, as "rows digest"; empty if nothing is published."""

Document = dict[str, Any]
"""A manifest, or a part of it."""
_TABLES = ("contacts", "contact_versions", "runs", "rejects", "etl.manifests", "etl.strikes", "etl.windows")


_OF_BYTES = {"files", "previous", "seal"}
"""Manifest fields about bytes: the files are checked against them, but two runs need not compress alike."""


class Torn(Exception):
    """The target contradicts itself or cannot be read."""


def look(kind: str, target: Path) -> Look:
    """The state that a reader sees now; raises `Torn`."""
    readers: dict[str, Callable[[Path], Look]] = {"duckdb": _duckdb, "parquet": _parquet, "delta": _delta}
    try:
        return readers[kind](target)
    except (duckdb.Error, OSError, ValueError, KeyError) as error:
        message = f"{type(error).__name__}: {error}"
        raise Torn(message) from error


def fingerprint(kind: str, target: Path) -> dict[str, str]:
    """The digest of every published file."""
    files = [target]
    if kind != "duckdb":
        documents = _documents(target) if kind == "parquet" else _documents_of_delta(target)
        files = [*_listed(target, documents), *target.glob("manifests/*.json")]
    return {str(file.relative_to(target.parent)): _digest(file.read_bytes()) for file in files if file.exists()}


def _told(lines: Iterable[str]) -> str:
    ordered = sorted(lines)
    return f"{len(ordered)} {_digest(chr(10).join(ordered).encode())}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _duckdb(target: Path) -> Look:
    if not target.exists():
        return {}
    with duckdb.connect(str(target), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        seen = {
            table: _told(row for (row,) in connection.execute(f"SELECT t::VARCHAR FROM {table} t").fetchall())
            for table in _TABLES
        }
        agreed = connection.execute(
            "SELECT (SELECT max(seq) FROM runs) = (SELECT max(seq) FROM etl.manifests)"
            " AND (SELECT max(seq) FROM contacts) <= (SELECT max(seq) FROM runs)"
        ).fetchall()
    if agreed != [(True,)]:
        message = f"data and state are of different runs: {agreed}"
        raise Torn(message)
    return seen


def _documents(target: Path) -> list[Document]:
    before = ""
    found = []
    for path in sorted(target.glob("manifests/*.json")):
        content = path.read_bytes()
        document = json.loads(content)
        if document["previous"] != before or document["seq"] != int(path.stem):
            message = f"{path.name} does not follow the one before it"
            raise Torn(message)
        before = _digest(content)
        found.append(document)
    return found


def _entries(documents: list[Document]) -> list[Document]:
    """The listed files that must still exist: states of the last run, and all files that accumulate."""
    states = ("current", "contacts", "rejects", "strikes")
    return [
        entry
        for document in documents
        for entry in document["files"]
        if document is documents[-1] or entry["path"].split("/")[0] not in states
    ]


def _listed(target: Path, documents: list[Document]) -> list[Path]:
    return [target / entry["path"] for entry in _entries(documents)]


def _rows(target: Path, documents: list[Document]) -> dict[str, list[str]]:
    """The rows of the listed files by their contents, and the manifests."""
    rows: dict[str, list[str]] = {}
    for entry in _entries(documents):
        path = target / entry["path"]
        content = path.read_bytes()
        if len(content) != entry["bytes"] or _digest(content) != entry["sha256"]:
            message = f"{entry['path']} is not what its manifest says"
            raise Torn(message)
        found = [repr(row) for row in pq.read_table(path, partitioning=None).to_pylist()]
        rows.setdefault(entry["path"].split("/")[0], []).extend(found)
    states = [{key: value for key, value in each.items() if key not in _OF_BYTES} for each in documents]
    rows["manifests"] = [json.dumps(state, sort_keys=True) for state in states]
    return rows


def _parquet(target: Path) -> Look:
    documents = _documents(target)
    if not documents:
        return {}
    rows = _rows(target, documents)
    current = target / f"current/seq={documents[-1]['seq']:08d}"
    if set(current.glob("*.parquet")) != {path for path in _listed(target, documents) if path.parent == current}:
        message = "the current folder and its manifest differ"
        raise Torn(message)
    return {table: _told(lines) for table, lines in rows.items()}


def _delta(target: Path) -> Look:
    """By the manifest that the last commit of `contacts` names; rows of later runs in other tables are ignored."""
    documents = _documents_of_delta(target)
    if not documents:
        return {}
    rows = _rows(target, documents)
    for table in ("contacts", "versions", "runs"):
        found = _table(target / table).to_pyarrow_table().to_pylist()
        if sorted(repr(row) for row in found if row["seq"] <= documents[-1]["seq"]) != sorted(rows[table]):
            message = f"the table {table} and its manifest differ"
            raise Torn(message)
    return {table: _told(lines) for table, lines in rows.items()}


def _table(folder: Path) -> Any:
    from deltalake import DeltaTable  # noqa: PLC0415 - starts threads: see `child`

    return DeltaTable(str(folder))


def _documents_of_delta(target: Path) -> list[Document]:
    if not (target / "contacts/_delta_log/00000000000000000000.json").exists():
        return []
    commits = (commit.get("etl.manifest") for commit in _table(target / "contacts").history())
    digest = next(filter(None, commits), "")
    found: list[Document] = []
    while digest:
        [path] = target.glob(f"manifests/*.{digest}.*.json")
        content = path.read_bytes()
        document = json.loads(content)
        if _digest(content) != digest or document["seq"] != int(path.name.partition(".")[0]):
            message = f"{path.name} is not what its name says"
            raise Torn(message)
        found.insert(0, document)
        digest = document["previous"]
    return found
