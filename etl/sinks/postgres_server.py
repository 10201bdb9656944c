"""A PostgreSQL server: connections, statements, and Arrow data in both directions.

The only module that uses the driver. A DSN holds a password, and the driver repeats parts of it in its messages, so
these never reach an error: what went wrong is recognized by SQLSTATE or by known words, and said in our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from typing import Any

import pyarrow as pa

from etl.errors import SinkError, Unreachable
from etl.extras import importing

Dsn = Callable[[], str]
"""Reads the DSN from its variable or file; it is asked for each connection and never kept."""

_SETTINGS = {
    "application_name": "etl",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""Settings of a connection that its DSN does not name: a server that is gone is noticed after about a minute."""

_REFUSED = {
    "password authentication failed": "the server does not accept the password of this user",
    "no password supplied": "the server wants a password, and the DSN has none",
    "authentication failed": "the server does not accept this user",
    "no pg_hba.conf entry": "the server does not let this user in from this machine",
    'role "': "the server does not know this user",
    'database "': "the server has no such database",
    "permission denied for database": "this user may not connect to the database",
    "too many clients": "the server has no free connection",
    "remaining connection slots": "the server has no free connection",
    "starting up": "the server is starting up",
    "shutting down": "the server is shutting down",
    "recovery": "the server is in recovery",
    "could not translate host name": "the host of the DSN is not known",
    "Connection refused": "the server cannot be reached: connection refused",
    "timeout expired": "the server cannot be reached: it did not answer in time",
    "No such file or directory": "the server cannot be reached: its socket does not exist",
    "unreachable": "the server cannot be reached: there is no route to it",
    "does not support SSL": "the server does not support TLS, and the DSN asks for it",
    "certificate": "the certificate of the server cannot be verified",
    "closed the connection": "the server closed the connection",
}
"""What the driver says about a failed connection, and what that means; the first match counts."""

_MEANINGS = {
    "25006": ("the server is read-only", "Name the primary server in the DSN, then run again."),
    "28": ("the server does not accept this user any more", "Correct the DSN, then run again."),
    "40": ("the server ended the transaction because of another one", "Run again."),
    "42501": ("this user lacks a right", "Grant it, then run again."),
    "53100": ("the disk of the server is full", "Free space there, then run again."),
    "53": ("the server has too few resources", "Give it more, then run again."),
    "55P03": ("a table is locked by another session", "Run again when that session has ended."),
    "57014": ("the server cancelled the statement", "Raise its time limit for this user, then run again."),
    "57": ("the server ended the connection", "Run again when it is up."),
    "58": ("the server has a problem with its files", "Look at its log, then run again."),
}
"""What an SQLSTATE or its class means, with a hint; the longest match counts."""
_NAMES_ONLY = ("25", "42", "53", "55", "57", "58")
"""Classes of SQLSTATE whose messages contain names, never values of a row."""

BATCH_BYTES = 4 * 2**20
"""Bytes that the driver collects before it passes rows on."""


class ConnectionLost(Unreachable):
    """The connection broke: it is not known whether the last statement was executed."""


class Refused(SinkError):
    """The server did not execute a statement."""

    words = ""
    """What the server said; it may contain values of a row."""


class Retryable(Refused):
    """The transaction was rolled back because of another one, and may succeed if it is repeated."""


class Session:
    """One connection. Statements are committed one by one, unless between `BEGIN` and `COMMIT`."""

    def __init__(self, dsn: Dsn, where: str) -> None:
        """Connect. Raises `UsageError` if the driver is missing, `Unreachable`."""
        self._where = where
        driver = _driver()
        self._errors: type[Exception] = driver.Error
        try:
            self._connection = driver.connect(_with_settings(dsn()), autocommit=True)
        except driver.Error as error:
            told = next((ours for words, ours in _REFUSED.items() if words in str(error)), "cannot connect")
            raise Unreachable(told, where=where, hint="Correct the DSN or the server, then run again.") from None

    def close(self) -> None:
        """Close the connection; a transaction that is open ends without effect."""
        with suppress(self._errors):
            self._connection.close()

    def execute(self, statement: str, *parameters: object) -> None:
        """Execute one statement and ignore its rows."""
        with self._cursor() as cursor:
            cursor.execute(statement, parameters or None)

    def table(self, query: str, *parameters: object, is_select: bool = True) -> pa.Table:
        """All rows of a query; a statement that only returns rows, such as FETCH, is no SELECT."""
        with self._cursor({} if is_select else {"adbc.postgresql.use_copy": "false"}) as cursor:
            cursor.execute(query, parameters or None)
            return cursor.fetch_arrow_table()

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of a query, as tuples."""
        found = self.table(query, *parameters)
        return list(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def stream(self, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query as they come; no other statement can run until the last one was taken."""
        with self._cursor({"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}) as cursor:
            cursor.execute(query)
            yield from cursor.fetch_record_batch()

    def copy(self, rows: pa.RecordBatchReader, table: str, schema: str | None) -> int:
        """Append rows to a table by COPY, in any order of columns; `schema` None: a temporary table."""
        with self._cursor() as cursor:
            return int(cursor.adbc_ingest(table, rows, mode="append", db_schema_name=schema or "pg_temp"))

    @contextmanager
    def _cursor(self, options: dict[str, str] | None = None) -> Iterator[Any]:
        try:
            with closing(self._connection.cursor(adbc_stmt_kwargs=options)) as cursor:
                yield cursor
        except self._errors as error:
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> SinkError:
        state = getattr(error, "sqlstate", None) or ""
        if not state or state.startswith(("08", "57P")):
            return ConnectionLost("the connection to the server was lost", where=self._where)
        known = max((start for start in _MEANINGS if state.startswith(start)), key=len, default="")
        meaning, hint = _MEANINGS.get(known, (f"the server refused a statement (SQLSTATE {state})", ""))
        words = str(error).partition("ERROR:")[2].strip().partition("\n")[0]
        message = f"{meaning}: {words}" if state.startswith(_NAMES_ONLY) else meaning
        kind = Retryable if state.startswith("40") else Refused
        refused = kind(message, where=self._where, hint=hint)
        refused.words = words
        return refused


@contextmanager
def session(dsn: Dsn, where: str) -> Iterator[Session]:
    """A connection for the duration of the block. Raises as `Session`."""
    with closing(Session(dsn, where)) as opened:
        yield opened


def _driver() -> Any:
    """The driver, which takes 0.1 s to import and is an extra."""
    with importing("postgres", "PostgreSQL (adbc-driver-postgresql)", "sinks"):
        return import_module("adbc_driver_postgresql.dbapi")


def _with_settings(dsn: str) -> str:
    """The DSN, a URI or pairs of keyword and value, with those of `_SETTINGS` that it does not mention."""
    missing = [f"{name}={value}" for name, value in _SETTINGS.items() if name not in dsn]
    if "://" not in dsn:
        return " ".join([dsn, *missing])
    return dsn + ("&" if "?" in dsn else "?") + "&".join(missing) if missing else dsn
