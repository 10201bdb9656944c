"""The oracle: knows the true history of the account and checks the promises in every run that claims success.

From production code it takes only the values that a run reports (T0, watermark, coverage, mode) and the snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from etl.extract.history import Timing
from etl.extract.strategy import Extraction
from etl.model import Counts
from etl.sandbox.contacts import Contact
from etl.sandbox.world import World
from tests.simulation.contact import Version, version
from tests.simulation.fold import covered

FEWEST_HIDDEN = 0.2
"""Share of a snapshot that must be hidden before a run has to notice: any account may lose a twentieth."""
MOVES_SEEN = ("start", "insert", "touch")
"""Events that an incremental run must notice at once: they set `lastSeenAt` or `createdAt`."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that claims success, with the snapshot before and after it."""

    extraction: Extraction
    t1: float
    """When it ended, in seconds since 1970."""
    before: Mapping[str, Version]
    after: Mapping[str, Version]
    strikes: Mapping[str, int]
    received: Mapping[str, int]
    """The latest `updatedAt` received of each contact, microseconds."""
    counts: Counts

    @property
    def full(self) -> bool:
        """Whether it read everything."""
        return self.extraction.mode == "full"

    @property
    def t0(self) -> float:
        """When it began, by the server's clock, in seconds since 1970."""
        return self.extraction.capabilities.t0 / 1000


@dataclass(frozen=True, slots=True)
class Life:
    """The history of one contact, in order."""

    states: Sequence[tuple[float, bytes | None]]
    kinds: Sequence[str]
    """The event that produced each state."""

    def at(self, moment: float) -> int:
        """The index of the state at a moment."""
        return max(place for place, (at, _) in enumerate(self.states) if at <= moment)

    def place(self, row: Version) -> int | None:
        """The last index of a version, or of the absence that a soft deletion shows; None if it never existed."""
        raw = None if row.deleted else row.raw
        return max((place for place, (_, shown) in enumerate(self.states) if shown == raw), default=None)

    def moved(self, last: int) -> int:
        """The last index up to `last` that set a time that the sweep reads; a restoration brings back the old times."""
        absent = max((place for place in range(last + 1) if self.states[place][1] is None), default=-1)
        moves = (place for place in range(absent + 1, last + 1) if self.kinds[place] in MOVES_SEEN)
        return max(moves, default=0)


