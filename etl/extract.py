"""One account, from the probe to the proof: which reads, in which order, and what they show.

Full: windows on the immutable `createdAt` up to T0 - H, then the sweep of what came or moved since. Incremental: the
sweep from the last watermark, and a rolling scrub of a share of the windows. Filtered, or on a server whose time
filters do not work: the page walk. It knows neither Arrow nor sinks: pages go to `receive`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import anyio

from etl.api.answer import Page, Row
from etl.api.client import Client
from etl.api.request import Query, TimeField
from etl.errors import ContractError
from etl.fetch import WindowReader
from etl.model import Mode
from etl.plan import plan_windows, scrub_span
from etl.probe import Capabilities, probe
from etl.sweep import sweep
from etl.undated import without_creation_time
from etl.walk import Receive, walk
from etl.window import Accepted, Window

Number = TypeVar("Number", int, float)

FIELDS: tuple[TimeField, ...] = ("lastSeenAt", "createdAt")
FEW_DELETED, MOST_DELETED = 10, 0.05
"""Contacts, and their share, that may be deleted between the witness walk and the windows of one run."""
LEADS_FIRST = (False, True)
"""A lead becomes a contact, not the other way round: read in this order a flip is seen in one of the lists."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The margins of an extraction, in milliseconds."""

    visibility_lag: int
    """H: how late a change can become visible."""
    lookback: int
    """L: how late the vendor says a lead can become visible."""
    witness_every: int
    scrub_runs: int


@dataclass(frozen=True, slots=True)
class History:
    """What an earlier run left: where to go on, and where contacts lie in time."""

    watermark: int | None = None
    """None: there was no earlier run."""
    witness_at: int | None = None
    scrub_after: int | None = None
    undated: bool = False
    """Whether the snapshot holds contacts without a creation time, which only a walk reaches."""
    created: Callable[[bool | None], Sequence[int]] = field(default=lambda _: ())
    """The sorted creation times (ms) of the previous snapshot, of one list or (None) of both."""


@dataclass(slots=True)
class Extraction:
    """What was read of one account, and what shows that it is all."""

    mode: Mode
    capabilities: Capabilities
    watermark: int
    accepted: list[Accepted] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    walked: bool = False
    """Whether the data itself comes from a page walk."""
    coverage: tuple[tuple[int | None, int], ...] = ()
    """Ranges of createdAt in which absence means deletion."""
    witness_at: int | None = None
    scrub_after: int | None = None
    requests: dict[str, int] = field(default_factory=dict)
    """Attempts by purpose: probe, witness, windows, sweep, scrub, walk."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each purpose took."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A contact that the witness saw and no window brought."""

    created: int
    is_contact: bool


