"""Queries of the contact browser, on the newest state or on that of an earlier run."""

# ruff: noqa: S608 - SQL is built from the column table and our own names; values are parameters.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from etl import schema
from etl.commands.sql import rows_of
from etl.storage import duck

PER_PAGE = 25
_SEARCHED = (
    *("contact_id", "name", "user_provided_name", "email", "phone_number", "phone_e164", "whatsapp_number"),
    *("telegram_username", "instagram_profile_id", "facebook_profile_id", "uuid"),
)
_AS_OF = f"""
    (select {duck.listed(schema.column_names())} from contact_versions semi join (
        select account, contact_id, max(seq) as seq from contact_versions where seq <= $run group by all
    ) using (account, contact_id, seq) where op <> 'delete')
"""
_NAME = "coalesce(name, user_provided_name, telegram_username, email, phone_e164, whatsapp_number)"
_FOUND = f"""
    ($find = '' or {" or ".join(f"contains(lower({name}), lower($find))" for name in _SEARCHED)})
    and ($status = '' or status = $status) and ($channel = '' or list_contains(platforms, $channel))
"""
_PAGE = f"""
    select account, contact_id, {_NAME} as name, platforms, status, country, last_seen_at
    from {{relation}} where {_FOUND}
    order by last_seen_at desc nulls last, account, contact_id limit {PER_PAGE} offset $skipped
"""
_COUNT = f"select count(*) from {{relation}} where {_FOUND}"
_VERSIONS = f"""
    select seq, observed_at, op, {duck.listed(column.name for column in schema.CONTENT)} from contact_versions
    where account = ? and contact_id = ? order by seq
"""

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Search:
    """What the browser was asked for."""

    find: str = ""
    status: str = ""
    channel: str = ""
    run: int = 0
    """The state after this run; 0: the newest."""
    page: int = 1

    def query(self, **changed: str | int) -> dict[str, str]:
        """The search as the query of an address, with some of its fields changed; defaults are left out."""
        names = ("find", "status", "channel", "run", "page")
        fields = {name: changed.get(name, getattr(self, name)) for name in names}
        return {
            name: str(value) for name, value in fields.items() if value not in {"", 0} and (name, value) != ("page", 1)
        }


@dataclass(frozen=True, slots=True)
class Found:
    """One page of contacts, and what the form offers."""

    rows: Sequence[Row]
    total: int
    statuses: Sequence[str]
    channels: Sequence[str]
    newest: int
    """The number of the newest run."""


def browse(connection: duckdb.DuckDBPyConnection, search: Search) -> Found:
    """One page of the contacts that match."""
    [(newest,)] = connection.execute("select max(seq) from runs").fetchall()
    past = 0 < search.run < newest
    relation = _AS_OF if past else "contacts"
    known: dict[str, object] = {"find": search.find, "status": search.status, "channel": search.channel}
    known |= {"run": search.run} if past else {}
    [(total,)] = connection.execute(_COUNT.format(relation=relation), known).fetchall()
    skipped = {"skipped": PER_PAGE * (max(1, search.page) - 1)}
    page = connection.sql(_PAGE.format(relation=relation), params=known | skipped).to_arrow_table()
    statuses = connection.execute("select distinct status from contacts where status is not null order by 1 limit 100")
    offered = [status for (status,) in statuses.fetchall()]
    channels = connection.execute("select distinct unnest(platforms) as channel from contacts order by 1 limit 100")
    return Found(rows_of(page), total, offered, [one for (one,) in channels.fetchall() if one], newest)


def versions(connection: duckdb.DuckDBPyConnection, account: str, contact_id: str) -> Sequence[Row]:
    """All versions of a contact, the oldest first."""
    return rows_of(connection.sql(_VERSIONS, params=[account, contact_id]).to_arrow_table())
