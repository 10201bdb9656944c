"""Since when every contact of an account has been proven, as far as the published windows show it.

An incremental run reads what changed, and a share of all windows again. The others were read by earlier runs, whose
windows are published with the data: the oldest run that is needed to cover every creation time is the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import duckdb

from etl.commands.sql import names_of
from etl.errors import EtlError
from etl.model import AccountYield, union
from etl.sinks import Sink

_SPANS = """
    with reads as (
        select w.seq, w.is_contact, coalesce(w."start", timestamptz '0001-01-01') as s,
               coalesce(w."end", timestamptz '9999-12-31') as e
        from etl.windows w where w.account = $1 and w.field = 'createdAt' and w.seq > $2 and w.seq <= $3
            and w.seq >= coalesce((select max(seq) from runs where account = $1 and mode = 'full' and seq <= $3), 0)
    ), edges as (
        select *, s > max(e) over (
            partition by seq, is_contact order by s, e rows between unbounded preceding and 1 preceding) as begins
        from reads
    ), islands as (
        select *, sum(coalesce(begins, true)::int) over (partition by seq, is_contact order by s, e) as island
        from edges
    )
    select seq, observed_at, is_contact, min(s), max(e)
    from islands join (select seq, observed_at from runs where account = $1) using (seq)
    group by seq, observed_at, is_contact, island order by seq desc
"""
"""The spans of creation time that each run read, the newest run first; no run before a full one is needed."""
_WITHOUT_TIME = "select count(*) from contacts where account = $1 and created_at is null"

_BEGINNING, _END = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

MOST_ACCOUNTS = 20
"""Incremental accounts of one run for which this is computed: with hundreds, it would take longer than the run."""

Gaps = list[tuple[datetime, datetime]]


def proven_since(sink: Sink, brought: Iterable[AccountYield]) -> dict[str, datetime]:
    """By account, the beginning of the oldest run needed to cover it together with this run; none if unknown.

    It serves the summary only, so a target that cannot answer is not an error, and more than `MOST_ACCOUNTS` get none.
    Full runs need no other.
    """
    since: dict[str, datetime] = {}
    incremental = [one for one in brought if one.record.mode == "incremental"]
    if 0 < len(incremental) <= MOST_ACCOUNTS:
        with suppress(EtlError, duckdb.Error), sink.reading() as connection:
            for one in incremental:
                if (began := oldest_needed(connection, one)) is not None:
                    since[one.record.account] = began
    return since


def oldest_needed(connection: duckdb.DuckDBPyConnection, brought: AccountYield) -> datetime | None:
    """The server's clock when the oldest run began that is needed to cover the account; None if it is not recorded.

    Contacts without a creation time are in no window: they were read by the last page scan.
    """
    record = brought.record
    whole = [(_BEGINNING, record.watermark)]
    own = [row for row in brought.windows.to_pylist() if row["field"] == "createdAt"]
    gaps: dict[bool, Gaps] = {}
    for is_contact in (True, False):
        read = union((row["start"] or _BEGINNING, row["end"] or _END) for row in own if row["is_contact"] == is_contact)
        gaps[is_contact] = uncovered(whole, read)
    since = record.t0
    ((without_time,),) = connection.execute(_WITHOUT_TIME, [record.account]).fetchall()
    for name in names_of(connection, record.account) if any(gaps.values()) else ():
        for _, began, is_contact, start, end in connection.execute(_SPANS, list(name)).fetchall():
            left = uncovered(gaps[is_contact], [(start, end)])
            if left != gaps[is_contact]:
                gaps[is_contact], since = left, min(since, began)
    if any(gaps.values()):
        return None
    if without_time:
        scanned = record.detail.get("witness_at")
        return min(since, datetime.fromtimestamp(scanned / 1000, UTC)) if isinstance(scanned, int) else None
    return since


def last_reads(connection: duckdb.DuckDBPyConnection, account: str) -> list[tuple[bool, datetime, datetime, int]]:
    """The run that last read each span of creation time: list, start, end, run; spans of one list do not overlap."""
    left: dict[bool, Gaps] = {True: [(_BEGINNING, _END)], False: [(_BEGINNING, _END)]}
    found = []
    for name in names_of(connection, account):
        for seq, _, is_contact, start, end in connection.execute(_SPANS, list(name)).fetchall():
            before, left[is_contact] = left[is_contact], uncovered(left[is_contact], [(start, end)])
            found += [(is_contact, first, last, seq) for first, last in uncovered(before, left[is_contact])]
    return found


def uncovered(gaps: Gaps, read: Gaps) -> Gaps:
    """The parts of `gaps` that the sorted, disjoint spans `read` do not cover."""
    left: Gaps = []
    for gap_start, gap_end in gaps:
        begin = gap_start
        for start, end in read:
            if begin < start < gap_end:
                left.append((begin, start))
            if start < gap_end:
                begin = max(begin, end)
        if begin < gap_end:
            left.append((begin, gap_end))
    return left
