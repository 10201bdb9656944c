"""The plain page walk: every page of one listing, concurrently.

A page number is a rank in a list that moves while it is read, so a walk proves nothing. It serves as witness (each
contact it shows is real), for servers whose time filters do not work, and for filtered exports.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from etl.api.answer import Page
from etl.api.client import Client, PageRefused
from etl.api.request import Query
from etl.errors import ContractError

Receive = Callable[[Page], Awaitable[None]]

REPEATS = 3
"""The same page so many times in a row is the end of any list."""


@dataclass(slots=True)
class Walk:
    """What a walk knows: which page to ask next, and where the list ends. No I/O."""

    repeats: bool
    """Whether this server repeats its last page for every page past the end."""
    asked: int = 0
    end: int | None = None
    """The first page past the end, once known."""
    sizes: dict[int, int] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    """Hashes of the ids seen: kept only where the last page is repeated, because there nothing else shows the end."""
    latest: frozenset[bytes] = frozenset()
    """The ids of the last page taken."""
    again: int = 0
    """How often in a row they came again."""

    def next(self) -> int | None:
        """The number of the next page to ask; None when all up to the end were asked."""
        if self.end is not None and self.asked + 1 >= self.end:
            return None
        self.asked += 1
        return self.asked

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
    def ends_full(self) -> bool:
        """Whether the last page is as large as the largest, so that the end shows no other sign."""
        last = self.sizes.get((self.end or 1) - 1, 0)
        return last == max(self.sizes.values(), default=0)


async def walk(client: Client, query: Query, receive: Receive, *, repeats: bool = False) -> int:
    """Hand every page of `query` to `receive`, in any order; returns how many pages there are.

    The end is found without a total: the first empty page, a repeated last page, or a refusal (400, 404) after which
    nothing comes. At most `client.concurrency` requests go beyond it. Raises ContractError when a page is refused
    in the middle of the list.
    """
    progress, refused = Walk(repeats), set[int]()

    async def worker() -> None:
        while (number := progress.next()) is not None:
            try:
                page = await client.read(query, number)
            except PageRefused:
                refused.add(number)
                progress.ends_before(number)
                continue
            if progress.take(number, page):
                await receive(page)

    async with anyio.create_task_group() as tasks:
        for _ in range(client.concurrency):
            tasks.start_soon(worker)
    if progress.end in refused:
        await _confirm_end(client, query, progress)
    return (progress.end or 1) - 1


async def _confirm_end(client: Client, query: Query, progress: Walk) -> None:
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
