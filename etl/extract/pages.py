"""The plain page walk: every page of one listing, concurrently.

A page number is a rank in a list that moves while it is read, so a walk proves nothing. It serves as witness (each
contact it shows is real), for servers whose time filters do not work, and for filtered exports. One that was
interrupted can be resumed, as far as the list has not moved since.
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
"""The same page so many times in a row is the end of any list."""
LEAPS = (0, 1, 3, 7, 15, 31, 63, 127)
"""How many pages to go back, one leap after the other, to find nobody but people who are known."""


@dataclass(frozen=True, slots=True)
class SavedScan:
    """How far a walk had come that was interrupted; nowhere by default."""

    sizes: Mapping[int, int] = field(default_factory=dict)
    """The rows of each page that it took."""
    end: int | None = None
    """The first page past the end, where it was sure of it."""
    ids: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Who was listed on the last page that it took, on that before the first gap, and on those before that, as far as
    `LEAPS` go back: never more, so that it does not grow with the list."""

    @property
    def gap(self) -> int:
        """The first page that it did not take: its requests overtook each other."""
        return next(number for number in count(1) if number not in self.sizes)

    @property
    def last(self) -> int:
        """The last page that it took."""
        return max(self.sizes, default=0)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to take."""
        return self.end is not None and self.gap >= self.end

    @property
    def wanted(self) -> frozenset[int]:
        """The pages whose `ids` are needed to go on with it."""
        return frozenset({*range(self.gap - 1 - LEAPS[-1], self.gap), self.last})

    def upto(self, number: int) -> SavedScan:
        """What it took up to a page, with an end that is open again."""
        return SavedScan({page: rows for page, rows in self.sizes.items() if page <= number})


@dataclass(slots=True)
class PageScan:
    """What a walk knows: which page to ask next, and where the list ends. No I/O."""

    repeats: bool
    """Whether this server repeats its last page for every page past the end."""
    asked: int = 0
    end: int | None = None
    """The first page past the end, once known."""
    sizes: dict[int, int] = field(default_factory=dict)
    """The rows of each page taken, by this walk or by the one that it goes on with."""
    known: set[int] = field(default_factory=set)
    """Hashes of the ids seen: kept only where the last page is repeated, because there nothing else shows the end.

    Those of a walk that is resumed do not count: where the list has grown since, they are on later pages as well.
    """
    latest: frozenset[bytes] = frozenset()
    """The ids of the last page taken."""
    again: int = 0
    """How often in a row they came again."""
    refused: set[int] = field(default_factory=set)
    """The pages that the server refuses, which are past the end or faults."""

    def next(self) -> int | None:
        """The number of the next page to ask; None when all up to the end were asked."""
        number = next(one for one in count(self.asked + 1) if one not in self.sizes)
        if self.end is not None and number >= self.end:
            return None
        self.asked = number
        return number

    def take(self, number: int, page: Page) -> bool:
        """Note page `number`; whether it is to be handed on."""
        if not page.rows or self._is_known(page):
            self.ends_before(number)
            return False
        self.sizes[number] = len(page.rows)
        return True

    def _is_known(self, page: Page) -> bool:
        """Whether the page brings nobody new, so that the list must have ended."""
        self.again = self.again + 1 if page.ids == self.latest else 0
        self.latest = page.ids
        if not self.repeats:
            # Not known to repeat its last page; but one that shows the same again and again does.
            return self.again >= REPEATS
        ids = {hash(contact_id) for contact_id in page.ids}
        fresh = not ids <= self.known
        self.known |= ids
        return not fresh

    def ends_before(self, number: int) -> None:
        """Note that page `number` is past the end."""
        self.end = number if self.end is None else min(self.end, number)

    @property
    def sure_end(self) -> int | None:
        """The end, unless it is a refusal that was not looked behind."""
        return None if self.end in self.refused else self.end

    @property
    def smallest(self) -> int:
        """The fewest rows at which pages were cut; 0 where that is not known.

        Several pages have that many. One alone may be the last one, as another server counts its pages.
        """
        last = max(self.sizes, default=0)
        counts = Counter(rows for number, rows in self.sizes.items() if number < last)
        return min((rows for rows, pages in counts.items() if pages > 1), default=0)

    @property
    def ends_full(self) -> bool:
        """Whether the last page is as large as the largest, so that the end shows no other sign."""
        last = self.sizes.get((self.end or 1) - 1, 0)
        return last == max(self.sizes.values(), default=0)


async def walk(client: Client, query: Query, receive: Receive, progress: PageScan) -> int:
    """Hand every page of `query` to `receive`, in any order; returns how many pages there are.

    `progress` begins with the pages that need not be asked for, and tells how far it came if the walk is interrupted.

    The end is found without a total: the first empty page, a repeated last page, or a refusal (400, 404) after which
    nothing comes. At most `client.concurrency` requests go beyond it. Raises ContractError when a page is refused
    in the middle of the list.
    """

    async def worker() -> None:
        while (number := progress.next()) is not None:
            try:
                page = await client.read(query, number)
            except PageRefused:
                progress.refused.add(number)
                progress.ends_before(number)
                continue
            if progress.take(number, page):
                await receive(page)

    async with anyio.create_task_group() as tasks:
        for _ in range(client.concurrency):
            tasks.start_soon(worker)
    if progress.end in progress.refused:
        await _confirm_end(client, query, progress)
        progress.refused.clear()
    return (progress.end or 1) - 1


async def _confirm_end(client: Client, query: Query, progress: PageScan) -> None:
    """A refusal is the end only if no page beyond it answers; page 1 is never past the end."""
    end = progress.end or 1
    if end > 1 and not progress.ends_full:
        return
    try:
        beyond = await client.read(query, end + 1)
    except PageRefused:
        if end > 1:
            return
        raise
    if beyond.rows:
        raise ContractError(f"page {end} is refused, but page {end + 1} is not", where=query.span())


async def still_holds(client: Client, query: Query, trail: SavedScan, *, repeats: bool = False) -> SavedScan:
    """What of an interrupted walk need not be repeated, now that the list may have moved.

    While nobody was reading, each deletion moved those behind it one place forward, the first of them perhaps onto a
    page that was taken: who has no creation time would be in no window either, and be lost. So it goes back from the
    first gap to a page that lists only people who were seen. As long as the list keeps its order, whoever was not seen
    comes after them. (Somebody who was touched need not: the sweep reads him.)

    What was taken behind the gap, and the end, hold only if the pages at both ends of it have not moved at all; on a
    server that repeats its last page, where the last one taken may be such a repetition by now, they do not.
    """
    if trail.over:
        return trail
    border = trail.gap - 1
    known = frozenset[str]().union(*(ids for number, ids in trail.ids.items() if number <= border))
    for leap in LEAPS:
        if leap >= border:
            break
        listed = await _listed(client, query, border - leap)
        if leap == 0 and listed == trail.ids.get(border) and await _ends_alike(client, query, trail, repeats):
            return trail
        if listed and listed <= known:
            return trail.upto(border - leap)
    return SavedScan()


async def _ends_alike(client: Client, query: Query, trail: SavedScan, repeats: bool) -> bool:
    if trail.last < trail.gap:
        return True
    return not repeats and await _listed(client, query, trail.last) == trail.ids.get(trail.last)


async def _listed(client: Client, query: Query, number: int) -> frozenset[str]:
    """The ids on a page; none where the list has become shorter."""
    try:
        page = await client.read(query, number)
    except PageRefused:
        return frozenset()
    return frozenset(found for row in page.rows if (found := id_text(bytes(row.contact_id))))
