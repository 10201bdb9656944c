"""Extraction strategy of one account: which reads are made, in which order, and what they prove.

Full run: windows on the immutable `createdAt` up to T0 - H, then a sweep of the contacts created or updated since.
Incremental run: a sweep from the last watermark, and a rolling scrub of a share of the windows. With filters, or if the
server's time filters do not work: a page scan. Knows neither Arrow nor sinks: pages are passed to `receive`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import anyio

from etl.api.client import Client
from etl.api.request import Query, TimeField
from etl.errors import ContractError
from etl.extract.capabilities import SMALLEST_PAGE, Capabilities
from etl.extract.checkpoint import Checkpoint, ExtractionStart
from etl.extract.crosscheck import CrossCheck, CrossCheckLog
from etl.extract.fetch import WindowReader
from etl.extract.history import History, Timing
from etl.extract.pages import PageScan, Receive, walk
from etl.extract.plan import others_in, plan_windows, ranges_around, scrub_span
from etl.extract.probe import probe
from etl.extract.sweep import sweep
from etl.extract.windows import Accepted, Window
from etl.model import NOTHING, Look, Mode

Number = TypeVar("Number", int, float)

FIELDS: tuple[TimeField, ...] = ("lastSeenAt", "createdAt")
COMPANY, NEIGHBOURS = 6, 3
"""Maximum and desired number of other known contacts in a range that is requested because of strikes.

The maximum is far below any page size. If none of the others is listed, the server may not be showing the account."""
LEADS_FIRST = (False, True)
"""Both lists are always read: a sample may suggest that one contains the other, but cannot prove it for the account.

A lead becomes a contact, not the reverse: in this order, a lead that changes during the run is seen in one list."""


@dataclass(slots=True)
class Extraction:
    """The result of reading one account, with the evidence that it is complete."""

    mode: Mode
    capabilities: Capabilities
    watermark: int
    clock_ahead: int
    """Seconds by which the server's clock was ahead of ours when T0 was read."""
    accepted: list[Accepted] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    walked: bool = False
    """Whether the data itself comes from a page scan."""
    coverage: tuple[tuple[int | None, int], ...] = ()
    """Ranges of createdAt in which absence is a strike."""
    confirmed: tuple[tuple[int, int], ...] = ()
    """Ranges of createdAt requested directly because of contacts with a strike: absence is the second strike."""
    look: Look = NOTHING
    """Known contacts that the scrub checked for."""
    escalated: Look | None = None
    """The check that missed too many contacts, so that everything was read."""
    cuts: Mapping[bool, tuple[int, int]] = field(default_factory=dict)
    """See `History.cuts`."""
    witness_at: int | None = None
    scrub_after: int | None = None
    requests: dict[str, int] = field(default_factory=dict)
    """Attempts by purpose: probe, witness, windows, sweep, scrub, walk."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration by purpose."""
    resumed: int = 0
    """Windows already read by a killed run."""
    late: int = 0
    """Contacts that no earlier run could see, found by this run's cross-check."""


async def extract(
    client: Client,
    history: History,
    timing: Timing,
    receive: Receive,
    witness: CrossCheckLog,
    checkpoint: Checkpoint,
    *,
    full: bool,
    filters: Mapping[str, object],
    local_now: int,
    shrink_share: float = 0.05,
) -> Extraction:
    """Read one account, resuming a killed run from the checkpoint.

    If a scrub misses more than `shrink_share` of the contacts it checks for, everything is read.
    Raises the client's errors; anything that cannot be proven is listed, not raised.
    """
    started = anyio.current_time()
    if checkpoint.resumed:
        begun = await go_on(client, checkpoint.resumed.begun)
    else:
        first = history.watermark is None
        found = await probe(client, local_now=local_now, held=history.held, compare_lists=first or full)
        found = replace(found, page_sizes=history.remembered(found.page_sizes, found.t0))
        incremental = history.allows_incremental and not (full or filters) and found.windows
        mode: Mode = "filtered" if filters else "incremental" if incremental else "full"
        # A server clock that runs ahead would hide changes until time catches up; an older watermark is safe.
        watermark = min(found.t0, local_now) - timing.visibility_lag
        begun = ExtractionStart(mode, found, watermark, clock_ahead(client, local_now, started))
    history = history.by_clock(clock_ahead(client, local_now, started))
    run = Extraction(
        begun.mode,
        begun.capabilities,
        begun.watermark,
        begun.clock_ahead,
        witness_at=history.witness_at,
        scrub_after=history.scrub_after,
        requests={"probe": client.sent},
        seconds={"probe": anyio.current_time() - started},
        resumed=len(checkpoint.resumed.accepted) if checkpoint.resumed else 0,
    )
    await _read(_Reading(client, run, history, timing, receive, witness, checkpoint, shrink_share), filters)
    return run


