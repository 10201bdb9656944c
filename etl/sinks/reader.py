"""Read-only SQL access to a published target: the same four tables and `contacts_as_of(t)` for every sink.

A connection cannot write to the target, and sees one published snapshot for its whole lifetime. Read errors of the
engine are reported as damage, except those that an intact target can cause (`duckdb_file.unreadable`); only user
queries can fail in other ways (see `select`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from etl.errors import EtlError, TargetCorrupt, UsageError
from etl.sinks import checks, duckdb_file, parquet_layout, rejects, tables
from etl.sinks.parquet_folder import FolderLog
from etl.sinks.parquet_log import Log
from etl.storage import duck, files

_ONE_READING = "only one reading statement is possible, such as SELECT or DESCRIBE"
_BATCH = 2048
"""Rows."""
_NOT_IN_PIVOT = re.compile(r"\b(copy|insert|update|delete|merge|query|query_table|json_execute\w*)\b", re.IGNORECASE)
"""Words that could write: a PIVOT without IN executes a query for its values during planning."""
_RUNS_TEXT = '"name": "JSON_EXECUTE_SERIALIZED_SQL"'
"""The only function, as it appears in a plan, that executes another statement."""


LocalKind = Literal["duckdb", "parquet"]
"""The kinds of a target that its path alone names; the others are read with `Sink.reading`."""


class Unpublished(UsageError):
    """Nothing has been published into the target yet."""

    default_hint = "Run `etl run` first."


def open_readonly(kind: LocalKind, path: Path) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A connection to a file or folder with `contacts`, `contact_versions`, `runs`, `rejects` and `contacts_as_of`.

    Raises `Unpublished` if nothing was published yet, `SinkError` if the target cannot be read for external reasons,
    and `TargetCorrupt` if it is empty, truncated, damaged or not ours; also later, inside the block.
    """
    match kind:
        case "duckdb":
            return _open_file(path)
        case "parquet":
            return open_log(FolderLog(path))


@contextmanager
def _open_file(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    if not path.exists():
        raise Unpublished("nothing was published yet", where=str(path))
    try:
        with _duckdb(path) as connection:
            yield connection
    except duckdb.Error as error:
        raise _unreadable(error, path) from error


@contextmanager
def open_log(log: Log) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the target of a log, as `open_readonly` gives it."""
    if not log.exists():
        raise Unpublished("nothing was published yet", where=log.location)
    failed: list[EtlError] = []
    try:
        with _parquet(log, failed) as connection:
            yield connection
    except (duckdb.Error, EtlError) as error:
        if failed:  # The engine reports it in its own words, and `select` takes it for an error of the query.
            raise failed[0] from error
        if isinstance(error, EtlError):
            raise
        raise _unreadable(error, log.location) from error


def _unreadable(error: duckdb.Error, target: Path | str) -> EtlError:
    return duckdb_file.unreadable(checks.words(error).partition("\n")[0], target)


def select(connection: duckdb.DuckDBPyConnection, query: str, *, most: int | None = None) -> pa.Table:
    """Return the rows of one read-only statement, or its first `most` rows or a few more.

    Raises `UsageError` with the engine's message or for any other kind of statement, and `TargetCorrupt`.
    """
    try:
        statement = _bare(query)
        connection.extract_statements(query)  # The original must parse: `_bare` would hide an unclosed comment.
        _refuse_writing(connection, statement)
        found = connection.sql(statement)
        return found.to_arrow_table() if most is None else _first(found, most)
    except UnicodeEncodeError as error:
        raise UsageError("the query is not text in UTF-8", where="query") from error
    except duckdb.Error as error:
        if checks.is_damage(error):
            raise TargetCorrupt(f"the target is damaged: {checks.words(error)}", where="query") from error
        raise UsageError(checks.words(error), where="query") from error


def _first(found: duckdb.DuckDBPyRelation, most: int) -> pa.Table:
    """The batches with the first `most` rows; the others are never made."""
    reader, batches = found.to_arrow_reader(_BATCH), list[pa.RecordBatch]()
    for batch in reader:
        batches.append(batch)
        most -= batch.num_rows
        if most <= 0:
            break
    return pa.Table.from_batches(batches, reader.schema)


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
    return confined(connection)


def _parquet(log: Log, failed: list[EtlError]) -> duckdb.DuckDBPyConnection:
    """A connection to the target of a log; errors of reading files that are not local are appended to `failed`."""
    chain = log.read(runs=True)
    if not chain.manifests:
        # Files without a manifest are lost data, unless an unfinished first run explains them.
        log.refuse_lost(chain)
        raise Unpublished("nothing was published there yet", where=log.location)
    from etl.sinks.published import PublishedFiles, RemoteFiles  # noqa: PLC0415 - costs 0.1 s, only for this kind

    entries = {content: chain.entries(content) for content in parquet_layout.CONTENTS}
    sizes = {chain.target / file.path: file.bytes for found in entries.values() for file in found}
    published = PublishedFiles(chain.target, sizes)
    if log.read_range:
        published = RemoteFiles(chain.target, sizes, log.read_range, failed)
    names = {
        content: [PublishedFiles.name(chain.target, chain.target / file.path) for file in found]
        for content, found in entries.items()
    }
    views = {
        "contacts": duck.scan(names["current"], tables.in_files(tables.CONTACTS)),
        "contact_versions": duck.scan(names["versions"], tables.in_files(tables.VERSIONS)),
        "rejects": rejects.scan(names["rejects"], complete=chain.complete_rejects),
        "etl.windows": duck.scan(names["windows"], tables.WINDOWS),
        "etl.strikes": duck.scan(names["strikes"], tables.STRIKES),
    }
    connection = duck.connect()
    connection.register_filesystem(published)
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
    return confined(connection)


def confined(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Restrict queries to reading the target: no other files, no writes."""
    connection.execute("SET enable_external_access = false")
    # That alone lets COPY write to every readable file, such as the attached one. Files already open stay readable.
    connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
    connection.execute("SET lock_configuration = true")
    return connection
