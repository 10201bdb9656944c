"""The tables of every SQL sink besides `contacts`: their columns, and the conversion of runs to rows.

`contacts`, `contact_versions`, `runs` and `rejects` are for users; `strikes`, `windows` and `manifests` carry the state
from one run to the next. No I/O.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import pyarrow as pa

from etl import schema
from etl.model import RunRecord
from etl.storage import duck

_TIME = "TIMESTAMP WITH TIME ZONE"

Columns = tuple[tuple[str, str], ...]
"""Names and SQL types, in order."""


def _columns(columns: tuple[schema.Column, ...]) -> Columns:
    return tuple((column.name, column.sql) for column in columns)


_RUNS: tuple[tuple[str, str, Callable[[RunRecord], object]], ...] = (
    ("seq", "BIGINT", lambda run: run.seq),
    ("run_id", "VARCHAR", lambda run: run.run_id),
    ("account", "VARCHAR", lambda run: run.account),
    ("mode", "VARCHAR", lambda run: run.mode),
    ("observed_at", _TIME, lambda run: run.t0),
    ("watermark", _TIME, lambda run: run.watermark),
    ("seconds", "DOUBLE", lambda run: run.seconds),
    ("proof_level", "VARCHAR", lambda run: run.proof.level),
    ("windows", "BIGINT", lambda run: run.proof.windows),
    ("unproven", "VARCHAR[]", lambda run: list(run.proof.unproven)),
    ("received", "BIGINT", lambda run: run.counts.received),
    ("new", "BIGINT", lambda run: run.counts.new),
    ("changed", "BIGINT", lambda run: run.counts.changed),
    ("unchanged", "BIGINT", lambda run: run.counts.unchanged),
    ("deleted", "BIGINT", lambda run: run.counts.deleted),
    ("folded", "BIGINT", lambda run: run.counts.folded),
    ("rejected", "BIGINT", lambda run: run.counts.rejected),
    ("contacts", "BIGINT", lambda run: run.counts.contacts),
    ("requests_sent", "BIGINT", lambda run: run.requests.sent),
    ("requests_retried", "BIGINT", lambda run: run.requests.retried),
    ("detail", "JSON", lambda run: json.dumps(run.detail)),
)

CONTACTS: Columns = _columns(schema.CONTACTS)
VERSIONS: Columns = (*CONTACTS, ("op", "VARCHAR"))
RUNS: Columns = tuple((name, kind) for name, kind, _ in _RUNS)
REJECTS: Columns = _columns(schema.REJECTS)

PUBLIC: dict[str, Columns] = {
    "contacts": CONTACTS,
    "contact_versions": VERSIONS,
    "runs": RUNS,
    "rejects": REJECTS,
}
"""The tables for users."""

STRIKES: Columns = (("account", "VARCHAR"), ("contact_id", "VARCHAR"), ("strikes", "TINYINT"), ("seq", "BIGINT"))
"""Contacts that were absent or listed as deleted: once, or twice and therefore deleted.

Deleted contacts are kept, so that a soft-deleted contact that is still listed does not reappear."""
_STORED: dict[pa.DataType, str] = {
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    schema.TIME: _TIME,
}
WINDOWS: Columns = (*((field.name, _STORED[field.type]) for field in schema.WINDOWS_SCHEMA), ("seq", "BIGINT"))
"""The columns of `schema.WINDOWS_SCHEMA` and the run number."""
MANIFESTS: Columns = (("seq", "BIGINT"), ("digest", "VARCHAR"), ("document", "VARCHAR"))

INTERNAL: dict[str, Columns] = {"strikes": STRIKES, "windows": WINDOWS, "manifests": MANIFESTS}
"""The tables in the schema `etl` of a database."""

RELATIONS: dict[str, Columns] = {**PUBLIC, "etl.strikes": STRIKES, "etl.windows": WINDOWS}
"""Everything that a target holds besides its manifests, by the relations of a connection that reads it."""

# Versions are searched by narrow columns first: a window function would carry whole rows.
AS_OF = f"""
CREATE OR REPLACE MACRO contacts_as_of(instant) AS TABLE
    WITH by_then AS (
        SELECT account, max(seq) AS upto FROM runs WHERE observed_at <= instant GROUP BY account
    )
    SELECT {duck.listed(schema.column_names())} FROM contact_versions SEMI JOIN (
        SELECT account, contact_id, max(seq) AS seq FROM contact_versions JOIN by_then USING (account)
        WHERE seq <= upto GROUP BY account, contact_id
    ) USING (account, contact_id, seq)
    WHERE op <> 'delete'
"""
"""The contacts as of the last run up to an instant: for each account, the run with the highest number.

Versions are chosen by number, because a server's clock that goes back puts `observed_at` out of order."""


def in_files(columns: Columns) -> Columns:
    """The columns as stored in Parquet files, with JSON as text."""
    return tuple((name, "VARCHAR" if kind == "JSON" else kind) for name, kind in columns)


def create(table: str, columns: Columns) -> str:
    """The statement that creates a table if it does not exist."""
    body = ", ".join(f"{duck.quoted(name)} {kind}" for name, kind in columns)
    return f"CREATE TABLE IF NOT EXISTS {table} ({body})"


def names(columns: Columns) -> str:
    """The column names as SQL."""
    return duck.listed(name for name, _ in columns)


def insert_runs(table: str, rows: str) -> str:
    """The statement that inserts the result of `run_rows`, registered as relation `rows`, into the table of runs."""
    return f"INSERT INTO {table} ({names(RUNS)}) SELECT {names(RUNS)} FROM {rows}"


def run_rows(runs: Iterable[RunRecord]) -> pa.Table:
    """Runs as rows with the columns of RUNS; in one batch, because a single insert takes the engine 2 ms."""
    held = tuple(runs)
    return pa.table({name: [value(run) for run in held] for name, _, value in _RUNS})