@dataclass(slots=True)
class Oracle:
    """Checks the runs of one account in order."""

    world: World
    timing: Timing
    listed: Callable[[Contact | Version], bool] | None = None
    """Whether a living contact is listed; None if all are."""
    swapped: bool = False
    """Whether another account responds."""
    fewest_without: int = 2
    """Good runs without a contact after which it may be deleted.

    One on a server with pages of several sizes: a cut page may hide a living contact, which is a strike, but the second
    strike needs a range too small to be cut."""
    _hidden: set[str] | None = None
    """Contacts of the snapshot that were no longer listed when the narrowing began."""
    _since: int = 0
    """The time (ms) from which the next incremental run reads."""
    _without: Counter[str] = field(default_factory=Counter)
    """Good runs during which a contact of the snapshot was deleted, at least for a while."""
    _chances: Counter[str] = field(default_factory=Counter)
    """Good runs that began after a contact was deleted and that read its range."""
    _shares: dict[str, float] = field(default_factory=dict)
    """Sum of the shares of the account that good runs had to scrub since a contact was deleted."""
    _last: int | None = None
    """T0 of the last good run (ms)."""

    def check(self, run: Run) -> list[str]:
        """Describe every broken promise; empty for a good run."""
        if self.swapped:
            return [
                f"MIXED: the snapshot has {len(run.after)} contacts, {len(run.after.keys() - run.before.keys())} new"
            ]
        gone = {key: at for key, at in self.world.truth.deleted().items() if at <= run.t1}
        stayed = self.world.existed_throughout(run.t0, run.t1) - self._gone_unnoticed(run)
        self._without.update((run.before.keys() | run.after.keys()) - stayed)
        for counts in (self._chances, self._shares):
            for key in counts.keys() - gone.keys():
                del counts[key]
        broken = [
            *self._complete(run),
            *self._deleted_too_soon(run),
            *self._not_deleted(run, gone),
            *_conserved(run),
            *_struck(run),
            *_freshest(run),
        ]
        self._last = run.extraction.capabilities.t0
        margin = max(self.timing.lookback, self.timing.visibility_lag)
        self._since = int(run.t0 * 1000) - self.timing.visibility_lag - margin
        return broken

    def _complete(self, run: Run) -> Iterator[str]:
        """Every contact visible throughout [T0 - H, T1] has a row that is fresh enough."""
        since = run.t0 - self.timing.visibility_lag / 1000
        kinds = self._kinds()
        for key in sorted(self.world.existed_throughout(since, run.t1)):
            states, row = self.world.truth.versions(key), run.after.get(key)
            if self.listed is not None and any(raw and not self.listed(version(raw)) for _, raw in states):
                # A contact that was hidden may reappear later than any sweep reads.
                if row is None and key in run.before and key not in self._gone_unnoticed(run):
                    yield f"LOST {key}: it lives, and is not listed any more"
                continue
            happened = kinds.get(key, [])
            life = Life(states, ["start"] * (len(states) - len(happened)) + happened)
            if row is not None:
                yield from self._fresh(run, row, life, life.at(since))
            elif self._promised(run, key, states[life.at(since)][1]):
                yield f"LOST {key}: {'it was there before' if key in run.before else 'never read'}"
        for key in run.after.keys() - set(self.world.truth.ids()):
            yield f"INVENTED {key}"

    def _gone_unnoticed(self, run: Run) -> set[str]:
        """Hidden contacts, if their share of the snapshot is small enough to look like deletions."""
        if self.listed is None:
            return set()
        if self._hidden is None:
            self._hidden = {key for key, row in (run.before or run.after).items() if not self.listed(row)}
        few = len(self._hidden) < FEWEST_HIDDEN * len(run.before or run.after)
        return self._hidden if few else set()

    def _kinds(self) -> dict[str, list[str]]:
        """The events of each contact after the start."""
        kinds: dict[str, list[str]] = {}
        for event in self.world.truth.events:
            kinds.setdefault(event.id, []).append(event.kind)
        return kinds

    def _promised(self, run: Run, key: str, raw: bytes | None) -> bool:
        """Whether a contact must be in the snapshot: not if it has no id, nor if no time filter can find it."""
        if raw is None or version(raw).id is None:
            return False
        if key in run.before:
            return True
        if run.full:
            return version(raw).created is not None
        return any(
            time is not None and time >= self._since * 1000 for time in (version(raw).created, version(raw).seen)
        )

    def _fresh(self, run: Run, row: Version, life: Life, at_start: int) -> Iterator[str]:
        """A row shows a version that existed and is not older than the run allows."""
        known = life.place(row)
        if known is None:
            yield f"FOREIGN {row.id}: its row shows what never was"
        elif known < self._needed(run, row, life, at_start):
            yield f"STALE {row.id}: shows version {known} of {len(life.states)}, {at_start} was there before the run"

    def _needed(self, run: Run, row: Version, life: Life, at_start: int) -> int:
        """The oldest version that the row may show: edits wait for the scrub, and a row never becomes older."""
        if row.created is not None and (run.full or covered(run.extraction, row.created)):
            return at_start
        old = run.before.get(row.id or "")
        return max(life.moved(at_start), (life.place(old) or 0) if old else 0)

    def _deleted_too_soon(self, run: Run) -> Iterator[str]:
        """A contact leaves the snapshot only after two good runs without it; see `fewest_without`."""
        for key in run.before.keys() - run.after.keys():
            if self._without[key] < self.fewest_without:
                yield f"DELETED {key}: after {self._without[key]} runs without it"

    def _not_deleted(self, run: Run, gone: Mapping[str, float]) -> Iterator[str]:
        """A deleted contact leaves the snapshot one run after the first run that read its range, which is soon."""
        elapsed = run.extraction.capabilities.t0 - (self._last or 0)
        share = 1.0 if run.full else self.timing.scrub_share(elapsed)
        for key, row in run.after.items():
            if row.created is None:
                continue
            if gone.get(key, run.t1) > run.t0:
                # It existed when the run began, perhaps restored: its counts start again.
                self._shares.pop(key, None)
                self._chances.pop(key, None)
                continue
            if self._chances[key]:
                yield f"UNDEAD {key}: gone for more than a run that read its place"
            # A round may take half a share more; the run after it requests the contact directly.
            elif self._shares.get(key, 0.0) > 1.0 + share:
                yield f"UNDEAD {key}: gone for a round of the scrub and longer"
            self._shares[key] = self._shares.get(key, 0.0) + share
            self._chances[key] += covered(run.extraction, row.created)


def _conserved(run: Run) -> Iterator[str]:
    counts = run.counts
    told = counts.new + counts.changed + counts.unchanged + counts.folded + counts.rejected
    if told != counts.received:
        yield f"CONSERVATION {counts}"
    if not len(run.after) == counts.contacts == len(run.before) + counts.new - counts.deleted:
        yield f"CONSERVATION {len(run.before)} contacts before, {len(run.after)} after, {counts}"


def _struck(run: Run) -> Iterator[str]:
    """A contact with two strikes is not in the snapshot, one with a single strike is."""
    for key, strikes in run.strikes.items():
        if (strikes < 2) is not (key in run.after):
            yield f"STRIKES {key}: {strikes}, and {'in' if key in run.after else 'not in'} the snapshot"


def _freshest(run: Run) -> Iterator[str]:
    """Of several versions received of a contact, the most recently updated one is kept."""
    for key, updated in run.received.items():
        row = run.after.get(key)
        if row is not None and (row.updated or 0) < updated:
            yield f"FOLDED {key}: a later version of it was received"
