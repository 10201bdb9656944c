"""Reading a published target with SQL: the same four tables and `contacts_as_of(t)`, whatever the sink.

A connection from here cannot write to the target, and sees one published snapshot however long it lives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from etl import engine, tables
from etl.errors import SinkError, TargetCorrupt, UsageError
from etl.sinks import check, layout

SinkKind = Literal["duckdb", "parquet"]


def open_readonly(kind: SinkKind, path: Path) -> duckdb.DuckDBPyConnection:
    """A connection in which `contacts`, `contact_versions`, `runs`, `rejects` and `contacts_as_of` stand.

    Raises `UsageError` where nothing was published yet, `SinkError` where the file cannot be opened, `TargetCorrupt`
    where the folder is damaged.
    """
    if not path.exists():
        raise UsageError("Nothing was published yet", where=str(path), mend="Run `etl run` first.")
    try:
        connection = _duckdb(path) if kind == "duckdb" else _parquet(layout.read(path))
    except duckdb.Error as error:
        raise SinkError(f"The target cannot be opened: {error}", where=str(path)) from error
    return connection


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
    connection = engine.connect()
    connection.execute(f"ATTACH {engine.literal(path)} AS target (READ_ONLY)")
    connection.execute("USE target")
    return _confined(connection)


def _parquet(chain: layout.Chain) -> duckdb.DuckDBPyConnection:
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
    for published in chain.manifests:
        connection.executemany(tables.insert_run("published_runs"), [tables.run_row(run) for run in published.runs])
    # A view, so that no query can write to it.
    connection.execute("CREATE VIEW runs AS SELECT * FROM published_runs")
    connection.execute(tables.AS_OF)
    # The engine compares the path as it was named: with what is a pattern letter in it quoted.
    spellings = ", ".join(engine.literal(path) for path in (chain.target, engine.glob_safe(chain.target)))
    connection.execute(f"SET allowed_directories = [{spellings}]")
    return _confined(connection)


def _confined(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """A query reads the target and no other file."""
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection
