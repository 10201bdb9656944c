"""Reading a published target with SQL: the same four tables and `contacts_as_of(t)`, whatever the sink.

A connection from here cannot write to the target, and sees one published snapshot however long it lives. What the
engine cannot read is damage, and is told as such; only what a user asks can be wrong in other ways (see `select`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from etl import disk, engine, staging, tables
from etl.errors import EtlError, SinkError, TargetCorrupt, UsageError
from etl.sinks import check, layout
from etl.sinks.duckdb import SIZE, refuse_cut_off

_RELATIONS = """
SELECT DISTINCT schema_name || '.' || table_name FROM duckdb_columns() WHERE database_name = 'target' AND NOT internal
"""
_HARMLESS = {
    "lock on file": "Close the program that writes to it, then ask again.",
    "Too many open files": "Raise the limit of open files (ulimit -n), then ask again.",
    "Interrupted system call": "Ask again.",
    "Out of Memory": "Give it more memory, then ask again.",
}
"""Reasons, by the engine's words, for which a target that is whole cannot be read; each with its mend."""


class Unpublished(UsageError):
    """The target holds nothing of ours yet."""

    default_mend = "Run `etl run` first."


@contextmanager
def open_readonly(kind: check.SinkKind, path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection in which `contacts`, `contact_versions`, `runs`, `rejects` and `contacts_as_of` stand.

    Raises `Unpublished` where nothing was published yet, `SinkError` where the target cannot be read for reasons that
    lie elsewhere, and `TargetCorrupt` where it is empty, cut off, damaged or not ours: also later, in the block.
    """
    if not path.exists():
        raise Unpublished("Nothing was published yet", where=str(path))
    try:
        with _duckdb(path) if kind == "duckdb" else _parquet(path) as connection:
            yield connection
    except duckdb.Error as error:
        raise _translated(error, path) from error


def _translated(error: duckdb.Error, path: Path) -> EtlError:
    reason = str(error).partition("\n")[0]
    mend = next((mend for words, mend in _HARMLESS.items() if words in reason), "")
    told = f"The target cannot be read: {reason}"
    return SinkError(told, where=str(path), mend=mend) if mend else TargetCorrupt(told, where=str(path))


def select(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The rows of one reading statement.

    Raises `UsageError` with the engine's message, or for any other kind of statement, and `TargetCorrupt`.
    """
    try:
        statements = connection.extract_statements(query)
        # DESCRIBE, SHOW, SUMMARIZE and FROM are SELECTs too. EXPLAIN is refused: EXPLAIN ANALYZE executes.
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise UsageError("Only one reading statement is possible, such as SELECT or DESCRIBE", where="query")
        return connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        if check.is_damage(error):
            raise TargetCorrupt(f"The target is damaged: {error}", where="query") from error
        raise UsageError(str(error), where="query") from error


def _duckdb(path: Path) -> duckdb.DuckDBPyConnection:
    with disk.doing("read the target", path), path.open("rb") as file:
        if not file.read(1):
            raise TargetCorrupt("The target is an empty file", where=str(path))
    connection = engine.connect()
    connection.execute(f"ATTACH {engine.literal(path)} AS target (READ_ONLY)")
    connection.execute("USE target")
    refuse_cut_off(path, *(connection.execute(SIZE).fetchone() or (1, 0)))
    _refuse_foreign({name for (name,) in connection.execute(_RELATIONS).fetchall()}, path)
    return _confined(connection)


def _refuse_foreign(relations: set[str], path: Path) -> None:
    """A file with the tables of others alone is one to which a run adds ours."""
    if "etl.manifests" in relations:
        return
    if foreign := relations & {f"main.{table}" for table in tables.PUBLIC}:
        raise TargetCorrupt(f"The file has a table {min(foreign)} that is not ours", where=str(path))
    raise Unpublished("Nothing was published into this file yet", where=str(path))


def _parquet(path: Path) -> duckdb.DuckDBPyConnection:
    chain = layout.read(path, runs=True)
    if not chain.manifests:
        _refuse_lost(chain)
    connection = engine.connect()
    connection.execute("CREATE SCHEMA etl")
    for table, content, columns in (
        ("contacts", "current", tables.CONTACTS),
        ("contact_versions", "versions", tables.VERSIONS),
        ("rejects", "rejects", tables.REJECTS),
        ("etl.windows", "windows", tables.WINDOWS),
        ("etl.strikes", "strikes", tables.STRIKES),
    ):
        query = engine.scan(chain.files(content), tables.in_files(columns))
        connection.execute(f"CREATE VIEW {table} AS {query}")
    connection.execute(tables.create("published_runs", tables.RUNS))
    connection.register("in_manifests", tables.run_rows(run for one in chain.manifests for run in one.runs))
    connection.execute(tables.insert_runs("published_runs", "in_manifests"))
    connection.unregister("in_manifests")
    # A view, so that no query can write to it.
    connection.execute("CREATE VIEW runs AS SELECT * FROM published_runs")
    connection.execute(tables.AS_OF)
    # The engine compares the path as it was named: with what is a pattern letter in it quoted.
    spellings = ", ".join(engine.literal(path) for path in (chain.target, engine.glob_safe(chain.target)))
    connection.execute(f"SET allowed_directories = [{spellings}]")
    return _confined(connection)


def _refuse_lost(chain: layout.Chain) -> None:
    """Files without any manifest are the state of nobody, unless a first run is at work or was killed."""
    if any(layout.unpublished(chain)) and not staging.prepared(chain.target):
        raise TargetCorrupt("No manifest lists the files in this folder", where=str(chain.target))
    raise Unpublished("Nothing was published into this folder yet", where=str(chain.target))


def _confined(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """A query reads the target and no other file."""
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection
