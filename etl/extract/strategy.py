"""Extraction strategy of one account: which reads are made, in which order, and what they prove.

Full run: windows on the immutable `createdAt` up to T0 - H, then a sweep of the contacts created or updated since. A
first run reads each page only once, if the server lists the newest contacts first.
Incremental run: a sweep from the last watermark, and a rolling scrub of a share of the windows. With filters, or if the
server's time filters do not work: a page scan. Knows neither Arrow nor sinks: pages are passed to `receive`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import anyio

from etl.api.client import Client
from etl.api.request import Query, TimeField
from etl.api.response import Page
from etl.errors import ContractError
from etl.extract.agreement import Agreement
from etl.extract.capabilities import Capabilities
from etl.extract.checkpoint import Checkpoint, ExtractionStart
from etl.extract.crosscheck import CrossCheck, CrossCheckLog
from etl.extract.evidence import Evidence
from etl.extract.fetch import WindowReader
from etl.extract.history import History, Timing, choose_mode
from etl.extract.landmarks import NotSorted, find_landmarks, may_be_sorted
from etl.extract.meter import Meter, Purpose
from etl.extract.ordered import OrderChecks, OrderedRead
from etl.extract.pages import PageScan, Receive, scan_pages
from etl.extract.plan import plan_lists
from etl.extract.probe import probe
from etl.extract.scrub import confirm_strikes, scrub
from etl.extract.sweep import ask_again, sweep
from etl.extract.windows import LEADS_FIRST, Accepted, Window
from etl.log import log
from etl.model import NOTHING, Look, Mode
from etl.times import milliseconds

FIELDS: tuple[TimeField, ...] = ("lastSeenAt", "createdAt")


@dataclass(frozen=True, slots=True)
class Extraction:
    """The result of reading one account, with the evidence that it is complete."""

    mode: Mode
    capabilities: Capabilities
    """As probed, with the page sizes that the cross-check saw."""
    watermark: int
    clock_ahead: int
    """Seconds by which the server's clock was ahead of ours when T0 was read."""
    accepted: Sequence[Accepted] = ()
    unproven: Sequence[str] = ()
    scanned: bool = False
    """Whether the data itself comes from a page scan."""
    coverage: Sequence[tuple[int | None, int]] = ()
    """Ranges of createdAt in which absence is a strike."""
    confirmed: Sequence[tuple[int, int]] = ()
    """Ranges of createdAt requested directly because of contacts with a strike: absence is the second strike."""
    look: Look = NOTHING
    """Known contacts that the scrub checked for."""
    escalated: Look | None = None
    """The check that missed too many contacts, so that everything was read."""
    cuts: Mapping[bool, tuple[int, int]] = field(default_factory=dict)
    """See `History.cuts`."""
    cross_checked_at: int | None = None
    """See `History.cross_checked_at`."""
    scrub_after: int | None = None
    requests: Mapping[Purpose, int] = field(default_factory=dict)
    """Attempts by purpose."""
    seconds: Mapping[Purpose, float] = field(default_factory=dict)
    """Duration by purpose."""
    resumed: int = 0
    """Windows already read by a killed run."""
    late: int = 0
    """Contacts that earlier runs should have seen, or could not see, found by this run's cross-check or scrub."""
    by_windows: float = 1.0
    """See `History.by_windows`, after this run."""
    order_checks: OrderChecks = field(default_factory=OrderChecks)
    order_doubt: str = ""
    """Why the order of the lists could not be relied on, so that everything was read in windows."""


