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
from etl.commands.result import Forecast
from etl.config import Config
from etl.extract.account import history_of, last_run, reading_key, timing_of
from etl.extract.capabilities import Capabilities
from etl.extract.checkpoint import SavedProgress, saved_progress
from etl.extract.history import History, choose_mode
from etl.extract.plan import requests_of
from etl.extract.probe import probe
from etl.extract.strategy import LEADS_FIRST, next_scrub, resume, strike_ranges
from etl.model import Mode
from etl.sinks.checks import refuse_other_filters
from etl.sinks.snapshot import Published
from etl.sinks.targets import lagging_sink, sinks
from etl.storage.staging import refuse_strangers, stage_folder

SWEEP_REQUESTS = 4
"""A quiet sweep: two time fields, two lists, one request each for the open rest."""
LONGEST_LIST = 1 << 24
"""Number of pages at which counting a list stops."""


async def forecast(config: Config, *, full: bool) -> list[Forecast]:
    """One forecast per account. Raises the errors that a run would raise before its first window."""
    filters = checked_filters(config.extract.filters)
    made = sinks(config)
    for sink in made:
        refuse_strangers(sink.path)
    states = [sink.state() for sink in made]
    for sink, state in zip(made, states, strict=True):
        refuse_other_filters(sink, state, filters)
    forecasts = []
    async with sources(config) as found:
        for source in found:
            last = last_run(states, source.account)
            sink = lagging_sink(made, states, source.account, last)
            history = history_of(last, Published(sink, source.account))
            stage = stage_folder(made[0].path) / source.account
            left = saved_progress(stage, reading_key(source, config.extract, last, full=full), time())
            forecasts.append(await _forecast(config, source, history, left, full=full))
    # The rate limit of a token adds the time that all accounts which share it need together.
    least: defaultdict[Quota, list[float]] = defaultdict(list)
    for source, own in zip(found, forecasts, strict=True):
        if source.quota:
            least[source.quota].append(source.quota.cap.seconds(own.requests, own.latency))
    for number, (source, own) in enumerate(zip(found, forecasts, strict=True)):
        if quota := source.quota:
            seconds, sharing = round(max(own.seconds, sum(least[quota])), 1), len(least[quota])
            forecasts[number] = replace(own, seconds=seconds, per_second=quota.cap.per_second, sharing=sharing)
    return forecasts


async def _forecast(config: Config, source: Source, history: History, left: SavedProgress, *, full: bool) -> Forecast:
    concurrency = config.extract.concurrency
    async with reach(source, config.extract, config.http) as client:
        started = monotonic()
        if left.resumption:
            found = (await resume(client, left.resumption.start)).capabilities
        else:
            first = history.watermark is None
            found = await probe(client, local_now=int(time() * 1000), held=history.held, compare_lists=first or full)
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
