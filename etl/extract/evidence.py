"""The pages that were read and not received: a contact shown by any answer counts, whatever was requested.

The probe, landmarks, checks and windows that are split show contacts, and the windows in which these belong may be
answered by another server, such as a stale replica. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable

from etl.api.request import Query
from etl.api.response import Page
from etl.extract.pages import Receive

MOST_HELD = 16
"""Pages that are held at once, until it is known whether they are received."""


class Evidence:
    """Holds each page between its answer and its receipt, and passes those that are not received to `note`."""

    def __init__(self, receive: Receive) -> None:
        self.note: Callable[[Query, Page], None] | None = None
        """Notes the contacts on a page; until it is known how, pages are held."""
        self._receive = receive
        self._held: dict[int, tuple[Query, Page]] = {}
        """By the identity of the list of rows, which the copies of a page share; the oldest first."""

    def observe(self, query: Query, page: Page) -> None:
        """Hold an answer."""
        if page.rows:
            self._held[id(page.rows)] = query, page
            self._release(MOST_HELD)

    def discard(self, page: Page) -> None:
        """Stop holding a page that is received or recorded."""
        self._held.pop(id(page.rows), None)

    async def receive(self, page: Page) -> None:
        """Pass a page to `receive`."""
        self.discard(page)
        await self._receive(page)

    def release(self) -> None:
        """Note all pages that are held."""
        self._release(0)

    def _release(self, most: int) -> None:
        while self.note and len(self._held) > most:
            self.note(*self._held.pop(next(iter(self._held))))