async def extract(
    client: Client,
    history: History,
    timing: Timing,
    receive: Receive,
    log: CrossCheckLog,
    checkpoint: Checkpoint,
    meter: Meter,
    *,
    full: bool,
    filters: Mapping[str, object],
    local_now: int,
    shrink_share: float,
    ordered_from: int | None,
) -> Extraction:
    """Read one account, resuming a killed run from the checkpoint.

    If a scrub misses more than `shrink_share` of the contacts it checks for, everything is read. A first run of an
    account with `ordered_from` pages relies on the order of the lists, if the server sorts them; None: never.
    Raises the client's errors; anything that cannot be proven is listed, not raised.
    """
    started, evidence = anyio.current_time(), Evidence(receive)
    client.observe(evidence.observe)
    with meter.counted("probe"):
        if checkpoint.resumed:
            start = await resume(client, checkpoint.resumed.start)
        else:
            found = await probe(client, local_now=local_now, held=history.held)
            found = replace(found, page_sizes=history.remembered(found.page_sizes, found.t0))
            mode = choose_mode(history, found, full=full, filters=filters)
            # A server clock that runs ahead would hide changes until time catches up; an older watermark is safe.
            watermark = min(found.t0, local_now) - timing.visibility_lag
            start = ExtractionStart(mode, found, watermark, clock_ahead(client, local_now, started))
            if ordered_from is not None and history.watermark is None and mode == "full" and may_be_sorted(found):
                try:
                    landmarks = await find_landmarks(client, found, watermark, ordered_from)
                    start = replace(start, landmarks=landmarks)
                except NotSorted as reason:
                    start = replace(start, doubt=str(reason))
    history = history.by_clock(clock_ahead(client, local_now, started))
    steps = _Steps(client, start, history, timing, evidence, log, checkpoint, meter, shrink_share)
    if filters or not start.capabilities.windows:
        extraction = await steps.scan(filters)
    else:
        # Proven windows can be resumed; page numbers alone are ranks in a list that has moved since.
        checkpoint.begin(start)
        extraction = await (steps.incremental() if start.mode == "incremental" else steps.full())
    resumed = len(checkpoint.resumed.accepted) if checkpoint.resumed else 0
    return replace(extraction, requests=dict(meter.requests), seconds=dict(meter.seconds), resumed=resumed)


def clock_ahead(client: Client, local_start: int, started: float) -> int:
    """Seconds by which the server's clock is ahead of ours, which was `local_start` (ms) at `started`; 0 if unknown."""
    local_now = local_start + (anyio.current_time() - started) * 1000
    # Plus half a second: the server's time is rounded down.
    return 0 if client.server_now is None else round((client.server_now + 500 - local_now) / 1000)


async def resume(client: Client, start: ExtractionStart) -> ExtractionStart:
    """Resume a killed run: its capabilities are kept, and one request reads the server's current time."""
    client.adopt(first_page=start.capabilities.first_page, signatures=start.capabilities.manners)
    await client.read(Query(is_contact=False))
    return start


