"""Probe the server's behaviour with about ten requests, instead of assuming it.

Every result goes into the manifest. A result that cannot be determined stays unknown and lowers the proof level; it is
never guessed. Does not know sinks or configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import anyio

from etl.api.client import Client, PageRefused
from etl.api.request import Query, TimeField
from etl.api.response import ApiFailure, FailureKind, Page, Row
from etl.api.retry import backoff
from etl.errors import ContractError
from etl.extract.capabilities import Capabilities, Lists, PageSizes, PastEnd
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
NOBODY = Page(b"", ())
PATIENCE = 4
"""Attempts at a question that a moving contact or a transient failure left open."""
MOVED = 2
"""Contacts that may have left a page between two reads of it."""
DOUBTFUL = (0.2, 0.8)
"""If the share of contacts common to two pages is between these, it may be one page that moved, or two neighbours."""


async def probe(
    client: Client, *, local_now: int, held: Callable[[bool], int] = lambda _: 0, compare_lists: bool = True
) -> Capabilities:
    """Probe the server's behaviour. `local_now` (ms) is used if the server sends no `Date`.

    `held` returns how many contacts of a list the last snapshot holds: a page 1 with fewer than half of them was cut.
    `compare_lists` costs two requests; its result is informational, so most runs skip it.
    """
    contacts, leads = await _first_pages(client)
    asked = _Questions(client, contacts, leads)
    for is_contact, page in zip(LISTS, (contacts, leads), strict=True):
        if 2 * len(page.rows) < held(is_contact):
            asked.page_sizes = asked.page_sizes.with_cut(is_contact, len(page.rows))
    async with anyio.create_task_group() as tasks:
        for question in (asked.further_pages, asked.created_bounds, asked.seen_bounds, asked.beyond_the_end):
            tasks.start_soon(question)
    if asked.honours_page is None:
        await asked.whether_one_page()
    if asked.seen is None:
        await asked.whether_nobody_was_seen()
    await asked.whether_matches_are_counted()
    date = contacts.date
    return Capabilities(
        t0=(local_now if date is None else date) // 1000 * 1000,
        clock="local" if date is None else "server",
        page_sizes=asked.page_sizes,
        page_size_agreed=len(asked.rows) > 2 and len(set(asked.rows)) == 1,
        first_page=client.first_page,
        honours_page=asked.honours_page,
        one_page=asked.one_page,
        past_end=asked.past_end,
        newest_first=_falling(asked.first.rows),
        created=asked.created,
        seen=asked.seen,
        counts_matches=asked.counts_matches,
        lists=await _lists(client, contacts, leads, asked.created) if compare_lists else "unknown",
        total=contacts.total,
        empty=not asked.first.rows,
        manners=client.learn_signatures(asked.end),
    )


async def _first_pages(client: Client) -> tuple[Page, Page]:
    """The first page of contacts and of leads, after determining whether the server counts pages from 0 or 1."""
    contacts, leads = [await _page_or_nobody(client, is_contact) for is_contact in LISTS]
    if await _counts_from_zero(client, contacts, leads):
        client.first_page = 0
    elif NOBODY not in (contacts, leads):
        return contacts, leads
    return await client.read(Query(True)), await client.read(Query(False))


async def _page_or_nobody(client: Client, is_contact: bool) -> Page:
    """Page 1 of a list, or an empty page if the server refuses it: there may be only a page 0."""
    try:
        return await client.read(Query(is_contact))
    except PageRefused:
        return NOBODY


async def _counts_from_zero(client: Client, contacts: Page, leads: Page) -> bool:
    """Whether page 0 exists and is another page. The API's first page is 1; on other servers, page 0 would be lost."""
    for is_contact, first in zip(LISTS, (contacts, leads), strict=True):
        before = await _asked(client, Query(is_contact), 0)
        if isinstance(before, Page) and before.rows:
            return await _is_another(client, is_contact, before, first)
        if first.rows:
            return False
    return False


async def _is_another(client: Client, is_contact: bool, before: Page, first: Page) -> bool:
    """Whether page 0 is another page than page 1; reads both again while contacts move between them."""
    for _ in range(PATIENCE):
        if not DOUBTFUL[0] < _shared(before, first) < DOUBTFUL[1]:
            break
        before = await client.read(Query(is_contact), 0)
        first = await client.read(Query(is_contact))
    return not _overlap(before, first)


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


