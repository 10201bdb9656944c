"""State of an account after its last published run, as far as the next run needs it. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from etl.extract.capabilities import Capabilities, PageSizes
from etl.model import NOTHING, Look, Received

ROUNDING = 2
"""Seconds by which the difference of two clocks may appear to change: a `Date` header is rounded down."""
REMEMBERED = 7 * 86_400_000
"""Milliseconds for which a small page size is remembered: the server may have enlarged its pages since."""
CLOCKS_DIFFER = 300
"""Seconds between the server's clock and ours above which a warning is logged."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The margins of an extraction, in milliseconds."""

    visibility_lag: int
    """H: how late a change can become visible."""
    lookback: int
    """L: how late a lead can become visible, according to the vendor."""
    cross_check_every: int
    """The time after which a run is cross-checked again."""
    scrub_every: int
    """The time within which everything is read again."""
    scrub_runs: int | None = None
    """If set, each run scrubs 1/`scrub_runs` of the account instead, regardless of the time since the last run."""
    deadline: int | None = None
    """The time that a run has from its first request."""

    def scrub_share(self, elapsed: int) -> float:
        """The share of the account that a run reads again, `elapsed` ms after the last one."""
        if self.scrub_runs is not None:
            return 1 / self.scrub_runs
        return min(1.0, max(0, elapsed) / self.scrub_every)


class Snapshot(Protocol):
    """The contacts of the account in the last published run. Times are milliseconds."""

    def created(self, is_contact: bool | None) -> Sequence[int]:
        """The sorted creation times, of one list or (None) of both."""

    def struck(self) -> Sequence[int]:
        """The sorted creation times of the contacts that have one strike."""

    async def look(self, start: int | None, end: int) -> Look:
        """Check which contacts created in [start, end) this run has not received, or only as deleted."""

    async def unknown(self, start: int | None, end: int, seen_before: int) -> int:
        """How many contacts created in [start, end) this run has received that the snapshot lacks.

        Only those last seen before `seen_before` (ms).
        """


class PublishedSnapshot(Snapshot, Protocol):
    """The snapshot held by a sink."""

    def during(self, received: Received, folder: Path) -> Snapshot:
        """The snapshot during a run that works in the private `folder`."""
        ...

    def copy_ids(self, file: Path) -> None:
        """Write the ids of the published and the deleted contacts to a new Parquet file, with their `strikes`."""
        ...


class NoSnapshot:
    """The snapshot of an account without a published run."""

    def created(self, is_contact: bool | None) -> Sequence[int]:  # noqa: ARG002 - see `Snapshot`
        """See `Snapshot`."""
        return ()

    def struck(self) -> Sequence[int]:
        """See `Snapshot`."""
        return ()

    async def look(self, start: int | None, end: int) -> Look:  # noqa: ARG002 - see `Snapshot`
        """See `Snapshot`."""
        return NOTHING

    async def unknown(self, start: int | None, end: int, seen_before: int) -> int:  # noqa: ARG002 - see `Snapshot`
        """See `Snapshot`."""
        return 0


@dataclass(frozen=True, slots=True)
class History:
    """State from an earlier run: where to continue, and how contacts are distributed in time."""

    watermark: int | None = None
    """None: there was no earlier run."""
    t0: int = 0
    """The server's clock when that run began."""
    clock_ahead: int = 0
    """Seconds by which the server's clock was ahead of ours then."""
    cross_checked_at: int | None = None
    """When the last run began that was cross-checked, or that read in the order of the lists."""
    scrub_after: int | None = None
    proven: bool = True
    """Whether that run left nothing unproven; contacts it may have missed are older than any sweep covers."""
    without_created_at: bool = False
    """Whether the snapshot holds contacts without a creation time, which only a page scan reads."""
    by_windows: float = 1.0
    """The share of the contacts, the oldest ones, that was read in windows; a first run may read in order instead."""
    look: Look = NOTHING
    """Known contacts that the last scrub checked for."""
    cuts: Mapping[bool, tuple[int, int]] = field(default_factory=dict)
    """By list: the smallest page that had rows behind it, and when it was seen (ms)."""
    snapshot: Snapshot = field(default_factory=NoSnapshot)

    def by_clock(self, ahead: int) -> History:
        """This history for a server clock `ahead` seconds ahead of ours: if it was more ahead, it has gone back.

        Contacts changed since then have the new clock's times, so the watermark goes back by the same amount. If it is
        our clock that has gone forward, the sweep only reads more than necessary.
        """
        back = max(0, self.clock_ahead - ahead + ROUNDING)
        return self if self.watermark is None else replace(self, watermark=self.watermark - back * 1000)

    def cross_check_is_due(self, t0: int, every: int, *, full: bool) -> bool:
        """Whether a run that begins at `t0` is cross-checked by a page scan, due every `every` milliseconds.

        A full run always is if some contacts can be read only by a page scan.
        """
        return (
            self.cross_checked_at is None or t0 - self.cross_checked_at >= every or (full and self.without_created_at)
        )

    def held(self, is_contact: bool) -> int:
        """How many contacts of a list the snapshot holds."""
        return len(self.snapshot.created(is_contact))

    def remembered(self, sizes: PageSizes, t0: int) -> PageSizes:
        """`sizes` with the small page sizes seen within `REMEMBERED` before `t0`."""
        for is_contact, (rows, at) in self.cuts.items():
            if t0 - at < REMEMBERED:
                sizes = sizes.with_cut(is_contact, rows)
        return sizes

    def cuts_after(self, sizes: PageSizes, t0: int) -> dict[bool, tuple[int, int]]:
        """The small page sizes that the next run must remember, after a run that began at `t0` and saw `sizes`."""
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


def choose_mode(
    history: History, capabilities: Capabilities, *, full: bool, filters: Mapping[str, object]
) -> Literal["full", "incremental", "filtered"]:
    """The mode of the next run of an account.

    It is incremental if only contacts created or updated since the last run are missing: that run left nothing
    unproven, and the server can list them by time. `full` asks for a full run; `filters` are the user's.
    """
    if filters:
        return "filtered"
    if full or history.watermark is None or not history.proven or not capabilities.windows:
        return "full"
    return "incremental"
