"""Page scan: reads every page of one list, concurrently.

A page number is a rank in a list that moves while it is read, so a page scan proves nothing. It is used as cross-check
(each contact it shows is real), for servers whose time filters do not work, and for filtered exports. An interrupted
scan can be resumed as far as the list has not moved since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

import anyio

from etl.api.client import Client, PageRefused
from etl.api.request import Query
from etl.api.response import Page, id_text
from etl.errors import ContractError

Receive = Callable[[Page], Awaitable[None]]

REPEATS = 3
"""If this many pages in a row repeat the page before them, the list has ended."""
LEAPS = (0, 1, 3, 7, 15, 31, 63, 127)
"""How many pages to go back, tried in order, to find a page with only known contacts."""


@dataclass(frozen=True, slots=True)
class SavedScan:
    """The saved progress of an interrupted page scan; empty by default."""

    sizes: Mapping[int, int] = field(default_factory=dict)
    """The rows of each page read."""
    end: int | None = None
    """The first page past the end, if known for certain."""
    ids: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """The ids on the last page read, and on the pages before the first gap as far as `LEAPS` go back.

    Bounded, so that it does not grow with the list."""

    @property
    def gap(self) -> int:
        """The first page not read; later ones may have been, because requests are concurrent."""
        return next(number for number in count(1) if number not in self.sizes)

    @property
    def last(self) -> int:
        """The last page read."""
        return max(self.sizes, default=0)

    @property
    def over(self) -> bool:
        """Whether no pages are left to read."""
        return self.end is not None and self.gap >= self.end

    @property
    def wanted(self) -> frozenset[int]:
        """The pages whose `ids` are needed to resume."""
        return frozenset({*range(self.gap - 1 - LEAPS[-1], self.gap), self.last})

    def upto(self, number: int) -> SavedScan:
        """The progress up to a page, without a known end."""
        return SavedScan({page: rows for page, rows in self.sizes.items() if page <= number})


@dataclass(slots=True)
class PageScan:
    """The state of a page scan: which page to request next, and where the list ends. No I/O."""

    repeats: bool
    """Whether this server repeats its last page for every page past the end."""
    asked: int = 0
    end: int | None = None
    """The first page past the end, once known."""
    sizes: dict[int, int] = field(default_factory=dict)
    """The rows of each page read, by this scan or by the one it resumes."""
    known: set[int] = field(default_factory=set)
    """Hashes of the ids seen: kept only if the server repeats its last page, where nothing else shows the end.

    Those of a resumed scan do not count: if the list has grown since, they are on later pages as well.
    """
    latest: frozenset[bytes] = frozenset()
    """The ids of the latest page received."""
    again: int = 0
    """How often in a row they were repeated."""
    refused: set[int] = field(default_factory=set)
    """The pages that the server refused: past the end, or faults."""
    empty: set[int] = field(default_factory=set)
    """The pages without contacts: likewise."""

    def next(self) -> int | None:
        """The number of the next page to request; None if all up to the end were requested."""
        number = next(one for one in count(self.asked + 1) if one not in self.sizes)
        if self.end is not None and number >= self.end:
            return None
        self.asked = number
        return number

    def take(self, number: int, page: Page) -> bool:
        """Record page `number`; returns whether it is to be passed to `receive`."""
        ended = not page.rows
        if ended:
            self.empty.add(number)
        else:
            self.again = self.again + 1 if page.ids == self.latest else 0
            self.latest = page.ids
            # The probe may find no repeated last page on a server that returns the same page again and again.
            ended = self.again >= REPEATS
        if page.rows and self.repeats:
            ids = {hash(contact_id) for contact_id in page.ids}
            # Without a new contact, the list must have ended.
            ended = ids <= self.known
            self.known |= ids
        if ended:
            self.ends_before(number)
        else:
            self.sizes[number] = len(page.rows)
        return not ended

    def ends_before(self, number: int) -> None:
        """Record that page `number` is past the end."""
        self.end = number if self.end is None else min(self.end, number)

    @property
    def sure_end(self) -> int | None:
        """The end, unless it is a refused or empty page that was not yet confirmed as the end."""
        return None if self.end in self.refused | self.empty else self.end

    @property
    def smallest(self) -> int:
        """The smallest page size seen on more than one page; 0 if unknown.

        A single smaller page may be the last page of another server, which counts its pages differently.
        """
        last = max(self.sizes, default=0)
        counts = Counter(rows for number, rows in self.sizes.items() if number < last)
        return min((rows for rows, pages in counts.items() if pages > 1), default=0)

    @property
    def ends_full(self) -> bool:
        """Whether the last page is as large as the largest, so that its size does not show the end."""
        last = self.sizes.get((self.end or 1) - 1, 0)
        return last == max(self.sizes.values(), default=0)


async def scan_pages(client: Client, query: Query, receive: Receive, scan: PageScan) -> int:
    """Pass every page of `query` to `receive`, in any order; returns the number of pages.

    `scan` initially holds the pages to skip, and records the progress in case this is interrupted.

    The end is found without a total: the first page that is empty twice, a repeated last page, or a refusal (400, 404)
    with no page after it. At most `client.concurrency` requests go beyond it. Raises ContractError if a page is refused
    in the middle of the list.
    """

    async def worker() -> None:
        while (number := scan.next()) is not None:
            try:
                page = await client.read(query, number)
            except PageRefused:
                scan.refused.add(number)
                scan.ends_before(number)
                continue
            if scan.take(number, page):
                await receive(page)

    goes_on = True
    while goes_on:
        async with anyio.create_task_group() as tasks:
            for _ in range(client.concurrency):
                tasks.start_soon(worker)
        goes_on = scan.end in scan.empty and await _goes_on(client, query, receive, scan)
    if scan.end in scan.refused:
        await _confirm_end(client, query, scan)
        scan.refused.clear()
    scan.empty.clear()
    return (scan.end or 1) - 1


async def _goes_on(client: Client, query: Query, receive: Receive, scan: PageScan) -> bool:
    """Whether the list goes on after all: under maintenance, servers return valid empty lists (A43)."""
    end = scan.end or 1
    page = await page_or_empty(client, query, end)
    if page.rows:
        scan.asked, scan.end = end, None
        scan.empty.discard(end)
        if scan.take(end, page):
            await receive(page)
    return bool(page.rows)


async def page_or_empty(client: Client, query: Query, number: int) -> Page:
    """A page that may be past the end of the list."""
    try:
        return await client.read(query, number)
    except PageRefused:
        if number == 1:
            raise
        return Page(b"", (), number=number)


async def _confirm_end(client: Client, query: Query, scan: PageScan) -> None:
    """Check that a refused page is the end: the page after it must not have rows; page 1 is never past the end."""
    end = scan.end or 1
    if end > 1 and not scan.ends_full:
        return
    try:
        beyond = await client.read(query, end + 1)
    except PageRefused:
        if end > 1:
            return
        raise
    if beyond.rows:
        raise ContractError(f"page {end} is refused, but page {end + 1} is not", where=query.span())


async def still_holds(client: Client, query: Query, saved: SavedScan, *, repeats: bool = False) -> SavedScan:
    """The part of an interrupted scan that is still valid, although the list may have moved since.

    Since the interruption, each deletion moved the contacts after it one place forward, perhaps onto a page already
    read: a contact without a creation time, which is in no window either, would be lost. So this goes back from the
    first gap to a page that lists only known contacts. As long as the list keeps its order, all contacts not seen yet
    come after it, except updated ones, which the sweep reads.

    Pages read after the gap, and the end, are valid only if the page before the gap and the last page read have not
    moved at all; never on a server that repeats its last page, because the last page read may now be a repetition.
    """
    if saved.over:
        return saved
    border = saved.gap - 1
    known = frozenset[str]().union(*(ids for number, ids in saved.ids.items() if number <= border))
    for leap in LEAPS:
        if leap >= border:
            break
        listed = await _listed(client, query, border - leap)
        if leap == 0 and listed == saved.ids.get(border):
            unmoved = saved.last < saved.gap
            if not unmoved and not repeats:
                unmoved = await _listed(client, query, saved.last) == saved.ids.get(saved.last)
            if unmoved:
                return saved
        if listed and listed <= known:
            return saved.upto(border - leap)
    return SavedScan()


async def _listed(client: Client, query: Query, number: int) -> frozenset[str]:
    """The ids on a page; none if the list has become shorter."""
    try:
        page = await client.read(query, number)
    except PageRefused:
        return frozenset()
    return frozenset(found for row in page.rows if (found := id_text(bytes(row.contact_id))))
