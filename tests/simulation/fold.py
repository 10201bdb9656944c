"""Merges a run into the snapshot and the strikes, in two implementations that must agree.

`Model` does in a page of Python the same as the production SQL; on small accounts it is a hundred times as fast, so
that thousands of schedules fit into a test run. `warehouse.Warehouse` is the production SQL behind the same protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from etl.api.response import Page
from etl.extract.strategy import Extraction
from etl.model import Counts
from tests.simulation.contact import Version, versions


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of merging a run, before it is published."""

    counts: Counts
    struck: int
    previous: int


class Fold(Protocol):
    """Keeps the snapshot of one account."""

    def prepare(self, pages: Sequence[Page], run: Extraction) -> Outcome:
        """Merge the pages of a run without changing anything yet."""

    def publish(self) -> None:
        """Make the prepared state the snapshot."""

    def contacts(self) -> Mapping[str, Version]:
        """The snapshot, by id."""

    def strikes(self) -> Mapping[str, int]:
        """The strikes against contacts, by id."""

    def close(self) -> None:
        """Release its resources."""


@dataclass(slots=True)
class State:
    """A snapshot and its strikes."""

    contacts: dict[str, Version] = field(default_factory=dict)
    strikes: dict[str, int] = field(default_factory=dict)


class Model:
    """The merge in plain Python."""

    def __init__(self) -> None:
        self._state = State()
        self._next = State()

    def prepare(self, pages: Sequence[Page], run: Extraction) -> Outcome:
        """See `Fold`."""
        rows = [row for page in pages for row in versions(page)]
        winners = _winners(rows)
        rejected = {row.raw for row in rows if row.id is None}
        self._next = State(dict(self._state.contacts), dict(self._state.strikes))
        verdicts = Counter(self._received(key, row) for key, row in winners.items())
        verdicts.update(self._absent(key, run) for key in self._missing(winners, run))
        counts = Counts(
            received=len(rows),
            new=verdicts["new"] + verdicts["new, struck"],
            changed=verdicts["changed"] + verdicts["changed, struck"],
            unchanged=sum(verdicts[name] for name in ("same", "same, struck", "deleted as listed", "buried")),
            deleted=verdicts["deleted"] + verdicts["deleted as listed"],
            folded=len(rows) - len(winners) - len(rejected),
            rejected=len(rejected),
            contacts=len(self._next.contacts),
        )
        struck = verdicts["struck"] + verdicts["changed, struck"] + verdicts["same, struck"]
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
        """See `Fold`; there is nothing to release."""

    def _received(self, key: str, row: Version) -> str:
        """Merge the received version of a contact; return the verdict."""
        old = self._state.contacts.get(key)
        self._next.strikes.pop(key, None)
        if row.deleted and key in self._state.strikes:
            self._next.strikes[key] = 2
            self._next.contacts.pop(key, None)
            return "deleted as listed" if old else "buried"
        self._next.contacts[key] = row
        verdict = "new" if old is None else "same" if old.content == row.content else "changed"
        if row.deleted:
            self._next.strikes[key] = 1
            return verdict + ", struck"
        return verdict

    def _absent(self, key: str, run: Extraction) -> str:
        """Strike or delete a contact that was not received; return the verdict."""
        created = self._state.contacts[key].created
        if key not in self._state.strikes:
            if not covered(run, created):
                return "kept"
            self._next.strikes[key] = 1
            return "struck"
        if not confirmed(run, created):
            return "kept"
        self._next.strikes[key] = 2
        del self._next.contacts[key]
        return "deleted"

    def _missing(self, winners: Mapping[str, Version], run: Extraction) -> list[str]:
        """The contacts that were not received from ranges in which absence may count."""
        unseen = ((key, old.created) for key, old in self._state.contacts.items() if key not in winners)
        return [key for key, created in unseen if covered(run, created) or confirmed(run, created)]


def covered(run: Extraction, created: int | None) -> bool:
    """Whether a creation time (microseconds) is in a range in which absence is a strike."""
    return created is not None and any(
        (start is None or created >= start * 1000) and created < end * 1000 for start, end in run.coverage
    )


def confirmed(run: Extraction, created: int | None) -> bool:
    """Whether a creation time (microseconds) was requested directly."""
    return created is not None and any(start * 1000 <= created < end * 1000 for start, end in run.confirmed)


def _winners(rows: Sequence[Version]) -> dict[str, Version]:
    """The most recently updated version of each contact; of equal ones, the last received."""
    winners: dict[str, Version] = {}
    for row in rows:
        if row.id is not None:
            best = winners.get(row.id)
            winners[row.id] = best if best is not None and _rank(best) > _rank(row) else row
    return winners


def _rank(row: Version) -> float:
    return float("-inf") if row.updated is None else row.updated
