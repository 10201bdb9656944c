"""Queries on an account's published contacts, the same for all sinks.

They work on an engine that has the published snapshot as the relations `contacts` and `strikes`.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from etl import schema
from etl.model import Span
from etl.sinks import tables
from etl.storage import duck, files

_CREATED_AT = """
SELECT c.created_at, c.is_contact, s.strikes IS NOT NULL AS struck
FROM contacts c LEFT JOIN strikes s ON c.account = s.account AND c.contact_id = s.contact_id
WHERE c.account = ? AND c.created_at IS NOT NULL ORDER BY c.created_at
"""

NO_TIMES = pa.schema([("created_at", schema.TIME), ("is_contact", pa.bool_()), ("struck", pa.bool_())]).empty_table()
"""The result of `created_at` for an account that has no contacts: starting an engine for it would take 20 ms."""


def created_at(connection: duckdb.DuckDBPyConnection, account: str) -> pa.Table:
    """See `Sink.created_at`."""
    return connection.sql(_CREATED_AT, params=[account]).to_arrow_table()


def copy_ids(connection: duckdb.DuckDBPyConnection, account: str, file: Path, within: Span | None) -> None:
    """See `Sink.copy_ids`. Deleted contacts count as known: one that stays listed as DELETED is not new."""
    chosen = """
        SELECT contact_id, coalesce(strikes, 0)::TINYINT AS strikes
        FROM contacts LEFT JOIN strikes USING (account, contact_id) WHERE account = ?
    """
    parameters: list[str | datetime] = [account]
    if within is None:
        chosen += " UNION ALL SELECT contact_id, strikes FROM strikes WHERE account = ? AND strikes > 1"
        parameters.append(account)
    else:
        chosen += " AND created_at IS NOT NULL"
        for bound, condition in ((within.start, "created_at >= ?"), (within.end, "created_at < ?")):
            if bound is not None:
                chosen += f" AND {condition}"
                parameters.append(bound)
    _copy(connection, chosen, parameters, file, "FORMAT parquet")


def copy_contacts(connection: duckdb.DuckDBPyConnection, account: str, name: str, file: Path) -> int:
    """See `Sink.copy_contacts`."""
    kept = [column for column in tables.in_files(tables.CONTACTS) if column[0] not in {"account", *schema.STAMPED}]
    values = ", ".join(f"{duck.quoted(column)}::{kind} AS {duck.quoted(column)}" for column, kind in kept)
    query = f"""
        SELECT ?::VARCHAR AS account, {values}, row_number() OVER () AS read_no FROM contacts WHERE account = ?
    """
    return _copy(connection, query, [name, account], file, duck.PARQUET)


def _copy(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: list[str | datetime], file: Path, options: str
) -> int:
    """Write the result to a new private file; return the number of rows."""
    files.private_file(file)
    [[rows]] = connection.execute(f"COPY ({query}) TO {duck.literal(file)} ({options})", parameters).fetchall()
    # The engine has replaced the private file with a new one.
    files.make_private(file)
    return int(rows)
