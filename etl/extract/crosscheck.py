"""Cross-check: compares a full page scan with the contacts that the windows returned.

The scan may miss contacts, but each one it shows is real: one that existed throughout the run and is in no window
contradicts the proof. The scan is also the only way to read contacts without a creation time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import NamedTuple, Protocol

import anyio

from etl.api.client import Client
from etl.api.request import Query, TimeField
from etl.api.response import Page, Row, id_text
from etl.extract.capabilities import Capabilities, PageSizes
from etl.extract.evidence import Evidence
from etl.extract.fetch import WindowReader
from etl.extract.gather import gather
from etl.extract.pages import PageScan, SavedScan, page_or_empty, scan_pages, still_holds
from etl.extract.plan import may_be_deleted
from etl.extract.windows import LEADS_FIRST, Window, around
from etl.extract.without_created_at import without_creation_time

MOST_UNMATCHED = 10_000
"""The maximum number of unmatched contacts that are requested one by one."""
MOST_SCANS = 5
"""Maximum page scans until one finds no contact without a creation time that the scans before it missed."""
LOOKED_FOR = 7
"""How many of the contacts that vanished are looked for in the unfiltered lists, on three pages each."""


class FirstSeen(NamedTuple):
    """When a contact without a creation time was first seen."""

    scan: int
    """The number of the page scan."""
    last_seen: int
    """Its `lastSeenAt` at that time, in milliseconds; 0 for none."""


@dataclass(frozen=True, slots=True, order=True)
class UnmatchedContact:
    """A contact that was seen, and that no window returned."""

    created: int
    is_contact: bool
    contact_id: str
    page: int
    """The page of the unfiltered list on which the page scan saw it; 0 for none."""
    after_windows: bool = False
    """Whether it was first seen when windows had been read already, so that it contradicts none of them."""


class CrossCheckLog(Protocol):
    """Records the contacts seen by page scans, and finds those that no window returned."""

    @property
    def scan(self) -> int:
        """The number of the current page scan: 1, or that of the killed run that is resumed."""

    def next_scan(self) -> None:
        """Begin another page scan; the previous one is complete and kept."""

    async def saved_scan(self, is_contact: bool) -> SavedScan:
        """The progress of a killed run's page scan of a list."""

    async def resume(self, is_contact: bool, valid: SavedScan) -> None:
        """Adopt the part of that scan that is still valid, and discard the rest."""

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """Record a page of a list."""

    def note(self, rows: Iterable[Row], *, is_contact: bool, after_windows: bool) -> None:
        """Record contacts shown by an answer to another request; `after_windows`: see `UnmatchedContact`."""

    def noted(self) -> int:
        """About how many contacts were recorded by `note`, or received and distrusted."""

    def end(self, is_contact: bool, end: int | None) -> None:
        """Record the first page past the end of a list; None if unknown."""

    async def save(self) -> None:
        """Save everything recorded so far, so that it survives this run."""

    async def distrust_received(self) -> None:
        """From now on, what was received so far counts as seen only: windows must return it again."""

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms) of the contacts that the first page scan saw in one list."""

    def without_created_at(self) -> Mapping[str, FirstSeen]:
        """The contacts seen that have no creation time, by id."""

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[UnmatchedContact]:
        """At most `MOST_UNMATCHED` contacts seen, created before `before` (ms), and not received in this run.

        Those that contradict windows come first, those of the page scan before others. With `beyond_snapshot`, only
        those that are not in the last snapshot either, or have a strike there.
        """

    async def shows_returns(self) -> bool:
        """Whether a contact seen in the list of contacts, and not in that of leads, was received as a lead.

        False on a server that does not return `isContact`.
        """


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """The cross-check of one run: scans pages first, and compares after everything else was read."""

    client: Client
    capabilities: Capabilities
    log: CrossCheckLog
    evidence: Evidence
    """Receives contacts without a creation time, and stops holding the pages that are recorded."""

    async def scan(self, swept: int) -> tuple[list[str], PageSizes]:
        """Scan all pages, or those that a killed run did not reach; returns doubts and the page sizes seen.

        Contacts without a creation time are read only here, so they are received. No window proves them and
        a scan may miss some, but two scans of a moving list seldom miss the same contacts (A27). So scans are repeated
        until one finds no other such contact, except those seen after `swept` (ms), which the sweep reads as well.
        """
        sizes = await self._scan_lists()
        while found := self.log.without_created_at().values():
            # Neither in a window, nor in the sweep, nor shown by the scans before.
            others = any(seen.scan == self.log.scan and seen.last_seen < swept for seen in found)
            if self.log.scan > 1 and not others:
                break
            if self.log.scan >= MOST_SCANS:
                doubt = f"each of {MOST_SCANS} page scans found contacts without createdAt that the others had missed"
                return [doubt], sizes
            self.log.next_scan()
            await self._scan_lists()
        return [], sizes

    async def _scan_lists(self) -> PageSizes:
        """Scan both lists concurrently; returns the page sizes known afterwards."""
        repeats = self.capabilities.past_end == "repeats"
        scans = {is_contact: PageScan(repeats) for is_contact in LEADS_FIRST}
        try:
            async with anyio.create_task_group() as tasks:
                for is_contact, scan in scans.items():
                    tasks.start_soon(self._scan_list, is_contact, scan)
        finally:
            # Especially if the scan was interrupted: the next run resumes from here.
            await self.log.save()
        sizes = self.capabilities.page_sizes
        for is_contact, scan in scans.items():
            sizes = sizes.with_page(is_contact, max(scan.sizes.values(), default=0))
            # If the server repeats its last page, a page that is not full may be anywhere near the end.
            if not repeats:
                sizes = sizes.with_cut(is_contact, scan.smallest)
        return sizes

    async def _scan_list(self, is_contact: bool, scan: PageScan) -> None:
        query = Query(is_contact)
        saved = await self.log.saved_scan(is_contact)
        valid = await still_holds(self.client, query, saved, repeats=scan.repeats)
        await self.log.resume(is_contact, valid)
        scan.sizes.update(valid.sizes)
        scan.end = valid.end
        try:
            await scan_pages(self.client, query, partial(self._record, is_contact), scan)
        finally:
            self.log.end(is_contact, scan.sure_end)

    async def _record(self, is_contact: bool, page: Page) -> None:
        """Record a page of a list; its contacts without a creation time are received, if any of them is new."""
        self.evidence.discard(page)
        without_created_at = without_creation_time(page)
        # Before recording the page: a recorded page is not read again.
        if without_created_at is not None:
            known = self.log.without_created_at()
            ids = (id_text(bytes(row.contact_id)) for row in without_created_at.rows)
            if self.log.scan == 1 or any(found and found not in known for found in ids):
                await self.evidence.receive(without_created_at)
        await self.log.record(page, is_contact=is_contact)

    async def contradict(self, reader: WindowReader, before: int, *, leads_changed: bool = False) -> list[str]:
        """Request every contact that was seen and that no window returned; returns doubts.

        Most were deleted since. A contact still in the list where the scan saw it contradicts an accepted window. A
        contact now in the other list moved from contacts back to leads between the reads of the two lists. If any did,
        leads are read again after contacts; otherwise the order of reading could hide one (M13). So they are if the
        caller knows that `leads_changed`.
        """
        unmatched = await self.log.missing(before)
        resolution = self.capabilities.resolution
        # Recorded before the contact is received: a resumed run would assume that a window had returned it.
        with reader.noting(
            partial(_contradict, reader, {one.contact_id for one in unmatched if not one.after_windows})
        ):
            await reader.read({around(one.created, one.is_contact, resolution) for one in unmatched})
        elsewhere = await self.log.missing(before) if unmatched else []
        await reader.read({around(one.created, not one.is_contact, resolution) for one in elsewhere})
        gone = await self.log.missing(before) if elsewhere else []
        if leads_changed or len(gone) < len(elsewhere) or await self.log.shows_returns():
            leads = Window("createdAt", False, None, before)
            again = {done.window for done in reader.accepted if leads.holds(done.window)}
            # Each was proven once: as long as contacts move, a second look at one would find another difference.
            await reader.read(again, most=self.capabilities.page_size)
        doubts = _too_many(unmatched, "this run has not received") + self._vanished(gone, reader)
        # Few pages besides those of the scan are noted: all of them may be from before the server hid a part.
        noted = [one for one in gone if not one.page]
        if not doubts and not may_be_deleted(len(noted), self.log.noted()):
            doubts = [f"{len(noted)} of {self.log.noted()} contacts vanished that other answers had shown"]
        return await self._still_listed(gone, reader) + doubts

    async def recover(
        self, reader: WindowReader, before: int, *, scanned: bool, struck: Collection[int]
    ) -> tuple[int, list[str]]:
        """Read contacts that were seen, but not by the snapshot or the sweep; returns their number, and doubts.

        Such a contact became visible after its time had been swept: an import of old contacts, or a lead that became
        visible later than the lookback. Whatever the reason, it is read now, so it contradicts nothing. One with a
        strike (created at a time in `struck`) must not be deleted by a run that has seen it.
        """
        # Without a page scan, there is most often nothing to look up in the snapshot.
        is_needed = scanned or await self.log.missing(before)
        late = await self.log.missing(before, beyond_snapshot=True) if is_needed else []
        instants = {one.created for one in late}
        for is_contact in LEADS_FIRST:
            await reader.read(around(created, is_contact, self.capabilities.resolution) for created in instants)
        gone = await self.log.missing(before, beyond_snapshot=True) if late else []
        hidden = sum(one.created in struck for one in gone)
        kept = [f"{hidden} contacts with a strike were listed, but not returned on request"] if hidden else []
        doubts = kept + _too_many(late, "the snapshot lacks: run with --full") + self._vanished(gone, reader)
        return len(late) - len(gone), await self._still_listed(gone, reader) + doubts

    async def _still_listed(self, gone: Sequence[UnmatchedContact], reader: WindowReader) -> list[str]:
        """A doubt if the list still shows contacts that no range of time returns: they are not deleted.

        A date that is stored as text, for example, matches no range. A few of the contacts are looked for, on the page
        where the scan saw them and its neighbours: the list has moved since.
        """
        if reader.unproven:  # They may be in a window that could not be read.
            return []
        placed = sorted((one.is_contact, one.page) for one in gone if one.page)
        chosen = placed[:: ceil(len(placed) / LOOKED_FOR) or 1]
        near = {(listed, number + step) for listed, number in chosen for step in (-1, 0, 1) if number + step > 0}
        read = partial(page_or_empty, self.client)
        pages = await gather(*(partial(read, Query(listed), number) for listed, number in sorted(near)))
        shown = {id_text(bytes(row.contact_id)) for page in pages for row in page.rows}
        found = sum(one.contact_id in shown for one in gone)
        return [f"{found} contacts or more are listed, but in no range of createdAt"] if found else []

    def _vanished(self, gone: Sequence[UnmatchedContact], reader: WindowReader) -> list[str]:
        """A doubt if too many contacts vanished to have been deleted: under maintenance, servers return empty lists."""
        read = sum(done.rows for done in reader.accepted if done.window.field == "createdAt")
        seen = max(read, sum(len(self.log.created(is_contact)) for is_contact in LEADS_FIRST))
        if may_be_deleted(len(gone), seen):
            return []
        return [f"{len(gone)} of {seen} contacts vanished while they were read"]


def _too_many(unmatched: Sequence[UnmatchedContact], what: str) -> list[str]:
    """A doubt if some of the contacts were not requested because there are too many."""
    return [f"{MOST_UNMATCHED} contacts or more were seen that {what}"] if len(unmatched) >= MOST_UNMATCHED else []


def _contradict(reader: WindowReader, ids: Collection[str], _: TimeField | None, rows: Iterable[Row]) -> None:
    """Doubt the proof, once, if an answer lists one of the contacts that no window had returned."""
    if not reader.unproven and any(id_text(bytes(row.contact_id)) in ids for row in rows):
        reader.doubt("contacts that had been seen were missing from accepted windows")
