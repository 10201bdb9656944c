"""Read-only access to a PostgreSQL schema: as relations of the engine, or by a query that the server runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path

import duckdb
import pyarrow as pa

from etl.errors import UsageError
from etl.sinks import checks, duckdb_file, postgres_tables
from etl.sinks.postgres_server import Dsn, Refused, session
from etl.sinks.reader import Unpublished, confined
from etl.storage import duck, staging

_TIME_LIMIT = "10min"
"""For a query that the server runs."""


@contextmanager
def attached(dsn: Dsn, where: str, home: str, memory: int, spill: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An engine with the published state of the schema as `contacts`, `runs`, ..., `etl.strikes`.

    Raises `Unpublished`, `SinkError`, `TargetCorrupt`.
    """
    # Datasets take 0.1 s to import, and only readers need them.
    from etl.sinks.postgres_snapshot import relate, snapshot  # noqa: PLC0415

    with snapshot(dsn, where) as (shown, server):
        found = postgres_tables.held(server.rows(postgres_tables.COLUMNS, home))
        if "etl_manifests" not in found:
            postgres_tables.refuse_foreign(found, where)
            raise Unpublished("nothing was published yet", where=where)
        postgres_tables.refuse_altered(found, where)
        try:
            with duck.connect(memory, staging.spill_folder(spill) if spill else None) as engine:
                relate(engine, shown, home)
                yield engine
        except duckdb.Error as error:
            if shown.failed:
                raise shown.failed[0] from None
            raise duckdb_file.unreadable(checks.words(error).partition("\n")[0], Path(where)) from error


@contextmanager
def open_postgres(dsn: Dsn, where: str, home: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """See `reader.open_readonly`."""
    with attached(dsn, where, home, duck.MEMORY_LIMIT, None) as engine:
        yield confined(engine)


def answer(dsn: Dsn, where: str, home: str, query: str) -> pa.Table:
    """The rows of one reading statement, run by the server on the tables of the schema.

    Two things keep it from writing: the transaction is read-only, and only a query can be declared as a cursor.
    Raises `UsageError` with the server's message.
    """
    with session(dsn, where) as server:
        if "etl_manifests" not in postgres_tables.held(server.rows(postgres_tables.COLUMNS, home)):
            raise Unpublished("nothing was published yet", where=where)
        server.execute("BEGIN READ ONLY")
        server.execute(f"SET LOCAL search_path = {duck.quoted(home)}, public")
        server.execute(f"SET LOCAL statement_timeout = '{_TIME_LIMIT}'")
        try:
            server.execute(f"DECLARE answer NO SCROLL CURSOR FOR {query}")
            return _plain(server.table("FETCH ALL FROM answer", is_select=False))
        except Refused as error:
            raise UsageError(error.words, where="query") from error


def _plain(found: pa.Table) -> pa.Table:
    """The result with numbers as numbers, and JSON and other types of the server as text."""
    for index, column in enumerate(found.columns):
        if isinstance(column.type, pa.BaseExtensionType):
            values = column.cast(column.type.storage_type)
            if getattr(column.type, "type_name", "") == "numeric":
                with suppress(pa.ArrowInvalid, InvalidOperation):  # NaN and infinity stay text
                    values = pa.array([None if value is None else Decimal(value) for value in values.to_pylist()])
            found = found.set_column(index, found.column_names[index], values)
    return found
