"""Reading windows: many at once, and a crowd that no cut can part in strict order.

Both hand accepted pages to `receive`, in any order; `receive` may wait, which is the back-pressure that bounds memory.
Requests in flight are bounded by the client. Which page proves what is decided in `window`; this module carries it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from etl.api.answer import Page
from etl.api.client import Client, PageRefused, RequestFailed
from etl.api.request import Query, TimeField
from etl.capabilities import Capabilities, PageSizes
from etl.errors import ContractError
from etl.ledger import Ledger
from etl.plan import remaining
from etl.probe import FAR_FUTURE
from etl.walk import Receive
from etl.window import Accepted, Bounds, Window, halved, may_be_read, split
from etl.worklist import Worklist

COUNTED_READS = 3
"""Reads of a window that lists fewer contacts than it counts."""
ORDERED_READS = 6
"""Reads of a crowd before it counts as unprovable; two in a row must list the same contacts."""
SMALLEST_PAGE = 14
"""Contacts that a page holds at least (API.md)."""
FEW_GONE = 10
"""Contacts that may leave a list, and leave it empty, in the time of one run."""


class WindowReader:
    """Reads windows of one account until each is proven complete, or told to be unprovable."""

    def __init__(self, client: Client, capabilities: Capabilities, receive: Receive, ledger: Ledger) -> None:
        resumed = ledger.resumed
        self.accepted: list[Accepted] = list(resumed.accepted) if resumed else []
        self.unproven: list[str] = []
        self._poisoned: set[Window] = set()
        """Parts of windows that the server fails on."""
        self._ledger = ledger
        self._before = [done.window for done in self.accepted]
        """What a run that was killed had read, and this one need not."""
        self._client = client
        self._capabilities = capabilities
        self._receive = receive
        self._sizes = capabilities.page_sizes
        self._counted = capabilities.counts_matches
        """Whether the total beside a page is believed to count whom it could list."""
        self._lowered: set[bool] = set()
        """The lists whose pages became smaller meanwhile: a larger one is no news of them any more."""
        created, seen = capabilities.created, capabilities.seen
        if created is None or seen is None:
            message = "windows need both time filters"
            raise ValueError(message)
        self._bounds: Mapping[TimeField, Bounds] = {"createdAt": created, "lastSeenAt": seen}

    async def complete(self, windows: Iterable[Window]) -> None:
        """Read what of `windows` a run that was killed had not read yet."""
        await self.read(remaining(windows, self._before))

    async def read(self, windows: Iterable[Window]) -> None:
        """Read `windows`, many at a time and in any order, but leads before contacts of the same time."""
        await Worklist(self.settle, windows, may_be_read).run(self._client.concurrency)

    async def settle(self, window: Window) -> Sequence[Window]:
        """Read one window; returns the parts still to be read when it was too full to be proven."""
        bounds = self._bounds[window.field]
        try:
            page = await self._read(window, bounds)
        except RequestFailed as error:
            return await self._isolate(window, bounds, error)
        cut = self._is_cut(window, page)
        if len(page.rows) < self._sizes.of(window.is_contact) and not cut:
            await self._accept(window, page)
            return ()
        # A page larger than any before of this list: the true page size is at least this.
        if window.is_contact not in self._lowered:
            self._sizes = self._sizes.with_page(window.is_contact, len(page.rows))
        hopeless = not page.rows or (cut and self._would_fit(window, page))
        parts = () if hopeless else split(window, page.rows, bounds, newest_first=self._newest_first(window))
        if not parts and cut:
            reason = f"the server says that {page.total} match, and lists {len(page.rows)}"
            await self._give_up(window, bounds, reason, page)
            # It is the counting that is wrong: to look for others whom it counts would cost thousands of requests.
            self._counted = False
        elif not parts:
            await self._read_crowd(window, bounds, page)
        return parts

    def _newest_first(self, window: Window) -> bool:
        return window.field == "createdAt" and self._capabilities.newest_first

    async def _read(self, window: Window, bounds: Bounds) -> Page:
        """Page 1 of a window; again when it lists fewer than it counts, which may be two instants of one answer."""
        for _ in range(COUNTED_READS):
            page = await self._page(window, bounds)
            window.check(page.rows, bounds)
            if not self._is_cut(window, page):
                break
        return page

    async def _page(self, window: Window, bounds: Bounds) -> Page:
        query = window.query(bounds)
        if window not in self._poisoned:
            return await self._client.read(query)
        # It was asked often enough as a part of others: once will do.
        verdict = await self._client.ask(query)
        if isinstance(verdict, Page):
            return verdict
        raise RequestFailed(verdict.message, where=query.span())

    async def _isolate(self, window: Window, bounds: Bounds, error: RequestFailed) -> Sequence[Window]:
        """The halves of a window that the server always fails on while it answers others: one of them may be sound.

        Raises ContractError for one that cannot be halved: it is named, never skipped (FAULTS.md A9).
        """
        nobody = replace(window, start=FAR_FUTURE, end=None)
        if not isinstance(await self._client.ask(nobody.query(bounds)), Page):
            raise error
        # An open beginning is halved from 1970 on: what is older is asked for with the lower half.
        halves = halved(replace(window, start=window.start or 0), bounds)
        if not halves:
            message = f"the server fails whenever it is asked for this range: {error.message}"
            raise ContractError(message, where=window.query(bounds).span()) from error
        lower, upper = replace(halves[0], start=window.start), halves[1]
        self._poisoned |= {lower, upper}
        return lower, upper

    def _would_fit(self, window: Window, page: Page) -> bool:
        """Whether a page, however small the server makes it, would hold all whom it counts: no part would list more."""
        return (page.total or 0) < min(SMALLEST_PAGE, self._sizes.of(window.is_contact) / 2)

    def _is_cut(self, window: Window, page: Page) -> bool:
        """Whether the total beside a short page shows that it is cut, on a server whose totals follow the filter."""
        counted = page.total if self._counted else None
        return counted is not None and len(page.rows) < min(counted, self._sizes.of(window.is_contact))

    async def doubtful(self) -> list[Window]:
        """The windows that a server may have cut off because it lowered its page size meanwhile; no longer accepted.

        Without a filter page 1 is as full as the server makes it; a window with as many rows proves nothing.
        """
        leads, contacts = [len((await self._client.read(Query(listed))).rows) for listed in (False, True)]
        now = PageSizes(contacts, leads)
        if vanished := self._vanished(now):
            self.unproven.append(vanished)
            return []
        lowered = {listed for listed in (False, True) if now.of(listed) < self._sizes.of(listed)}
        if not lowered:
            return []
        self._lowered |= lowered
        self._sizes = PageSizes(min(contacts, self._sizes.contacts), min(leads, self._sizes.leads))
        doubtful = [done for done in self.accepted if _may_be_cut(done, self._sizes)]
        self.accepted = [done for done in self.accepted if not _may_be_cut(done, self._sizes)]
        self._before = []
        return [done.window for done in doubtful]

    def _vanished(self, now: PageSizes) -> str:
        """That a list is empty which was not, in words: maintenance answers with valid empty lists (FAULTS.md A43).

        Few may have been deleted, or have moved to the other list, as long as that one still shows somebody.
        """
        gone = sum(self._sizes.seen(listed) for listed in (False, True) if not now.seen(listed))
        if gone > FEW_GONE or (gone and now == PageSizes(0, 0)):
            return f"a list became empty while it was read: {gone} contacts of a page that it had shown are gone"
        return ""

    async def _accept(self, window: Window, page: Page) -> None:
        if page.rows:
            await self._receive(page)
        self._note(Accepted(window, len(page.rows), request=self._client.sent))

    def _note(self, done: Accepted) -> None:
        self.accepted.append(done)
        self._ledger.accept(done)

    async def _read_crowd(self, window: Window, bounds: Bounds, page: Page) -> None:
        """Read a window that cannot be cut (one creation time, many contacts) page by page until two reads agree."""
        if self._capabilities.honours_page is not True:
            reason = "it is full, cannot be cut, and the server has no second page"
            await self._give_up(window, bounds, reason, page)
            return
        size = self._sizes.of(window.is_contact)
        alone = self._capabilities.past_end == "repeats" and size < self._sizes.of(not window.is_contact)
        crowd = await read_crowd(self._client, window.query(bounds), size, self._receive, alone=alone)
        if crowd is None:
            await self._give_up(window, bounds, "reads in order did not agree", page)
            return
        self._note(Accepted(window, crowd.rows, crowd.reads, "sequential", self._client.sent))

    async def _give_up(self, window: Window, bounds: Bounds, reason: str, page: Page) -> None:
        """Note what cannot be proven; who is listed is real all the same, and published if that is allowed."""
        if page.rows:
            await self._receive(page)
        listed = str(window.is_contact).lower()
        self.unproven.append(f"isContact {listed}, {window.query(bounds).span()}: {reason}")


def _may_be_cut(done: Accepted, sizes: PageSizes) -> bool:
    return done.level == "windows" and done.rows >= sizes.of(done.window.is_contact)


@dataclass(frozen=True, slots=True)
class Crowd:
    """A listing read in order until two reads agreed."""

    rows: int
    reads: int


async def read_crowd(
    client: Client, query: Query, page_size: int, receive: Receive, *, alone: bool = False
) -> Crowd | None:
    """Read all pages of `query` strictly in order until two reads in a row list the same contacts, each once.

    None when `ORDERED_READS` reads did not agree. Every page with a contact not handed on yet is handed on. Only for a
    server that is known to honour `page`: another shows its first page for every one, and that agrees as well.
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
            return Crowd(len(ids), reads)
        last = set(ids)
    return None


