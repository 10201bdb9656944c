"""The figures of a report, from the published tables: counts, times and names, never a contact's values."""

# ruff: noqa: S608 - SQL is built from the column table.

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from etl import __version__, schema
from etl.commands.coverage import last_reads, oldest_needed
from etl.commands.diff import pair
from etl.config import Config
from etl.errors import EtlError
from etl.extract.history import CLOCKS_DIFFER
from etl.model import AccountYield, Proof, Requests, RunRecord
from etl.pages.figures import (
    AccountFigures,
    AttemptFigures,
    ColumnFigures,
    ContactFigures,
    DataFigures,
    Figures,
    ProofFigures,
    RunFigures,
    fold_small,
)
from etl.schema import Kind
from etl.sinks import Unpublished
from etl.sinks.targets import first_path, reading, sinks
from etl.storage import duck
from etl.storage.attempts import read_attempts

Row = dict[str, Any]

SHOWN_RUNS = 30
SHOWN_ATTEMPTS = 20
SHOWN_MONTHS = 36
SHOWN_ACCOUNTS = 20
"""Accounts whose coverage is computed."""
MOST_STRUCTURES = 2000
DEEPEST_KEY = 4

_RUNS = """
    select seq, account, mode, observed_at, watermark, seconds, proof_level, windows, unproven, new, changed, deleted,
           rejected, contacts, detail from runs where seq > (select max(seq) - $1 from runs)
    or (account, seq) in (select (account, max(seq)) from runs group by account) order by seq, account
"""
_TOTALS = """
    select seq, sum(change) over (order by seq) from (
        select seq, sum(contacts - before) as change from (
            select seq, contacts, lag(contacts, 1, 0) over (partition by account order by seq) as before from runs
        ) group by seq
    )
"""
"""The contacts of all accounts after each run."""
_CREATED = """
    select date_trunc('month', created_at) as month, count(*) as contacts from contacts
    where created_at is not null and created_at <= $1 group by month order by month
"""
_WEEK = """
    select isodow(last_seen_at), hour(last_seen_at), count(*) from contacts where last_seen_at is not null group by all
"""
_LOOKED_AT = """
    select greatest(coalesce(p.seq, 0), c.seq) as looked_at, count(*) from contacts c left join pieces p
    on c.account = p.account and c.is_contact = p.is_contact and c.created_at >= p.start and c.created_at < p.end
    group by looked_at order by looked_at
"""
_WINDOW_ROWS = """
    select rows, count(*) from etl.windows
    where rows is not null and seq > (select max(seq) - $1 from runs) group by rows
"""
_EMPTY = {Kind.TEXTS: "len({}) > 0", Kind.NOTES: "len({}) > 0", Kind.ATTRIBUTES: "cardinality({}) > 0"}
_FILLED = ", ".join(
    f"count(*) filter ({_EMPTY.get(column.kind, '{} is not null').format(duck.quoted(column.name))})"
    for column in schema.CONTENT
)
_CAME_AND_LEFT = "select count(*) filter (is_now and not was), count(*) filter (was and not is_now) from pairs"
_IN_PAIRS = """
    contact_versions semi join (select account, contact_id, {} as seq from pairs where {})
    using (account, contact_id, seq)
"""
_SIDES = (("after", "is_now"), ("before", "was"))
_STRUCTURES = f"""
    select json_structure(extra), count(*) as contacts from contacts where extra is not null
    group by 1 order by contacts desc limit {MOST_STRUCTURES}
"""


def gather(config: Config, made: datetime) -> Figures:
    """The figures of the newest published state; before the first run, those of the attempts alone.

    `made` is the local clock. Raises SinkError, TargetCorrupt.
    """
    last = read_attempts(first_path(config))[-SHOWN_ATTEMPTS:]
    attempts = []
    for one in reversed(last):
        error = {name: str(text) for name, text in (one.error or {}).items() if name != "code"}
        attempts.append(AttemptFigures(one.finished, one.seconds, one.exit_code, one.requests, **error))
    known = Figures(config.name, made, __version__, attempts=attempts)
    try:
        with reading(config) as connection:
            return _published(config, connection, known)
    except Unpublished:
        return known


def _published(config: Config, connection: duckdb.DuckDBPyConnection, known: Figures) -> Figures:
    rows = connection.sql(_RUNS, params=[SHOWN_RUNS]).to_arrow_table().to_pylist()
    for row in rows:
        row["detail"] = json.loads(row["detail"] or "{}")
    last = {row["account"]: row for row in rows}
    accounts = [row for row in last.values() if row["mode"] != "dropped"]
    newest = max(row["seq"] for row in rows)
    runs = _runs(connection, [row for row in rows if row["seq"] > newest - SHOWN_RUNS])
    return replace(
        known,
        runs=runs,
        accounts=[
            _account(connection, row, with_proof=place < SHOWN_ACCOUNTS)
            for place, row in enumerate(sorted(accounts, key=lambda row: -row["contacts"]))
        ],
        contacts=_contacts(connection, max(row["observed_at"] for row in accounts or rows)),
        proof=_proof(config, connection, accounts, newest),
        data=_data(connection, several=len(runs) > 1),
    )


