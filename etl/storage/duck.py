"""The SQL engine: DuckDB with common settings, and shared SQL helpers.

Nothing is ever downloaded: the extensions in use (parquet, json, icu) are built into the wheel. Times are UTC.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

MEMORY_LIMIT = 1_000_000_000
"""Bytes that a query may use by default."""
FRUGAL = 90_000_000
"""Bytes sufficient to merge any number of contacts, unless they are very long."""
_VECTOR = 2048
"""Rows that the engine handles at once: the smallest batch that it gives."""
_GROUP_ROWS, _GROUP_BYTES = 8192, 16_000_000
# Several threads encode row groups at once, each holding one: small groups take 70 MB less than 20,480 rows each.
PARQUET = (
    "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, "
    f"ROW_GROUP_SIZE {_GROUP_ROWS}, ROW_GROUP_SIZE_BYTES {_GROUP_BYTES}"
)
"""COPY options for files of whole contacts."""
_THREAD_MEMORY = 45_000_000
"""Bytes that one thread takes to write Parquet: more threads than the limit allows would run out of memory."""


def connect(memory_limit: int = MEMORY_LIMIT, spill: Path | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory database with the limits of `bounds`."""
    # Async threads are for remote files: every engine would start eight of them, and our files are all local.
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "async_threads": 0})
    for statement in bounds(memory_limit, spill):
        connection.execute(statement)
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def bounds(memory_limit: int, spill: Path | None) -> tuple[str, ...]:
    """Statements that limit an engine's memory (bytes), beyond which it spills into the folder, if there is one."""
    return (
        f"SET memory_limit = '{memory_limit}B'",
        f"SET temp_directory = {literal(spill or '')}",
        f"SET threads = least(current_setting('threads'), {max(1, memory_limit // _THREAD_MEMORY)})",
        "SET preserve_insertion_order = false",
    )


def quoted(name: str) -> str:
    """An identifier as SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: object) -> str:
    """A text literal as SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def listed(names: Iterable[str], alias: str = "") -> str:
    """The columns as SQL, prefixed with the table alias, if any."""
    prefix = f"{alias}." if alias else ""
    return ", ".join(prefix + quoted(name) for name in names)


def scan(files: Iterable[Path | str], columns: Sequence[tuple[str, str]]) -> str:
    """A query for the columns (name, SQL type) in these Parquet files; returns no rows if there are no files."""
    paths = ", ".join(literal(glob_safe(file)) for file in files)
    if not paths:
        empty = ", ".join(f"NULL::{kind} AS {quoted(name)}" for name, kind in columns)
        return f"SELECT {empty} WHERE false"
    names = listed(name for name, _ in columns)
    # Otherwise folders named seq=N would become a column.
    return f"SELECT {names} FROM read_parquet([{paths}], hive_partitioning = false)"


def stream(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The columns of a query's result, and its rows in groups small enough to be held several at a time."""
    batches = connection.sql(query).to_arrow_reader(_VECTOR)
    return batches.schema, _groups(batches)


def _groups(batches: pa.RecordBatchReader) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    try:
        with batches:  # Until it is closed, the connection takes no other query.
            for batch in batches:
                waiting.append(batch)
                rows, size = sum(each.num_rows for each in waiting), sum(each.nbytes for each in waiting)
                if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                    yield pa.Table.from_batches(waiting)
                    waiting.clear()
    except OSError as error:  # Arrow's form of all errors of the engine: their kind is the beginning of the text.
        kind = duckdb.OutOfMemoryException if str(error).startswith("Out of Memory") else duckdb.IOException
        raise kind(str(error)) from error
    if waiting:
        yield pa.Table.from_batches(waiting)


def glob_safe(file: Path | str) -> str:
    """A path as a glob pattern that matches only this path."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(file))
