"""Read windows: many concurrently, and indivisible ones page by page in strict order.

Accepted pages are passed to `receive`, in any order; `receive` may wait, and this back-pressure bounds memory.
The client bounds the requests in flight. `windows` defines windows and how they are split.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from math import inf

from etl.api.client import Client, PageRefused, RequestFailed
from etl.api.request import Query, TimeField
from etl.api.response import Page, Row
from etl.errors import ContractError
from etl.extract.capabilities import SMALLEST_PAGE, Capabilities, PageSizes
from etl.extract.checkpoint import Checkpoint
from etl.extract.gather import gather
from etl.extract.pages import Receive
from etl.extract.plan import remaining
from etl.extract.probe import FAR_FUTURE
from etl.extract.windows import Accepted, RangeSemantics, Window, halved, may_be_read, split
from etl.extract.workqueue import WorkQueue
from etl.times import milliseconds

COUNTED_READS = 3
"""Reads of a window whose page lists fewer contacts than its total."""
ORDERED_READS = 6
"""Maximum reads of an indivisible window; two in a row must list the same contacts, or it cannot be proven."""
FEW_ABSENT = 2
"""How many known contacts a page must lack, or how many more a second read must find, to prove that it was cut."""
SECOND_LOOKS, SPARED = 6, 100
"""Windows of unknown contacts that are read twice: a fixed number, plus one per this number of requests."""
FEW_GONE = 10
"""Contacts that may leave a list, and leave it empty, during one run."""
Note = Callable[[TimeField | None, Sequence[Row]], None]
"""Notes the rows of an answer, with the field whose range was asked for; None: of an unfiltered list."""


class WindowReader:
    """Reads windows of one account until each is proven complete or recorded as unproven."""

    def __init__(
        self,
        client: Client,
        capabilities: Capabilities,
        receive: Receive,
        checkpoint: Checkpoint,
        created: Callable[[bool], Sequence[int]] = lambda _: (),
        *,
        known_before: bool = True,
        swept: float = inf,
    ) -> None:
        """`created` returns the sorted creation times (ms) of the known contacts of a list.

        `known_before`: whether an earlier run proved them; those seen only in this run may be from truncated pages.
        Contacts last seen from `swept` (ms) on are also read by a sweep.
        """
        resumed = checkpoint.resumed
        self.accepted = [*resumed.accepted] if resumed else []
        self.unproven = [*resumed.unproven] if resumed else []
        self.sizes = capabilities.page_sizes
        """The page sizes seen so far."""
        self._note: Note = lambda _field, _rows: None
        self._poisoned: set[Window] = set()
        """Parts of windows on which the server failed."""
        self._checkpoint = checkpoint
        self._before = [done.window for done in self.accepted]
        """Windows already read by a killed run."""
        self._client = client
        self._capabilities = capabilities
        self._receive = receive
        self._created = cache(created)
        self._known_before = known_before
        self._swept = swept
        self._second_looks = 0
        """Second reads of windows of unknown contacts so far."""
        self._quiet: set[bool] = set()
        """The lists of which a window with few updates was read twice."""
        self._counted = capabilities.counts_matches
        """Whether the total of a page is trusted to count the contacts that match."""
        self._lowered: set[bool] = set()
        """The lists whose page size was lowered during the run: a larger page no longer raises it."""
        seen_bounds, bounds = capabilities.seen, capabilities.created
        if bounds is None or seen_bounds is None:
            message = "windows need both time filters"
            raise ValueError(message)
        self.bounds: Mapping[TimeField, RangeSemantics] = {"createdAt": bounds, "lastSeenAt": seen_bounds}

    @contextmanager
    def noting(self, note: Note) -> Iterator[None]:
        """Call `note` with the rows of each page before it is passed to `receive`, and of unfiltered first pages."""
        before, self._note = self._note, note
        try:
            yield
        finally:
            self._note = before

    async def complete(self, windows: Iterable[Window]) -> None:
        """Read the parts of `windows` that a killed run had not read yet."""
        await self.read(remaining(windows, self._before))

    async def read(self, windows: Iterable[Window], *, most: int | None = None) -> None:
        """Read `windows` concurrently and in any order, but leads before contacts of the same time.

        A response with `most` or more rows is treated as full.
        """
        await WorkQueue(partial(self.settle, most=most), windows, may_be_read).run(self._client.concurrency)

    async def settle(self, window: Window, *, most: int | None = None) -> Sequence[Window]:
        """Read one window; return the parts still to be read if it was too full to be proven."""
        bounds = self.bounds[window.field]
        try:
            page = await self._read(window, bounds)
        except RequestFailed as error:
            return await self._isolate(window, bounds, error)
        cut, size = self.is_cut(window, page), self.sizes.of(window.is_contact)
        if len(page.rows) < min(size, most or size) and not cut:
            if most is None and self._may_hide(window, page) and (parts := await self._look_again(window, page)):
                return parts
            await self._accept_window(window, page)
            if most is None and self._is_quiet(window, page):
                await self._read_twice(window, page)
            return ()
        # If this page is larger than any page of this list before, the true page size is at least this.
        if window.is_contact not in self._lowered:
            self.sizes = self.sizes.with_page(window.is_contact, len(page.rows))
        # If even the smallest page would hold the total, splitting the window would list no more.
        smallest = min(SMALLEST_PAGE, self.sizes.of(window.is_contact) / 2)
        hopeless = not page.rows or (cut and (page.total or 0) < smallest)
        newest_first = window.field == "createdAt" and self._capabilities.newest_first
        parts = () if hopeless else split(window, page.rows, bounds, newest_first=newest_first)
        if not parts and cut:
            reason = f"the server says that {page.total} match, and lists {len(page.rows)}"
            await self._give_up(window, bounds, reason, page)
            # The total is wrong: searching for the missing contacts in every window would cost thousands of requests.
            self._counted = False
        elif not parts and len(page.rows) < size and not self.sizes.mixed:
            await self._accept_window(window, page)
        elif not parts:
            await self._read_indivisible(window, bounds, page)
        return parts

    def _may_hide(self, window: Window, page: Page) -> bool:
        """Whether a page that is not full may still have been cut, by a server with smaller pages.

        Either it lacks known contacts, or no earlier run knew its contacts and it has enough rows to be the full page
        of another server: only a few such windows are read twice, to keep the cost negligible.
        """
        known = 0
        if window.field == "createdAt":
            times = self._created(window.is_contact)
            first = 0 if window.start is None else bisect_left(times, window.start)
            known = (len(times) if window.end is None else bisect_left(times, window.end)) - first
        if known >= len(page.rows) + FEW_ABSENT:
            return True
        if len(page.rows) < SMALLEST_PAGE or (self._known_before and 2 * known >= len(page.rows)):
            return False
        self._second_looks += 1
        return self._second_looks <= SECOND_LOOKS + self._client.sent // SPARED

    def _is_quiet(self, window: Window, page: Page) -> bool:
        """Whether a window shows so few updates that one empty or stale answer may be all that a run gets of them."""
        closed = window.field == "lastSeenAt" and window.end is not None
        return closed and self._known_before and len(page.rows) < SMALLEST_PAGE and window.is_contact not in self._quiet

    async def _read_twice(self, window: Window, page: Page) -> None:
        """Receive a second answer, too, if it shows further contacts; once a run and list, which costs two requests."""
        self._quiet.add(window.is_contact)
        again = await self._read(window, self.bounds[window.field])
        if again.ids - page.ids:
            await self._take(window, again)

    async def _look_again(self, window: Window, page: Page) -> Sequence[Window]:
        """Read the two parts of a window; return them, to be read instead of it, if they show that its page was cut.

        A part has half of the rows: if the page was cut, one of the parts has room for some of the hidden contacts. An
        indivisible window is itself read twice more: another server may answer, with a larger page.
        """
        bounds = self.bounds[window.field]
        parts = split(window, page.rows, bounds, newest_first=False)
        try:
            pages = [await self._read(part, bounds) for part in parts or (window, window)]
        except RequestFailed:
            return parts
        shown = {bytes(row.contact_id): row for part in pages for row in part.rows}
        hidden, lost = shown.keys() - page.ids, page.ids - shown.keys()
        if len(hidden) >= FEW_ABSENT:
            self.sizes = self.sizes.with_cut(window.is_contact, len(page.rows))
        # If not a page of another size, or one that cannot be cut, the server may hide a contact from every read.
        # A contact that has just become visible, or moved to this list, is read by the sweep.
        moved = all((milliseconds(shown[one].last_seen_at) or 0) >= self._swept for one in hidden)
        unsure = not moved and (len(hidden) < FEW_ABSENT or not parts)
        if unsure and window.field == "createdAt" and window.end is not None:
            self._doubt(window, bounds, "a page lacked a contact that a second read showed")
        return parts if hidden or len(lost) >= FEW_ABSENT else ()

    async def _read(self, window: Window, bounds: RangeSemantics) -> Page:
        """Page 1 of a window; read again if it lists fewer rows than its total, which may come from another instant."""
        query = window.query(bounds)
        # A part of a window that failed was retried as part of it: one attempt is enough.
        request = self._client.ask if window in self._poisoned else self._client.read
        for _ in range(COUNTED_READS):
            answer = await request(query)
            if not isinstance(answer, Page):
                raise RequestFailed(answer.message, where=query.span())
            page = answer
            window.check(page.rows, bounds)
            if not self.is_cut(window, page):
                break
        return page

    async def _isolate(self, window: Window, bounds: RangeSemantics, error: RequestFailed) -> Sequence[Window]:
        """Halve a window on which the server always fails while it answers others: one half may be readable.

        Raises ContractError for a window that cannot be halved: it is reported, never skipped (A9).
        """
        empty = replace(window, start=FAR_FUTURE, end=None)
        if not isinstance(await self._client.ask(empty.query(bounds)), Page):
            raise error
        # An open start is halved as if it were 1970; the lower half includes everything older.
        halves = halved(replace(window, start=window.start or 0), bounds)
        if not halves:
            message = f"the server fails whenever it is asked for this range: {error.message}"
            raise ContractError(message, where=window.query(bounds).span()) from error
        lower, upper = replace(halves[0], start=window.start), halves[1]
        self._poisoned |= {lower, upper}
        return lower, upper

    def is_cut(self, window: Window, page: Page) -> bool:
        """Whether the total of a short page shows that it was cut, on a server whose totals follow the filter."""
        counted = page.total if self._counted else None
        return counted is not None and len(page.rows) < min(counted, self.sizes.of(window.is_contact))

    def starts_of_shown(self) -> Sequence[int]:
        """The sorted starts of the accepted createdAt windows that listed contacts."""
        windows = (done.window for done in self.accepted if done.rows)
        return sorted(window.start or 0 for window in windows if window.field == "createdAt")

    async def doubtful(self) -> list[Window]:
        """Withdraw and return the windows that may have been cut because pages are smaller than assumed.

        Without a filter, page 1 is as full as the server makes it; a window with that many rows proves nothing.
        """
        leads, contacts = await gather(*(partial(self._client.read, Query(listed)) for listed in (False, True)))
        for page in (leads, contacts):
            # A contact that was active since may have come into the range of a sweep after that was read.
            old = [row for row in page.rows if (milliseconds(row.last_seen_at) or 0) < self._capabilities.t0]
            self._note(None, old)
        now = PageSizes(len(contacts.rows), len(leads.rows))
        gone = sum(self.sizes.seen(listed) for listed in (False, True) if not now.seen(listed))
        # Under maintenance, servers return valid empty lists (A43). A few contacts may have been deleted, or moved to
        # the other list if that is not empty too.
        if gone > FEW_GONE or (gone and now == PageSizes(0, 0)):
            self.doubt(f"a list became empty while it was read: it had shown a page of {gone} contacts")
            return []
        for listed in (False, True):
            if 2 * now.seen(listed) < len(self._created(listed)):
                self.sizes = self.sizes.with_cut(listed, now.seen(listed))
            if self.sizes.cut(listed):  # Then a larger page comes from another server.
                self.sizes = self.sizes.with_page(listed, now.seen(listed))
            if now.of(listed) < self.sizes.of(listed):
                self._lowered.add(listed)
                fewer = min(now.seen(listed), self.sizes.seen(listed))
                self.sizes = replace(self.sizes, **{"contacts" if listed else "leads": fewer})
        doubtful = [done for done in self.accepted if _may_be_cut(done, self.sizes)]
        if not doubtful:
            return []
        self.accepted = [done for done in self.accepted if not _may_be_cut(done, self.sizes)]
        self._before = []
        return [done.window for done in doubtful]

    async def _accept_window(self, window: Window, page: Page) -> None:
        await self.accept(Accepted(window, len(page.rows), request=self._client.sent), page)

    async def accept(self, done: Accepted, page: Page | None = None) -> None:
        """Record a complete window, after the page with its contacts, unless they were received already."""
        if page is not None and page.rows:
            await self._take(done.window, page)
        self.accepted.append(done)
        self._checkpoint.accept(done)

    async def _take(self, window: Window, page: Page) -> None:
        self._note(window.field, page.rows)
        await self._receive(page)

    async def _read_indivisible(self, window: Window, bounds: RangeSemantics, page: Page) -> None:
        """Read an indivisible window (one creation time, many contacts) page by page until two reads agree."""
        if self.sizes.mixed or self._capabilities.honours_page is not True:
            lacking = "the server's pages have several sizes" if self.sizes.mixed else "the server has no second page"
            await self._give_up(window, bounds, f"it is full, cannot be cut, and {lacking}", page)
            return
        size = self.sizes.of(window.is_contact)
        alone = self._capabilities.past_end == "repeats" and size < self.sizes.of(not window.is_contact)
        take = partial(self._take, window)
        read = await read_indivisible(self._client, window.query(bounds), size, take, alone=alone)
        if read is None:
            await self._give_up(window, bounds, "reads in order did not agree", page)
            return
        await self.accept(Accepted(window, read.rows, read.reads, "sequential", self._client.sent))

    async def _give_up(self, window: Window, bounds: RangeSemantics, reason: str, page: Page) -> None:
        """Record a window as unproven; the listed contacts are real, and are published if that is allowed."""
        if page.rows:
            await self._take(window, page)
        self._doubt(window, bounds, reason)

    def _doubt(self, window: Window, bounds: RangeSemantics, reason: str) -> None:
        listed = str(window.is_contact).lower()
        self.doubt(f"isContact {listed}, {window.query(bounds).span()}: {reason}")

    def doubt(self, reason: str) -> None:
        """Record something that cannot be proven."""
        self.unproven.append(reason)
        self._checkpoint.unproven(reason)


def _may_be_cut(done: Accepted, sizes: PageSizes) -> bool:
    return (done.level != "sequential" or sizes.mixed) and done.rows >= sizes.of(done.window.is_contact)


@dataclass(frozen=True, slots=True)
class IndivisibleRead:
    """The result of reading a list in order until two reads agreed."""

    rows: int
    reads: int


async def read_indivisible(
    client: Client, query: Query, page_size: int, receive: Receive, *, alone: bool = False
) -> IndivisibleRead | None:
    """Read all pages of `query` strictly in order until two reads in a row list the same contacts, each once.

    Returns None if `ORDERED_READS` reads did not agree. Every page with a new contact is passed to `receive`. Only for
    a server known to honour `page`: one that returns page 1 for every number would agree with itself.
    """
    known: set[bytes] = set()
    last: set[bytes] | None = None
    for reads in range(1, ORDERED_READS + 1):
        pages = await read_in_order(client, query, page_size, alone=alone)
        if pages is None:
            continue
        ids = [bytes(row.contact_id) for page in pages for row in page.rows]
        for page in pages:
            if not page.ids <= known:
                await receive(page)
                known |= page.ids
        if len(set(ids)) == len(ids) and set(ids) == last:
            return IndivisibleRead(len(ids), reads)
        last = set(ids)
    return None


async def read_in_order(client: Client, query: Query, page_size: int, *, alone: bool = False) -> list[Page] | None:
    """Read pages 1, 2, ... of `query` one after the other until a page has no new contact.

    That page ends the list if it is empty, or repeats the last or first page after a short page; after a full page, a
    repetition may hide further contacts. Otherwise it is kept, and its duplicates invalidate the read. With `alone`,
    page 1 counts as short whatever its size, so that page 2 may repeat it.
    """
    pages: list[Page] = []
    known: set[bytes] = set()
    while True:
        try:
            page = await client.read(query, len(pages) + 1)
            while page.attempt > 1 and pages:
                # The failure may have made the server lose its position in the list (A10).
                if (await client.read(query, len(pages))).ids != pages[-1].ids:
                    return None
                page = await client.read(query, len(pages) + 1)
        except PageRefused:
            # Some servers refuse a page past the end; in the middle of the list, a refusal is a fault.
            if not pages:
                raise
            try:
                await client.read(query, len(pages) + 2)
            except PageRefused:
                return pages
            raise
        if page.ids <= known:
            short = bool(pages) and (len(pages[-1].rows) < page_size or (alone and len(pages) == 1))
            ended = not page.rows or (short and page.ids in (pages[0].ids, pages[-1].ids))
            return pages if ended else [*pages, page]
        pages.append(page)
        known |= page.ids
