"""The forecast (`etl plan`): how many windows and requests the next run needs, and how long it will take.

It probes the server and reads the last state; it writes nothing, not even a lock.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from time import monotonic, time

from etl.api.client import Client, PageRefused, Quota
from etl.api.request import Query, checked_filters
from etl.api.sources import Source, reach, sources
from etl.commands.each import each_account
from etl.commands.result import Forecast
from etl.config import Config
from etl.errors import EtlError
from etl.extract.account import history_of, last_run, ordered_from, pace_of, reading_key, timing_of
from etl.extract.capabilities import Capabilities
from etl.extract.checkpoint_file import SavedProgress, saved_progress
from etl.extract.history import History, choose_mode
from etl.extract.landmarks import LONGEST_LIST, may_be_sorted
from etl.extract.plan import requests_of
from etl.extract.probe import probe
from etl.extract.scrub import next_scrub, strike_ranges
from etl.extract.strategy import resume
from etl.extract.windows import LEADS_FIRST
from etl.fleet.attempts import last_attempt
from etl.model import Mode
from etl.sinks.checks import refuse_other_filters
from etl.sinks.snapshot import Published
from etl.sinks.targets import lagging_sink, sinks
from etl.storage.staging import refuse_strangers, stage_folder

SWEEP_REQUESTS = 4
"""A quiet sweep: two time fields, two lists, one request each for the open rest."""
ORDER_REQUESTS, ORDER_SHARE = 40, 0.06
"""Requests beside the pages of an ordered first run, for landmarks and checks: a fixed number, and one per pages."""


async def forecast(config: Config, *, full: bool) -> list[Forecast]:
    """One forecast per account. Raises the errors that a run would raise before its first window."""
    filters = checked_filters(config.extract.filters)
    made = sinks(config)
    for sink in made:
        refuse_strangers(sink.path)
    states = [sink.state() for sink in made]
    for sink, state in zip(made, states, strict=True):
        refuse_other_filters(sink, state, filters)

    async def one(source: Source) -> Forecast:
        last = last_run(states, source.account)
        sink = lagging_sink(made, states, source.account, last)
        history = history_of(last, Published(sink, source.account))
        stage = stage_folder(made[0].path) / source.account
        begun = last_attempt(stage)
        left = saved_progress(
            begun, reading_key(source, config.extract, last, full=full), time(), shared=begun != stage
        )
        own = await _forecast(config, source, history, left, full=full)
        # The pace that the server allowed at the end of the last run is where the next one begins.
        paced = own.requests * pace_of(last, config.extract.concurrency).interval
        return replace(own, seconds=max(own.seconds, round(paced, 1)))

    forecasts = []
    async with sources(config) as found:
        for done in await each_account(found, config.extract.accounts_at_once, one):
            if isinstance(done, EtlError):
                raise done
            forecasts.append(done)
    # The rate limit of a token adds the time that all accounts which share it need together.
    least: defaultdict[Quota, list[float]] = defaultdict(list)
    for source, own in zip(found, forecasts, strict=True):
        if source.quota:
            least[source.quota].append(source.quota.cap.seconds(own.requests, own.latency))
    for number, (source, own) in enumerate(zip(found, forecasts, strict=True)):
        if quota := source.quota:
            seconds, sharing = round(max(own.seconds, sum(least[quota])), 1), len(least[quota])
            forecasts[number] = replace(own, seconds=seconds, per_second=quota.cap.per_second, sharing=sharing)
    # Of the accounts that share a limit, `accounts_at_once` do so at the same time; each has the whole deadline.
    deadline, at_once = config.extract.deadline.total_seconds(), config.extract.accounts_at_once
    return [replace(f, exceeds_deadline=f.seconds * min(1.0, at_once / f.sharing) > deadline) for f in forecasts]


async def _forecast(config: Config, source: Source, history: History, left: SavedProgress, *, full: bool) -> Forecast:
    concurrency = config.extract.concurrency
    async with reach(source, config.extract, config.http) as client:
        started = monotonic()
        if left.resumption:
            found = (await resume(client, left.resumption.start)).capabilities
        else:
            found = await probe(client, local_now=int(time() * 1000), held=history.held)
        probed, probing = client.sent, monotonic() - started
        started, held = monotonic(), client.statistics().held
        await client.read(Query(is_contact=False))
        latency = monotonic() - started - (client.statistics().held - held)
        mode, windows, others = await _work(config, client, found, history, left, full=full)
    resumes = len(left.resumption.accepted) if left.resumption else 0
    windows = max(0, windows - resumes)
    # The probe and the sweep mostly send one request at a time; the rest is concurrent.
    turns = SWEEP_REQUESTS + -(-(windows + others) // concurrency)
    seconds = round(probing + turns * latency, 1)
    return Forecast(source.account, mode, windows, probed + windows + others, seconds, resumes, round(latency, 3))


async def _work(
    config: Config, client: Client, found: Capabilities, history: History, left: SavedProgress, *, full: bool
) -> tuple[Mode, int, int]:
    """Mode, number of windows, and number of other requests."""
    mode = choose_mode(history, found, full=full, filters=config.extract.filters)
    if mode == "filtered":
        queries = [Query(listed, filters=config.extract.filters) for listed in LEADS_FIRST]
        return mode, 0, sum([await count_pages(client, query) for query in queries])
    if not found.windows:
        return mode, 0, sum([await count_pages(client, Query(listed)) for listed in LEADS_FIRST])
    full, timing = mode == "full", timing_of(config.extract)
    due = history.cross_check_is_due(found.t0, timing.cross_check_every, full=full)
    pages = {listed: await count_pages(client, Query(listed)) if due else 0 for listed in LEADS_FIRST}
    # The page scan is made at least twice if some contacts are in no window; a killed run has made a part of it.
    scans, scanned = max(2 if history.without_created_at else 1, len(left.scans)), sum(pages.values())
    others = SWEEP_REQUESTS + max(0, scanned - left.scans[-1].pages) + scanned * (scans - len(left.scans))
    fewest = ordered_from(config.extract)
    if history.watermark is None and fewest and max(pages.values()) >= fewest and may_be_sorted(found):
        return mode, scanned, SWEEP_REQUESTS + ORDER_REQUESTS + round(ORDER_SHARE * scanned)
    if history.watermark is None:
        rows = {listed: count * found.page_sizes.of(listed) for listed, count in pages.items()}
        return mode, sum(-(-rows[listed] // found.capacity(listed)) for listed in rows), others
    start, end, created = None, found.t0, history.snapshot.created
    if not full:
        start, end = next_scrub(history, timing, found, found.t0)
    windows = sum(
        requests_of(created(listed), start=start, end=end, capacity=found.capacity(listed)) for listed in LEADS_FIRST
    )
    windows += len(LEADS_FIRST) * len(strike_ranges(history, found))
    return mode, windows, others


async def count_pages(client: Client, query: Query) -> int:
    """The current number of pages of `query`, by doubling, then bisection: about 2 log2(pages) requests."""
    low, high = 0, 1
    while high < LONGEST_LIST and await _has_rows(client, query, high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await _has_rows(client, query, middle) else (low, middle)
    return low


async def _has_rows(client: Client, query: Query, page: int) -> bool:
    """Whether the list has this page; a server that repeats its last page shows no new contact on it."""
    try:
        rows = await client.read(query, page)
        return bool(rows.rows) and (page == 1 or not rows.ids <= (await client.read(query, page - 1)).ids)
    except PageRefused:
        return False
