"""What becomes of what a run read: the snapshot and the strikes, in two ways that must come to the same.

`Model` says in a screen of Python what the production SQL does; it is a hundred times as fast on small accounts, so that
thousands of schedules fit into a test run. `warehouse.Warehouse` is the production SQL behind the same protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from etl.api.answer import Page
from etl.extract import Extraction
from etl.model import Counts
from tests.simulation.contact import Version, versions


@dataclass(frozen=True, slots=True)
class Outcome:
    """What folding a run would come to."""

    counts: Counts
    struck: int
    previous: int


class Fold(Protocol):
    """Keeps the snapshot of one account."""

    def prepare(self, pages: Sequence[Page], run: Extraction) -> Outcome:
        """Fold the pages of a run without changing anything yet."""

    def publish(self) -> None:
        """Make what was prepared the snapshot."""

    def contacts(self) -> Mapping[str, Version]:
        """The snapshot, by id."""

    def strikes(self) -> Mapping[str, int]:
        """The strikes against contacts, by id."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(slots=True)
class State:
    """A snapshot and its strikes."""

    contacts: dict[str, Version] = field(default_factory=dict)
    strikes: dict[str, int] = field(default_factory=dict)


class Model:
    """The fold in plain Python."""

    def __init__(self) -> None:
        self._state = State()
        self._next = State()

    def prepare(self, pages: Sequence[Page], run: Extraction) -> Outcome:
        """See `Fold`."""
        rows = [row for page in pages for row in versions(page)]
        winners = _winners([row for row in rows if row.id is not None])
        rejected = {row.raw for row in rows if row.id is None}
        self._next = State(dict(self._state.contacts), dict(self._state.strikes))
        tally = {"new": 0, "changed": 0, "unchanged": 0, "deleted": 0}
        struck = 0
        for id, row in winners.items():
            verdict, first = self._received(id, row)
            tally["unchanged" if verdict in ("deleted", "buried") else verdict] += 1
            tally["deleted"] += verdict == "deleted"
            struck += first
        for id in self._absent(winners, run):
            if id in self._state.strikes:
                self._next.strikes[id] = 2
                del self._next.contacts[id]
                tally["deleted"] += 1
            else:
                self._next.strikes[id] = 1
                struck += 1
        counts = Counts(
            received=len(rows),
            folded=len(rows) - len(winners) - len(rejected),
            rejected=len(rejected),
            contacts=len(self._next.contacts),
            **tally,
        )
        return Outcome(counts, struck, len(self._state.contacts))

    def publish(self) -> None:
        """See `Fold`."""
        self._state = self._next

    def contacts(self) -> Mapping[str, Version]:
        """See `Fold`."""
        return self._state.contacts

    def strikes(self) -> Mapping[str, int]:
        """See `Fold`."""
        return self._state.strikes

    def close(self) -> None:
        """See `Fold`; it holds nothing."""

    def _received(self, id: str, row: Version) -> tuple[str, bool]:
        """The verdict on a contact that was received, and whether this is its first strike."""
        old = self._state.contacts.get(id)
        self._next.strikes.pop(id, None)
        if row.deleted:
            self._next.strikes[id] = 2 if id in self._state.strikes else 1
            if id in self._state.strikes:
                self._next.contacts.pop(id, None)
                return ("buried" if old is None else "deleted"), False
        self._next.contacts[id] = row
        if old is None:
            return "new", False
        return ("unchanged" if old.content == row.content else "changed"), row.deleted

    def _absent(self, winners: Mapping[str, Version], run: Extraction) -> list[str]:
        return [
            id
            for id, old in self._state.contacts.items()
            if id not in winners and old.created is not None and covered(run, old.created)
        ]


def covered(run: Extraction, created: int) -> bool:
    """Whether a creation time (microseconds) lies where absence means deletion."""
    return any(
        (start is None or created >= start * 1000) and created < end * 1000 for start, end in run.coverage
    )


def _winners(rows: Sequence[Version]) -> dict[str, Version]:
    winners: dict[str, Version] = {}
    for row in rows:
        best = winners.get(row.id or "")
        if best is None or _rank(row) >= _rank(best):
            winners[row.id or ""] = row
    return winners


def _rank(row: Version) -> float:
    return float("-inf") if row.updated is None else row.updated
