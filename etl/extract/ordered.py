"""Ordered read: a server that lists the newest contacts first is read once, page after page.

One response is one atomic read. If the list is sorted by creation time, page 1 of the contacts created before some time
is complete above its oldest contact, whatever changes meanwhile; the next request asks for those before that one. A
chain of such requests reads a segment of the account in as many requests as it has pages, and ends with a page that is
not full, which is a proven window. Many chains run concurrently; leads are read before contacts of the same time.

That the list is sorted is not assumed. Each page must be in order. Each segment must bring as many contacts as its
landmarks say. A sample of the ranges is read again, each as a window of fewer contacts than a page. The last page of
each list must show no contact without a creation time, which no range lists. And in the end, the lists must not have
more contacts than were received. If any of it does not hold, everything must be read in windows.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from etl.api.client import Client, RequestFailed
from etl.api.request import Query
from etl.api.response import Page
from etl.extract.fetch import WindowReader
from etl.extract.gather import gather
from etl.extract.landmarks import (
    LONGEST_LIST,
    LONGEST_PIECE,
    MARGIN,
    Landmark,
    Landmarks,
    NotSorted,
    creation_times,
    disorder,
    lacks_creation_times,
    page_between,
    renewed,
)
from etl.extract.pages import page_or_empty
from etl.extract.plan import may_be_deleted, remaining
from etl.extract.windows import Accepted, Window, evenly, halved, may_be_read
from etl.extract.workqueue import WorkQueue

SAMPLE, FEWEST_CHECKED, MOST_CHECKED = 0.02, 8, 256
"""The share of the ranges that is read again, at least and at most this many."""
SAMPLE_FILL = 0.75
"""How full a page is that checks a range: further contacts must have room on it."""
GAP = 0.9
"""The share of the time shown by a page in which it lists no contact, so that this time is read again as a window.

On a server that sorts by `_id`, contacts imported with a creation time of the past take the place of older ones. A
night without contacts looks the same: only the first gaps are read again, as many as samples are taken."""
COUNTS = 8
"""How often a segment is counted that seems to lack contacts, at most, until two counts find the list unchanged.

The list may grow between the two reads of a count."""
WORTH_HALVING = 10
"""The pages left in a piece that is halved while a worker waits; each half adds half a page on average."""


@dataclass(frozen=True, slots=True)
class OrderChecks:
    """What was checked of the order of the lists."""

    segments: int = 0
    """Segments whose contacts were counted."""
    ranges: int = 0
    """Ranges that were read again as windows."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a list between two landmarks; the last one has no older landmark."""

    is_contact: bool
    newer: Landmark
    older: Landmark | None

    @property
    def window(self) -> Window:
        """Its range of creation times."""
        return Window("createdAt", self.is_contact, self.older.cut if self.older else None, self.newer.cut)

    def pace(self, page_size: int) -> int:
        """About how many milliseconds a page of it spans; 0 if it reaches as far as the list."""
        if self.older is None or self.older.rank <= self.newer.rank:
            return 0
        return (self.newer.cut - self.older.cut) * page_size // (self.older.rank - self.newer.rank)


class _Piece(NamedTuple):
    """A part of a segment that one chain reads."""

    segment: Segment
    window: Window
    pace: int
    """About how many milliseconds a page of it spans; 0: unknown."""


def segments(landmarks: Landmarks) -> Iterator[Segment]:
    """The segments of both lists: leads first, and the oldest first, because its length is unknown."""
    for listed in (False, True):
        for newer, older in reversed([*pairwise([*landmarks[listed], None])]):
            if newer is not None:
                yield Segment(listed, newer, older)


def advance(window: Window, times: Sequence[int], resolution: int) -> Window | None:
    """The part of `window` that a full page with its newest contacts shows completely; None if there is none.

    It ends a margin above the oldest contact of the page, because lists sorted by `_id` or by second are not quite in
    order; if that leaves nothing, twice the disorder of the page is enough.
    """
    oldest = min(times)
    for margin in (MARGIN, 2 * disorder(times)):
        cut = oldest + margin - (oldest + margin) % resolution + resolution
        if window.end is None or cut < window.end:
            return replace(window, start=max(cut, window.start or cut))
    return None


