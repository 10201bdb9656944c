"""Verification (`etl verify`): whether the published data is intact, and still agrees with the account.

Offline: manifest chain, file hashes, counts, unique ids, history against state. Live: random windows are read again,
and every contact in them that existed when the snapshot was taken must be in the snapshot. Writes nothing.
"""

# ruff: noqa: S608 - SQL is built from our own names.

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from time import time

import duckdb

from etl import schema
from etl.api.response import Page, id_text
from etl.api.sources import Source, reach, sources
from etl.commands.checks import Finding, failure
from etl.commands.sql import names_of
from etl.config import Config
from etl.errors import EtlError, TargetCorrupt, UnprovenError, UsageError
from etl.extract.account import last_run
from etl.extract.checkpoint import NullCheckpoint
from etl.extract.fetch import WindowReader
from etl.extract.plan import plan_windows
from etl.extract.probe import probe
from etl.extract.windows import LEADS_FIRST, Window
from etl.sinks import ParquetSink, Sink, Unpublished
from etl.sinks.manifest import decode, digest
from etl.sinks.snapshot import Published
from etl.sinks.targets import sinks
from etl.storage import duck
from etl.storage.row_hash import ROW_HASH_SQL, is_former
from etl.times import milliseconds, to_milliseconds

_PRESENCE = duck.listed(column.name for column in schema.CONTACTS if column.presence)
_CHECKS: dict[str, str] = {
    "ids": "select count(*) from (select 1 from contacts group by account, contact_id having count(*) > 1)",
    "counts": """
        with last as (select * from runs qualify row_number() over (partition by account order by seq desc) = 1)
        select count(*) from last left join (select account, count(*) as held from contacts group by account)
        using (account) where contacts <> coalesce(held, 0)""",
    "sums": "select count(*) from runs where received <> new + changed + unchanged + folded + rejected",
    "versions": """
        select count(*) from runs left join
        (select account, seq, count(*) as held from contact_versions group by account, seq) using (account, seq)
        where new + changed + deleted <> coalesce(held, 0)""",
    "history": f"""
        select count(*) from (select account, contact_id, row_hash from contacts) c
        full join (select account, contact_id, row_hash from contacts_as_of(timestamptz '9999-01-01')) v
        using (account, contact_id) where c.row_hash is distinct from v.row_hash
        and not ({is_former("v.row_hash")} and c.row_hash is not null and not {is_former("c.row_hash")})""",
    "contents": f"""
        select count(*) filter (row_hash is distinct from {ROW_HASH_SQL}), max(hash({_PRESENCE}))
        from (select * from contacts union all by name select * exclude (op) from contact_versions)""",
}
"""Queries that count errors, so each must return zero.

They find duplicate contacts, miscounted accounts, runs that do not add up, missing versions or history, and rows that
do not match their `row_hash`, for which every cell is read."""
_DIFFERING = {
    "ids": "contacts are listed twice",
    "counts": "accounts have a different number of contacts than their last run recorded",
    "sums": "runs have counts that do not add up",
    "versions": "runs have a different number of versions than they recorded",
    "history": "contacts differ from their last version",
    "contents": "rows do not match their `row_hash`",
}
"""Description of each mismatch, printed after its count."""
_REMOVED = "If rows were removed on purpose, nothing else is lost and nothing needs to be done. "
_HINTS = {
    "counts": _REMOVED + "Otherwise `etl run --full` reads the contacts that the account still holds again.",
    "versions": _REMOVED + "No run writes old versions again, so this check fails from now on.",
    "history": _REMOVED + "Otherwise `etl run --full` reads the contacts that the account still holds again.",
    "contents": "If cells were emptied on purpose, nothing needs to be done. Otherwise move the target away and run "
    "again for a full export.",
}
"""For data that may have been removed by hand, e.g. at a person's request: an old copy would still hold it."""


def verify_targets(config: Config) -> list[Finding]:
    """Check every published target; an error becomes a finding."""
    findings: list[Finding] = []
    for sink in sinks(config):
        try:
            with sink.reading() as connection:
                findings.append(_manifests(connection, sink))
                for check, query in _CHECKS.items():
                    wrong, *_ = connection.execute(query).fetchone() or (0,)
                    hint, detail = _HINTS.get(check, TargetCorrupt.default_hint), f"{wrong} {_DIFFERING[check]}"
                    failed = Finding(check, sink.location, detail, hint, TargetCorrupt.exit_code)
                    findings.append(failed if wrong else Finding(check, sink.location, "in order"))
        except Unpublished:
            findings.append(Finding("target", sink.location, "nothing was published yet"))
        except EtlError as error:
            findings.append(failure("target", error, where=sink.location))
    return findings