def clock_ahead(client: Client, local_start: int, started: float) -> int:
    """Seconds by which the server's clock is ahead of ours, which was `local_start` (ms) at `started`; 0 if unknown."""
    local_now = local_start + (anyio.current_time() - started) * 1000
    # Plus half a second: the server's time is rounded down.
    return 0 if client.server_now is None else round((client.server_now + 500 - local_now) / 1000)


def next_scrub(history: History, timing: Timing, capabilities: Capabilities, until: int) -> tuple[int | None, int]:
    """The range of createdAt up to `until` (ms) that the next incremental run reads again.

    It holds at least one window's worth of contacts; three if any contact has a strike, because the scrub also checks
    whether the server shows the whole account, and a small sample is not enough to delete contacts.
    """
    windows = 3 if history.snapshot.struck() else 1
    return scrub_span(
        history.snapshot.created(None),
        after=history.scrub_after,
        end=until,
        share=timing.scrub_share(capabilities.t0 - history.t0),
        capacity=windows * max(map(capabilities.capacity, LEADS_FIRST)),
    )


def strike_ranges(history: History, capabilities: Capabilities) -> list[tuple[int, int]]:
    """The ranges of createdAt that the next run requests because of contacts with a strike."""
    snapshot, resolution = history.snapshot, capabilities.resolution
    return ranges_around(
        snapshot.struck(), snapshot.created(None), resolution=resolution, company=COMPANY, neighbours=NEIGHBOURS
    )


async def go_on(client: Client, begun: ExtractionStart) -> ExtractionStart:
    """Resume a killed run: its capabilities are kept, and one request reads the server's current time."""
    client.first_page = begun.capabilities.first_page
    client.signatures = frozenset(begun.capabilities.manners) or None
    await client.read(Query(is_contact=False))
    return begun


async def _read(reading: _Reading, filters: Mapping[str, object]) -> None:
    run = reading.run
    if filters:
        await reading.walk_filtered(filters)
    elif not run.capabilities.windows:
        await reading.walk_all()
    else:
        # Proven windows can be resumed; page numbers alone are ranks in a list that has moved since.
        reading.checkpoint.begin(ExtractionStart(run.mode, run.capabilities, run.watermark, run.clock_ahead))
        await (reading.incremental() if run.mode == "incremental" else reading.full())