def gap(part: Window, times: Sequence[int], resolution: int) -> Window | None:
    """The longest range of `part` in which none of the `times` of its page lie, if it is most of `part`; else None."""
    if part.start is None or part.end is None:
        return None
    marks = [part.end, *sorted((time for time in times if _is_in(part, time)), reverse=True), part.start - 1]
    newer, older = max(pairwise(marks), key=lambda pair: pair[0] - pair[1])
    start, end = older - older % resolution + resolution, newer - newer % resolution
    return replace(part, start=start, end=end) if end - start >= GAP * (part.end - part.start) else None


class OrderedRead:
    """Reads the segments between landmarks in chains of full pages; collects doubts about their order."""

    def __init__(self, reader: WindowReader, client: Client, landmarks: Landmarks) -> None:
        """`reader` accepts the ranges, and knows those of a killed run."""
        self.doubts: list[str] = []
        self.without_created_at = False
        """Whether the last page of a list shows contacts without a creation time, which only a page scan reads."""
        self.vanished = ""
        """Why no way of reading can be relied on: so many contacts were not deleted, but the server hides them."""
        self.leads_changed = False
        """Whether some leads were different in the end: a contact may have become a lead between the reads of the two
        lists, and is in neither (M13)."""
        self.checks = OrderChecks()
        self._reader = reader
        self._client = client
        self._segments = list(segments(landmarks))
        self._last_rank = [marks[-1].rank for marks in landmarks]
        """By list: about how many contacts it has."""
        self._open: Counter[Segment] = Counter()
        """The pieces of each segment that are not read yet."""
        # The last landmark is a little before the end.
        self.pages = sum(marks[-1].page for marks in landmarks) * 5 // 4
        """About how many pages both lists have."""
        share = min(max(SAMPLE, FEWEST_CHECKED / self.pages), MOST_CHECKED / self.pages)
        self._stride = max(1, int(1 / share))
        """One in this many ranges is checked, from a place on that changes with every run."""
        self._ranges = itertools.count(landmarks[0][0].cut // 1000)
        self._gaps_left = round(share * self.pages)
        """How many gaps may still be read again."""
        self._lead_samples: list[tuple[Window, set[bytes]]] = []
        """Ranges of leads that are checked after contacts were read, with the ids that they listed."""
        self._checks: TaskGroup
        self._queue: WorkQueue[_Piece]

    async def read(self) -> None:
        """Read what a killed run has not read yet; stop at the first doubt."""
        pieces = [piece for segment in self._segments for piece in self._pieces(segment)]
        self._open.update(piece.segment for piece in pieces)
        self._queue = WorkQueue(self._step, pieces, _may_be_read)
        # Checks run beside the chains, so that no chain waits for them.
        async with anyio.create_task_group() as self._checks:
            for segment in self._segments:
                if segment not in self._open:
                    self._checks.start_soon(self._noted, self._check_count, segment)
            await self._queue.run(self._client.concurrency)
            if not self.doubts:
                self._checks.start_soon(self._noted, self._check_ends)

    def _pieces(self, segment: Segment) -> Iterator[_Piece]:
        """The parts of a segment that a killed run has not read, each for one chain, the oldest first."""
        pace, bounds = segment.pace(self._size(segment)), self._reader.bounds[segment.window.field]
        for left in remaining([segment.window], [done.window for done in self._reader.accepted]):
            for window in evenly(left, LONGEST_PIECE * pace, bounds) if pace else (left,):
                yield _Piece(segment, window, pace)

    async def _noted(self, check: Callable[..., Awaitable[None]], *args: object) -> None:
        """Note what a check finds as a doubt."""
        try:
            await check(*args)
        except (NotSorted, RequestFailed) as found:
            self.doubts.append(str(found))

    async def _step(self, piece: _Piece) -> Sequence[_Piece]:
        """Read the newest page of a piece; return the rest of it."""
        if self.doubts:
            return ()
        segment = piece.segment
        try:
            rest = self._halves(piece) or await self._read_page(piece)
            self._open[segment] += len(rest) - 1
            if not self._open[segment]:
                self._checks.start_soon(self._noted, self._check_count, segment)
        except (NotSorted, RequestFailed) as found:
            self.doubts.append(str(found))
            return ()
        return rest

    async def _read_page(self, piece: _Piece) -> tuple[_Piece, ...]:
        """Read the newest page of a piece, and accept what it shows completely; return the rest of the piece."""
        window = piece.window
        bounds, size = self._reader.bounds[window.field], self._reader.sizes.of(window.is_contact)
        page = await self._client.read(window.query(bounds))
        window.check(page.rows, bounds)
        times = creation_times(page)
        if len(page.ids) < len(page.rows):
            raise NotSorted("a page lists a contact twice")
        if len(times) > size or self._reader.is_cut(window, page):
            message = f"pages have several sizes: {size} contacts, and {len(times)} of {page.total or 'more'}"
            raise NotSorted(message)
        whole = window if len(times) < size else advance(window, times, bounds.resolution)
        if whole is None:
            return await self._read_dense(piece, times, bounds.resolution)
        rows = sum(_is_in(whole, time) for time in times)
        if rows and next(self._ranges) % self._stride == 0:
            sample = self._sample(whole, times)
            if window.is_contact:
                self._checks.start_soon(self._noted, self._compare, sample, _ids_in(sample, page))
            else:
                self._lead_samples.append((sample, _ids_in(sample, page)))
        if len(times) == size and self._gaps_left and (empty := gap(whole, times, bounds.resolution)):
            self._gaps_left -= 1
            self._checks.start_soon(self._noted, self._compare, empty, _ids_in(empty, page))
        await self._reader.accept(Accepted(whole, rows, level="ordered", request=self._client.sent), page)
        if whole.start is None or whole.start == window.start:
            return ()
        pace = piece.pace or times[0] - times[-1]
        return (piece._replace(window=replace(window, end=whole.start), pace=pace),)

    async def _read_dense(self, piece: _Piece, times: Sequence[int], resolution: int) -> tuple[_Piece, ...]:
        """Read the contacts of a single creation time that fill a page, page by page; return the rest of the piece."""
        window = piece.window
        start = min(times) - min(times) % resolution
        # Coarse filters also list contacts just outside the window.
        if max(times) >= start + resolution or (window.end is not None and start >= window.end):
            message = "too many contacts were created at once to see in which order they are listed"
            raise NotSorted(message)
        await self._reader.read([replace(window, start=start)])
        older = window.start is None or window.start < start
        return (piece._replace(window=replace(window, end=start)),) if older else ()

    def _halves(self, piece: _Piece) -> tuple[_Piece, ...]:
        """The parts of a long piece while workers wait for one."""
        window, pace = piece.window, piece.pace
        if not self._queue.lacks_items or not pace or window.end is None:
            return ()
        if window.start is None:
            # Its length is unknown: the older part is read once before it is cut again.
            cut = window.end - WORTH_HALVING // 2 * pace
            cut -= cut % self._reader.bounds[window.field].resolution
            newer, older = replace(window, start=cut), replace(window, end=cut)
            return piece._replace(window=older, pace=0), piece._replace(window=newer)
        if window.end - window.start < WORTH_HALVING * pace:
            return ()
        return tuple(piece._replace(window=half) for half in halved(window, self._reader.bounds[window.field]))

    def _sample(self, part: Window, times: Sequence[int]) -> Window:
        """The newest contacts of a range, as a window with room for further ones on its page."""
        bounds, newest_first = self._reader.bounds[part.field], sorted(times, reverse=True)
        size = self._reader.sizes.of(part.is_contact)
        oldest = newest_first[min(len(times), max(1, int(size * SAMPLE_FILL))) - 1]
        start = oldest - oldest % bounds.resolution
        return part if part.start is not None and part.start >= start else replace(part, start=start)

    async def _compare(self, window: Window, shown: set[bytes]) -> None:
        """Read a window: it must list the contacts that a page has shown. Raises `NotSorted`.

        Some may have been deleted since: one that a third read lists was only hidden by the second.
        """
        again = await self._ids(window)
        if others := again - shown:
            message = f"{len(others)} contacts of a range are not on the page that should list them"
            raise NotSorted(message)
        gone = shown - again
        if gone and gone & await self._ids(window):
            message = "a second read of a range lacked a contact that the first and the third read listed"
            raise NotSorted(message)
        self.checks = replace(self.checks, ranges=self.checks.ranges + 1)

    async def _ids(self, window: Window) -> set[bytes]:
        return _ids_in(window, await self._client.read(window.query(self._reader.bounds[window.field])))

    async def _check_count(self, segment: Segment) -> None:
        """Compare the contacts received in a segment with the number that are listed. Raises `NotSorted`."""
        received, newer, older, before = self._received(segment), segment.newer, segment.older, (-1, -1)
        for _ in range(COUNTS):
            listed = await self._length(segment, newer.rank + received) if older is None else older.rank
            if self.without_created_at:
                return
            if listed - newer.rank <= received:
                self.checks = replace(self.checks, segments=self.checks.segments + 1)
                return
            if (newer.rank, listed) == before:
                break
            if newer is not segment.newer:  # The first count has landmarks as old as the run.
                before = newer.rank, listed
            # Contacts may have been created or deleted since. One that is created between these two reads leads to
            # another count, because the newer landmark is read first.
            newer = await self._renewed(segment, newer)
            older = older and await self._renewed(segment, older)
        message = f"{listed - newer.rank} contacts are listed in a range that brought {received}"
        raise NotSorted(message)

    async def _check_ends(self) -> None:
        """Look at both lists once more, after everything was read. Raises `NotSorted`.

        Whatever has changed in the leads, they are read again. More contacts than leads became contacts were hidden.
        """
        leads = [segment for segment in reversed(self._segments) if not segment.is_contact]
        whole = replace(self._segments[-1], older=None)
        further_leads, [contacts] = await gather(partial(self._further, leads), partial(self._further, [whole]))
        if self.without_created_at:  # A page scan follows, which shows more.
            return
        samples = await gather(*(partial(self._ids, window) for window, _ in self._lead_samples))
        self.checks = replace(self.checks, ranges=self.checks.ranges + len(samples))
        self.leads_changed = any(further_leads) or samples != tuple(ids for _, ids in self._lead_samples)
        if contacts > max(0, -sum(further_leads)):
            message = f"{contacts} contacts are listed that no page had shown"
            raise NotSorted(message)
        received = sum(done.rows for done in self._reader.accepted)
        self._check_vanished(-contacts - sum(further_leads), received)

    async def _further(self, newest_first: Sequence[Segment]) -> Sequence[int]:
        """By segment of a list, how many more contacts are listed than were received; negative if there are fewer.

        Contacts created since the newest landmark come before all others, and do not count.
        """
        received = [self._received(segment) for segment in newest_first]
        end = await self._length(newest_first[-1], newest_first[0].newer.rank + sum(received))
        now = await gather(*(partial(self._renewed, segment, segment.newer) for segment in newest_first))
        ranks = [*(mark.rank for mark in now), end]
        return [older - newer - count for newer, older, count in zip(ranks, ranks[1:], received, strict=False)]

    async def _renewed(self, segment: Segment, landmark: Landmark) -> Landmark:
        """A landmark as it is now. Raises `NotSorted` if more contacts vanished than may have been deleted."""
        now = await renewed(self._client, segment.is_contact, landmark, self._size(segment))
        found = segment.newer if landmark.cut == segment.newer.cut else segment.older or landmark
        self._check_vanished(found.rank - now.rank, self._last_rank[segment.is_contact])
        return now

    def _check_vanished(self, gone: int, seen: int) -> None:
        if not may_be_deleted(gone, seen):
            self.vanished = f"{gone} of {seen} contacts vanished while they were read"
            raise NotSorted(self.vanished)

    async def _length(self, oldest: Segment, expected: int) -> int:
        """How many contacts the list has; one or two requests if they are about as many as `expected`."""
        size, full, empty, step = self._size(oldest), 0, LONGEST_LIST, 1
        number = max(1, -(-expected // size))
        while empty - full > 1:
            page = await page_or_empty(self._client, Query(oldest.is_contact), number)
            self.without_created_at |= lacks_creation_times(page)
            if 0 < len(page.rows) < size:
                return (number - 1) * size + len(page.rows)
            full, empty = (number, empty) if page.rows else (full, number)
            number, step = page_between(full, empty, step), 2 * step
        return full * size

    def _size(self, segment: Segment) -> int:
        return self._reader.sizes.of(segment.is_contact)

    def _received(self, segment: Segment) -> int:
        """The contacts of a segment in the ranges accepted so far."""
        return sum(done.rows for done in self._reader.accepted if segment.window.holds(done.window))


def _is_in(window: Window, time: int) -> bool:
    return (window.start is None or window.start <= time) and (window.end is None or time < window.end)


def _ids_in(window: Window, page: Page) -> set[bytes]:
    """The ids of the contacts of a page that were created in a window."""
    rows = zip(page.rows, creation_times(page), strict=True)
    return {bytes(row.contact_id) for row, time in rows if _is_in(window, time)}


def _may_be_read(piece: _Piece, unfinished: Collection[_Piece]) -> bool:
    return may_be_read(piece.window, [other.window for other in unfinished])