def _runs(connection: duckdb.DuckDBPyConnection, rows: Sequence[Row]) -> Sequence[RunFigures]:
    totals = dict(connection.execute(_TOTALS).fetchall())
    by_seq: dict[int, list[Row]] = {}
    for row in rows:
        by_seq.setdefault(row["seq"], []).append(row)
    return [
        RunFigures(
            seq=seq,
            at=max(row["observed_at"] for row in own),
            modes=tuple(dict.fromkeys(row["mode"] for row in own)),
            contacts=int(totals[seq]),
            **{name: sum(row[name] for row in own) for name in ("new", "changed", "deleted", "rejected")},
            requests=_summed(row["detail"].get("requests") for row in own),
            seconds_by=_summed(row["detail"].get("seconds") for row in own),
            seconds=max(row["seconds"] for row in own),
            throttled=sum((row["detail"].get("pace") or {}).get("throttled", 0) for row in own),
            proof=", ".join(dict.fromkeys(_proof_of(row) for row in own)),
            proven=not any(row["unproven"] for row in own),
        )
        for seq, own in by_seq.items()
    ]


def _summed(parts: Iterable[Mapping[str, float] | None]) -> Mapping[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part or {})
    return dict(total)


def _proof_of(row: Row) -> str:
    by_windows = row["detail"].get("by_windows", 1.0)
    if row["mode"] == "filtered":
        return "filtered, no proof"
    if row["unproven"]:
        return "unproven"
    return f"{int(100 * by_windows)} % windows" if 0 < by_windows < 1 else row["proof_level"]


def _account(connection: duckdb.DuckDBPyConnection, row: Row, *, with_proof: bool) -> AccountFigures:
    scanned = row["detail"].get("witness_at")
    return AccountFigures(
        account=row["account"],
        seq=row["seq"],
        mode=row["mode"],
        contacts=row["contacts"],
        at=row["observed_at"],
        watermark=row["watermark"],
        proof=_proof_of(row),
        unproven=row["unproven"],
        by_windows=row["detail"].get("by_windows", 1.0),
        proven_since=_proven_since(connection, row) if with_proof and not row["unproven"] else None,
        cross_checked=datetime.fromtimestamp(scanned / 1000, UTC) if isinstance(scanned, int) else None,
        server=_server(row["detail"]),
    )


def _proven_since(connection: duckdb.DuckDBPyConnection, row: Row) -> datetime | None:
    """See `AccountFigures.proven_since`."""
    if row["mode"] != "incremental":
        return row["observed_at"] if row["mode"] == "full" else None
    query = "select * from etl.windows where account = ? and seq = ?"
    windows = connection.sql(query, params=[row["account"], row["seq"]]).to_arrow_table()
    record = RunRecord(
        seq=row["seq"],
        run_id="",
        account=row["account"],
        mode=row["mode"],
        t0=row["observed_at"],
        watermark=row["watermark"],
        proof=Proof(row["proof_level"], row["windows"]),
        requests=Requests(),
        seconds=row["seconds"],
        detail=row["detail"],
    )
    return oldest_needed(connection, AccountYield(record, (), (), (), windows))


def _server(detail: Row) -> Mapping[str, str]:
    """How the server behaves and was treated, by subject."""
    probed, pace = detail.get("capabilities") or {}, detail.get("pace") or {}
    sizes, ahead = probed.get("page_sizes") or {}, detail.get("clock_ahead", 0)
    pages = " and ".join(f"{sizes[kind]} {kind}" for kind in ("contacts", "leads") if sizes.get(kind))
    told: dict[str, str] = {"page size": pages or "unknown"}
    for subject, field in (("filter on createdAt", "created"), ("filter on lastSeenAt", "seen")):
        if field in probed:
            step = (probed[field] or {}).get("resolution", 0)
            told[subject] = f"honoured, to {step} ms" if probed[field] else "not honoured"
    if "newest_first" in probed:
        told["order of the lists"] = "newest first" if probed["newest_first"] else "not newest first"
    told["a page past the end"] = str(probed.get("past_end", "unknown"))
    if pace:
        rate = pace.get("per_second")
        told["requests at once"] = f"{pace.get('at_once', 0):g}, {pace.get('peak_in_flight', 0):g} used"
        told["requests a second"] = f"{rate:g}" if rate else "no limit met"
        slowed = f"{pace.get('throttled', 0):,} responses, {pace.get('waited', 0):g} s waited"
        told["told to slow down"] = slowed if pace.get("throttled") else "never"
    agrees = abs(ahead) <= CLOCKS_DIFFER
    told["its clock"] = (
        "agrees with ours" if agrees else f"{abs(ahead):,} s {'ahead of' if ahead > 0 else 'behind'} ours"
    )
    return told


