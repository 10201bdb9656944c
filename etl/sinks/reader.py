"""Read-only SQL access to a published target: the same four tables and `contacts_as_of(t)` for every sink.

A connection cannot write to the target, and sees one published snapshot for its whole lifetime. Read errors of the
engine are reported as damage, except those that an intact target can cause (`duckdb_file.unreadable`); only user
queries can fail in other ways (see `select`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from etl.errors import TargetCorrupt, UsageError
from etl.sinks import checks, duckdb_file, parquet_layout, rejects, tables
from etl.sinks.sink import SinkKind
from etl.storage import duck, files, staging

_ONE_READING = "only one reading statement is possible, such as SELECT or DESCRIBE"
_NOT_IN_PIVOT = re.compile(r"\b(copy|insert|update|delete|merge|query|query_table|json_execute\w*)\b", re.IGNORECASE)
"""Words that could write: a PIVOT without IN executes a query for its values during planning."""
_RUNS_TEXT = '"name": "JSON_EXECUTE_SERIALIZED_SQL"'
"""The only function, as it appears in a plan, that executes another statement."""


class Unpublished(UsageError):
    """Nothing has been published into the target yet."""

    default_hint = "Run `etl run` first."


@contextmanager
def open_readonly(kind: SinkKind, path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with `contacts`, `contact_versions`, `runs`, `rejects` and `contacts_as_of`.

    Raises `Unpublished` if nothing was published yet, `SinkError` if the target cannot be read for external reasons,
    and `TargetCorrupt` if it is empty, truncated, damaged or not ours; also later, inside the block.
    """
    if not path.exists():
        raise Unpublished("nothing was published yet", where=str(path))
    try:
        with _duckdb(path) if kind == "duckdb" else _parquet(path) as connection:
            yield connection
    except duckdb.Error as error:
        raise duckdb_file.unreadable(checks.words(error).partition("\n")[0], path) from error


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
        raise UsageError("the query is not text in UTF-8", where="query") from error
    except duckdb.Error as error:
        if checks.is_damage(error):
            raise TargetCorrupt(f"the target is damaged: {checks.words(error)}", where="query") from error
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
    with files.translate_os_errors("read the target", path), path.open("rb") as file:
        duckdb_file.refuse_empty(path, os.fstat(file.fileno()).st_size)
    connection = duck.connect()
    connection.execute(f"ATTACH {duck.literal(path)} AS target (READ_ONLY)")
    connection.execute("USE target")
    duckdb_file.refuse_cut_off(path, *(connection.execute(duckdb_file.SIZE).fetchone() or (1, 0)))
    held = duckdb_file.held(connection.execute(duckdb_file.COLUMNS).fetchall())
    if not duckdb_file.is_published(held):
        duckdb_file.refuse_foreign(held, path)
        raise Unpublished("nothing was published into this file yet", where=str(path))
    if held.get(("main", "rejects"), {}).keys().isdisjoint(rejects.ADDED):
        connection.execute(f"CREATE TEMP VIEW rejects AS {rejects.once('target.main.rejects')}")
    return _confined(connection)


def _parquet(path: Path) -> duckdb.DuckDBPyConnection:
    chain = parquet_layout.read(path, runs=True)
    if not chain.manifests:
        # Files without a manifest are lost data, unless an unfinished first run explains them.
        if any(parquet_layout.unpublished(chain)) and not staging.prepared(chain.target):
            raise TargetCorrupt("no manifest lists the files in this folder", where=str(chain.target))
        raise Unpublished("nothing was published into this folder yet", where=str(chain.target))
    from etl.sinks.published import PublishedFiles  # noqa: PLC0415 - costs 0.1 s, only needed for this kind of target

    paths = {content: chain.files(content) for content in parquet_layout.CONTENTS}
    names = {content: [PublishedFiles.name(path, file) for file in found] for content, found in paths.items()}
    views = {
        "contacts": duck.scan(names["current"], tables.in_files(tables.CONTACTS)),
        "contact_versions": duck.scan(names["versions"], tables.in_files(tables.VERSIONS)),
        "rejects": rejects.scan(names["rejects"], complete=chain.complete_rejects),
        "etl.windows": duck.scan(names["windows"], tables.WINDOWS),
        "etl.strikes": duck.scan(names["strikes"], tables.STRIKES),
    }
    connection = duck.connect()
    connection.register_filesystem(PublishedFiles(path, (file for found in paths.values() for file in found)))
    connection.execute("CREATE SCHEMA etl")
    for view, query in views.items():
        connection.execute(f"CREATE VIEW {view} AS {query}")
    connection.execute(tables.create("published_runs", tables.RUNS))
    connection.register("in_manifests", tables.run_rows(run for one in chain.manifests for run in one.runs))
    connection.execute(tables.insert_runs("published_runs", "in_manifests"))
    connection.unregister("in_manifests")
    # A view, so that no query can write to it.
    connection.execute("CREATE VIEW runs AS SELECT * FROM published_runs")
    connection.execute(tables.AS_OF)
    connection.execute(f"SET allowed_directories = ['{PublishedFiles.protocol}://']")
    return _confined(connection)


def _confined(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Restrict queries to reading the target: no other files, no writes."""
    connection.execute("SET enable_external_access = false")
    # That alone lets COPY write to every readable file, such as the attached one. Files already open stay readable.
    connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
    connection.execute("SET lock_configuration = true")
    return connection
