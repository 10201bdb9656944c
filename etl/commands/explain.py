"""Everything known about one contact (`etl explain`): its state and the reason, its last read, and its versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from etl.commands.result import ContactHistory, Document, Explanation, Reject, Version, WindowRead
from etl.commands.sql import names_of, rows_of
from etl.config import Config
from etl.sinks.targets import reading

_VERSIONS = """
    select account, seq, observed_at, op, row_hash, created_at, last_seen_at, is_contact
    from contact_versions where contact_id = ? order by account, seq
"""
_PUBLISHED = "select account, seq, observed_at, created_at, last_seen_at, is_contact from contacts where contact_id = ?"
_STRIKES = "select account, seq, seq - 1 as upto from etl.strikes where contact_id = ? and strikes = 1"
_REJECTS = "select account, seq, observed_at, reason, path from rejects where contact_id = ? order by seq"
_ENDED = "select account, seq, detail->>'renamed_to' as renamed_to from runs where mode = 'dropped'"
_WINDOW = """
    select w.seq, w.request, w.field, w.is_contact, w."start", w."end", w.rows, w.attempts, w.level
    from etl.windows w where w.account = ? and (
        (w.field = 'createdAt' and ?::timestamptz >= coalesce(w."start", '-infinity')
            and ?::timestamptz < coalesce(w."end", 'infinity'))
        or (w.field = 'lastSeenAt' and ?::timestamptz >= coalesce(w."start", '-infinity')
            and ?::timestamptz < coalesce(w."end", 'infinity')))
        and w.is_contact is not distinct from coalesce(?, w.is_contact) and w.seq > ? and w.seq <= ?
    order by w.seq desc, w.field limit 1
"""


def explain_contact(config: Config, contact_id: str, sink: str | None = None) -> Explanation:
    """Everything known about a contact, in every account. Raises UsageError before the first run."""
    with reading(config, sink) as connection:
        versions = _ask(connection, _VERSIONS, contact_id)
        published = {str(row["account"]): row for row in _ask(connection, _PUBLISHED, contact_id)}
        strikes = {str(row["account"]): row for row in _ask(connection, _STRIKES, contact_id)}
        rejects = _ask(connection, _REJECTS, contact_id)
        ended = {(row["account"], row["seq"]): row["renamed_to"] for row in _ask(connection, _ENDED)}
        accounts = sorted({str(row["account"]) for row in (*versions, *rejects)})
        return Explanation(
            contact_id,
            [
                ContactHistory(
                    account,
                    in_contacts=account in published,
                    why=_why(account, published, strikes, versions, rejects, ended),
                    last_read_by=_last_read(connection, account, published, strikes, versions),
                    versions=[
                        Version(**{name: row[name] for name in Version.__dataclass_fields__})
                        for row in versions
                        if row["account"] == account
                    ],
                    rejects=[Reject(**row) for row in rejects if row["account"] == account],
                )
                for account in accounts
            ],
        )


def _why(
    account: str,
    published: Mapping[str, Document],
    strikes: Mapping[str, Document],
    versions: Sequence[Document],
    rejects: Sequence[Document],
    ended: Mapping[tuple[object, object], object],
) -> str:
    """One sentence on why the contact is, or is not, in `contacts`."""
    if account in published:
        absent = (
            f"; absent, or listed as DELETED, since run {strikes[account]['seq']}, and deleted if once more"
            if account in strikes
            else ""
        )
        return f"in contacts as run {published[account]['seq']} wrote it{absent}"
    last = next((row for row in reversed(versions) if row["account"] == account), None)
    if last is not None and (account, last["seq"]) in ended:
        new = ended[account, last["seq"]]
        return f"gone with its account, which run {last['seq']} {f'renamed to {new}' if new else 'dropped'}"
    if last is not None and last["op"] == "delete":
        return f"deleted by run {last['seq']}: absent from accepted windows, or listed as DELETED, in two runs"
    rejected = [row for row in rejects if row["account"] == account]
    return f"rejected by run {rejected[-1]['seq']}: {rejected[-1]['reason']}" if rejected else "not in contacts"


def _last_read(
    connection: duckdb.DuckDBPyConnection,
    account: str,
    published: Mapping[str, Document],
    strikes: Mapping[str, Document],
    versions: Sequence[Document],
) -> WindowRead | None:
    """The latest accepted window known to have contained the contact, with the request that proved it."""
    names = names_of(connection, account)
    # The version that a rename wrote was not read from the server.
    read = [
        row
        for name, after, upto in names
        for row in reversed(versions)
        if row["op"] == "upsert" and row["account"] == name and after < int(str(row["seq"])) <= upto
    ]
    row = published.get(account) or next(iter(read), None)
    if row is None:
        return None
    # An absent contact was in no window since; a deleted one was certainly read only by its last version's run.
    known = strikes[account]["upto"] if account in strikes else None if account in published else row["seq"]
    created, seen, is_contact = row["created_at"], row["last_seen_at"], row["is_contact"]
    for name, after, upto in names:
        last = upto if known is None else min(upto, int(str(known)))
        if found := _ask(connection, _WINDOW, name, created, created, seen, seen, is_contact, after, last):
            return WindowRead(**found[0])
    return None


def _ask(connection: duckdb.DuckDBPyConnection, query: str, *parameters: object) -> list[dict[str, Any]]:
    return rows_of(connection.sql(query, params=list(parameters)).to_arrow_table())