def _contacts(connection: duckdb.DuckDBPyConnection, now: datetime) -> ContactFigures:
    """The published contacts in groups; `now` is the newest T0, beyond which a creation time is not believed."""
    ask = connection.execute
    [(total, without_time, later)] = ask(
        "select count(*), count(*) filter (created_at is null), count(*) filter (created_at > ?) from contacts", [now]
    ).fetchall()
    created = [(month, count) for month, count in ask(_CREATED, [now]).fetchall()]
    shown = _months(now)
    by_month = dict(created)
    months = [(month, by_month.get(month, 0)) for month in shown]
    while months and not months[0][1]:
        months.pop(0)
    channels = ask(
        "select channel, count(*) from (select unnest(platforms) as channel from contacts) group by 1"
    ).fetchall()
    return ContactFigures(
        total=total,
        channels=fold_small(channels, 8),
        statuses=fold_small(ask("select status, count(*) from contacts group by 1").fetchall(), 8),
        countries=fold_small(ask("select country, count(*) from contacts group by 1").fetchall(), 8),
        months=months,
        earlier=sum(count for month, count in created if month < shown[0]),
        later=later,
        without_time=without_time,
        week=ask(_WEEK).fetchall(),
    )


def _months(now: datetime) -> Sequence[datetime]:
    """The beginnings of the last months up to `now`."""
    number = now.year * 12 + now.month - 1
    return [
        datetime(one // 12, one % 12 + 1, 1, tzinfo=UTC)
        for one in range(max(12, number - SHOWN_MONTHS + 1), number + 1)
    ]


def _proof(config: Config, connection: duckdb.DuckDBPyConnection, accounts: Sequence[Row], newest: int) -> ProofFigures:
    pieces = [
        {"account": row["account"], "is_contact": is_contact, "start": start, "end": end, "seq": seq}
        for row in accounts[:SHOWN_ACCOUNTS]
        for is_contact, start, end, seq in last_reads(connection, row["account"])
    ]
    kinds = [("account", pa.string()), ("is_contact", pa.bool_()), ("start", schema.TIME), ("end", schema.TIME)]
    connection.register("pieces", pa.Table.from_pylist(pieces, pa.schema([*kinds, ("seq", pa.int64())])))
    sizes = [row["detail"].get("capabilities", {}).get("page_size") or 0 for row in accounts]
    manifest = ""
    with suppress(EtlError):
        states = [sink.state() for sink in sinks(config)]
        manifest = next((state.digest for state in states if state.seq == newest), "")
    rows = connection.execute(_WINDOW_ROWS, [SHOWN_RUNS]).fetchall()
    return ProofFigures(
        looked_at=connection.execute(_LOOKED_AT).fetchall(),
        window_rows=rows,
        page_size=max(sizes, default=0),
        windows=sum(count for _, count in rows),
        manifest=manifest,
    )


def _data(connection: duckdb.DuckDBPyConnection, *, several: bool) -> DataFigures:
    [(total,)] = connection.execute("select count(*) from contacts").fetchall()
    filled = _filled(connection, "contacts")
    before, total_before = filled, total
    if several:
        pair(connection, -2, -1)
        [(new, deleted)] = connection.execute(_CAME_AND_LEFT).fetchall()
        gained, lost = (_filled(connection, _IN_PAIRS.format(*names)) for names in _SIDES)
        before = [now - plus + minus for now, plus, minus in zip(filled, gained, lost, strict=True)]
        total_before = total - new + deleted
    columns = [
        ColumnFigures(
            column.name,
            now / max(1, total),
            now / max(1, total) - then / max(1, total_before) if several and total_before else None,
        )
        for column, now, then in zip(schema.CONTENT, filled, before, strict=True)
    ]
    keys: Counter[str] = Counter()
    for structure, count in connection.execute(_STRUCTURES).fetchall():
        keys.update(dict.fromkeys(_paths(json.loads(structure)), count))
    return DataFigures(
        columns,
        rejects=connection.execute("select reason, count(*) from rejects group by 1 order by 2 desc, 1").fetchall(),
        extra_keys=fold_small(keys.items(), 12, longest=60),
    )


def _filled(connection: duckdb.DuckDBPyConnection, relation: str) -> Sequence[int]:
    """The number of values in each column whose change counts, in their order."""
    return connection.execute(f"select {_FILLED} from {relation}").fetchall()[0]


def _paths(structure: object, path: str = "") -> Iterator[str]:
    """The paths of the leaves in a JSON structure, lists left out; deep ones are cut."""
    while isinstance(structure, list):
        structure = structure[0] if structure else None
    if not isinstance(structure, dict) or path.count(".") == DEEPEST_KEY - 1:
        yield path
        return
    for name, inner in structure.items():
        yield from _paths(inner, f"{path}.{name}" if path else name)
