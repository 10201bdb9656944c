"""What a report shows, as plain values: counts, times and names, never a contact's values.

Groups of contacts are counted under their name only if they are large enough; the others are added up (`fold_small`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from etl.display import printable

SMALLEST_GROUP = 5
"""Fewer contacts than this could identify one: their group is part of "other"."""
OTHER = "other"
MISSING = "not given"
LONGEST_NAME = 20

Counted = tuple[str, int]
"""The name of a group, and the number of its members."""


def fold_small(
    groups: Iterable[tuple[str | None, int]], most: int, *, longest: int = LONGEST_NAME
) -> Sequence[Counted]:
    """The `most` largest groups, the largest first; then, under one name, all others and those that are too small."""
    named, others = list[Counted](), 0
    for name, count in sorted(groups, key=lambda group: (-group[1], group[0] or "")):
        if count < SMALLEST_GROUP or len(named) == most or name == OTHER:
            others += count
        else:
            text = MISSING if name is None else printable(name)
            named.append((text if len(text) <= longest else f"{text[: longest - 1]}…", count))
    return [*named, (OTHER, others)] if others else named


@dataclass(frozen=True, slots=True)
class AttemptFigures:
    """One attempt to run, published or not, by the local clock."""

    ended: datetime
    seconds: float
    exit_code: int
    requests: int
    message: str = ""
    """What went wrong; "" if nothing did."""
    where: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One published run, summed over its accounts."""

    seq: int
    at: datetime
    modes: tuple[str, ...]
    contacts: int
    """Contacts of all accounts after the run."""
    new: int
    changed: int
    deleted: int
    rejected: int
    requests: Mapping[str, float]
    """By purpose."""
    seconds_by: Mapping[str, float]
    """By phase."""
    seconds: float
    throttled: int
    proof: str
    proven: bool

    @property
    def is_first(self) -> bool:
        """Whether it brought every contact: it would dwarf the changes of the others."""
        return self.contacts > 0 and self.new == self.contacts


@dataclass(frozen=True, slots=True)
class AccountFigures:
    """One account after its last published run."""

    account: str
    seq: int
    mode: str
    contacts: int
    at: datetime
    """T0 of that run."""
    watermark: datetime
    proof: str
    unproven: Sequence[str]
    by_windows: float
    proven_since: datetime | None
    """Every contact was read in a proven window of a run that began then or later; None: not recorded."""
    cross_checked: datetime | None
    server: Mapping[str, str]
    """How its server behaves and was treated, as texts by subject."""


@dataclass(frozen=True, slots=True)
class ColumnFigures:
    """How many contacts have a value in a column."""

    name: str
    share: float
    change: float | None
    """Against the run before, as a difference of shares; None without one."""


@dataclass(frozen=True, slots=True)
class ContactFigures:
    """The published contacts, in groups."""

    total: int = 0
    channels: Sequence[Counted] = ()
    """A contact may have several."""
    statuses: Sequence[Counted] = ()
    countries: Sequence[Counted] = ()
    months: Sequence[tuple[datetime, int]] = ()
    """Created in the month that begins then; every month from the first shown to the last."""
    earlier: int = 0
    """Created before these months."""
    later: int = 0
    """With a creation time after the run."""
    without_time: int = 0
    week: Sequence[tuple[int, int, int]] = ()
    """Last seen on this ISO weekday in this hour (UTC), and how many."""


@dataclass(frozen=True, slots=True)
class ProofFigures:
    """The evidence that no contact is missing."""

    looked_at: Sequence[tuple[int, int]] = ()
    """The run that last looked at a contact, and how many contacts that is."""
    window_rows: Sequence[tuple[int, int]] = ()
    """Rows in an accepted window, and how many windows had as many."""
    page_size: int = 0
    windows: int = 0
    manifest: str = ""
    """SHA-256 of the last manifest."""


@dataclass(frozen=True, slots=True)
class DataFigures:
    """The quality of the data."""

    columns: Sequence[ColumnFigures] = ()
    rejects: Sequence[Counted] = ()
    extra_keys: Sequence[Counted] = ()
    """Fields of the API without a column, by path."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything on the page."""

    name: str
    """The configuration's."""
    made: datetime
    """By the local clock."""
    version: str
    links: Sequence[tuple[str, str]] = ()
    """Further addresses in the navigation, with their texts."""
    attempts: Sequence[AttemptFigures] = ()
    """The newest first."""
    runs: Sequence[RunFigures] = ()
    """The oldest first."""
    accounts: Sequence[AccountFigures] = ()
    contacts: ContactFigures = field(default_factory=ContactFigures)
    proof: ProofFigures = field(default_factory=ProofFigures)
    data: DataFigures = field(default_factory=DataFigures)
