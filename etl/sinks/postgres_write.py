"""Writes the result of a merge into the tables of a PostgreSQL schema, in a transaction that is open.

New contacts are copied into their table, changed ones into a temporary table first; their versions and tombstones are
made on the server.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

import duckdb

from etl import schema
from etl.model import Publication
from etl.sinks import partitions, postgres_tables, tables
from etl.sinks.postgres_copy import SORTED_KEYS, copy
from etl.sinks.postgres_server import Session
from etl.storage import duck

_NAMES = duck.listed(schema.column_names())
_VERDICT: tables.Columns = (("verdict", "VARCHAR"),)
_SHARE_ROWS = 200_000
"""New contacts are copied in shares of about so many, so that memory does not grow with their number."""
_KEY: tables.Columns = (("account", "VARCHAR"), ("contact_id", "VARCHAR"))
_SAME_CONTACT = "t.account = n.account AND t.contact_id = n.contact_id"

_DELETED = """(
    SELECT o.account, o.contact_id, y.t0 AS observed_at, y.seq
    FROM outgoing o JOIN yields y ON o.account = y.account WHERE o.verdict = 'deleted'
)"""
_TOMBSTONE: tables.Columns = (*_KEY, ("observed_at", "TIMESTAMP WITH TIME ZONE"), ("seq", "BIGINT"))
_FADED = "(SELECT account, contact_id FROM strikes EXCEPT SELECT account, contact_id FROM next_strikes)"
_STRUCK = "(FROM next_strikes EXCEPT FROM strikes)"
# PostgreSQL has no text with NUL, and raw JSON may contain one.
_WITHOUT_NUL = "(SELECT * REPLACE (replace(raw, chr(0), chr(65533)) AS raw) FROM {0})"
_REJECTED = "coalesce('id ' || {0}.contact_id, md5({0}.raw))"


class Writer:
    """The open transaction, and the engine that holds the result of the merge."""

    def __init__(self, server: Session, engine: duckdb.DuckDBPyConnection, home: str) -> None:
        self._server = server
        self._engine = engine
        self._home = home
        self._space = duck.quoted(home)

    def write(self, publication: Publication, added: tuple[str, ...]) -> None:
        """Write all changes of the run; `added` are columns of `contacts` that the user added."""
        self._insert_new(publication.seq)
        self._replace_changed()
        if added:
            self._keep_added(publication, added)
        self._delete()
        self._note_orders("upserts")
        self._write_rejects()
        self._write_strikes()
        copy(self._server, self._engine, "next_windows", tables.WINDOWS, "etl_windows", self._home)

    def restore(self) -> None:
        """Copy everything that the engine, which reads another sink, holds."""
        for relation, columns in tables.RELATIONS.items():
            source = _WITHOUT_NUL.format(relation) if relation == "rejects" else relation
            copy(self._server, self._engine, source, columns, relation.replace("etl.", "etl_"), self._home)
        held = "(SELECT row_hash, attributes FROM contacts UNION ALL SELECT row_hash, attributes FROM contact_versions)"
        self._note_orders(held)

    def _insert_new(self, seq: int) -> None:
        rows = 0
        for share in partitions.shares(self._engine, _SHARE_ROWS):
            new = f"(FROM upserts WHERE verdict = 'new' AND {share})"
            rows += copy(self._server, self._engine, new, tables.CONTACTS, "contacts", self._home)
        if rows:
            self._do(  # No other row has this number yet.
                f"INSERT INTO {{0}}.contact_versions ({_NAMES}, op)"
                f" SELECT {_NAMES}, 'upsert' FROM {{0}}.contacts WHERE seq = {seq}"
            )

    def _replace_changed(self) -> None:
        if self._stage("(FROM upserts WHERE verdict <> 'new')", (*tables.CONTACTS, *_VERDICT)):
            names = ", ".join(f"{duck.quoted(name)} = n.{duck.quoted(name)}" for name in schema.column_names())
            self._do(
                f"INSERT INTO {{0}}.contact_versions ({_NAMES}, op)"
                f" SELECT {_NAMES}, 'upsert' FROM etl_next WHERE verdict = 'changed'",
                # Columns that the user added keep their values.
                f"UPDATE {{0}}.contacts t SET {names} FROM etl_next n WHERE {_SAME_CONTACT}",
            )

    def _keep_added(self, publication: Publication, added: tuple[str, ...]) -> None:
        """Give the contacts of a renamed account the values that the user added to those of the old name."""
        names = ", ".join(f"{duck.quoted(name)} = n.{duck.quoted(name)}" for name in added)
        for brought in publication.accounts:
            if former := brought.record.detail.get("renamed_from"):
                self._do(
                    f"UPDATE {{0}}.contacts t SET {names} FROM {{0}}.contacts n WHERE t.contact_id = n.contact_id"
                    f" AND n.account = {duck.literal(former)} AND t.account = {duck.literal(brought.record.account)}"
                )

    def _delete(self) -> None:
        if self._stage(_DELETED, _TOMBSTONE):
            last = ", ".join(
                f"{'n' if name in schema.STAMPED else 't'}.{duck.quoted(name)}" for name in schema.column_names()
            )
            self._do(
                f"INSERT INTO {{0}}.contact_versions ({_NAMES}, op)"
                f" SELECT {last}, 'delete' FROM {{0}}.contacts t JOIN etl_next n ON {_SAME_CONTACT}",
                f"DELETE FROM {{0}}.contacts t USING etl_next n WHERE {_SAME_CONTACT}",
            )

    def _note_orders(self, contacts: str) -> None:
        source = f"""(
            SELECT row_hash, map_keys(attributes) AS keys FROM {contacts} AS contacts
            WHERE map_keys(attributes) <> {SORTED_KEYS.format("attributes")}
        )"""
        if self._stage(source, postgres_tables.ORDERS):
            self._do("INSERT INTO {0}.etl_attribute_orders SELECT * FROM etl_next ON CONFLICT DO NOTHING")

    def _write_rejects(self) -> None:
        if self._stage(_WITHOUT_NUL.format("next_rejects"), tables.REJECTS):
            columns, names = tables.names(tables.REJECTS), [duck.quoted(name) for name, _ in tables.REJECTS]
            same = f"t.account = n.account AND {_REJECTED.format('t')} = {_REJECTED.format('n')}"
            self._do(
                f"UPDATE {{0}}.rejects t SET {', '.join(f'{name} = n.{name}' for name in names)}"
                f" FROM etl_next n WHERE {same}",
                f"INSERT INTO {{0}}.rejects ({columns}) SELECT {columns} FROM etl_next n"
                f" WHERE NOT EXISTS (SELECT FROM {{0}}.rejects t WHERE {same})",
            )

    def _write_strikes(self) -> None:
        if self._stage(_FADED, _KEY):
            self._do(f"DELETE FROM {{0}}.etl_strikes t USING etl_next n WHERE {_SAME_CONTACT}")
        if self._stage(_STRUCK, tables.STRIKES):
            names = tables.names(tables.STRIKES)
            self._do(
                f"INSERT INTO {{0}}.etl_strikes ({names}) SELECT {names} FROM etl_next"
                " ON CONFLICT (account, contact_id) DO UPDATE SET strikes = excluded.strikes, seq = excluded.seq"
            )

    def _stage(self, source: str, columns: tables.Columns) -> int:
        """Copy rows into a new temporary table `etl_next`; return how many."""
        body = ", ".join(f"{duck.quoted(name)} {postgres_tables.sql_type(kind)}" for name, kind in columns)
        self._server.execute("DROP TABLE IF EXISTS pg_temp.etl_next")
        self._server.execute(f"CREATE TEMP TABLE etl_next ({body}) ON COMMIT DROP")
        rows = copy(self._server, self._engine, source, columns, "etl_next")
        if rows and set(_KEY) <= set(columns):
            # For the plan of the join with our tables; the other columns would cost half a second.
            self._server.execute("ANALYZE etl_next (account, contact_id)")
        return rows

    def _do(self, *statements: str) -> None:
        for statement in statements:
            self._server.execute(statement.replace("{0}", self._space))
