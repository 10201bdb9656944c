"""Writes the files of one run in a Parquet folder, range by range; unchanged files are hard-linked.

A linked file is in the folders of several states and is stored once; published files are never modified. If the file
system has no links, the file is copied.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

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
_RELATIONS = {
    "current": "contacts",
    "versions": "contact_versions",
    "rejects": "rejects",
    "windows": "etl.windows",
    "strikes": "etl.strikes",
}
"""Where a connection to a published target holds each content."""
_CONTACT = tables.names(tables.CONTACTS)
_EVEN_IF_EMPTY = ("current", "versions")
"""Written even if empty, so that readers of a new target find the columns."""

_Source = str | DataFile
"""The source of a file: a relation with its condition, or a published file that is kept."""


def write(connection: duckdb.DuckDBPyConnection, chain: parquet_layout.Chain, folder: Path, seq: int) -> list[DataFile]:
    """Prepare all files of run `seq` in `folder`, from the last state and the merge result in `connection`."""
    published: list[DataFile] = []
    for contents in _contents(chain):
        homes = {
            content: files.private_folder(folder / parquet_layout.part_folder(content, seq)) for content in contents
        }
        written: dict[str, list[DataFile]] = {content: [] for content in contents}
        for number, source in enumerate(_sources(connection, chain, contents[-1]), start=1):
            paths = {content: home / f"part-{number:06d}.parquet" for content, home in homes.items()}
            if isinstance(source, DataFile):
                made = {content: _link(chain, source, path) for content, path in paths.items()}
            else:
                made = _copy(connection, source, paths)
            for content, file in made.items():
                written[content].append(replace(file, path=str(paths[content].relative_to(folder))))
        for content, found in written.items():
            published += _kept(folder, content, found)
    return published


def copy_all(connection: duckdb.DuckDBPyConnection, folder: Path, seq: int) -> list[DataFile]:
    """Write all tables of a connection as files of run `seq` in `folder`."""
    published: list[DataFile] = []
    for content, relation in _RELATIONS.items():
        home, written = files.private_folder(folder / parquet_layout.part_folder(content, seq)), list[DataFile]()
        by_time = "created_at" in dict(_COLUMNS[content])
        for number, share in enumerate(partitions.evenly(connection, relation) if by_time else ["true"], start=1):
            path = home / f"part-{number:06d}.parquet"
            [file] = _copy(connection, f"{relation} WHERE {share}", {content: path}).values()
            written.append(replace(file, path=str(path.relative_to(folder))))
        published += _kept(folder, content, written)
    return published


def _contents(chain: parquet_layout.Chain) -> Iterator[tuple[str, ...]]:
    """The contents in order; those with the same rows are written together, which costs one query instead of two."""
    if chain.manifests:
        yield from ((content,) for content in parquet_layout.CONTENTS)
    else:
        same = ("current", "versions")
        yield same
        yield from ((content,) for content in parquet_layout.CONTENTS if content not in same)


def _kept(folder: Path, content: str, written: Sequence[DataFile]) -> list[DataFile]:
    """The files that have rows; the others are removed, and with the last one their folder."""
    kept = [file for file in written if file.rows] or list(written[:1] if content in _EVEN_IF_EMPTY else ())
    for file in written:
        if file not in kept:
            files.remove(folder / file.path)
    if written and not kept:
        files.remove((folder / written[0].path).parent)
    return kept


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
        changed = connection.execute("SELECT EXISTS (FROM next_rejects)").fetchall() == [(True,)]
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


def _copy(connection: duckdb.DuckDBPyConnection, relation: str, paths: Mapping[str, Path]) -> dict[str, DataFile]:
    """Write the rows of a relation to one file per content, each with its own columns.

    Arrow encodes them in two thirds of the time that COPY takes, and one query can fill two files.
    """
    columns = {content: [name for name, _ in _COLUMNS[content]] for content in paths}
    widest = max((_COLUMNS[content] for content in paths), key=len)
    typed = ", ".join(f"{duck.quoted(name)}::{kind} AS {duck.quoted(name)}" for name, kind in widest)
    schema, groups = duck.stream(connection, f"SELECT {typed} FROM {relation}")
    rows = 0
    with ExitStack() as opened:
        writers = {
            content: opened.enter_context(_writer(path, pa.schema([schema.field(name) for name in columns[content]])))
            for content, path in paths.items()
        }
        for group in groups:
            rows += group.num_rows
            for content, writer in writers.items():
                writer.write_table(group.select(columns[content]))
    return {content: DataFile("", rows, path.stat().st_size, files.sha256(path)) for content, path in paths.items()}


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A new file that gets a row group with each table."""
    with (
        files.translate_os_errors("write the file", files.private_file(path)),
        pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, store_schema=False) as writer,
    ):
        yield writer
