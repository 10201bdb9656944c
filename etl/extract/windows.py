"""Windows: time ranges small enough that one response proves completeness. Pure: no I/O, no clock.

One request is one atomic read. A window whose page 1 has fewer rows than a full page is complete at that instant,
whatever the order of the list and whatever changes during the run. All times are milliseconds since the epoch; ranges
are half-open, [start, end), and None is an open end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf
from statistics import median_low

from etl.api.request import Query, TimeField
from etl.api.response import Row
from etl.errors import ContractError
from etl.times import milliseconds

_USUAL = (len("2025-01-05T10:00:00.000Z"), "Z")
LEADS_FIRST = (False, True)
"""Both lists are always read: a sample may suggest that one contains the other, but cannot prove it for the account.

A lead becomes a contact, not the reverse: in this order, a lead that changes during the run is seen in one list."""
ROW_FIELD: dict[TimeField, str] = {"createdAt": "created_at", "lastSeenAt": "last_seen_at"}


@dataclass(frozen=True, slots=True)
class RangeSemantics:
    """How the server interprets `startAt` and `endsAt`, as probed on a known contact."""

    start_pad: int = 0
    """Milliseconds to start earlier so that a contact exactly at the start is returned."""
    end_pad: int = 0
    """Milliseconds to add to the last wanted millisecond so that a contact exactly there is returned."""
    resolution: int = 1
    """The finest time step the server distinguishes: rows up to this far outside a window may be returned."""
    applicable: bool = False
    """Whether the field must be named in `applicableFilters` to be honoured."""


@dataclass(frozen=True, slots=True)
class Window:
    """A time range of one of the two lists."""

    field: TimeField
    is_contact: bool
    start: int | None
    end: int | None

    def holds(self, other: Window) -> bool:
        """Whether `other` is a part of this window."""
        same_list = (self.field, self.is_contact) == (other.field, other.is_contact)
        begins = self.start is None or (other.start is not None and other.start >= self.start)
        return same_list and begins and (self.end is None or (other.end is not None and other.end <= self.end))

    def query(self, bounds: RangeSemantics) -> Query:
        """The request that, under `bounds`, returns every contact of the window and few others."""
        return Query(
            is_contact=self.is_contact,
            field=self.field,
            start=None if self.start is None else self.start - bounds.start_pad,
            end=None if self.end is None else self.end - 1 + bounds.end_pad,
            applicable=(self.field,) if bounds.applicable else (),
        )

    def times(self, rows: Sequence[Row]) -> list[int]:
        """The valid times of `rows` in the window's field."""
        name = ROW_FIELD[self.field]
        times = (milliseconds(getattr(row, name)) for row in rows)
        return [time for time in times if time is not None]

    def check(self, rows: Sequence[Row], bounds: RangeSemantics) -> None:
        """Raise ContractError if a row is outside the window: then the server does not honour the filter."""
        name = ROW_FIELD[self.field]
        texts = [text for row in rows if isinstance(text := getattr(row, name), str) and text]
        times: Sequence[int | None] = ()
        if {(len(text), text[-1]) for text in texts} == {_USUAL}:
            # Times in the usual format sort as text, so only the earliest and the latest need to be parsed.
            times = (milliseconds(min(texts)), milliseconds(max(texts)))
        if not times or None in times:
            times = self.times(rows)
        slack = bounds.resolution + max(bounds.start_pad, bounds.end_pad)
        low = -inf if self.start is None else self.start - slack
        high = inf if self.end is None else self.end + slack
        if not all(low <= time <= high for time in times if time is not None):
            raise ContractError(
                f"the server does not honour its {self.field} filter: it returned a row outside the window",
                where=self.query(bounds).span(),
            )


def around(created: int, is_contact: bool, resolution: int) -> Window:
    """The narrowest window around a creation time."""
    start = created - created % resolution
    return Window("createdAt", is_contact, start, start + resolution)


def may_be_read(window: Window, unfinished: Iterable[Window]) -> bool:
    """Whether a window may be read while others are unfinished.

    Contacts wait for leads of the same time: a lead that becomes a contact in between is then seen in one of the lists.
    """
    return not window.is_contact or all(
        other.is_contact
        or other.field != window.field
        or (other.start is not None and window.end is not None and window.end <= other.start)
        or (window.start is not None and other.end is not None and other.end <= window.start)
        for other in unfinished
    )


@dataclass(frozen=True, slots=True)
class Accepted:
    """A window proven complete."""

    window: Window
    rows: int
    attempts: int = 1
    level: str = "windows"
    request: int = 0


def split(window: Window, rows: Sequence[Row], bounds: RangeSemantics, *, newest_first: bool) -> tuple[Window, ...]:
    """Smaller windows that tile `window`, whose page was full; () if it is indivisible.

    If the server lists the newest first, a full page holds the newest contacts of the window: the cut leaves almost
    all of them in the upper part, which then fits one page. Otherwise they are a sample and the middle is best.
    """
    low, high = -inf if window.start is None else window.start, inf if window.end is None else window.end
    inside = sorted(time for time in window.times(rows) if low <= time < high)
    if not inside:
        return halved(window, bounds)
    cut = _aligned(inside[len(inside) // 8] if newest_first else median_low(inside), bounds)
    cuts = [c for c in (cut, cut + bounds.resolution) if _splits(window, c)]
    # Two cuts only if all rows are within one step of the resolution, to isolate it; otherwise one cut is enough.
    indivisible = inside[0] // bounds.resolution == inside[-1] // bounds.resolution
    edges = cuts if indivisible else cuts[:1]
    return _cut(window, edges)


def _cut(window: Window, edges: Sequence[int]) -> tuple[Window, ...]:
    if not edges:
        return ()
    marks = [window.start, *edges, window.end]
    return tuple(replace(window, start=start, end=end) for start, end in pairwise(marks))


def halved(window: Window, bounds: RangeSemantics) -> tuple[Window, ...]:
    """The two halves of a closed window; () if it has an open end or is indivisible."""
    if window.start is None or window.end is None:
        return ()
    middle = _aligned((window.start + window.end) // 2, bounds)
    return _cut(window, [middle] if _splits(window, middle) else [])


def evenly(window: Window, longest: int, bounds: RangeSemantics) -> tuple[Window, ...]:
    """A closed window in even parts of at most about `longest` milliseconds, the oldest first."""
    if window.start is None or window.end is None:
        return (window,)
    length = window.end - window.start
    parts = ceil(length / longest)
    cuts = sorted({_aligned(window.start + length * part // parts, bounds) for part in range(1, parts)})
    return _cut(window, [cut for cut in cuts if _splits(window, cut)]) or (window,)


def _aligned(time: int, bounds: RangeSemantics) -> int:
    return time - time % bounds.resolution


def _splits(window: Window, cut: int) -> bool:
    return (window.start is None or cut > window.start) and (window.end is None or cut < window.end)