@dataclass(frozen=True, slots=True)
class _Scan:
    """The first half of a cross-check: the page scan, made before the windows are read."""

    capabilities: Capabilities
    """With the page sizes that the scan saw."""
    doubts: Sequence[str] = ()
    check: CrossCheck | None = None
    """Compares the windows with the scan; None if this run is not cross-checked."""


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of one extraction, by mode; each returns what it found."""

    client: Client
    start: ExtractionStart
    history: History
    timing: Timing
    evidence: Evidence
    log: CrossCheckLog
    checkpoint: Checkpoint
    meter: Meter
    shrink_share: float

    async def full(self) -> Extraction:
        """Read everything up to the watermark, then sweep: in the order of the lists if it holds, else in windows."""
        # What the probe has shown existed before windows were read, unless a killed run had read some.
        self.evidence.note = partial(self._note, after_windows=self.checkpoint.resumed is not None)
        self.evidence.release()
        self.evidence.note = partial(self._note, after_windows=True)
        doubt = self.start.doubt or (self.checkpoint.resumed.doubt if self.checkpoint.resumed else "")
        if doubt or not self.start.landmarks:
            return await self._in_windows(await self._scan_for_cross_check(full=True), doubt)
        reader = self._reader(self.start.capabilities, lambda _: (), known_before=False)
        order, scan = OrderedRead(reader, self.client, self.start.landmarks), None
        self.meter.check_deadline(order.pages, self.timing.deadline)
        with self.meter.counted("windows"):
            await order.read()
        if not order.doubts and order.without_created_at:
            scan = await self._scan_for_cross_check(full=True)
            # Contacts that only other answers have shown may have been deleted before the scan.
            if missing := [one for one in await self.log.missing(self.start.watermark) if one.page]:
                order.doubts.append(f"the page scan shows {len(missing)} contacts that no page in order had shown")
        if not order.doubts:
            return await self._in_order(reader, order, scan or _Scan(self.start.capabilities))
        await self.log.distrust_received()
        self.checkpoint.doubt(order.doubts[0])
        if order.vanished:
            self.checkpoint.unproven(order.vanished)
        scan = scan or await self._scan_for_cross_check(full=True)
        scan = replace(scan, doubts=[*scan.doubts, *filter(None, [order.vanished])])
        return await self._in_windows(scan, order.doubts[0])

    async def _in_windows(self, scan: _Scan, doubt: str) -> Extraction:
        """Read every window; cross-checked on the first run and every week. `doubt`: why the order is not relied on."""
        if doubt:
            log.warning("order.doubted", reason=doubt)
        until, created = self.start.watermark, self.log.created if scan.check else self.history.snapshot.created
        reader = self._reader(scan.capabilities, created, known_before=not scan.check)
        pages = sum(len(created(listed)) // scan.capabilities.page_size for listed in LEADS_FIRST)
        self.meter.check_deadline(pages, self.timing.deadline)
        with self.meter.counted("windows"):
            await reader.complete(plan_lists(scan.capabilities, created, None, until))
            strikes = await confirm_strikes(reader, self.history, scan.capabilities)
        # Contacts without a creation time are in no window, and a page scan may miss them: the sweep reads updates.
        await self._sweep(reader, since=min(until, self._last_margin()) if self.history.without_created_at else until)
        found = self._extraction(scan, reader, await self._contradictions(reader, scan))
        return replace(found, coverage=((None, until),), confirmed=strikes.ranges, order_doubt=doubt)

    async def _in_order(self, reader: WindowReader, order: OrderedRead, scan: _Scan) -> Extraction:
        """The rest of a run that read the windows in the order of the lists; the next cross-check is due as usual."""
        await self._sweep(reader, since=self.start.watermark)
        doubts = await self._contradictions(reader, scan, leads_changed=order.leads_changed)
        return replace(
            self._extraction(scan, reader, doubts),
            coverage=((None, self.start.watermark),),
            cross_checked_at=scan.capabilities.t0,
            by_windows=0.0,
            order_checks=order.checks,
        )

    async def incremental(self) -> Extraction:
        """Scrub a share of the windows, and sweep from before the last watermark; cross-checked every week."""
        until, created = self.start.watermark, self.history.snapshot.created
        self.evidence.note = self._note_unknown
        scan = await self._scan_for_cross_check(full=False)
        reader = self._reader(scan.capabilities, created, known_before=True)
        with self.meter.counted("scrub"):
            strikes = await confirm_strikes(reader, self.history, scan.capabilities)
            scrubbed = await scrub(
                reader, self.history, self.timing, scan.capabilities, strikes.near,
                until=until, since=self._last_margin(), shrink_share=self.shrink_share,
            )  # fmt: skip
        await self._sweep(reader, since=self._last_margin())
        self.evidence.release()
        with self.meter.counted("witness" if scan.check else "sweep"):
            check, struck = scan.check or self._cross_check(scan.capabilities), self.history.snapshot.struck()
            late, doubts = await check.recover(reader, until, scanned=scan.check is not None, struck=struck)
        return replace(
            self._extraction(scan, reader, [*scan.doubts, *doubts]),
            coverage=((scrubbed.start, scrubbed.end),),
            confirmed=strikes.ranges,
            look=scrubbed.look,
            escalated=scrubbed.escalated,
            scrub_after=scrubbed.end if scrubbed.end < until else None,
            late=scrubbed.late + late,
            by_windows=self._by_windows(scrubbed.end),
        )

    def _note_unknown(self, query: Query, page: Page) -> None:
        """Note contacts that no sweep reads and that, by their times, are not in the snapshot or have a strike."""
        snapshot, since = self.history.snapshot, self._last_margin()
        times = [milliseconds(row.created_at) for row in page.rows]
        unknown = [
            row
            for row, time in zip(page.rows, times, strict=True)
            if time is not None and time < since
            if not _holds(snapshot.created(None), time) or _holds(snapshot.struck(), time)
        ]
        self.log.note(unknown, is_contact=query.is_contact, after_windows=True)

    def _note(self, query: Query, page: Page, *, after_windows: bool) -> None:
        """Note the contacts on a page; those created in the lookback may not have been visible to windows."""
        before = self.start.capabilities.t0 - self.timing.lookback
        for row in page.rows:
            recent = (milliseconds(row.created_at) or 0) >= before
            self.log.note([row], is_contact=query.is_contact, after_windows=after_windows or recent)

    async def _contradictions(self, reader: WindowReader, scan: _Scan, *, leads_changed: bool = False) -> list[str]:
        """Request what this run has seen and not received; returns doubts, those of the page scan among them."""
        self.evidence.release()
        check = scan.check or self._cross_check(scan.capabilities)
        with self.meter.counted("witness" if scan.check else "sweep"):
            doubts = await check.contradict(reader, self.start.watermark, leads_changed=leads_changed)
            return [*scan.doubts, *doubts]

    def _cross_check(self, capabilities: Capabilities) -> CrossCheck:
        return CrossCheck(self.client, capabilities, self.log, self.evidence)

    def _by_windows(self, scrubbed: int) -> float:
        """The share of the known contacts that is proven by windows, after a scrub up to `scrubbed` (ms)."""
        known = self.history.snapshot.created(None)
        done = self.history.by_windows == 1.0 or scrubbed >= self.start.watermark or not known
        return 1.0 if done else bisect_left(known, scrubbed) / len(known)

    async def scan(self, filters: Mapping[str, object]) -> Extraction:
        """Read every page, of the contacts that match the user's `filters` if there are any.

        Without filters, this is the only way on a server without time filters, and no proof.
        """
        capabilities = self.start.capabilities
        if filters and not (capabilities.honours_page or capabilities.one_page):
            raise ContractError(
                "the server answers page 2 with page 1, so a filtered export would stop there",
                where="extract.filters",
                hint="Remove the filters: a full export does not need pages.",
            )
        # It is not known whether filters other than flags must be named in `applicableFilters`.
        applicable = tuple(name for name in filters if name not in {"isContact", "searchText", "applicableFilters"})
        with self.meter.counted("walk"):
            for is_contact in [bool(filters["isContact"])] if "isContact" in filters else LEADS_FIRST:
                query = Query(is_contact, applicable=applicable, filters=filters)
                await scan_pages(
                    self.client, query, self.evidence.receive, PageScan(capabilities.past_end == "repeats")
                )
        doubts = [] if filters else ["the server does not honour its time filters, so pages are all there is"]
        return Extraction(
            self.start.mode,
            capabilities,
            self.start.watermark,
            self.start.clock_ahead,
            unproven=doubts,
            scanned=True,
            cross_checked_at=self.history.cross_checked_at,
            scrub_after=self.history.scrub_after,
        )

    def _last_margin(self) -> int:
        """The time from which the last run may have missed contacts that became visible late; at most T0."""
        return min(self.history.watermark or 0, self.start.capabilities.t0) - max(
            self.timing.lookback, self.timing.visibility_lag
        )

    def _reader(
        self, capabilities: Capabilities, created: Callable[[bool], Sequence[int]], *, known_before: bool
    ) -> WindowReader:
        return WindowReader(
            self.client,
            capabilities,
            self.evidence.receive,
            self.checkpoint,
            created,
            known_before=known_before,
            swept=self.start.watermark,
        )

    async def _scan_for_cross_check(self, *, full: bool) -> _Scan:
        capabilities = self.start.capabilities
        if not self.history.cross_check_is_due(capabilities.t0, self.timing.cross_check_every, full=full):
            return _Scan(capabilities)
        check = self._cross_check(capabilities)
        with self.meter.counted("witness"):
            doubts, sizes = await check.scan(swept=self.start.watermark)
        capabilities = replace(capabilities, page_sizes=sizes)
        return _Scan(capabilities, doubts, replace(check, capabilities=capabilities))

    async def _sweep(self, reader: WindowReader, *, since: int) -> None:
        """Read the contacts created or updated since then.

        Windows that a page size lowered during the run may have cut off are read again, and so is everything since.
        """
        # A lead that becomes visible as late as `lookback` may be in only one of the sweeps, and windows that a killed
        # run had read are not received again.
        before = 0 if self.checkpoint.resumed else self.start.capabilities.t0 - self.timing.lookback
        agreement = Agreement(since, before)
        with reader.noting(agreement.note):
            while True:
                until = (self.client.server_now or self.start.capabilities.t0) - self.timing.visibility_lag
                with self.meter.counted("sweep"):
                    async with anyio.create_task_group() as tasks:
                        for name in FIELDS:
                            tasks.start_soon(partial(sweep, reader, name, since=since, until=until))
                    doubtful = await reader.doubtful()
                if not doubtful:
                    break
                # In the original order: leads first.
                ranges = {(one.start, one.end) for one in doubtful if one.field == "createdAt" and one.end}
                with self.meter.counted("windows"):
                    for is_contact in LEADS_FIRST:
                        await reader.read(Window("createdAt", is_contact, start, end) for start, end in ranges)
        if differing := agreement.differing():
            with self.meter.counted("sweep"):
                await ask_again(reader, differing)

    def _extraction(self, scan: _Scan, reader: WindowReader, doubts: Sequence[str]) -> Extraction:
        """The part of the result that full and incremental runs have in common."""
        t0 = scan.capabilities.t0
        return Extraction(
            self.start.mode,
            scan.capabilities,
            self.start.watermark,
            self.start.clock_ahead,
            accepted=reader.accepted,
            unproven=[*doubts, *reader.unproven],
            cuts=self.history.cuts_after(reader.sizes, t0),
            cross_checked_at=t0 if scan.check else self.history.cross_checked_at,
            scrub_after=self.history.scrub_after,
        )


def _holds(times: Sequence[int], time: int) -> bool:
    place = bisect_left(times, time)
    return place < len(times) and times[place] == time
