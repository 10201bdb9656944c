"""Deduplicates the contacts that a run read and merges them with the previous snapshot, in SQL shared by all sinks.

`prepare` works on an engine that has the previous snapshot as the relations `contacts`, `strikes` and `rejects`, and
creates relations for the sink to write: `upserts`, `versions`, `next_strikes`, `next_rejects`, `next_windows`. It
changes nothing itself. Decisions use narrow columns; whole rows are read only when they are written, so memory does not
grow with their width.

A contact's verdict in a run:

    received, not in contacts       new         inserted, a version
    received, content differs       changed     replaced, a version
    received, presence differs      presence    replaced, no version; counts as unchanged (see `rehash`, too)
    received, identical             same        not touched
    received as DELETED, 2nd strike deleted     removed, a tombstone; also counts as unchanged
    received as DELETED, long gone  buried      stays deleted; counts as unchanged
    absent from a covered span      struck      not touched until the second strike
    absent, 2nd strike or filtered  deleted     removed, a tombstone

The modes in `model.SNAPSHOTS` deliver an account's complete state, without strikes. The strikes of a renamed account
move to its new name; those of a dropped account are dropped.

The second strike for absence requires a second check that requested the contact directly (`AccountYield.confirmed`).
If a run is killed between two sinks, the next run resumes it and delivers the same data to the first sink again, which
leaves the strikes there unchanged.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import duckdb
import pyarrow as pa

from etl import schema
from etl.errors import EtlError, TargetCorrupt
from etl.model import SNAPSHOTS, AccountYield, Counts, Merged, Publication, RunRecord, Span, union
from etl.sinks import rehash, rejects, tables
from etl.storage import duck

_NAMES = schema.column_names()
_PRESENCE = tuple(column.name for column in schema.CONTACTS if column.presence)
_PART = tables.in_files(
    (*(column for column in tables.CONTACTS if column[0] not in schema.STAMPED), ("read_no", "BIGINT"))
)
_REJECT_PART = tuple(column for column in tables.REJECTS if column[0] not in schema.REJECTS_STAMPED)


# Few contacts are read more than once: finding those is cheaper than ranking all.
_LOSERS = """
CREATE TEMP TABLE losers AS
    WITH repeated AS (SELECT account, contact_id FROM received GROUP BY account, contact_id HAVING count(*) > 1)
    SELECT account, read_no FROM received JOIN repeated USING (account, contact_id)
    QUALIFY row_number() OVER (
        PARTITION BY account, contact_id
        ORDER BY coalesce(updated_at, '-infinity'::TIMESTAMPTZ) DESC, read_no DESC
    ) > 1
"""

_FOLDED = f"""
CREATE TEMP TABLE folded AS
    SELECT account, contact_id, read_no, created_at, row_hash, {duck.listed(_PRESENCE)},
           coalesce(status = 'DELETED', false) AS listed_deleted
    FROM received ANTI JOIN losers USING (account, read_no)
"""

# `created_at` is that of the received row, `was_created_at` that of the published row: each locates its row.
_VERDICTS = """
CREATE TEMP TABLE verdicts (
    account VARCHAR, contact_id VARCHAR, read_no BIGINT, created_at TIMESTAMPTZ, was_created_at TIMESTAMPTZ,
    strikes TINYINT, verdict VARCHAR
)
"""

_JUDGE_RECEIVED = f"""
INSERT INTO verdicts
    WITH judged AS (
        SELECT f.*, p.created_at AS was_created_at, coalesce(h.row_hash, p.row_hash) AS old_hash,
               p.contact_id IS NULL AS unknown,
               ({duck.listed(_PRESENCE, "f")}) IS DISTINCT FROM ({duck.listed(_PRESENCE, "p")})
               OR h.row_hash IS NOT NULL AS moved,
               CASE WHEN y.filtered OR NOT f.listed_deleted THEN 0
                    WHEN s.contact_id IS NULL THEN 1
                    WHEN y.again THEN s.strikes
                    ELSE 2 END AS strikes_now
        FROM folded f
        JOIN yields y ON f.account = y.account
        LEFT JOIN contacts p ON f.account = p.account AND f.contact_id = p.contact_id
        LEFT JOIN rehashed h ON f.account = h.account AND f.contact_id = h.contact_id
        LEFT JOIN strikes s ON f.account = s.account AND f.contact_id = s.contact_id
    )
    SELECT account, contact_id, read_no, created_at, was_created_at, strikes_now,
           CASE WHEN strikes_now = 2 AND unknown THEN 'buried'
                WHEN strikes_now = 2 THEN 'deleted'
                WHEN unknown THEN 'new'
                WHEN row_hash <> old_hash THEN 'changed'
                WHEN moved THEN 'presence'
                ELSE 'same' END
    FROM judged
