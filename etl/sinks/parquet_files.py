"""Writes the files of one run in a Parquet folder, range by range; unchanged files are hard-linked.

A linked file is in the folders of several states and is stored once; published files are never modified. If the file
system has no links, the file is copied.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb

from etl.errors import SinkError
from etl.log import log
from etl.sinks import parquet_layout, partitions, rejects, tables
from etl.sinks.manifest import DataFile
from etl.storage import duck, files

_COLUMNS: dict[str, tables.Columns] = {
    "current": tables.in_files(tables.CONTACTS),
    "versions": tables.in_files(tables.VERSIONS),
    "rejects": tables.REJECTS,
    "windows": tables.WINDOWS,
    "strikes": tables.STRIKES,
}
_CONTACT = tables.names(tables.CONTACTS)
_EVEN_IF_EMPTY = ("current", "versions")
"""Written even if empty, so that readers of a new target find the columns."""

_Source = str | DataFile
"""The source of a file: a relation with its condition, or a published file that is kept."""


def write(connection: duckdb.DuckDBPyConnection, chain: parquet_layout.Chain, folder: Path, seq: int) -> list[DataFile]:
    """Prepare all files of run `seq` in `folder`, from the last state and the merge result in `connection`."""
    published: list[DataFile] = []
    for content in parquet_layout.CONTENTS:
        home = files.private_folder(folder / parquet_layout.part_folder(content, seq))
        written: list[DataFile] = []
        for number, source in enumerate(_sources(connection, chain, content), start=1):
            path = home / f"part-{number:06d}.parquet"
            if isinstance(source, DataFile):
                made = _link(chain, source, path)
            else:
                made = _copy(connection, content, source, path)
            written.append(replace(made, path=str(path.relative_to(folder))))
        kept = [file for file in written if file.rows] or (written[:1] if content in _EVEN_IF_EMPTY else [])
        for file in written:
            if file not in kept:
                files.remove(folder / file.path)
        if not kept:
            files.remove(home.parent)
        published += kept
    return published


def _sources(connection: duckdb.DuckDBPyConnection, chain: parquet_layout.Chain, content: str) -> Iterator[_Source]:
    """The sources of the files of one content, in order."""
    if content == "current":
        current = {chain.target / file.path: file for file in chain.entries(content)}
        for piece in partitions.next_state(connection, tuple(current)):
            if piece.stale:
                contacts, at = duck.scan(piece.files, _COLUMNS[content]), piece.within.holds("created_at")
                yield f"""(
                    SELECT {_CONTACT} FROM ({contacts})
                    ANTI JOIN (FROM outgoing WHERE {at}) USING (account, contact_id) WHERE {at}
                    UNION ALL SELECT {_CONTACT} FROM upserts WHERE {at} AND {piece.within.holds("cut_at")}
                )"""
            else:
                yield current[piece.files[0]]
    elif content == "versions":
        for share in partitions.shares(connection, partitions.SLICE_ROWS):
            yield f"versions WHERE {share}"
    elif content == "rejects":
        changed = connection.execute("SELECT EXISTS (FROM next_rejects)").fetchone() == (True,)
        yield from (rejects.STATE,) if changed or not chain.complete_rejects else chain.entries(content)
    else:
        yield f"next_{content}"


def _link(chain: parquet_layout.Chain, file: DataFile, path: Path) -> DataFile:
    """Link a published file to `path`; `parquet_layout.refuse_altered` has checked it before the merge."""
    if not files.link_or_copy(chain.target / file.path, path):
        log.info("sink.copied", file=path.name, reason="no hard link can be made here")
        if files.sha256(path) != file.sha256:
            raise SinkError("a copy differs from the original", where=str(path), hint="Check the disk, then run again.")
    return file


def _copy(connection: duckdb.DuckDBPyConnection, content: str, relation: str, path: Path) -> DataFile:
    columns = _COLUMNS[content]
    # DuckDB marks a column as required if it knows that it has no nulls; an empty branch of nulls keeps the schema of
    # all files the same.
    nulls = ", ".join(f"NULL::{kind}" for _, kind in columns)
    query = f"SELECT {tables.names(columns)} FROM {relation} UNION ALL SELECT {nulls} FROM range(0)"
    copied = connection.execute(f"COPY ({query}) TO {duck.literal(path)} ({duck.PARQUET})").fetchone()
    files.make_private(path)
    return DataFile("", int(copied[0]) if copied else 0, path.stat().st_size, files.sha256(path))
