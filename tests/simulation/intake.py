"""The received pages, the cross-check log and the checkpoint of a run, in memory; production keeps them on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from etl.api.response import Page, Row, id_text
from etl.extract.checkpoint import ExtractionStart, Resumption
from etl.extract.crosscheck import FirstSeen, UnmatchedContact
from etl.extract.pages import SavedScan
from etl.extract.windows import LEADS_FIRST, Accepted
from etl.times import milliseconds
from tests.simulation.contact import versions

CHUNK = 4
"""Pages after which the cross-check log is saved; production counts contacts."""

_PageKey = tuple[int, bool, int]
"""Number of the page scan, list, number of the page."""


class ScanLog:
    """A cross-check log in memory (see `crosscheck.CrossCheckLog`)."""

    def __init__(self, intake: Intake, held: Collection[str] = (), *, sudden: bool = False) -> None:
        """`intake` grows as the run reads; `held` are the ids in the last snapshot.

        With `sudden`, a killed process does not save its last pages.
        """
        self._intake = intake
        self._doubted = 0
        """How many of the received pages count as seen only."""
        self._held = held
        self._sudden = sudden
        self._seen: dict[bytes, UnmatchedContact] = {}
        self._noted: dict[bytes, UnmatchedContact] = {}
        self._walk = 1
        self._pages: dict[_PageKey, Sequence[Row]] = {}
        self._shown: list[tuple[_PageKey, Sequence[Row]]] = []
        """Every page seen, including pages that are read again."""
        self._lost: list[_PageKey] = []
        """Pages of `_pages` that are not saved yet."""
        self._ends: dict[tuple[int, bool], int] = {}
        self._ends_kept: dict[tuple[int, bool], int] = {}

    def killed(self) -> None:
        """Continue as another process, with the saved state."""
        for page in self._lost:
            self._pages.pop(page, None)
        del self._shown[len(self._shown) - len(self._lost) :]
        self._ends = dict(self._ends_kept)
        self._walk = max((walk for walk, _ in self._ends), default=1)
        self._walk = max([self._walk, *(walk for walk, _, _ in self._pages)])
        self._lost.clear()
        self._noted.clear()

    @property
    def scan(self) -> int:
        """Number of the current page scan."""
        return self._walk

    def next_scan(self) -> None:
        """Begin another scan."""
        self._walk += 1

    async def saved_scan(self, is_contact: bool) -> SavedScan:
        """The progress of a killed process in one of the lists."""
        place = (self._walk, is_contact)
        taken = {number: rows for (*where, number), rows in self._pages.items() if (*where,) == place}
        saved = SavedScan({number: len(rows) for number, rows in taken.items()}, self._ends.get(place))
        ids = {number: _texts(rows) for number, rows in taken.items() if number in saved.wanted}
        return replace(saved, ids=ids)

    async def resume(self, is_contact: bool, valid: SavedScan) -> None:
        """Discard saved pages that are no longer valid."""
        place = (self._walk, is_contact)
        for *where, number in [*self._pages]:
            if (*where,) == place and number not in valid.sizes:
                del self._pages[*place, number]
        if valid.end is None:
            self._ends.pop(place, None)
            self._ends_kept.pop(place, None)

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """Record a page of the scan."""
        key = (self._walk, is_contact, page.number)
        self._pages[key] = page.rows
        self._shown.append((key, page.rows))
        self._lost.append(key)
        if len(self._lost) >= CHUNK:
            self._keep()
        self._see(page, page.number, is_contact=is_contact)

    def _see(self, page: Page, number: int, *, is_contact: bool | None) -> None:
        for row in page.rows:
            created = milliseconds(row.created_at)
            if created is not None:
                listed = row.is_contact is True if is_contact is None else is_contact
                key = bytes(row.contact_id)
                self._seen[key] = UnmatchedContact(created, listed, id_text(key) or "", number)

    async def distrust_received(self) -> None:
        """From now on, what was received so far counts as seen only."""
        self._doubted = len(self._intake.pages)
        for page in self._intake.pages:
            self._see(page, 0, is_contact=None)

    def note(self, rows: Iterable[Row], *, is_contact: bool, after_windows: bool) -> None:
        """Record contacts that another answer showed."""
        for row in rows:
            created, name = milliseconds(row.created_at), id_text(bytes(row.contact_id))
            if created is not None and name is not None:
                self._noted.setdefault(
                    bytes(row.contact_id), UnmatchedContact(created, is_contact, name, 0, after_windows)
                )

    def noted(self) -> int:
        """Number of contacts of other answers, and of those received before the order was doubted."""
        return len(self._noted) + sum(len(page.rows) for page in self._intake.pages[: self._doubted])

    def end(self, is_contact: bool, end: int | None) -> None:
        """Record the end of a list."""
        if end is not None:
            self._ends[self._walk, is_contact] = end

    async def save(self) -> None:
        """Save the log; with `sudden`, only after a complete scan."""
        ended = [walk for walk, _ in self._ends].count(self._walk) == len(LEADS_FIRST)
        if ended or not self._sudden:
            self._keep()

    def _keep(self) -> None:
        self._lost.clear()
        self._ends_kept |= self._ends

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms) seen by the first scan."""
        pages = (page for (*where, _), page in self._pages.items() if where == [1, is_contact])
        times = (milliseconds(row.created_at) for page in pages for row in page)
        return sorted(time for time in times if time is not None)

    def without_created_at(self) -> Mapping[str, FirstSeen]:
        """Contacts without a creation time, as first seen."""
        found: dict[str, FirstSeen] = {}
        for (walk, _, _), rows in self._shown:
            for row in rows:
                if milliseconds(row.created_at) is None and (name := id_text(bytes(row.contact_id))):
                    found.setdefault(name, FirstSeen(walk, milliseconds(row.last_seen_at) or 0))
        return found

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[UnmatchedContact]:
        """Contacts created before `before` (ms) and not received; with `beyond_snapshot`, nor in the snapshot."""
        held = self._held if beyond_snapshot else ()
        received = frozenset[bytes]().union(*(page.ids for page in self._intake.pages[self._doubted :]))
        missing = (
            suspect
            for key, suspect in (self._noted | self._seen).items()
            if key not in received and id_text(key) not in held
        )
        return [suspect for suspect in missing if suspect.created < before]

    async def shows_returns(self) -> bool:
        """Whether a contact seen in the list of contacts, and not in that of leads, was received as a lead."""
        listed = {True: set[bytes](), False: set[bytes]()}
        for (_, is_contact, _), rows in self._shown:
            listed[is_contact].update(bytes(row.contact_id) for row in rows)
        leads = {bytes(row.contact_id) for page in self._intake.pages for row in page.rows if row.is_contact is False}
        return not leads.isdisjoint(listed[True] - listed[False])


