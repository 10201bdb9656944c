"""What changed between two published states (`etl diff`), from the versions alone.

A state is named by a run's number (-1: the newest, 0: before the first) or by a time, which means the state that
`contacts_as_of` shows. A contact's versions are found by narrow columns first; whole rows are read only of contacts
whose fingerprints differ.
"""

# ruff: noqa: S608 - SQL is built from the column table.

from __future__ import annotations

import re
from collections.abc import Mapping

import duckdb
import pyarrow as pa

from etl import schema
from etl.commands.difference import ContactChange, Difference, State
from etl.commands.sql import rows_of
from etl.config import Config
from etl.display import redacted
from etl.errors import UsageError
from etl.sinks.targets import reading
from etl.storage import duck

_NUMBER = re.compile(r"[+-]?\d{1,18}")
_HINT = "Name a run by its number (-1: the newest, 0: before the first), or a time such as 2026-11-29T04:09:06Z."

_LAST = {
    "number": "select account, coalesce(max(seq) filter (seq <= $1::bigint), 0) from runs group by account",
    "time": "select account, coalesce(max(seq) filter (observed_at <= $1::timestamptz), 0) from runs group by account",
}
"""The last run of each account in a state; 0 if the account has none in it."""
_PAIRS = """
    create or replace temp table pairs as
    with seqs as (
        select account, contact_id, coalesce(max(seq) filter (seq <= before), 0) as before,
               coalesce(max(seq) filter (seq <= after), 0) as after
        from contact_versions join bounds using (account) where seq <= greatest(before, after)
        group by account, contact_id having max(seq) > any_value(least(before, after))
    )
    select account, contact_id, before, after, coalesce(a.op, 'delete') <> 'delete' as was,
           coalesce(b.op, 'delete') <> 'delete' as is_now, was and is_now and a.row_hash <> b.row_hash as differs
    from seqs
    left join (select account, contact_id, seq as before, op, row_hash from contact_versions) a
        using (account, contact_id, before)
    left join (select account, contact_id, seq as after, op, row_hash from contact_versions) b
        using (account, contact_id, after)
"""
"""The contacts with versions between the two states: their version in each, and whether they are in it."""
_COMPARED = [column.name for column in schema.CONTENT]
_DIFFERING = ", ".join(
    f"case when a.{duck.quoted(name)} is distinct from b.{duck.quoted(name)} then {duck.literal(name)} end"
    for name in _COMPARED
)
_CHANGES = f"""
    create or replace temp table changes as
    select p.account, p.contact_id, p.before, p.after,
           list_filter([{_DIFFERING}], lambda name: name is not null) as columns,
           case when len(columns) > 0 then 'changed' else 'changed_back' end as change
    from (from pairs where differs) p
    join contact_versions a on a.account = p.account and a.contact_id = p.contact_id and a.seq = p.before
    join contact_versions b on b.account = p.account and b.contact_id = p.contact_id and b.seq = p.after
    union all
    select account, contact_id, before, after, [], case
        when was and is_now then 'changed_back' when was then 'deleted' when is_now then 'new' else 'came_and_went' end
    from pairs where not differs
"""
"""Fingerprints of different definitions may differ although no column does."""
_COUNTS = "select change, count(*) from changes group by change"
_COLUMNS = """
    select name, count(*) as contacts from (select unnest(columns) as name from changes)
    group by name order by contacts desc, name
"""
_SHOWN = """
    create or replace temp table shown as select account, contact_id, change, columns, before, after from changes
    where change in ('new', 'changed', 'deleted') order by account, contact_id limit $1
"""


def diff_states(
    config: Config,
    before: str | int,
    after: str | int,
    *,
    rows: int = 0,
    values: bool = False,
    sink: str | None = None,
) -> Difference:
    """What changed from one state to the other, with the first `rows` contacts, and their `values` if asked for.

    Raises UsageError if there is no such state.
    """
    with reading(config, sink) as connection:
        return compare(connection, before, after, rows=rows, values=values)


def compare(
    connection: duckdb.DuckDBPyConnection, before: str | int, after: str | int, *, rows: int = 0, values: bool = False
) -> Difference:
    """The same on a connection to the published tables; it keeps its temporary tables there."""
    old, new = pair(connection, before, after)
    connection.execute(_CHANGES)
    connection.execute(_SHOWN, [rows])
    counts: dict[str, int] = dict(connection.execute(_COUNTS).fetchall())
    columns = dict(connection.execute(_COLUMNS).fetchall())
    was, is_ = (_values(connection, side) if values else {} for side in ("before", "after"))
    shown = []
    for account, contact_id, change, differing in connection.execute(
        "select * exclude (before, after) from shown"
    ).fetchall():
        key = (account, contact_id)
        pairs = {name: (was[key][name], is_[key][name]) for name in differing} if values else None
        shown.append(ContactChange(*key, change, tuple(differing), pairs))
    return Difference(
        old,
        new,
        new=counts.get("new", 0),
        changed=counts.get("changed", 0),
        deleted=counts.get("deleted", 0),
        changed_back=counts.get("changed_back", 0),
        came_and_went=counts.get("came_and_went", 0),
        columns=columns,
        rows=shown,
    )


def pair(connection: duckdb.DuckDBPyConnection, before: str | int, after: str | int) -> tuple[State, State]:
    """The two states; the temporary table `pairs` then has the contacts with versions between them."""
    (old, old_seqs), (new, new_seqs) = (_state(connection, str(named)) for named in (before, after))
    bounds = pa.table({"account": [*old_seqs], "before": [*old_seqs.values()], "after": [*new_seqs.values()]})
    connection.register("bounds", bounds)
    connection.execute(_PAIRS)
    return old, new


def _state(connection: duckdb.DuckDBPyConnection, named: str) -> tuple[State, dict[str, int]]:
    """The state of this name, and the last run of each account in it (0: none), by account."""
    kind, value = "time", named
    if _NUMBER.fullmatch(named):
        seqs = [0, *(seq for (seq,) in connection.execute("select distinct seq from runs order by seq").fetchall())]
        number = int(named)
        if not -len(seqs) < number <= seqs[-1]:
            there = f"there are {len(seqs) - 1}, the newest is run {seqs[-1]}"
            raise UsageError(f"there is no run {number}: {there}", where="state", hint=_HINT)
        kind, value = "number", str(seqs[number] if number < 0 else number)
    try:
        last = dict(connection.execute(_LAST[kind], [value]).fetchall())
    except duckdb.ConversionException:
        raise UsageError(f"{redacted(named)} is neither a run nor a time", where="state", hint=_HINT) from None
    seq = max(last.values())
    [(observed_at,)] = connection.execute("select max(observed_at) from runs where seq = ?", [seq]).fetchall()
    return State(seq, observed_at), last


def _values(connection: duckdb.DuckDBPyConnection, side: str) -> dict[tuple[object, object], Mapping[str, object]]:
    """The shown contacts' versions in the state `side`, by account and id."""
    query = f"""
        select account, contact_id, {duck.listed(_COMPARED)} from contact_versions
        semi join (select account, contact_id, {side} as seq from shown where change = 'changed')
        using (account, contact_id, seq)
    """
    rows = rows_of(connection.sql(query).to_arrow_table())
    return {(row["account"], row["contact_id"]): row for row in rows}
