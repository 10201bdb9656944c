"""Read-only SQL access to a published target: the same four tables and `contacts_as_of(t)` for every sink.

A connection cannot write to the target, and sees one published snapshot for its whole lifetime. Read errors of the
engine are reported as damage, except those in `_HARMLESS`; only user queries can fail in other ways (see `select`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from etl.errors import OPEN_FILES_HINT, EtlError, SinkError, TargetCorrupt, UsageError
from etl.sinks import checks, parquet_layout, tables
from etl.sinks.duckdb import SIZE, refuse_cut_off
from etl.storage import disk, engine, staging

_RELATIONS = """
SELECT DISTINCT schema_name || '.' || table_name FROM duckdb_columns() WHERE database_name = 'target' AND NOT internal
"""
_HARMLESS = {
    "lock on file": "Close the program that writes to it, then ask again.",
    "Too many open files": OPEN_FILES_HINT,
    "Interrupted system call": "Ask again.",
    "Out of Memory": "Give it more memory, then ask again.",
}
"""Engine messages for which an intact target cannot be read, each with its hint."""
_ONE_READING = "Only one reading statement is possible, such as SELECT or DESCRIBE"
_NOT_IN_PIVOT = re.compile(r"\b(copy|insert|update|delete|merge|query|query_table|json_execute\w*)\b", re.IGNORECASE)
"""Words that could write: a PIVOT without IN executes a query for its values during planning."""
_RUNS_TEXT = '"name": "JSON_EXECUTE_SERIALIZED_SQL"'
"""The only function, as it appears in a plan, that executes another statement."""


class Unpublished(UsageError):
    """Nothing has been published into the target yet."""

    default_hint = "Run `etl run` first."


@contextmanager
def open_readonly(kind: checks.SinkKind, path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with `contacts`, `contact_versions`, `runs`, `rejects` and `contacts_as_of`.

    Raises `Unpublished` if nothing was published yet, `SinkError` if the target cannot be read for external reasons,
    and `TargetCorrupt` if it is empty, truncated, damaged or not ours; also later, inside the block.
    """
    if not path.exists():
        raise Unpublished("Nothing was published yet", where=str(path))
    try:
        with _duckdb(path) if kind == "duckdb" else _parquet(path) as connection:
            yield connection
    except duckdb.Error as error:
        raise _translated(error, path) from error


def _translated(error: duckdb.Error, path: Path) -> EtlError:
    reason = checks.words(error).partition("\n")[0]
    hint = next((hint for words, hint in _HARMLESS.items() if words in reason), "")
    told = f"The target cannot be read: {reason}"
    return SinkError(told, where=str(path), hint=hint) if hint else TargetCorrupt(told, where=str(path))