async def read_in_order(client: Client, query: Query, page_size: int, *, alone: bool = False) -> list[Page] | None:
    """Pages 1, 2, ... of `query`, each asked when the one before has come, until one brings nobody new.

    That one is empty, or after a short page the last or the first one repeated: a full one may stand for all that the
    server does not show. Where it is neither it stays in the list, and the contacts then listed twice void the read.
    `alone` says that page 1 may be short although it is as full as any seen: then page 2 may repeat it as well.
    """
    pages: list[Page] = []
    known: set[bytes] = set()
    while True:
        try:
            page = await client.read(query, len(pages) + 1)
            while page.attempt > 1 and pages:
                # The failure may have cost the server its place in the listing (FAULTS.md A10).
                if (await client.read(query, len(pages))).ids != pages[-1].ids:
                    return None
                page = await client.read(query, len(pages) + 1)
        except PageRefused:
            # Some servers refuse a page past the end; in the middle of the list it would be a fault.
            if pages and await _is_refused(client, query, len(pages) + 2):
                return pages
            raise
        if page.ids <= known:
            short = bool(pages) and (len(pages[-1].rows) < page_size or (alone and len(pages) == 1))
            ended = not page.rows or (short and page.ids in (pages[0].ids, pages[-1].ids))
            return pages if ended else [*pages, page]
        pages.append(page)
        known |= page.ids


async def _is_refused(client: Client, query: Query, number: int) -> bool:
    try:
        await client.read(query, number)
    except PageRefused:
        return True
    return False