class WitnessLog(Protocol):
    """Keeps what a page walk showed, and tells afterwards which of it did not arrive."""

    async def record(self, rows: Sequence[Row], *, is_contact: bool) -> None:
        """Note contacts that the walk saw in one of the lists."""

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms) of the contacts seen in one list."""

    async def missing(self, before: int) -> Sequence[Suspect]:
        """The contacts created before `before` (ms) that no window has brought."""


async def extract(
    client: Client,
    history: History,
    timing: Timing,
    receive: Receive,
    witness: WitnessLog,
    *,
    full: bool,
    filters: Mapping[str, object],
    local_now: int,
) -> Extraction:
    """Read one account. Raises what the client raises; what cannot be proven is listed, not raised."""
    begun = anyio.current_time()
    found = await probe(client, local_now=local_now)
    incremental = not (full or filters or history.watermark is None) and found.windows
    run = Extraction(
        mode="filtered" if filters else "incremental" if incremental else "full",
        capabilities=found,
        # A server clock that runs ahead would hide everything until time has caught up; an older watermark is safe.
        watermark=min(found.t0, local_now) - timing.visibility_lag,
        witness_at=history.witness_at,
        scrub_after=history.scrub_after,
        requests={"probe": client.statistics().sent},
        seconds={"probe": anyio.current_time() - begun},
    )
    reading = _Reading(client, run, history, timing, receive, witness)
    if filters:
        await reading.walk_filtered(filters)
    elif not found.windows:
        await reading.walk_all()
    elif incremental:
        await reading.incremental()
    else:
        await reading.full()
    return run


@dataclass(frozen=True, slots=True)
class _Reading:
    """The steps of one extraction; each is one of the ways to read."""

    client: Client
    run: Extraction
    history: History
    timing: Timing
    receive: Receive
    witness: WitnessLog

    async def full(self) -> None:
        """Every window up to the watermark, then the sweep; on a first run and every week with a witness."""
        walked = await self._walk_witness()
        reader = WindowReader(self.client, self.run.capabilities, self.receive)
        created = self.witness.created if walked else self.history.created
        with self._counted("windows"):
            for is_contact in self._lists():
                await reader.read(self._plan(created(is_contact), is_contact, None, self.run.watermark))
        # Contacts without a creation time are in no window, and a walk may miss them: the sweep reads their touches.
        since = min(self.run.watermark, self._last_margin()) if self.history.undated else self.run.watermark
        await self._sweep(reader, since=since)
        self.run.coverage = ((None, self.run.watermark),)
        await self._finish(reader, since=since)
        if walked:
            with self._counted("witness"):
                await self._question(reader)
        self._conclude(reader)

    async def incremental(self) -> None:
        """The sweep from before the last watermark, and one share of the windows."""
        reader = WindowReader(self.client, self.run.capabilities, self.receive)
        with self._counted("scrub"):
            await self._scrub(reader)
        since = self._last_margin()
        await self._sweep(reader, since=since)
        await self._finish(reader, since=since)
        self._conclude(reader)

    def _last_margin(self) -> int:
        """Where the last run may have missed what became visible late."""
        return (self.history.watermark or 0) - max(self.timing.lookback, self.timing.visibility_lag)

    async def walk_all(self) -> None:
        """Every page of both lists: all that a server without time filters allows, and no proof."""
        self.run.walked = True
        with self._counted("walk"):
            for is_contact in LEADS_FIRST:
                await self._walk(Query(is_contact), self.receive)
        self.run.unproven.append("the server does not honour its time filters, so pages are all there is")

    async def walk_filtered(self, filters: Mapping[str, object]) -> None:
        """Every page that matches the user's filters."""
        self.run.walked = True
        if not (self.run.capabilities.honours_page or self.run.capabilities.one_page):
            raise ContractError(
                "the server answers page 2 with page 1, so a filtered export would stop there",
                where="extract.filters",
                mend="Remove the filters: a full export does not need pages.",
            )
        lists = [bool(filters["isContact"])] if "isContact" in filters else LEADS_FIRST
        with self._counted("walk"):
            for is_contact in lists:
                query = Query(is_contact, applicable=self._applicable(filters), filters=filters)
                await self._walk(query, self.receive)

    async def _walk(self, query: Query, receive: Receive) -> None:
        await walk(self.client, query, receive, repeats=self.run.capabilities.past_end == "repeats")

    def _applicable(self, filters: Mapping[str, object]) -> tuple[str, ...]:
        """The names to send in `applicableFilters`: whether more than the flags must be named is not known (API.md)."""
        return tuple(name for name in filters if name not in {"isContact", "searchText", "applicableFilters"})

    async def _walk_witness(self) -> bool:
        """Walk all pages as witness if one is due; contacts without a creation time come from it alone."""
        last = self.run.witness_at
        recent = last is not None and self.run.capabilities.t0 - last < self.timing.witness_every
        if recent and not self.history.undated:
            return False
        with self._counted("witness"):
            async with anyio.create_task_group() as tasks:
                for is_contact in self._lists():
                    tasks.start_soon(self._walk, Query(is_contact), self._testimony(is_contact))
        self.run.witness_at = self.run.capabilities.t0
        return True

    def _testimony(self, is_contact: bool) -> Receive:
        async def receive(page: Page) -> None:
            await self.witness.record(page.rows, is_contact=is_contact)
            undated = without_creation_time(page)
            if undated is not None:
                await self.receive(undated)

        return receive

    async def _scrub(self, reader: WindowReader) -> None:
        """Read the next share of all windows again: finds deletions, and edits that move no `lastSeenAt`."""
        start, end = scrub_span(
            self.history.created(None),
            after=self.run.scrub_after,
            end=self.run.watermark,
            rounds=self.timing.scrub_runs,
            capacity=self._capacity(),
        )
        for is_contact in self._lists():
            await reader.read(self._plan(self.history.created(is_contact), is_contact, start, end))
        self.run.coverage = ((start, end),)
        self.run.scrub_after = end if end < self.run.watermark else None

    async def _sweep(self, reader: WindowReader, *, since: int) -> None:
        until = (self.client.server_now or self.run.capabilities.t0) - self.timing.visibility_lag
        with self._counted("sweep"):
            async with anyio.create_task_group() as tasks:
                for name in FIELDS:
                    tasks.start_soon(partial(sweep, reader, name, since=since, until=until, lists=self._lists()))

    async def _finish(self, reader: WindowReader, *, since: int) -> None:
        """Read again what a page size lowered meanwhile may have cut off, in the order that the first reading had."""
        while doubtful := await reader.doubtful():
            ranges = {(window.start, window.end) for window in doubtful if window.field == "createdAt" and window.end}
            with self._counted("windows"):
                for is_contact in self._lists():
                    await reader.read(Window("createdAt", is_contact, start, end) for start, end in ranges)
            await self._sweep(reader, since=since)

    def _conclude(self, reader: WindowReader) -> None:
        self.run.accepted = reader.accepted
        self.run.unproven.extend(reader.unproven)

    async def _question(self, reader: WindowReader) -> None:
        """Ask again for every contact that the witness saw and no window brought.

        Most were deleted meanwhile. One that still stands in the list where the witness saw it contradicts an accepted
        window. One that stands in the other list moved from contacts back to leads between the reading of the two; then
        leads are read once more after contacts, so that nobody can hide behind the order (FAULTS.md M13).
        """
        suspects = await self.witness.missing(self.run.watermark)
        if not suspects:
            return
        await reader.read({self._instant(suspect.created, suspect.is_contact) for suspect in suspects})
        moved = await self.witness.missing(self.run.watermark)
        if len(moved) < len(suspects):
            self.run.unproven.append(
                f"{len(suspects) - len(moved)} contacts that the witness had seen were missing from accepted windows"
            )
        await reader.read({self._instant(suspect.created, not suspect.is_contact) for suspect in moved})
        gone = await self.witness.missing(self.run.watermark)
        if len(gone) < len(moved):
            await reader.read(self._plan(self.witness.created(False), False, None, self.run.watermark))
        witnessed = sum(len(self.witness.created(is_contact)) for is_contact in LEADS_FIRST)
        if len(gone) > max(FEW_DELETED, MOST_DELETED * witnessed):
            # Maintenance answers with valid empty lists; nobody deletes so many contacts in the time of one run.
            self.run.unproven.append(f"{len(gone)} of {witnessed} contacts vanished while they were read")

    def _instant(self, time: int, is_contact: bool) -> Window:
        """The narrowest window around a creation time."""
        granule = self._granule()
        start = time - time % granule
        return Window("createdAt", is_contact, start, start + granule)

    def _plan(self, times: Sequence[int], is_contact: bool, start: int | None, end: int) -> Iterator[Window]:
        return plan_windows(
            times,
            field="createdAt",
            is_contact=is_contact,
            start=start,
            end=end,
            capacity=self._capacity(),
            granule=self._granule(),
        )

    def _granule(self) -> int:
        bounds = self.run.capabilities.created
        return bounds.granule if bounds else 1

    def _capacity(self) -> int:
        return max(1, self.run.capabilities.page_size - 1)

    def _lists(self) -> Sequence[bool]:
        """The lists to read: both. That one holds the other can be seen of a sample, but not proven of the account."""
        return LEADS_FIRST

    @contextmanager
    def _counted(self, purpose: str) -> Iterator[None]:
        sent, begun = self.client.statistics().sent, anyio.current_time()
        try:
            yield
        finally:
            _add(self.run.requests, purpose, self.client.statistics().sent - sent)
            _add(self.run.seconds, purpose, anyio.current_time() - begun)


def _add(sums: dict[str, Number], name: str, amount: Number) -> None:
    sums[name] = sums[name] + amount if name in sums else amount