def _manifests(connection: duckdb.DuckDBPyConnection, sink: Sink) -> Finding:
    """Check the chain of manifests, and that the target holds what they say: its files, or its rows of `runs`."""
    if isinstance(sink, ParquetSink):
        return Finding("manifests", sink.location, sink.verify())
    rows = connection.execute("select digest, document from etl.manifests order by seq").fetchall()
    previous, runs = "", set[tuple[object, ...]]()
    for recorded, document in rows:
        if digest(document.encode()) != recorded or f'"previous":"{previous}"' not in document:
            raise TargetCorrupt("a manifest was altered: the chain of digests is broken", where=sink.location)
        previous = recorded
        runs |= {(run.seq, run.account, run.counts.contacts) for run in decode(document.encode()).runs}
    if runs != set(connection.execute("select seq, account, contacts from runs").fetchall()):
        raise TargetCorrupt("`runs` does not hold the runs of the manifests", where=sink.location)
    return Finding("manifests", sink.location, f"{len(rows)} in a chain")


async def verify_live(config: Config, count: int) -> list[Finding]:
    """Read `count` random windows of every account again and compare them with the snapshot."""
    findings: list[Finding] = []
    try:
        async with sources(config) as found:
            for source in found:
                findings += [finding async for finding in _live(config, source, count)]
    except EtlError as error:
        findings.append(failure("live", error))
    return findings


async def _live(config: Config, source: Source, count: int) -> AsyncIterator[Finding]:
    made = [sink for sink in sinks(config) if sink.state().seq]
    last = last_run([sink.state() for sink in made], source.account)
    where = f"account {source.account}"
    if last is None:
        yield Finding("live", where, "nothing was published yet")
        return
    if last.mode == "filtered":
        yield failure("live", UsageError("a filtered export cannot be compared with the account", where=where))
        return
    until = to_milliseconds(last.watermark)
    seen: set[str] = set()

    async def receive(page: Page) -> None:
        for row in page.rows:
            created, contact_id = milliseconds(row.created_at), id_text(bytes(row.contact_id))
            if contact_id and created is not None and created < until:
                seen.add(contact_id)

    async with reach(source, config.extract, config.http) as client:
        found = await probe(client, local_now=int(time() * 1000))
        if not found.windows:
            yield failure("live", UnprovenError("the server does not honour its time filters", where=where))
            return
        reader = WindowReader(client, found, receive, NullCheckpoint())
        times, capacity = Published(made[0], source.account).created(None), max(map(found.capacity, LEADS_FIRST))
        windows = list(
            plan_windows(times, field="createdAt", is_contact=False, start=None, end=until, capacity=capacity)
        )
        windows = random.sample(windows, min(count, len(windows)))
        for is_contact in LEADS_FIRST:
            await reader.read(Window("createdAt", is_contact, window.start, window.end) for window in windows)
    missing = _unknown(made[0], source.account, seen)
    detail = (
        f"{len(windows)} windows read again, {len(seen)} contacts, {len(missing)} of them missing from the snapshot"
    )
    if not missing:
        yield Finding("live", where, detail)
        return
    yield Finding("live", where, detail, "Run `etl run --full`, then verify again.", UnprovenError.exit_code)


def _unknown(sink: Sink, account: str, seen: set[str]) -> set[str]:
    """The contacts in `seen` that are not in the snapshot, not rejected, and not kept deleted though still listed."""
    with sink.reading() as connection:
        names = [name for name, _, _ in names_of(connection, account)]
        rows = connection.execute(
            "select contact_id from contacts where account = $1 union select contact_id from etl.strikes"
            " where account = $1 union select contact_id from rejects where account in $2",
            [account, names],
        ).fetchall()
        unknown = seen - {contact_id for (contact_id,) in rows}
        # A contact with two different ids was rejected without an id.
        rejected = connection.execute(
            "select raw from rejects where account in $1 and reason = 'conflicting_ids'", [names]
        )
        raws = [raw for (raw,) in rejected.fetchall()] if unknown else []
    return {contact_id for contact_id in unknown if not any(contact_id in raw for raw in raws)}
