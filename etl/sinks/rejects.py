"""`rejects` holds each rejected contact once, however many runs saw it.

A contact is identified by account and id; without an id, by account and the SHA-256 of its raw JSON. Its row has the
reason, path and raw JSON of the last run that saw it. A contact that is later read without fault keeps its row: the
table is a history.

Targets of manifest format 2 hold a row per run that saw the contact (`SIGHTINGS`). They are read through `once`, and
the next publication writes them in the new form.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import duckdb

from etl.sinks import tables
from etl.storage import duck

ADDED = ("first_seq", "last_seq", "seen")
"""Columns that targets of manifest format 2 do not have."""
SIGHTINGS: tables.Columns = tuple(column for column in tables.REJECTS if column[0] not in ADDED)
"""The columns of `rejects` in manifest format 2."""


def identity(alias: str) -> str:
    """What identifies a rejected contact within its account, as SQL over a row of `rejects`."""
    return f"coalesce('id ' || {alias}.contact_id, sha256({alias}.raw))"


def once(sightings: str, columns: str = "*") -> str:
    """A query for the newest of each contact's sightings, with `first_seq`, `last_seq` and `seen` over all of them.

    Two runs with the same T0 are one: the second one resumed the first one's reading.
    """
    return f"""
        SELECT {columns}, min(seq) OVER same AS first_seq, seq AS last_seq,
               count(DISTINCT observed_at) OVER same AS seen
        FROM {sightings} s WINDOW same AS (PARTITION BY account, {identity("s")})
        QUALIFY row_number() OVER (same ORDER BY seq DESC, reason, path, raw) = 1
    """


def scan(files: Iterable[Path | str], *, complete: bool) -> str:
    """A query for `rejects` in these Parquet files: one `complete` state, or the sightings of all runs."""
    return duck.scan(files, tables.REJECTS) if complete else once(f"({duck.scan(files, SIGHTINGS)})")


NEXT = f"""
CREATE TEMP TABLE next_rejects AS
    SELECT n.account, n.seq, n.observed_at, n.contact_id, n.reason, n.path, n.raw,
           coalesce(p.first_seq, n.first_seq) AS first_seq, n.last_seq,
           coalesce(p.seen, 0) + if(y.again AND p.observed_at >= n.observed_at, 0, 1) AS seen,
           p.account IS NOT NULL AS known
    FROM ({once("rejected")}) n
    JOIN yields y ON n.account = y.account
    LEFT JOIN rejects p ON n.account = p.account AND {identity("n")} = {identity("p")}
"""
"""Creates the rows of `rejects` that this run changes or adds; those it changes are `known`."""

_NAMES = tables.names(tables.REJECTS)
_TOUCHED = f"rejects.account = n.account AND {identity('rejects')} = {identity('n')}"
STATE = f"""(
    SELECT {_NAMES} FROM rejects ANTI JOIN next_rejects n ON {_TOUCHED}
    UNION ALL SELECT {_NAMES} FROM next_rejects
)"""
"""The complete table after this run, as a relation."""

_SET = ", ".join(f"{duck.quoted(name)} = n.{duck.quoted(name)}" for name, _ in tables.REJECTS)
WRITE = (
    # Columns that the user added keep their values.
    f"UPDATE rejects SET {_SET} FROM (FROM next_rejects WHERE known) n WHERE {_TOUCHED}",
    f"INSERT INTO rejects ({_NAMES}) SELECT {_NAMES} FROM next_rejects WHERE NOT known",
)
"""Statements that write the changes of this run into the table `rejects`."""


def upgrade(connection: duckdb.DuckDBPyConnection) -> None:
    """Add the columns of `ADDED` to a table `rejects` that lacks them, and keep each contact's newest row."""
    held = {name for name, *_ in connection.execute("SELECT * FROM rejects LIMIT 0").description or ()}
    if held.isdisjoint(ADDED):
        for name, kind in tables.REJECTS:
            if name in ADDED:
                connection.execute(f"ALTER TABLE rejects ADD COLUMN {name} {kind}")
        connection.execute(
            f"""UPDATE rejects SET first_seq = n.first_seq, last_seq = n.last_seq, seen = n.seen
            FROM ({once("rejects", "s.rowid AS row")}) n
            WHERE rejects.rowid = n.row"""
        )
        connection.execute("DELETE FROM rejects WHERE first_seq IS NULL")
