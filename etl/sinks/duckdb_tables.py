"""Creates our tables in the DuckDB file attached as `target`, and writes the result of a merge into them."""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

import duckdb

from etl import schema
from etl.sinks import partitions, rejects, tables
from etl.storage import duck

_SET = ", ".join(f"{duck.quoted(name)} = u.{duck.quoted(name)}" for name in schema.column_names())
_VERSION, _CONTACT, _WINDOW = tables.names(tables.VERSIONS), tables.names(tables.CONTACTS), tables.names(tables.WINDOWS)
_SHARE_BY_SHARE = (
    # Separate statements: a renamed account has equally many of both, and together they would take twice the memory.
    f"INSERT INTO contact_versions ({_VERSION}) SELECT {_VERSION} FROM versions WHERE op = 'upsert' AND {{share}}",
    f"INSERT INTO contact_versions ({_VERSION}) SELECT {_VERSION} FROM versions WHERE op = 'delete' AND {{share}}",
    # UPDATE sets only our columns: columns that the user added keep their values. (MERGE inserts 2.5 times slower.)
    f"""UPDATE contacts SET {_SET} FROM (FROM upserts WHERE verdict <> 'new' AND {{share}}) u
        WHERE contacts.account = u.account AND contacts.contact_id = u.contact_id""",
    f"INSERT INTO contacts ({_CONTACT}) SELECT {_CONTACT} FROM upserts WHERE verdict = 'new' AND {{share}}",
)
"""Executed for each share of `_SHARE_ROWS` rows, so that memory does not grow with the number of changes."""
_SHARE_ROWS = 200_000
"""Several row groups: shares smaller than one leave fragments, which every later checkpoint merges again."""
_COPIED_ROWS = 10_000
"""Rows of a copy that are in memory at once."""
_LONG, _LONG_SHARE_ROWS = 300, 61_440
"""Contacts whose `extra` has more characters than this on average come in shares of two row groups: more of them do not
fit into `duck.FRUGAL`, and the whole merge would be repeated with more memory."""
_AT_ONCE = (
    """DELETE FROM contacts USING outgoing o WHERE o.verdict = 'deleted'
       AND contacts.account = o.account AND contacts.contact_id = o.contact_id""",
    *rejects.WRITE,
    f"INSERT INTO etl.windows ({_WINDOW}) SELECT {_WINDOW} FROM next_windows",
    "DELETE FROM etl.strikes",
    "INSERT INTO etl.strikes SELECT * FROM next_strikes",
)


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Create our tables if they do not exist, bring `rejects` to its present columns, and create the view `strikes`."""
    connection.execute("CREATE SCHEMA IF NOT EXISTS target.etl")
    for table, columns in tables.PUBLIC.items():
        connection.execute(tables.create(f"target.main.{table}", columns))
    for table, columns in tables.INTERNAL.items():
        connection.execute(tables.create(f"target.etl.{table}", columns))
    rejects.upgrade(connection)
    connection.execute(tables.AS_OF)
    connection.execute(STRIKES)


STRIKES = "CREATE TEMP VIEW strikes AS SELECT * FROM target.etl.strikes"
"""Creates the relation that merges and queries read."""


def restore(connection: duckdb.DuckDBPyConnection, source: duckdb.DuckDBPyConnection) -> None:
    """Copy everything that another connection reads into our empty tables."""
    for table, columns in tables.RELATIONS.items():
        names = tables.names(columns)
        connection.register("copied", source.sql(f"SELECT {names} FROM {table}").to_arrow_reader(_COPIED_ROWS))
        connection.execute(f"INSERT INTO {table} ({names}) FROM copied")
        connection.unregister("copied")


def write(connection: duckdb.DuckDBPyConnection) -> None:
    """Write the result of `merge.prepare` to our tables."""
    [[length]] = connection.execute("SELECT coalesce(avg(length(extra)), 0) FROM received").fetchall()
    for share in partitions.shares(connection, _LONG_SHARE_ROWS if length > _LONG else _SHARE_ROWS):
        for statement in _SHARE_BY_SHARE:
            connection.execute(statement.format(share=share))
    # The contacts of a renamed account keep the values of columns that the user added.
    found = connection.execute("SELECT * FROM contacts LIMIT 0").description or ()
    if theirs := [duck.quoted(name) for name, *_ in found if name not in schema.column_names()]:
        connection.execute(
            f"""UPDATE contacts SET {", ".join(f"{name} = o.{name}" for name in theirs)}
            FROM (FROM contacts JOIN yields USING (account) WHERE renamed_to IS NOT NULL) o
            WHERE contacts.account = o.renamed_to AND contacts.contact_id = o.contact_id"""
        )
    for statement in _AT_ONCE:
        connection.execute(statement)