"""

# `covered` and `confirmed` hold disjoint spans: the nearest start before a creation time is the only candidate. Finding
# it requires sorting, so contacts that can be in no span are filtered out first. A contact that was listed but rejected
# is not absent; one with two different ids may be either. A contact with a strike gets another one only if it was
# requested directly.
_JUDGE_ABSENT = """
INSERT INTO verdicts
    WITH reach AS (
        SELECT account, min(start) AS start, max("end") AS "end" FROM covered GROUP BY account
    ), absent AS (
        SELECT p.account, p.contact_id, p.created_at, y.filtered, y.again, s.strikes
        FROM contacts p
        JOIN yields y ON p.account = y.account
        LEFT JOIN reach r ON p.account = r.account
        LEFT JOIN strikes s ON p.account = s.account AND p.contact_id = s.contact_id
        ANTI JOIN folded f ON p.account = f.account AND p.contact_id = f.contact_id
        ANTI JOIN rejected n ON p.account = n.account AND p.contact_id = n.contact_id
        WHERE y.filtered OR s.strikes = 1 OR (p.created_at >= r.start AND p.created_at < r."end")
    )
    SELECT a.account, a.contact_id, NULL, NULL, a.created_at,
           CASE WHEN a.filtered THEN 0
                WHEN a.strikes IS NULL THEN 1
                WHEN a.again THEN a.strikes
                ELSE 2 END AS strikes_now,
           CASE WHEN a.filtered OR strikes_now = 2 THEN 'deleted' ELSE 'struck' END
    FROM absent a
    ANTI JOIN contradictory n ON a.account = n.account AND contains(n.raw, a.contact_id)
    ASOF LEFT JOIN covered c ON a.account = c.account AND a.created_at >= c.start
    ASOF LEFT JOIN confirmed d ON a.account = d.account AND a.created_at >= d.start
    WHERE a.filtered
       OR (a.created_at < c."end" AND (a.strikes IS NULL OR a.again))
       OR (a.created_at < d."end" AND a.strikes = 1 AND NOT a.again)
"""

_INCOMING = """
CREATE TEMP VIEW incoming AS
    SELECT account, read_no, created_at, verdict
    FROM verdicts WHERE verdict IN ('new', 'changed', 'presence')
"""

_OUTGOING = """
CREATE TEMP VIEW outgoing AS
    SELECT account, contact_id, was_created_at AS created_at, verdict
    FROM verdicts WHERE verdict IN ('changed', 'presence', 'deleted')
"""

_STAMPS = {"observed_at": "y.t0", "seq": "y.seq"}
_STAMPED_ROW = ", ".join(f"{_STAMPS.get(name, f'r.{duck.quoted(name)}')} AS {duck.quoted(name)}" for name in _NAMES)
_UPSERTS = f"""
CREATE TEMP VIEW upserts AS
    SELECT {_STAMPED_ROW}, v.verdict, v.created_at AS cut_at
    FROM received r
    JOIN incoming v ON r.account = v.account AND r.read_no = v.read_no
    JOIN yields y ON r.account = y.account