@dataclass(frozen=True, slots=True)
class _Reading:
    """The steps of one extraction, by mode."""

    client: Client
    run: Extraction
    history: History
    timing: Timing
    receive: Receive
    witness: CrossCheckLog
    checkpoint: Checkpoint
    shrink_share: float

    async def full(self) -> None:
        """Read every window up to the watermark, then sweep; cross-checked on the first run and every week."""
        walked = self._witness_is_due(full=True)
        if walked:
            await self._walk_witness()
        created = self.witness.created if walked else self.history.snapshot.created
        reader = WindowReader(self.client, self.run.capabilities, self.receive, self.checkpoint, created)
        with self._counted("windows"):
            await reader.complete(self._both(created, None, self.run.watermark))
            await self._confirm_strikes(reader)
        # Contacts without a creation time are in no window, and a page scan may miss them: the sweep reads updates.
        since = min(self.run.watermark, self._last_margin()) if self.history.without_created_at else self.run.watermark
        await self._sweep(reader, since=since)
        self.run.coverage = ((None, self.run.watermark),)
        await self._finish(reader, since=since)
        if walked:
            with self._counted("witness"):
                self.run.unproven += await self._cross_check().contradict(reader, self.run.watermark)
        self._conclude(reader)

    async def incremental(self) -> None:
        """Scrub a share of the windows, and sweep from before the last watermark; cross-checked every week."""
        walked = self._witness_is_due(full=False)
        if walked:
            await self._walk_witness()
        created = self.history.snapshot.created
        reader = WindowReader(self.client, self.run.capabilities, self.receive, self.checkpoint, created)
        with self._counted("scrub"):
            await self._scrub(reader, beside=await self._confirm_strikes(reader))
        since = self._last_margin()
        await self._sweep(reader, since=since)
        await self._finish(reader, since=since)
        if walked:
            with self._counted("witness"):
                self.run.late, doubts = await self._cross_check().recover(reader, self.run.watermark)
                self.run.unproven += doubts
        self._conclude(reader)

    def _last_margin(self) -> int:
        """The time from which the last run may have missed contacts that became visible late; at most T0."""
        return min(self.history.watermark or 0, self.run.capabilities.t0) - max(
            self.timing.lookback, self.timing.visibility_lag
        )

    async def walk_all(self) -> None:
        """Read every page of both lists: the only way on a server without time filters, and no proof."""
        self.run.walked = True
        with self._counted("walk"):
            for is_contact in LEADS_FIRST:
                await self._walk(Query(is_contact), self.receive)
        self.run.unproven.append("the server does not honour its time filters, so pages are all there is")

    async def walk_filtered(self, filters: Mapping[str, object]) -> None:
        """Read every page that matches the user's filters."""
        self.run.walked = True
        if not (self.run.capabilities.honours_page or self.run.capabilities.one_page):
            raise ContractError(
                "the server answers page 2 with page 1, so a filtered export would stop there",
                where="extract.filters",
                hint="Remove the filters: a full export does not need pages.",
            )
        lists = [bool(filters["isContact"])] if "isContact" in filters else LEADS_FIRST
        with self._counted("walk"):
            for is_contact in lists:
                query = Query(is_contact, applicable=self._applicable(filters), filters=filters)
                await self._walk(query, self.receive)

    async def _walk(self, query: Query, receive: Receive) -> None:
        await walk(self.client, query, receive, PageScan(self.run.capabilities.past_end == "repeats"))

    def _applicable(self, filters: Mapping[str, object]) -> tuple[str, ...]:
        """The names to send in `applicableFilters`; it is not known whether filters other than flags must be named."""
        return tuple(name for name in filters if name not in {"isContact", "searchText", "applicableFilters"})

    def _witness_is_due(self, *, full: bool) -> bool:
        return self.history.witness_is_due(self.run.capabilities.t0, self.timing.witness_every, full=full)

    async def _walk_witness(self) -> None:
        with self._counted("witness"):
            doubts, sizes = await self._cross_check().walk(swept=self.run.watermark)
            self.run.unproven += doubts
            self.run.capabilities = replace(self.run.capabilities, page_sizes=sizes)
        self.run.witness_at = self.run.capabilities.t0

    def _cross_check(self) -> CrossCheck:
        return CrossCheck(self.client, self.run.capabilities, self.witness, self.receive, LEADS_FIRST)

    async def _confirm_strikes(self, reader: WindowReader) -> Look:
        """Request every contact with a strike in a range small enough for a page of any size.

        Returns how many other contacts these ranges should hold, and how many of those are in ranges that listed no
        contact at all: the server may not be showing such a range.
        """
        snapshot = self.history.snapshot
        struck, created = snapshot.struck(), snapshot.created(None)
        ranges = strike_ranges(history=self.history, capabilities=self.run.capabilities)
        for is_contact in LEADS_FIRST:
            windows = (Window("createdAt", is_contact, start, end) for start, end in ranges)
            await reader.read(windows, most=SMALLEST_PAGE)
        self.run.confirmed = tuple(ranges)
        look, shown = NOTHING, reader.starts_of_shown()
        for start, end in ranges:
            looked = others_in(start, end, struck, created)
            silent = bisect_left(shown, start) == bisect_left(shown, end)
            look += Look(looked, looked if silent else 0)
        return look

    async def _scrub(self, reader: WindowReader, *, beside: Look) -> None:
        """Read the next share of all windows again, to find deletions and edits that do not change `lastSeenAt`.

        If too many known contacts are absent, or too many of those next to contacts with a strike (`beside`), the
        server may show only part of the account: then everything is read.
        """
        snapshot, until = self.history.snapshot, self.run.watermark
        start, end = next_scrub(self.history, self.timing, self.run.capabilities, until)
        await reader.complete(self._both(snapshot.created, start, end))
        self.run.look = await snapshot.look(start, end)
        looks = (self.run.look, self.run.look + self.history.look, beside)
        self.run.escalated = next((look for look in looks if look.is_suspicious(self.shrink_share)), None)
        if self.run.escalated is not None:
            if start is not None:
                await reader.complete(self._both(snapshot.created, None, start))
            await reader.complete(self._both(snapshot.created, end, until))
            start, end = None, until
        self.run.coverage = ((start, end),)
        self.run.scrub_after = end if end < until else None

    async def _sweep(self, reader: WindowReader, *, since: int) -> None:
        until = (self.client.server_now or self.run.capabilities.t0) - self.timing.visibility_lag
        with self._counted("sweep"):
            async with anyio.create_task_group() as tasks:
                for name in FIELDS:
                    tasks.start_soon(partial(sweep, reader, name, since=since, until=until, lists=LEADS_FIRST))

    async def _finish(self, reader: WindowReader, *, since: int) -> None:
        """Read again, in the original order, the windows that a page size lowered during the run may have cut off."""
        while doubtful := await reader.doubtful():
            ranges = {(window.start, window.end) for window in doubtful if window.field == "createdAt" and window.end}
            with self._counted("windows"):
                for is_contact in LEADS_FIRST:
                    await reader.read(Window("createdAt", is_contact, start, end) for start, end in ranges)
            await self._sweep(reader, since=since)

    def _conclude(self, reader: WindowReader) -> None:
        self.run.cuts = self.history.cuts_after(reader.sizes, self.run.capabilities.t0)
        self.run.accepted = reader.accepted
        self.run.unproven.extend(reader.unproven)

    def _both(self, created: Callable[[bool], Sequence[int]], start: int | None, end: int) -> Iterator[Window]:
        """The windows of both lists in one sequence, so that reading them overlaps."""
        for is_contact in LEADS_FIRST:
            yield from self._plan(created(is_contact), is_contact, start, end)

    def _plan(self, times: Sequence[int], is_contact: bool, start: int | None, end: int) -> Iterator[Window]:
        return plan_windows(
            times,
            field="createdAt",
            is_contact=is_contact,
            start=start,
            end=end,
            capacity=self.run.capabilities.capacity(is_contact),
            resolution=self.run.capabilities.resolution,
        )

    @contextmanager
    def _counted(self, purpose: str) -> Iterator[None]:
        sent, begun = self.client.sent, anyio.current_time()
        try:
            yield
        finally:
            _add(self.run.requests, purpose, self.client.sent - sent)
            _add(self.run.seconds, purpose, anyio.current_time() - begun)


def _add(sums: dict[str, Number], name: str, amount: Number) -> None:
    sums[name] = sums[name] + amount if name in sums else amount
