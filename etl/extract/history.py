"""What the last published run left of an account, as far as the next run reads by it. No I/O of its own, no clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from etl.extract.capabilities import PageSizes
from etl.model import NOTHING, Look

ROUNDING = 2
"""Seconds by which the difference of two clocks may seem to have changed: a `Date` is rounded down."""
REMEMBERED = 7 * 86_400_000
"""Milliseconds for which a small page counts, after it was last seen: a server may have grown its pages for good."""
CLOCKS_DIFFER = 300
"""Seconds between the server's clock and ours that are worth a warning."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The margins of an extraction, in milliseconds."""

    visibility_lag: int
    """H: how late a change can become visible."""
    lookback: int
    """L: how late the vendor says a lead can become visible."""
    witness_every: int
    scrub_every: int
    """Within this time everything is read again."""
    scrub_runs: int | None = None
    """If set, each run scrubs one such part of the account instead, however long ago the last one was."""

    def scrub_share(self, elapsed: int) -> float:
        """The share of the account that a run reads again, `elapsed` ms after the last one."""
        if self.scrub_runs is not None:
            return 1 / self.scrub_runs
        return min(1.0, max(0, elapsed) / self.scrub_every)


class Snapshot(Protocol):
    """The contacts of the account that the last run published. Times are milliseconds."""

    def created(self, is_contact: bool | None) -> Sequence[int]:
        """The sorted creation times, of one list or (None) of both."""

    def struck(self) -> Sequence[int]:
        """The sorted creation times of the contacts that have one strike."""

    async def look(self, start: int | None, end: int) -> Look:
        """Which of those created in [start, end) this run has not received, or only as deleted."""


Received = Callable[[], Awaitable[tuple[Sequence[Path], Sequence[Path]]]]
"""Finds the files that hold everything a run has received so far: contacts, and rejects."""


class PublishedSnapshot(Snapshot, Protocol):
    """A snapshot as a sink holds it."""

    def during(self, received: Received, folder: Path) -> Snapshot:
        """The snapshot during a run that works in the private `folder`."""
        ...

    def copy_ids(self, file: Path) -> None:
        """Write the ids of the published and the deleted contacts to a new Parquet file (column `contact_id`)."""
        ...


class NoSnapshot:
    """The snapshot of an account that no run has published."""

    def created(self, is_contact: bool | None) -> Sequence[int]:  # noqa: ARG002 - see `Snapshot`
        """See `Snapshot`."""
        return ()

    def struck(self) -> Sequence[int]:
        """See `Snapshot`."""
        return ()

    async def look(self, start: int | None, end: int) -> Look:  # noqa: ARG002 - see `Snapshot`
        """See `Snapshot`."""
        return NOTHING


@dataclass(frozen=True, slots=True)
class History:
    """What an earlier run left: where to go on, and where contacts lie in time."""

    watermark: int | None = None
    """None: there was no earlier run."""
    t0: int = 0
    """The server's clock when that run began."""
    clock_ahead: int = 0
    """Seconds that the server's clock was ahead of ours then."""
    witness_at: int | None = None
    scrub_after: int | None = None
    proven: bool = True
    """Whether that run left nothing unproven; what it may have missed is older than any sweep looks for."""
    without_created_at: bool = False
    """Whether the snapshot holds contacts without a creation time, which only a walk reaches."""
    look: Look = NOTHING
    """What the last scrub looked for."""
    cuts: Mapping[bool, tuple[int, int]] = field(default_factory=dict)
    """By list: the smallest page that had rows behind it, and when it was seen (ms)."""
    snapshot: Snapshot = field(default_factory=NoSnapshot)

    def by_clock(self, ahead: int) -> History:
        """The same by a server's clock that is `ahead` seconds ahead of ours: if it was more ahead, it has gone back.

        What happened since then bears its time, so the watermark goes back as far. If it is ours that has gone forward
        the sweep only reads more than it must.
        """
        back = max(0, self.clock_ahead - ahead + ROUNDING)
        return self if self.watermark is None else replace(self, watermark=self.watermark - back * 1000)

    @property
    def allows_incremental(self) -> bool:
        """Whether what came since is all that is missing, so that an incremental run is enough."""
        return self.watermark is not None and self.proven

    def witness_is_due(self, t0: int, every: int, *, full: bool) -> bool:
        """Whether a run that begins at `t0` walks all pages, as one does after `every` milliseconds.

        A full run always does where only a walk reaches some of the contacts.
        """
        return self.witness_at is None or t0 - self.witness_at >= every or (full and self.without_created_at)

    def held(self, is_contact: bool) -> int:
        """How many contacts of a list the snapshot holds."""
        return len(self.snapshot.created(is_contact))

    def remembered(self, sizes: PageSizes, t0: int) -> PageSizes:
        """`sizes` with the small pages that were seen not long before `t0`."""
        for is_contact, (rows, at) in self.cuts.items():
            if t0 - at < REMEMBERED:
                sizes = sizes.with_cut(is_contact, rows)
        return sizes

    def cuts_after(self, sizes: PageSizes, t0: int) -> dict[bool, tuple[int, int]]:
        """What the next run has to remember of small pages, after one that began at `t0` and saw these `sizes`."""
        cuts = {}
        for is_contact in (False, True):
            rows, at = self.cuts.get(is_contact, (0, 0))
            forgotten = not rows or t0 - at >= REMEMBERED
            found = sizes.cut(is_contact)
            if found and (forgotten or found <= rows):
                rows, at = found, t0
            if rows:
                cuts[is_contact] = (rows, at)
        return cuts