"""

_LAST_ROW = ", ".join(_STAMPS.get(name, f"p.{duck.quoted(name)}") for name in _NAMES)
_VERSIONS = f"""
CREATE TEMP VIEW versions AS
    SELECT {duck.listed(_NAMES)}, 'upsert' AS op, cut_at FROM upserts WHERE verdict <> 'presence'
    UNION ALL
    SELECT {_LAST_ROW}, 'delete', v.created_at
    FROM contacts p
    JOIN outgoing v ON p.account = v.account AND p.contact_id = v.contact_id AND v.verdict = 'deleted'
    JOIN yields y ON p.account = y.account
"""

_NEXT_STRIKES = """
CREATE TEMP TABLE next_strikes AS
    SELECT account, contact_id, strikes, seq FROM strikes ANTI JOIN verdicts USING (account, contact_id)
    ANTI JOIN (FROM yields WHERE dropped) USING (account)
    UNION ALL
    SELECT y.renamed_to, s.contact_id, s.strikes, s.seq
    FROM strikes s JOIN yields y ON s.account = y.account WHERE y.renamed_to IS NOT NULL
    UNION ALL
    SELECT v.account, v.contact_id, v.strikes, y.seq
    FROM verdicts v JOIN yields y ON v.account = y.account WHERE v.strikes > 0
"""

_RECEIVED = (_LOSERS, _FOLDED)
_STEPS = (
    _VERDICTS, _JUDGE_RECEIVED, _JUDGE_ABSENT, "DROP TABLE folded",
    _INCOMING, _OUTGOING, _UPSERTS, _VERSIONS, _NEXT_STRIKES, rejects.NEXT,
)  # fmt: skip

_COUNTS = """
SELECT account,
       count(*) FILTER (verdict = 'new'),
       count(*) FILTER (verdict = 'changed'),
       count(*) FILTER (read_no IS NOT NULL AND verdict NOT IN ('new', 'changed')),
       count(*) FILTER (verdict = 'deleted'),
       count(*) FILTER (strikes = 1 AND verdict <> 'new')
