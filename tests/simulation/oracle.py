"""The oracle: knows what really happened in the account, and holds every run that claims success to the promises.

It takes nothing from production code but what a run says of itself (T0, watermark, coverage, mode) and the snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from etl.extract import Extraction, Timing
from etl.model import Counts
from etl.sandbox.world import World
from tests.simulation.contact import Version, version
from tests.simulation.fold import covered

MOVES_SEEN = ("start", "insert", "touch", "restore")
"""Events that an incremental run is bound to notice at once: they set `lastSeenAt` or `createdAt`."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that claims success, with the snapshot before and after it."""

    extraction: Extraction
    full: bool
    t1: float
    """When it ended, in seconds since 1970."""
    before: Mapping[str, Version]
    after: Mapping[str, Version]
    received: Mapping[str, int]
    """The latest `updatedAt` received of each contact, microseconds."""
    counts: Counts


@dataclass(slots=True)
class Oracle:
    """Checks the runs of one account in order."""

    world: World
    timing: Timing
    _since: int | None = None
    """The earliest time (ms) the next incremental run reads from."""
    _absent_runs: Counter[str] = field(default_factory=Counter)
    """In how many good runs a contact that is gone was gone at the end."""
    _chances: Counter[str] = field(default_factory=Counter)
    """In how many good runs a contact that is gone was gone from the start, and would have been noticed."""
    _rounds: Counter[str] = field(default_factory=Counter)
    """In how many good runs a contact that is gone was gone from the start."""

    def check(self, run: Run) -> list[str]:
        """Every broken promise, in words; empty for a good run."""
        t0 = run.extraction.capabilities.t0 / 1000
        broken = [
            *self._complete(run, t0 - self.timing.visibility_lag / 1000),
            *self._alive(run, t0),
            *_conserved(run),
            *_freshest(run),
        ]
        margin = max(self.timing.lookback, self.timing.visibility_lag)
        self._since = int(t0 * 1000) - self.timing.visibility_lag - margin
        return broken

    def _complete(self, run: Run, since: float) -> Iterator[str]:
        """Every contact visible throughout has a row, at least as fresh as it must be."""
        kinds: dict[str, list[str]] = {}
        for event in self.world.truth.events:
            kinds.setdefault(event.id, []).append(event.kind)
        for id in sorted(self.world.existed_throughout(since, run.t1)):
            states = self.world.truth.versions(id)
            at_start = max(place for place, (at, _) in enumerate(states) if at <= since)
            row = run.after.get(id)
            if row is None:
                if self._reachable(run, id, states[at_start][1]):
                    yield f"LOST {id}: {'it was there before' if id in run.before else 'never read'}"
                continue
            known = _place(states, row.raw)
            names = [*["start"] * (len(states) - len(kinds.get(id, ()))), *kinds.get(id, ())]
            if known is None:
                yield f"FOREIGN {id}: its row shows what never was"
            elif known < self._needed(run, at_start, states, names, row):
                yield f"STALE {id}: shows version {known} of {len(states)}, {at_start} was there before the run"

    def _reachable(self, run: Run, id: str, raw: bytes | None) -> bool:
        """Whether the promise covers a contact: not those without an id, nor those that no time filter can find."""
        if raw is None or version(raw).id is None:
            return False
        if id in run.before:
            return True
        if run.full or self._since is None:
            return version(raw).created is not None
        times = (version(raw).created, version(raw).seen)
        return any(time is not None and time >= self._since * 1000 for time in times)

    def _needed(
        self, run: Run, at_start: int, states: list[tuple[float, bytes | None]], names: list[str], row: Version
    ) -> int:
        """The oldest version that the row may show."""
        if (run.full and row.created is not None) or (row.created and covered(run.extraction, row.created)):
            return at_start
        moved = max(place for place in range(at_start + 1) if names[place] in MOVES_SEEN)
        old = run.before.get(row.id or "")
        return max(moved, (_place(states, old.raw) or 0) if old else 0)

    def _alive(self, run: Run, t0: float) -> Iterator[str]:
        """Whoever is gone is gone from the snapshot after two runs that could notice, and not before two that did."""
        gone = {id: at for id, at in self.world.truth.deleted().items() if at <= run.t1}
        self._absent_runs.update(id for id in gone if id in run.before or id in run.after)
        for id in run.before.keys() - run.after.keys():
            if self._absent_runs[id] < 2:
                yield f"DELETED {id}: after {self._absent_runs[id]} runs without it"
        for id, row in run.after.items():
            if id not in gone or row.created is None or gone[id] > t0:
                continue
            self._rounds[id] += 1
            self._chances[id] += covered(run.extraction, row.created)
            if self._chances[id] >= 2:
                yield f"UNDEAD {id}: gone for {self._chances[id]} runs that read where it was"
            # The share of a scrub is measured before the account has grown, so that a round may take one run more.
            elif self._rounds[id] > 2 * (self.timing.scrub_runs + 1):
                yield f"UNDEAD {id}: gone for two rounds of the scrub, {self._rounds[id]} runs"
        for id in run.after.keys() - set(self.world.truth.ids()):
            yield f"INVENTED {id}"


def _place(states: list[tuple[float, bytes | None]], raw: bytes) -> int | None:
    """The last place of a version in a contact's history."""
    return max((place for place, (_, shown) in enumerate(states) if shown == raw), default=None)


def _conserved(run: Run) -> Iterator[str]:
    counts = run.counts
    told = counts.new + counts.changed + counts.unchanged + counts.folded + counts.rejected
    if told != counts.received:
        yield f"CONSERVATION {counts}"
    if not len(run.after) == counts.contacts == len(run.before) + counts.new - counts.deleted:
        yield f"CONSERVATION {len(run.before)} contacts before, {len(run.after)} after, {counts}"


def _freshest(run: Run) -> Iterator[str]:
    """Of several answers for a contact the one that was changed last is kept."""
    for id, updated in run.received.items():
        row = run.after.get(id)
        if row is not None and (row.updated or 0) < updated:
            yield f"FOLDED {id}: a later version of it was received"
