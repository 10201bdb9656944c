"""Cross-check: compares a full page scan with the contacts that the windows returned.

The scan may miss contacts, but each one it shows is real: one that existed throughout the run and is in no window
contradicts the proof. The scan is also the only way to read contacts without a creation time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import anyio

from etl.api.client import Client
from etl.api.request import Query
from etl.api.response import Page, id_text
from etl.extract.capabilities import Capabilities, PageSizes
from etl.extract.fetch import WindowReader
from etl.extract.pages import PageScan, Receive, SavedScan, still_holds, walk
from etl.extract.plan import plan_windows
from etl.extract.windows import around
from etl.extract.without_created_at import without_creation_time

SUSPECTS = 10_000
"""The maximum number of unmatched contacts that are requested one by one."""
MOST_WALKS = 5
"""Maximum page scans until one finds no contact without a creation time that the scans before it missed."""
FEW_DELETED, MOST_DELETED = 10, 0.05
"""Contacts, and their share, that may be deleted between the page scan and the end of a run."""


class FirstSeen(NamedTuple):
    """When a contact without a creation time was first seen."""

    walk: int
    last_seen: int
    """Its `lastSeenAt` at that time, in milliseconds; 0 for none."""


@dataclass(frozen=True, slots=True)
class UnmatchedContact:
    """A contact that the page scan saw and no window returned."""

    created: int
    is_contact: bool


class CrossCheckLog(Protocol):
    """Records the contacts seen by page scans, and finds those that no window returned."""

    @property
    def walk(self) -> int:
        """The number of the current page scan: 1, or that of the killed run that is resumed."""

    def next_walk(self) -> None:
        """Begin another page scan; the previous one is complete and kept."""

    async def trail(self, is_contact: bool) -> SavedScan:
        """The progress of a killed run's page scan of a list."""

    async def go_on(self, is_contact: bool, trail: SavedScan) -> None:
        """Take over the part of that scan that is still valid, and discard the rest."""

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """Record a page of a list."""

    def end(self, is_contact: bool, end: int | None) -> None:
        """Record the first page past the end of a list; None if unknown."""

    async def keep(self) -> None:
        """Save everything recorded so far, so that it survives this run."""

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms) of the contacts that the first page scan saw in one list."""

    def without_created_at(self) -> Mapping[str, FirstSeen]:
        """The contacts seen that have no creation time, by id."""

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[UnmatchedContact]:
        """At most `SUSPECTS` contacts created before `before` (ms) that were not received in this run.

        With `beyond_snapshot`, only those that are not in the last snapshot either.
        """


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """The cross-check of one run: scans pages first, and compares after everything else was read."""

    client: Client
    capabilities: Capabilities
    log: CrossCheckLog
    receive: Receive
    lists: Sequence[bool]

    async def walk(self, swept: int) -> tuple[list[str], PageSizes]:
        """Scan all pages, or those that a killed run did not reach; returns doubts and the page sizes seen.

        Contacts without a creation time are read only here, so they are passed to `receive`. No window proves them and
        a scan may miss some, but two scans of a moving list seldom miss the same contacts (A27). So scans are repeated
        until one finds no other such contact, except those seen after `swept` (ms), which the sweep reads as well.
        """
        sizes = await self._walk_lists()
        if not self.log.without_created_at():
            return [], sizes
        while self.log.walk == 1 or self._finds_others(swept):
            if self.log.walk >= MOST_WALKS:
                doubt = f"each of {MOST_WALKS} walks found contacts without createdAt that those before it had missed"
                return [doubt], sizes
            self.log.next_walk()
            await self._walk_lists()
        return [], sizes

    def _finds_others(self, swept: int) -> bool:
        """Whether this scan was the first to show a contact that is neither in a window nor in the sweep."""
        return any(
            seen.walk == self.log.walk and seen.last_seen < swept for seen in self.log.without_created_at().values()
        )

    async def _walk_lists(self) -> PageSizes:
        walks: dict[bool, PageScan] = {}
        try:
            async with anyio.create_task_group() as tasks:
                for is_contact in self.lists:
                    tasks.start_soon(self._walk, is_contact, walks)
        finally:
            # Especially if the scan was interrupted: the next run resumes from here.
            await self.log.keep()
        sizes = self.capabilities.page_sizes
        for is_contact, walked in walks.items():
            largest = max(walked.sizes.values(), default=0)
            sizes = sizes.with_page(is_contact, largest)
            # If the server repeats its last page, a page that is not full may be anywhere near the end.
            if not walked.repeats:
                sizes = sizes.with_cut(is_contact, walked.smallest)
        return sizes

    async def _walk(self, is_contact: bool, walks: dict[bool, PageScan]) -> None:
        query, repeats = Query(is_contact), self.capabilities.past_end == "repeats"
        trail = await still_holds(self.client, query, await self.log.trail(is_contact), repeats=repeats)
        await self.log.go_on(is_contact, trail)
        progress = walks[is_contact] = PageScan(repeats, sizes=dict(trail.sizes), end=trail.end)
        try:
            await walk(self.client, query, self._noting(is_contact), progress)
        finally:
            self.log.end(is_contact, progress.sure_end)

    def _noting(self, is_contact: bool) -> Receive:
        async def note(page: Page) -> None:
            without_created_at = without_creation_time(page)
            # Before recording the page: a recorded page is not read again.
            if without_created_at is not None and (self.log.walk == 1 or self._shows_others(without_created_at)):
                await self.receive(without_created_at)
            await self.log.record(page, is_contact=is_contact)

        return note

    def _shows_others(self, page: Page) -> bool:
        known = self.log.without_created_at()
        return any((found := id_text(bytes(row.contact_id))) and found not in known for row in page.rows)

    async def contradict(self, reader: WindowReader, before: int) -> list[str]:
        """Request every contact that the page scan saw and no window returned; returns the contradictions.

        Most were deleted since. A contact still in the list where the scan saw it contradicts an accepted window. A
        contact now in the other list moved from contacts back to leads between the reads of the two lists; then leads
        are read again after contacts, so that no contact is missed because of the order (M13).
        """
        suspects = await self.log.missing(before)
        if not suspects:
            return []
        resolution = self.capabilities.resolution
        await reader.read({around(one.created, one.is_contact, resolution) for one in suspects})
        moved = await self.log.missing(before)
        await reader.read({around(one.created, not one.is_contact, resolution) for one in moved})
        gone = await self.log.missing(before)
        if len(gone) < len(moved):
            times, capacity = self.log.created(False), self.capabilities.capacity(False)
            leads = plan_windows(
                times,
                field="createdAt",
                is_contact=False,
                start=None,
                end=before,
                capacity=capacity,
                resolution=resolution,
            )
            await reader.read(leads)
        found = len(suspects) - len(moved)
        contradicted = (
            [f"{found} contacts that the witness had seen were missing from accepted windows"] if found else []
        )
        return contradicted + self._vanished(gone)

    async def recover(self, reader: WindowReader, before: int) -> tuple[int, list[str]]:
        """Read contacts that only the page scan saw, not the snapshot or the sweep; returns their number, and doubts.

        Such a contact became visible after its time had been swept: an import of old contacts, or a lead that became
        visible later than the lookback. Whatever the reason, it is read now, so it contradicts nothing.
        """
        late = await self.log.missing(before, beyond_snapshot=True)
        instants = {one.created for one in late}
        for is_contact in self.lists:
            await reader.read(around(created, is_contact, self.capabilities.resolution) for created in instants)
        gone = await self.log.missing(before, beyond_snapshot=True)
        too_many = [f"the witness saw {SUSPECTS} contacts or more that the snapshot lacks: run with --full"]
        return len(late) - len(gone), (too_many if len(late) >= SUSPECTS else []) + self._vanished(gone)

    def _vanished(self, gone: Sequence[UnmatchedContact]) -> list[str]:
        """A doubt if too many contacts vanished to have been deleted: under maintenance, servers return empty lists."""
        witnessed = sum(len(self.log.created(is_contact)) for is_contact in self.lists)
        if len(gone) <= max(FEW_DELETED, MOST_DELETED * witnessed):
            return []
        return [f"{len(gone)} of {witnessed} contacts vanished while they were read"]