def _texts(rows: Sequence[Row]) -> frozenset[str]:
    return frozenset(text for row in rows if (text := id_text(bytes(row.contact_id))))


class MemoryCheckpoint:
    """A checkpoint in memory (see `checkpoint.Checkpoint`)."""

    def __init__(self) -> None:
        self.resumed: Resumption | None = None
        self._begun: ExtractionStart | None = None
        self._accepted: list[Accepted] = []
        self._doubt = ""
        self._unproven: list[str] = []

    def begin(self, start: ExtractionStart) -> None:
        """Record the fixed values."""
        self._begun = start

    def accept(self, done: Accepted) -> None:
        """Record a window."""
        self._accepted.append(done)

    def doubt(self, reason: str) -> None:
        """Record a doubt about the order of the lists, and forget the windows."""
        self._doubt, self._accepted, self._unproven = reason, [], []
        if self.resumed:
            self.resumed = replace(self.resumed, accepted=(), doubt=reason, unproven=())

    def unproven(self, reason: str) -> None:
        """Record something unproven."""
        self._unproven.append(reason)

    def reopen(self) -> None:
        """Resume in another process."""
        if self._begun:
            self.resumed = Resumption(self._begun, list(self._accepted), self._doubt, list(self._unproven))


class Intake:
    """Receives the accepted pages of one run."""

    def __init__(self) -> None:
        self.pages: list[Page] = []
        self.ids: set[bytes] = set()

    async def receive(self, page: Page) -> None:
        """Keep a page."""
        self.pages.append(page)
        self.ids.update(bytes(row.contact_id) for row in page.rows)

    def latest(self) -> dict[str, int]:
        """The latest `updatedAt` (microseconds) received of each contact."""
        latest: dict[str, int] = {}
        for page in self.pages:
            for row in versions(page):
                if row.id is not None:
                    latest[row.id] = max(latest.get(row.id, 0), row.updated or 0)
        return latest
