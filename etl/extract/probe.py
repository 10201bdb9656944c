"""Probe the server's behaviour with about ten requests, instead of assuming it.

Every result goes into the manifest. A result that cannot be determined stays unknown and lowers the proof level; it is
never guessed. Does not know sinks or configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import anyio

from etl.api.client import Client, PageRefused
from etl.api.request import Query, TimeField
from etl.api.response import ApiFailure, FailureKind, Page, Row
from etl.api.retry import backoff
from etl.errors import ContractError
from etl.extract.capabilities import Capabilities, Lists, PageSizes, PastEnd
from etl.extract.gather import gather
from etl.extract.windows import ROW_FIELD, RangeSemantics, Window
from etl.times import milliseconds

FAR_FUTURE = 253_370_764_800_000
"""9999-01-01: almost no contact is created or seen after it; some importers use 9999-12-31 for "never"."""
DAY = 86_400_000
RESOLUTIONS = (1, 1000, DAY)
_PADS = ((0, 0), (1, 0), (0, 1), (1, 1), (1000, 1000))
"""Milliseconds by which a start and an end may have to be widened, most likely first."""
NO_SUCH_PAGE = 1_000_000
LISTS = (True, False)
EMPTY = Page(b"", ())
PATIENCE = 4
"""Attempts at a question that a moving contact or a transient failure left open."""
MOVED = 2
"""Contacts that may have left a page between two reads of it."""
DOUBTFUL = (0.2, 0.8)
"""If the share of contacts common to two pages is between these, it may be one page that moved, or two neighbours."""


async def probe(
    client: Client, *, local_now: int, held: Callable[[bool], int] = lambda _: 0, compare_lists: bool = False
) -> Capabilities:
    """Probe the server's behaviour. `local_now` (ms) is used if the server sends no `Date`.

    `held` returns how many contacts of a list the last snapshot holds: a page 1 with fewer than half of them was cut.
    `compare_lists` costs two requests, and no run needs the result.
    """
    contacts, leads = await _first_pages(client)
    sizes = PageSizes(len(contacts.rows), len(leads.rows))
    for is_contact, page in zip(LISTS, (contacts, leads), strict=True):
        if 2 * len(page.rows) < held(is_contact):
            sizes = sizes.with_cut(is_contact, len(page.rows))
    # The longer list shows more.
    query = Query(len(contacts.rows) >= len(leads.rows))
    ask = _Questions(client, query, contacts if query.is_contact else leads)
    pages, created, seen, (past_end, end) = await gather(
        partial(ask.further_pages, sizes),
        partial(ask.range_semantics, "createdAt"),
        partial(ask.range_semantics, "lastSeenAt"),
        ask.beyond_the_end,
    )
    one_page = created is not None and pages.honours_page is None and await ask.is_one_page(created)
    if seen is None and created is not None:
        seen = await ask.semantics_without_example(created, [*contacts.rows, *leads.rows])
    return Capabilities(
        t0=(local_now if contacts.date is None else contacts.date) // 1000 * 1000,
        clock="local" if contacts.date is None else "server",
        page_sizes=pages.sizes,
        page_size_agreed=len(pages.rows) > 2 and len(set(pages.rows)) == 1,
        first_page=client.first_page,
        honours_page=pages.honours_page,
        one_page=one_page,
        past_end=past_end,
        newest_first=_falling(ask.first.rows),
        created=created,
        seen=seen,
        counts_matches=created is not None and await ask.counts_matches(created),
        lists=await _lists(client, contacts, leads, created) if compare_lists else "unknown",
        total=contacts.total,
        empty=not ask.first.rows,
        manners=client.learn_signatures(end),
    )


async def _first_pages(client: Client) -> tuple[Page, Page]:
    """The first page of contacts and of leads, after determining whether the server counts pages from 0 or 1.

    The API's first page is 1; on other servers, page 0 would be lost.
    """
    pages = []
    for is_contact in LISTS:
        try:
            pages.append(await client.read(Query(is_contact)))
        except PageRefused:
            # There may be only a page 0.
            pages.append(EMPTY)
    for is_contact, page in zip(LISTS, pages, strict=True):
        before, first = await _asked(client, Query(is_contact), 0), page
        if isinstance(before, Page) and before.rows:
            for _ in range(PATIENCE):
                if not DOUBTFUL[0] < _shared(before, first) < DOUBTFUL[1]:
                    break
                # Contacts moved between page 0 and page 1.
                before, first = await client.read(Query(is_contact), 0), await client.read(Query(is_contact))
            if not _overlap(before, first):
                client.adopt(first_page=0)
            break
        if first.rows:
            break
    if client.first_page == 0 or EMPTY in pages:
        pages = [await client.read(Query(is_contact)) for is_contact in LISTS]
    contacts, leads = pages
    return contacts, leads


async def _asked(client: Client, query: Query, number: int) -> Page | ApiFailure:
    """Request a page that may not exist; any permanent failure counts as a refusal, transient ones are retried."""
    for attempt in range(1, PATIENCE):
        answer = await client.ask(query, number)
        if isinstance(answer, Page) or answer.kind in {FailureKind.CONTRACT, FailureKind.AUTH}:
            return answer
        await anyio.sleep(backoff(attempt, jitter=0.3))
    return await client.ask(query, number)


def _overlap(one: Page, other: Page) -> bool:
    """Whether two reads show the same page, apart from contacts that moved between them."""
    return _shared(one, other) > 1 / 2


def _shared(one: Page, other: Page) -> float:
    """The share of the contacts of one page that are also on the other."""
    return len(one.ids & other.ids) / max(1, len(one.ids))


@dataclass(frozen=True, slots=True)
class _FurtherPages:
    """The pages after the first one."""

    rows: Sequence[int]
    """Row counts of pages 1, 2 and 3, as far as they have rows."""
    sizes: PageSizes
    honours_page: bool | None
    """See `Capabilities.honours_page`."""


@dataclass(frozen=True, slots=True)
class _Questions:
    """Questions about one list, most of them independent of each other."""

    client: Client
    query: Query
    """Without a range."""
    first: Page
    """Page 1 of the list."""

    async def further_pages(self, sizes: PageSizes) -> _FurtherPages:
        """Row counts of pages 2 and 3, and whether they differ from the pages before them."""
        is_contact, before = self.query.is_contact, self.first
        rows, honours_page = [len(self.first.rows)], None
        for number in (2, 3):
            try:
                page = await self.client.read(self.query, number)
            except PageRefused:
                break
            if page.ids < self.first.ids and len(page.rows) + MOVED < len(self.first.rows):
                # A smaller page of the same contacts: another server answered, with a smaller page size.
                sizes = sizes.with_cut(is_contact, len(page.rows))
            if page.rows and _overlap(page, self.first):
                # Either the server ignores the page number, or it repeats the last page past the end.
                break
            if page.rows and not honours_page:
                # An import can replace all of page 1 between two reads, so that it looks like another page.
                again = await self.client.read(self.query)
                if not _overlap(again, self.first) or _overlap(page, again):
                    break
            honours_page = True
            if not page.rows or _overlap(page, before):
                break
            before = page
            sizes = sizes.with_cut(is_contact, rows[-1]).with_page(is_contact, len(page.rows))
            rows.append(len(page.rows))
        return _FurtherPages(rows, sizes, honours_page)

    async def is_one_page(self, created: RangeSemantics) -> bool:
        """Page 2 repeats page 1: harmless if page 1 is the whole list, which reading two halves of time shows."""
        times = sorted(t for t in (milliseconds(row.created_at) for row in self.first.rows) if t is not None)
        if not times or len(times) < len(self.first.rows):
            return False
        middle = times[len(times) // 2]
        rows = 0
        for start, end in ((None, middle), (middle, None)):
            window = Window("createdAt", self.query.is_contact, start, end)
            rows += len((await self.client.read(window.query(created))).rows)
        return rows <= len(times)

    async def semantics_without_example(self, created: RangeSemantics, rows: Sequence[Row]) -> RangeSemantics | None:
        """The semantics of lastSeenAt if no contact was seen: those of createdAt, if a range is honoured at all."""
        if any(milliseconds(row.last_seen_at) is not None for row in rows):
            return None
        future = Window("lastSeenAt", self.query.is_contact, FAR_FUTURE, None)
        return created if await _keeps_to(self.client, future, created) else None

    async def counts_matches(self, created: RangeSemantics) -> bool:
        """Whether the total follows the filter: 0 for an empty range, small for one with a known contact."""
        times = _quietest("createdAt", self.first.rows)
        if self.first.total is None or not times:
            return False
        totals = []
        for start in (FAR_FUTURE, times[0]):
            window = Window("createdAt", self.query.is_contact, start, start + 1)
            totals.append((await self.client.read(window.query(created))).total)
        none, some = totals
        return none == 0 and some is not None and 0 < some < self.first.total

    async def range_semantics(self, field: TimeField) -> RangeSemantics | None:
        """How the server reads a range of `field`; None if it honours none, with or without `applicableFilters`."""
        if not self.first.rows:
            return RangeSemantics()
        for applicable in (False, True):
            spelled = RangeSemantics(applicable=applicable)
            if not await _keeps_to(self.client, Window(field, self.query.is_contact, FAR_FUTURE, None), spelled):
                continue
            rows = self.first.rows
            for _ in range(PATIENCE):
                for time in _quietest(field, rows):
                    known = _KnownTime(self.client, field, self.query.is_contact, time)
                    semantics = await known.range_semantics(spelled)
                    if semantics is not None:
                        return semantics
                # All of them may have moved since, or page 1 lists only contacts without a time: read others.
                timed = Window(field, self.query.is_contact, None, FAR_FUTURE)
                try:
                    rows = (await self.client.read(timed.query(spelled))).rows
                except PageRefused:
                    rows = ()
        return None

    async def beyond_the_end(self) -> tuple[PastEnd, Page]:
        """How the server answers a page far beyond the end, and that page, or page 1 if it was refused."""
        page = await _asked(self.client, self.query, NO_SUCH_PAGE)
        if isinstance(page, ApiFailure):
            return "refused", self.first
        return ("repeats" if page.rows else "empty"), page


async def _keeps_to(client: Client, window: Window, bounds: RangeSemantics) -> bool:
    """Whether every listed contact is in the window."""
    try:
        rows = (await client.read(window.query(bounds))).rows
        window.check(rows, bounds)
    except (PageRefused, ContractError):
        return False
    return len(window.times(rows)) == len(rows)


def _quietest(field: TimeField, rows: Sequence[Row]) -> Sequence[int]:
    """Up to three times to probe with: preferably not on a whole second or day, then longest unseen first."""
    quiet = sorted(rows, key=lambda row: milliseconds(row.last_seen_at) or 0)
    times = (milliseconds(getattr(row, ROW_FIELD[field])) for row in quiet)
    return sorted(dict.fromkeys(time for time in times if time is not None), key=_coarseness)[:3]


def _coarseness(time: int) -> int:
    """The coarsest step of which a time is a multiple; with this time, rounding to that step cannot be detected."""
    return next(step for step in reversed(RESOLUTIONS) if time % step == 0)


@dataclass(frozen=True, slots=True)
class _KnownTime:
    """The time of a known contact, and thus the expected response of a working filter around it."""

    client: Client
    field: TimeField
    is_contact: bool
    time: int

    async def range_semantics(self, spelled: RangeSemantics) -> RangeSemantics | None:
        """How the server reads a range; None if no contact is listed at the time: it moved, or ranges are ignored."""
        padded = await self._pads(spelled)
        if padded is None:
            return None
        widened = max(padded.start_pad, padded.end_pad)
        # Coarser than a day: days in another time zone.
        resolution = 2 * DAY
        # A bound that had to be widened by a second cannot distinguish finer steps.
        for step in (step for step in RESOLUTIONS if step >= widened):
            outside = (-step - widened, step + widened)
            if not any([await self._answered(padded, shift=shift) for shift in outside]):
                resolution = step
                break
        # That no contact was listed next to the time proves something only if one is still listed at the time.
        if not await self._answered(padded, shift=0):
            return None
        return replace(padded, resolution=max(resolution, _coarseness(self.time)))

    async def _pads(self, bounds: RangeSemantics) -> RangeSemantics | None:
        """The smallest padding with which a one-millisecond window at the time returns the contact."""
        widest = replace(bounds, start_pad=2 * DAY, end_pad=2 * DAY)
        for start_pad, end_pad in _PADS:
            tried = replace(bounds, start_pad=start_pad, end_pad=end_pad)
            if await self._answered(tried, shift=0):
                return tried
            if (start_pad, end_pad) == _PADS[0] and not await self._answered(widest, shift=0):
                return None
        return widest

    async def _answered(self, bounds: RangeSemantics, *, shift: int) -> bool:
        """Whether the one-millisecond window `shift` ms from the time returns a contact with exactly this time."""
        start = self.time + shift
        window = Window(self.field, self.is_contact, start, start + 1)
        page = await self.client.read(window.query(bounds))
        return self.time in window.times(page.rows)


async def _lists(client: Client, contacts: Page, leads: Page, bounds: RangeSemantics | None) -> Lists:
    """Compare the two lists over the later half of the range that page 1 of contacts spans."""
    times = sorted(t for t in (milliseconds(row.created_at) for row in contacts.rows) if t is not None)
    if bounds is None or not times or not leads.rows:
        return "unknown"
    middle = times[len(times) // 2]
    ids = []
    for is_contact in (False, True):
        window = Window("createdAt", is_contact, middle, times[-1] + 1)
        page = await client.ask(window.query(bounds))
        if not isinstance(page, Page):
            return "unknown"
        ids.append(page.ids)
    false_ids, true_ids = ids
    if not true_ids & false_ids:
        return "disjoint"
    return "false holds both" if true_ids <= false_ids else "overlapping"


def _falling(rows: Sequence[Row]) -> bool:
    times = [time for row in rows if (time := milliseconds(row.created_at)) is not None]
    return len(times) > 1 and times == sorted(times, reverse=True)
