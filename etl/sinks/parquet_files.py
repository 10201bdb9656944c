"""Writes the files of one run in a Parquet folder, range by range; unchanged files are hard-linked.

A linked file is in the folders of several states and is stored once; published files are never modified. If the file
system has no links, the file is copied.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import duckdb

from etl.errors import SinkError
from etl.log import log
from etl.sinks import parquet_layout, partitions, tables
from etl.sinks.manifest import DataFile
from etl.sinks.partitions import Slice
from etl.storage import duck, files

_COLUMNS: dict[str, tables.Columns] = {
    "current": tables.in_files(tables.CONTACTS),
    "versions": tables.in_files(tables.VERSIONS),
    "rejects": tables.REJECTS,
    "windows": tables.WINDOWS,
    "strikes": tables.STRIKES,
}
_EVEN_IF_EMPTY = ("current", "versions")
"""Written even if empty, so that readers of a new target find the columns."""

_Source = str | DataFile
"""The source of a file: a relation with its condition, or a published file that is kept."""


def write(connection: duckdb.DuckDBPyConnection, chain: parquet_layout.Chain, folder: Path, seq: int) -> list[DataFile]:
    """Prepare all files of run `seq` in `folder`, from the last state and the merge result in `connection`."""
    return [file for content in parquet_layout.CONTENTS for file in _content(connection, chain, folder, content, seq)]


def _content(
    connection: duckdb.DuckDBPyConnection, chain: parquet_layout.Chain, folder: Path, content: str, seq: int
) -> list[DataFile]:
    home = files.private_folder(folder / parquet_layout.part_folder(content, seq))
    written: list[DataFile] = []
    for number, source in enumerate(_SOURCES[content](connection, chain), start=1):
        path = home / f"part-{number:06d}.parquet"
        made = _link(chain, source, path) if isinstance(source, DataFile) else _copy(connection, content, source, path)
        written.append(replace(made, path=str(path.relative_to(folder))))
    kept = [file for file in written if file.rows] or (written[:1] if content in _EVEN_IF_EMPTY else [])
    for file in written:
        if file not in kept:
            files.remove(folder / file.path)
    if not kept:
        files.remove(home.parent)
    return kept


def _link(chain: parquet_layout.Chain, file: DataFile, path: Path) -> DataFile:
    """Link a published file to `path`; `parquet_layout.refuse_altered` has checked it before the merge."""
    if not files.link_or_copy(chain.target / file.path, path):
        log.info("sink.copied", file=path.name, reason="no hard link can be made here")
        if _sha256(path) != file.sha256:
            raise SinkError(
                "A copy differs from what was copied", where=str(path), hint="Check the disk, then run again."
            )
    return file


def _copy(connection: duckdb.DuckDBPyConnection, content: str, relation: str, path: Path) -> DataFile:
    columns = _COLUMNS[content]
    # DuckDB marks a column as required if it knows that it has no nulls; an empty branch of nulls keeps the schema of
    # all files the same.
    nulls = ", ".join(f"NULL::{kind}" for _, kind in columns)
    query = f"SELECT {tables.names(columns)} FROM {relation} UNION ALL SELECT {nulls} FROM range(0)"
    copied = connection.execute(f"COPY ({query}) TO {duck.literal(path)} ({duck.PARQUET})").fetchone()
    files.make_private(path)
    return DataFile("", int(copied[0]) if copied else 0, path.stat().st_size, _sha256(path))


def _sha256(path: Path) -> str:
    with files.translate_os_errors("read back", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(connection: duckdb.DuckDBPyConnection, chain: parquet_layout.Chain) -> Iterator[_Source]:
    published = {chain.target / file.path: file for file in chain.entries("current")}
    for piece in partitions.next_state(connection, tuple(published)):
        if piece.stale:
            yield _rewritten(piece)
        else:
            yield published[piece.files[0]]


def _rewritten(piece: Slice) -> str:
    names = tables.names(tables.CONTACTS)
    contacts = duck.scan(piece.files, _COLUMNS["current"])
    at = piece.within.holds("created_at")
    return f"""(
        SELECT {names} FROM ({contacts}) ANTI JOIN (FROM outgoing WHERE {at}) USING (account, contact_id) WHERE {at}
        UNION ALL SELECT {names} FROM upserts WHERE {at} AND {piece.within.holds("cut_at")}
    )"""


def _versions(connection: duckdb.DuckDBPyConnection, _: parquet_layout.Chain) -> Iterator[_Source]:
    return (f"versions WHERE {within}" for within in partitions.shares(connection, partitions.SLICE_ROWS))


_SOURCES: dict[str, Callable[[duckdb.DuckDBPyConnection, parquet_layout.Chain], Iterator[_Source]]] = {
    "current": _state,
    "versions": _versions,
    "rejects": lambda *_: iter(("next_rejects",)),
    "windows": lambda *_: iter(("next_windows",)),
    "strikes": lambda *_: iter(("next_strikes",)),
}
