"""What a page walk shows, held against what the windows brought.

The walk may miss contacts, but each one it shows is real: one that existed throughout and that no window brought
contradicts the proof. It is also the only way to contacts without a creation time.
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
"""More contacts that the witness alone saw are not asked for one by one."""
MOST_WALKS = 5
"""Walks, at most, until one finds nobody without a creation time whom those before it have missed."""
FEW_DELETED, MOST_DELETED = 10, 0.05
"""Contacts, and their share, that may be deleted between the walk and the end of a run."""


class FirstSeen(NamedTuple):
    """When somebody without a creation time was seen first."""

    walk: int
    last_seen: int
    """What their `lastSeenAt` was then, in milliseconds; 0 for none."""


@dataclass(frozen=True, slots=True)
class UnmatchedContact:
    """A contact that the witness saw and no window brought."""

    created: int
    is_contact: bool


class CrossCheckLog(Protocol):
    """Keeps what the walks of all pages showed, and tells afterwards which of it did not arrive."""

    @property
    def walk(self) -> int:
        """Which walk this is: 1, or where a run that was killed had come to."""

    def next_walk(self) -> None:
        """Begin another walk; the one before was kept to its end."""

    async def trail(self, is_contact: bool) -> SavedScan:
        """How far a run that was killed had walked one of the lists."""

    async def go_on(self, is_contact: bool, trail: SavedScan) -> None:
        """Count in what still holds of that run's walk of a list, and forget the rest."""

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """Note a page that the walk took from one of the lists."""

    def end(self, is_contact: bool, end: int | None) -> None:
        """Note the first page past the end of a list; None where it is not known."""

    async def keep(self) -> None:
        """See to it that what was noted so far outlives this run."""

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms) of the contacts that the first walk saw in one list."""

    def without_created_at(self) -> Mapping[str, FirstSeen]:
        """The contacts seen that have no creation time, by id."""

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[UnmatchedContact]:
        """The contacts created before `before` (ms) that no window brought, nor the last snapshot holds.

        `SUSPECTS` of them at most.
        """


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """The witness of one run: walks first, and is heard when everything else was read."""

    client: Client
    capabilities: Capabilities
    log: CrossCheckLog
    receive: Receive
    lists: Sequence[bool]

    async def walk(self, swept: int) -> tuple[list[str], PageSizes]:
        """Walk all pages, or those that a killed run did not come to; returns what is doubtful, and the pages seen.

        Contacts without a creation time come from here alone, so they are handed to `receive`. No window proves them
        and a walk may miss some; but while the list moves two walks seldom miss the same people (FAULTS.md A27). So it
        walks until it finds nobody else, but for those seen after `swept` (ms), whom the sweep reads as well.
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
        """Whether this walk was the first to show somebody who is in no window, nor in the sweep."""
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
            # Most of all when it did not come to its end: the next run goes on from here.
            await self.log.keep()
        sizes = self.capabilities.page_sizes
        for is_contact, walked in walks.items():
            largest = max(walked.sizes.values(), default=0)
            sizes = sizes.with_page(is_contact, largest)
            # Where the last page is repeated, one that is not full may stand anywhere near the end.
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
            # First of all: a page that was noted is not read again.
            if without_created_at is not None and (self.log.walk == 1 or self._shows_others(without_created_at)):
                await self.receive(without_created_at)
            await self.log.record(page, is_contact=is_contact)

        return note

    def _shows_others(self, page: Page) -> bool:
        known = self.log.without_created_at()
        return any((found := id_text(bytes(row.contact_id))) and found not in known for row in page.rows)

    async def contradict(self, reader: WindowReader, before: int) -> list[str]:
        """Ask again for every contact that the witness saw and no window brought; returns what is contradicted.

        Most were deleted meanwhile. One that still stands in the list where the witness saw it contradicts an accepted
        window. One that stands in the other list moved from contacts back to leads between the reading of the two; then
        leads are read once more after contacts, so that nobody can hide behind the order (FAULTS.md M13).
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
        """Read what only the witness saw, not the snapshot nor the sweep; returns how many, and what is doubtful.

        Such a contact became visible after its time had been swept: an import of old contacts, or a lead that came
        later than the lookback. Whatever hid it, it is read now, so that it contradicts nothing.
        """
        late = await self.log.missing(before, beyond_snapshot=True)
        instants = {one.created for one in late}
        for is_contact in self.lists:
            await reader.read(around(created, is_contact, self.capabilities.resolution) for created in instants)
        gone = await self.log.missing(before, beyond_snapshot=True)
        too_many = [f"the witness saw {SUSPECTS} contacts or more that the snapshot lacks: run with --full"]
        return len(late) - len(gone), (too_many if len(late) >= SUSPECTS else []) + self._vanished(gone)

    def _vanished(self, gone: Sequence[UnmatchedContact]) -> list[str]:
        """Maintenance answers with valid empty lists; nobody deletes so many contacts in the time of one run."""
        witnessed = sum(len(self.log.created(is_contact)) for is_contact in self.lists)
        if len(gone) <= max(FEW_DELETED, MOST_DELETED * witnessed):
            return []
        return [f"{len(gone)} of {witnessed} contacts vanished while they were read"]