FROM verdicts GROUP BY account
"""


def prepare(
    connection: duckdb.DuckDBPyConnection,
    publication: Publication,
    last: Mapping[str, RunRecord],
    held: Mapping[str, int] | None = None,
) -> Merged:
    """Compute the verdict on every contact of the publication; return the counts by account.

    `last` is the last run of every account that the sink holds. `held` are its contacts by account, if the relation
    `contacts` has only those that the publication can concern: received, in a covered span, or with a strike. Raises
    `EtlError` if a received row is not accounted for.
    """
    _create_inputs(connection, publication, last)
    for step in _RECEIVED:
        connection.execute(step)
    rehash.prepare(connection)
    for step in _STEPS:
        connection.execute(step)
    if held is None:
        held = _by_account(connection, "SELECT account, count(*) FROM contacts GROUP BY account")
    merged = _count(connection, publication, held)
    _check_conservation(connection, merged)
    return merged


def _create_inputs(
    connection: duckdb.DuckDBPyConnection, publication: Publication, last: Mapping[str, RunRecord]
) -> None:
    """Create the relations that the steps read: the data of the accounts, and how each account entered the run."""
    accounts = publication.accounts
    records = [brought.record for brought in accounts]
    yields = {
        "account": pa.array([record.account for record in records], pa.string()),
        "filtered": pa.array([record.mode in SNAPSHOTS for record in records], pa.bool_()),
        "dropped": pa.array([record.mode == "dropped" for record in records], pa.bool_()),
        "renamed_to": pa.array([record.detail.get("renamed_to") for record in records], pa.string()),
        "again": pa.array([_is_again(record, last.get(record.account)) for record in records], pa.bool_()),
        "t0": pa.array([record.t0 for record in records], schema.TIME),
        "seq": pa.array([publication.seq] * len(records), pa.int64()),
    }
    connection.register("yields", pa.table(yields))
    connection.register("covered", _spans(accounts, lambda brought: brought.coverage))
    connection.register("confirmed", _spans(accounts, lambda brought: brought.confirmed))
    windows = [schema.WINDOWS_SCHEMA.empty_table(), *(brought.windows for brought in accounts)]
    connection.register("accepted", pa.concat_tables(windows))
    connection.execute(f"CREATE TEMP VIEW next_windows AS SELECT *, {publication.seq}::BIGINT AS seq FROM accepted")
    received = duck.scan((part for brought in accounts for part in brought.parts), _PART)
    connection.execute(f"CREATE TEMP VIEW received AS {received}")
    rejected = duck.scan((part for brought in accounts for part in brought.rejects), _REJECT_PART)
    connection.execute(
        f"""CREATE TEMP VIEW rejected AS
        SELECT account, y.seq, y.t0 AS observed_at, contact_id, reason, path, raw
        FROM ({rejected}) JOIN yields y USING (account)"""
    )
    connection.execute(
        "CREATE TEMP VIEW contradictory AS SELECT account, raw FROM rejected WHERE reason = 'conflicting_ids'"
    )


def _is_again(record: RunRecord, last: RunRecord | None) -> bool:
    """Whether the sink already holds this data: a resumed run keeps its T0."""
    return last is not None and bool(record.detail.get("resumed")) and record.t0 <= last.t0


_BEGINNING = datetime.min.replace(tzinfo=UTC)
_END = datetime.max.replace(tzinfo=UTC)


def _spans(accounts: Sequence[AccountYield], chosen: Callable[[AccountYield], Iterable[Span]]) -> pa.Table:
    """The union of each account's chosen spans, with open ends as `datetime.min` and `datetime.max`."""
    rows = [
        {"account": brought.record.account, "start": start, "end": end}
        for brought in accounts
        for start, end in union((span.start or _BEGINNING, span.end or _END) for span in chosen(brought))
    ]
    fields = [("account", pa.string()), ("start", schema.TIME), ("end", schema.TIME)]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _count(connection: duckdb.DuckDBPyConnection, publication: Publication, previous: Mapping[str, int]) -> Merged:
    verdicts = {account: rest for account, *rest in connection.execute(_COUNTS).fetchall()}
    folded = _by_account(connection, "SELECT account, count(*) FROM losers GROUP BY account")
    counts: dict[str, Counts] = {}
    struck: dict[str, int] = {}
    for brought in publication.accounts:
        account = brought.record.account
        new, changed, unchanged, deleted, struck[account] = verdicts.get(account, (0, 0, 0, 0, 0))
        counts[account] = replace(
            brought.record.counts,
            new=new,
            changed=changed,
            unchanged=unchanged,
            deleted=deleted,
            folded=brought.record.counts.folded + folded.get(account, 0),
            contacts=previous.get(account, 0) + new - deleted,
        )
    return Merged(counts, struck, {account: previous.get(account, 0) for account in counts})


def _by_account(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, int]:
    return dict(connection.execute(query).fetchall())


def _check_conservation(connection: duckdb.DuckDBPyConnection, merged: Merged) -> None:
    """Raise `EtlError` if a received row is not accounted for."""
    rejected = _by_account(connection, "SELECT account, count(*) FROM rejected GROUP BY account")
    for account, counts in merged.counts.items():
        kept = counts.new + counts.changed + counts.unchanged + counts.folded + counts.rejected
        stored = rejected.get(account, 0)
        if counts.received != kept or counts.rejected != stored:
            # Another program may have inserted a contact that the snapshot already held.
            repeated = "SELECT 1 FROM contacts GROUP BY account, contact_id HAVING count(*) > 1"
            if found := len(connection.execute(repeated).fetchall()):
                raise TargetCorrupt(f"{found} contacts stand in the target more than once", where="contacts")
            message = f"{counts.received} contacts were received and {kept} accounted for, {stored} of them in rejects"
            raise EtlError(message, where=f"account {account}: {counts}")
