"""The pages that were read and not received: contacts that any answer shows count, whatever it was requested for.

The probe, landmarks, checks and windows that are split show contacts, and the windows in which these belong may be
answered by another server, such as a stale replica. No I/O.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from etl.api.request import Query
from etl.api.response import Page
from etl.extract.pages import Receive

MOST_HELD = 64
"""Pages that are held at once, until it is known whether they are received."""
Keep = Callable[[Query, Page], Awaitable[None]]
"""Keeps what a page shows that was not received."""


class Evidence:
    """Holds each page between its answer and its receipt, and passes those that are never received to `keep`."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._keep: Keep | None = None
        self._held: dict[int, tuple[Query, Page]] = {}
        """By the identity of the list of rows, which the copies of a page share."""

    def observe(self, query: Query, page: Page) -> None:
        """Hold an answer."""
        if page.rows:
            self._held[id(page.rows)] = query, page

    def settle(self, page: Page) -> None:
        """Let go of a page that is received or recorded."""
        self._held.pop(id(page.rows), None)

    async def receive(self, page: Page) -> None:
        """Pass a page to `receive`."""
        self.settle(page)
        await self._receive(page)
        if self._keep and len(self._held) > MOST_HELD:
            await self.release(self._keep)

    async def release(self, keep: Keep) -> None:
        """Pass the pages held now to `keep`, and from now on those that are not received soon."""
        self._keep = keep
        held, self._held = self._held, {}
        for query, page in held.values():
            await keep(query, page)