def select(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Return the rows of one read-only statement.

    Raises `UsageError` with the engine's message or for any other kind of statement, and `TargetCorrupt`.
    """
    try:
        statement = _bare(query)
        connection.extract_statements(query)  # The original must parse: `_bare` would hide an unclosed comment.
        _refuse_writing(connection, statement)
        return connection.sql(statement).to_arrow_table()
    except UnicodeEncodeError as error:
        raise UsageError("The query is not text in UTF-8", where="query") from error
    except duckdb.Error as error:
        if checks.is_damage(error):
            raise TargetCorrupt(f"The target is damaged: {checks.words(error)}", where="query") from error
        raise UsageError(checks.words(error), where="query") from error


def _bare(query: str) -> str:
    """The query without trailing semicolons and comments."""
    text = query.encode()
    for start, kind in reversed(duckdb.tokenize(query)):
        if kind != duckdb.token_type.comment and text[start:].strip() != b";":
            break
        text = text[:start]
    return text.decode()


def _refuse_writing(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Raise `UsageError` unless the statement only reads; for the engine, a SELECT may copy or insert in its WITH."""
    kinds = [found.type for found in connection.extract_statements(statement)]
    # DESCRIBE, SHOW, SUMMARIZE and FROM are SELECTs too. EXPLAIN is refused: EXPLAIN ANALYZE executes.
    if kinds not in ([duckdb.StatementType.SELECT], [duckdb.StatementType.MULTI]):
        raise UsageError(_ONE_READING, where="query")
    if kinds == [duckdb.StatementType.MULTI] and (word := _NOT_IN_PIVOT.search(statement)):
        hint = "Name the values of PIVOT: ON column IN (...)."
        raise UsageError(f"{_ONE_READING}; PIVOT takes no {word[0]}", where="query", hint=hint)
    try:  # Only a reading statement is accepted as a subquery.
        [[_, plan]] = connection.execute(f"EXPLAIN (FORMAT json) FROM (\n{statement}\n)").fetchall()
    except duckdb.Error as error:
        if "WITH clause containing" not in str(error):
            connection.execute(f"EXPLAIN {statement}")  # For an invalid query, raises the engine's own message.
        raise UsageError(f"{_ONE_READING}: {checks.words(error)}", where="query") from error
    if _RUNS_TEXT in plan:
        raise UsageError(f"{_ONE_READING}: json_execute_serialized_sql runs any", where="query")


def _duckdb(path: Path) -> duckdb.DuckDBPyConnection:
    with disk.translate_os_errors("read the target", path), path.open("rb") as file:
        if not file.read(1):
            raise TargetCorrupt("The target is an empty file", where=str(path))
    connection = engine.connect()
    connection.execute(f"ATTACH {engine.literal(path)} AS target (READ_ONLY)")
    connection.execute("USE target")
    refuse_cut_off(path, *(connection.execute(SIZE).fetchone() or (1, 0)))
    _refuse_foreign({name for (name,) in connection.execute(_RELATIONS).fetchall()}, path)
    return _confined(connection)


def _refuse_foreign(relations: set[str], path: Path) -> None:
    """Raise for a file without our tables: `TargetCorrupt` if a name is taken, else `Unpublished` (a run adds them)."""
    if "etl.manifests" in relations:
        return
    if foreign := relations & {f"main.{table}" for table in tables.PUBLIC}:
        raise TargetCorrupt(f"The file has a table {min(foreign)} that is not ours", where=str(path))
    raise Unpublished("Nothing was published into this file yet", where=str(path))


def _parquet(path: Path) -> duckdb.DuckDBPyConnection:
    chain = parquet_layout.read(path, runs=True)
    if not chain.manifests:
        _refuse_lost(chain)
    from etl.sinks.published import PublishedFiles  # noqa: PLC0415 - costs 0.1 s, only needed for this kind of target

    connection = engine.connect()
    connection.register_filesystem(
        PublishedFiles(chain.target, (f for name in parquet_layout.CONTENTS for f in chain.files(name)))
    )
    connection.execute("CREATE SCHEMA etl")
    for table, content, columns in (
        ("contacts", "current", tables.CONTACTS),
        ("contact_versions", "versions", tables.VERSIONS),
        ("rejects", "rejects", tables.REJECTS),
        ("etl.windows", "windows", tables.WINDOWS),
        ("etl.strikes", "strikes", tables.STRIKES),
    ):
        files = [PublishedFiles.name(chain.target, file) for file in chain.files(content)]
        query = engine.scan(files, tables.in_files(columns))
        connection.execute(f"CREATE VIEW {table} AS {query}")
    connection.execute(tables.create("published_runs", tables.RUNS))
    connection.register("in_manifests", tables.run_rows(run for one in chain.manifests for run in one.runs))
    connection.execute(tables.insert_runs("published_runs", "in_manifests"))
    connection.unregister("in_manifests")
    # A view, so that no query can write to it.
    connection.execute("CREATE VIEW runs AS SELECT * FROM published_runs")
    connection.execute(tables.AS_OF)
    connection.execute(f"SET allowed_directories = ['{PublishedFiles.protocol}://']")
    return _confined(connection)


def _refuse_lost(chain: parquet_layout.Chain) -> None:
    """Raise `Unpublished`, or `TargetCorrupt` for files without a manifest that no unfinished first run explains."""
    if any(parquet_layout.unpublished(chain)) and not staging.prepared(chain.target):
        raise TargetCorrupt("No manifest lists the files in this folder", where=str(chain.target))
    raise Unpublished("Nothing was published into this folder yet", where=str(chain.target))


def _confined(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Restrict queries to reading the target: no other files, no writes."""
    connection.execute("SET enable_external_access = false")
    # That alone lets COPY write to every readable file, such as the attached one. Files already open stay readable.
    connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
    connection.execute("SET lock_configuration = true")
    return connection