class _Questions:
    """Questions with their results, most of them independent of each other; asked about the longer of the two lists."""

    def __init__(self, client: Client, contacts: Page, leads: Page) -> None:
        is_contact = len(contacts.rows) >= len(leads.rows)
        self.first = contacts if is_contact else leads
        self.rows = [len(self.first.rows)]
        """Row counts of pages 1, 2 and 3, as far as they have rows."""
        self.page_sizes = PageSizes(len(contacts.rows), len(leads.rows))
        self.honours_page: bool | None = None
        self.one_page = False
        self.counts_matches = False
        self.past_end: PastEnd = "empty"
        self.end = self.first
        """The page far beyond the end, if the server returned one."""
        self.created: RangeSemantics | None = None
        self.seen: RangeSemantics | None = None
        self._client = client
        self._query = Query(is_contact)
        self._rows = [*contacts.rows, *leads.rows]

    async def further_pages(self) -> None:
        """Row counts of pages 2 and 3, and whether they differ from the pages before them."""
        is_contact, before = self._query.is_contact, self.first
        for number in (2, 3):
            try:
                page = await self._client.read(self._query, number)
            except PageRefused:
                return
            if page.ids < self.first.ids and len(page.rows) + MOVED < len(self.first.rows):
                # A smaller page of the same contacts: another server answered, with a smaller page size.
                self.page_sizes = self.page_sizes.with_cut(is_contact, len(page.rows))
            if page.rows and (_overlap(page, self.first) or not (self.honours_page or await self._is_no_first(page))):
                # Either the server ignores the page number, or it repeats the last page past the end.
                return
            self.honours_page = True
            if not page.rows or _overlap(page, before):
                return
            before = page
            self.page_sizes = self.page_sizes.with_cut(is_contact, self.rows[-1])
            self.page_sizes = self.page_sizes.with_page(is_contact, len(page.rows))
            self.rows.append(len(page.rows))

    async def _is_no_first(self, page: Page) -> bool:
        """Whether page 1, read again, is still the same, and not the same as `page`.

        An import can replace all of page 1 between two reads, so that it looks like another page.
        """
        again = await self._client.read(self._query)
        return _overlap(again, self.first) and not _overlap(page, again)

    async def whether_one_page(self) -> None:
        """Page 2 repeats page 1: harmless if page 1 is the whole list, which reading two halves of time shows."""
        times = sorted(t for t in (milliseconds(row.created_at) for row in self.first.rows) if t is not None)
        if self.created is None or not times or len(times) < len(self.first.rows):
            return
        middle = times[len(times) // 2]
        rows = 0
        for start, end in ((None, middle), (middle, None)):
            window = Window("createdAt", self._query.is_contact, start, end)
            rows += len((await self._client.read(window.query(self.created))).rows)
        self.one_page = rows <= len(times)

    async def whether_nobody_was_seen(self) -> None:
        """No contact to probe lastSeenAt with: assume the semantics of createdAt, if a range is honoured at all."""
        if self.created is None or any(milliseconds(row.last_seen_at) is not None for row in self._rows):
            return
        future = Window("lastSeenAt", self._query.is_contact, FAR_FUTURE, None)
        if await _keeps_to(self._client, future, self.created):
            self.seen = self.created

    async def whether_matches_are_counted(self) -> None:
        """Whether the total follows the filter: 0 for an empty range, small for one with a known contact."""
        times = _quietest("createdAt", self.first.rows)
        if self.created is None or self.first.total is None or not times:
            return
        totals = []
        for start in (FAR_FUTURE, times[0]):
            window = Window("createdAt", self._query.is_contact, start, start + 1)
            totals.append((await self._client.read(window.query(self.created))).total)
        none, some = totals
        self.counts_matches = none == 0 and some is not None and 0 < some < self.first.total

    async def created_bounds(self) -> None:
        """How the server reads a range of createdAt."""
        self.created = await _bounds(self._client, "createdAt", self._query, self.first)

    async def seen_bounds(self) -> None:
        """How the server reads a range of lastSeenAt."""
        self.seen = await _bounds(self._client, "lastSeenAt", self._query, self.first)

    async def beyond_the_end(self) -> None:
        """How the server answers a page far beyond the end."""
        page = await _asked(self._client, self._query, NO_SUCH_PAGE)
        if isinstance(page, ApiFailure):
            self.past_end = "refused"
            return
        self.end = page
        if page.rows:
            self.past_end = "repeats"


async def _bounds(client: Client, field: TimeField, query: Query, first: Page) -> RangeSemantics | None:
    """How the server reads a range of `field`; None if it does not honour one, with or without `applicableFilters`."""
    if not first.rows:
        return RangeSemantics()
    for applicable in (False, True):
        spelled = RangeSemantics(applicable=applicable)
        if not await _keeps_to(client, Window(field, query.is_contact, FAR_FUTURE, None), spelled):
            continue
        rows = first.rows
        for _ in range(PATIENCE):
            for time in _quietest(field, rows):
                bounds = await _Known(client, field, query.is_contact, time).bounds(spelled)
                if bounds is not None:
                    return bounds
            # All of them may have moved since, or page 1 lists only contacts without a time: read contacts with one.
            rows = await _timed(client, Window(field, query.is_contact, None, FAR_FUTURE), spelled)
    return None


async def _timed(client: Client, window: Window, bounds: RangeSemantics) -> Sequence[Row]:
    try:
        return (await client.read(window.query(bounds))).rows
    except PageRefused:
        return ()


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
class _Known:
    """The time of a known contact, and thus the expected response of a working filter around it."""

    client: Client
    field: TimeField
    is_contact: bool
    time: int

    async def bounds(self, spelled: RangeSemantics) -> RangeSemantics | None:
        """How the server reads a range; None if no contact is listed at the time: it moved, or ranges are ignored."""
        padded = await self._pads(spelled)
        if padded is None:
            return None
        found = await self._resolution(padded)
        # That no contact was listed next to the time proves something only if one is still listed at the time.
        if not await self._answered(padded, shift=0):
            return None
        return replace(found, resolution=max(found.resolution, _coarseness(self.time)))

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

    async def _resolution(self, bounds: RangeSemantics) -> RangeSemantics:
        """`bounds` with the finest step at which the server distinguishes times inside and outside."""
        widened = max(bounds.start_pad, bounds.end_pad)
        # A bound that had to be widened by a second cannot distinguish finer steps.
        for step in (step for step in RESOLUTIONS if step >= widened):
            beside = (-step - widened, step + widened)
            if not any([await self._answered(bounds, shift=shift) for shift in beside]):
                return replace(bounds, resolution=step)
        # Coarser than a day: days in another time zone.
        return replace(bounds, resolution=2 * DAY)

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
