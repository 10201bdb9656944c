"""What a run receives, and what its witness saw: in memory, as production keeps it on disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from etl.api.answer import Page, Row
from etl.ledger import Begun, Resumption
from etl.testimony import Suspect
from etl.window import Accepted, milliseconds
from etl.witness import id_text
from tests.simulation.contact import versions


class Witness:
    """A witness log in memory (see `testimony.WitnessLog`)."""

    def __init__(self, received: set[bytes], held: Collection[str] = ()) -> None:
        """`received` grows as the run reads; `held` is what the last snapshot knows."""
        self._received = received
        self._held = held
        self._seen: dict[bytes, Suspect] = {}
        self._created: dict[bool, list[int]] = {False: [], True: []}
        self.walked = False

    async def record(self, rows: Sequence[Row], *, is_contact: bool) -> None:
        """Note contacts that the walk saw."""
        for row in rows:
            created = milliseconds(row.created_at)
            if created is not None:
                self._seen[bytes(row.contact_id)] = Suspect(created, is_contact)
                self._created[is_contact].append(created)

    async def keep(self) -> None:
        """The walk is over."""
        self.walked = True

    def again(self) -> Witness:
        """What another process finds of it: nothing of a walk that was not over."""
        return self if self.walked else Witness(self._received, self._held)

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms)."""
        return sorted(self._created[is_contact])

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[Suspect]:
        """Those created before `before` (ms) that were not received, nor are held by the snapshot."""
        held = self._held if beyond_snapshot else ()
        missing = (
            suspect for key, suspect in self._seen.items() if key not in self._received and id_text(key) not in held
        )
        return [suspect for suspect in missing if suspect.created < before]


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

    def reopen(self, *, witnessed: bool) -> None:
        """The process ended; another one goes on."""
        if self._begun:
            self.resumed = Resumption(self._begun, list(self._accepted), witnessed)


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
