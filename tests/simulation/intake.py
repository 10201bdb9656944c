"""What a run receives, and what its witness saw: in memory, as production keeps it on disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from etl.api.answer import Page, Row, id_text
from etl.extract import LEADS_FIRST
from etl.ledger import Begun, Resumption
from etl.testimony import Suspect
from etl.walk import Trail
from etl.window import Accepted, milliseconds
from tests.simulation.contact import versions

CHUNK = 4
"""Pages after which a witness keeps what it saw; production counts contacts."""


class Witness:
    """A witness log in memory (see `testimony.WitnessLog`)."""

    def __init__(self, received: set[bytes], held: Collection[str] = (), *, sudden: bool = False) -> None:
        """`received` grows as the run reads; `held` is what the last snapshot knows.

        With `sudden` a process that is killed does not come to keep what it saw last.
        """
        self._received = received
        self._held = held
        self._sudden = sudden
        self._seen: dict[bytes, Suspect] = {}
        self._pages: dict[tuple[bool, int], Sequence[Row]] = {}
        self._lost: list[tuple[bool, int]] = []
        """Pages of `_pages` that are not kept yet."""
        self._ends: dict[bool, int] = {}
        self._ends_kept: dict[bool, int] = {}

    def killed(self) -> None:
        """Another process goes on, with what was kept."""
        for page in self._lost:
            self._pages.pop(page, None)
        self._ends = dict(self._ends_kept)
        self._lost.clear()

    async def trail(self, is_contact: bool) -> Trail:
        """How far a killed process had walked one of the lists."""
        taken = {number: rows for (listed, number), rows in self._pages.items() if listed is is_contact}
        trail = Trail({number: len(rows) for number, rows in taken.items()}, self._ends.get(is_contact))
        ids = {number: _texts(rows) for number, rows in taken.items() if number in trail.wanted}
        return replace(trail, ids=ids)

    async def go_on(self, is_contact: bool, trail: Trail) -> None:
        """Forget what does not hold any more."""
        for listed, number in [*self._pages]:
            if listed is is_contact and number not in trail.sizes:
                del self._pages[listed, number]
        if trail.end is None:
            self._ends.pop(is_contact, None)
            self._ends_kept.pop(is_contact, None)

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """Note a page that the walk took."""
        self._pages[is_contact, page.number] = page.rows
        self._lost.append((is_contact, page.number))
        if len(self._lost) >= CHUNK:
            self._keep()
        for row in page.rows:
            created = milliseconds(row.created_at)
            if created is not None:
                self._seen[bytes(row.contact_id)] = Suspect(created, is_contact)

    def end(self, is_contact: bool, end: int | None) -> None:
        """Where a list ends."""
        if end is not None:
            self._ends[is_contact] = end

    async def keep(self) -> None:
        """What was seen outlives the process, unless that ended too suddenly to come to it."""
        if len(self._ends) == len(LEADS_FIRST) or not self._sudden:
            self._keep()

    def _keep(self) -> None:
        self._lost.clear()
        self._ends_kept |= self._ends

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms)."""
        rows = (row for (listed, _), page in self._pages.items() if listed is is_contact for row in page)
        times = (milliseconds(row.created_at) for row in rows)
        return sorted(time for time in times if time is not None)

    def undated(self) -> Collection[str]:
        """The ids of those without a creation time."""
        rows = [row for page in self._pages.values() for row in page if milliseconds(row.created_at) is None]
        return _texts(rows)

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[Suspect]:
        """Those created before `before` (ms) that were not received, nor are held by the snapshot."""
        held = self._held if beyond_snapshot else ()
        missing = (
            suspect for key, suspect in self._seen.items() if key not in self._received and id_text(key) not in held
        )
        return [suspect for suspect in missing if suspect.created < before]


def _texts(rows: Sequence[Row]) -> frozenset[str]:
    return frozenset(text for row in rows if (text := id_text(bytes(row.contact_id))))


class Diary:
    """A ledger in memory (see `ledger.Ledger`)."""

    def __init__(self) -> None:
        self.resumed: Resumption | None = None
        self._begun: Begun | None = None
        self._accepted: list[Accepted] = []

    def begin(self, begun: Begun) -> None:
        """Note what is fixed."""
        self._begun = begun

    def accept(self, done: Accepted) -> None:
        """Note a window."""
        self._accepted.append(done)

    def reopen(self) -> None:
        """The process ended; another one goes on."""
        if self._begun:
            self.resumed = Resumption(self._begun, list(self._accepted))


class Intake:
    """Takes the accepted pages of one run."""

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
