"""The tables of every SQL sink besides `contacts`: their columns, and how runs become rows.

`contacts`, `contact_versions`, `runs` and `rejects` are for people; `strikes`, `windows` and `manifests` are how the
next run knows the last one. Nothing here reads or writes.
"""

# ruff: noqa: S608 - SQL is made of the column table, of our own names, and of quoted literals.

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa

from etl import schema
from etl.model import RunRecord
from etl.storage import engine

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
"""The tables people query."""

STRIKES: Columns = (("account", "VARCHAR"), ("contact_id", "VARCHAR"), ("strikes", "TINYINT"), ("seq", "BIGINT"))
"""Contacts that were absent or listed as deleted: once, or twice and so deleted.

The deleted are kept, so that a soft-deleted contact that is still listed does not come back."""
WINDOWS: Columns = (
    ("account", "VARCHAR"),
    ("field", "VARCHAR"),
    ("is_contact", "BOOLEAN"),
    ("start", _TIME),
    ("end", _TIME),
    ("rows", "INTEGER"),
    ("request", "BIGINT"),
    ("attempts", "SMALLINT"),
    ("level", "VARCHAR"),
    ("seq", "BIGINT"),
)
"""schema.WINDOWS_SCHEMA and the run."""
MANIFESTS: Columns = (("seq", "BIGINT"), ("digest", "VARCHAR"), ("document", "VARCHAR"))

INTERNAL: dict[str, Columns] = {"strikes": STRIKES, "windows": WINDOWS, "manifests": MANIFESTS}
"""The tables in the schema `etl` of a database."""

# The versions are searched by their narrow columns first: a window function would carry whole rows.
AS_OF = f"""
CREATE OR REPLACE MACRO contacts_as_of(instant) AS TABLE
    WITH by_then AS (
        SELECT account, max(seq) AS upto FROM runs WHERE observed_at <= instant GROUP BY account
    )
    SELECT {engine.listed(schema.column_names())} FROM contact_versions SEMI JOIN (
        SELECT account, contact_id, max(seq) AS seq FROM contact_versions JOIN by_then USING (account)
        WHERE seq <= upto GROUP BY account, contact_id
    ) USING (account, contact_id, seq)
    WHERE op <> 'delete'
"""
"""The contacts as the last run up to an instant left them: the one with the highest number, account by account.

Versions are chosen by number, because a server's clock that goes back puts `observed_at` out of order."""


def in_files(columns: Columns) -> Columns:
    """The columns as Parquet files hold them: JSON is text there."""
    return tuple((name, "VARCHAR" if kind == "JSON" else kind) for name, kind in columns)


def create(table: str, columns: Columns) -> str:
    """The statement that makes a table where there is none."""
    body = ", ".join(f"{engine.quoted(name)} {kind}" for name, kind in columns)
    return f"CREATE TABLE IF NOT EXISTS {table} ({body})"


def names(columns: Columns) -> str:
    """The names as SQL."""
    return engine.listed(name for name, _ in columns)


def copy_part(contacts: str, account: str, name: str, file: Path) -> tuple[str, list[str]]:
    """The statement, with its parameters, that writes an account's contacts to a part of the account `name`."""
    kept = (column for column in in_files(CONTACTS) if column[0] not in {"account", *schema.STAMPED})
    values = ", ".join(f"{engine.quoted(column)}::{kind} AS {engine.quoted(column)}" for column, kind in kept)
    query = f"""
        COPY (SELECT ?::VARCHAR AS account, {values}, row_number() OVER () AS read_no FROM {contacts} WHERE account = ?)
        TO {engine.literal(file)} ({engine.PARQUET})
    """
    return query, [name, account]


def insert_runs(table: str, rows: str) -> str:
    """The statement that adds what `run_rows` made, registered as the relation `rows`, to the table of runs."""
    return f"INSERT INTO {table} ({names(RUNS)}) SELECT {names(RUNS)} FROM {rows}"


def run_rows(runs: Iterable[RunRecord]) -> pa.Table:
    """Runs as rows with the columns of RUNS; all at once, because the engine takes 2 ms for a row by itself."""
    held = tuple(runs)
    return pa.table({name: [value(run) for run in held] for name, _, value in _RUNS})
