"""Plans windows that each hold fewer contacts than a page. Pure: no I/O, no clock.

The cuts come from creation times known beforehand (the previous snapshot, or a first run's page scan). They need not be
right: a window that turns out full is split when it is read. Windows tile the range without gap or overlap.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import ceil, inf, isfinite
from operator import itemgetter

from etl.api.request import TimeField
from etl.extract.capabilities import Capabilities
from etl.extract.windows import LEADS_FIRST, Window
from etl.model import union

FEW_DELETED, MOST_DELETED = 10, 0.01
"""Contacts, and their share, that may be deleted during a run."""


def may_be_deleted(gone: int, seen: int) -> bool:
    """Whether `gone` of the contacts `seen` in this run may have been deleted since; else the server hides them."""
    return gone <= max(FEW_DELETED, MOST_DELETED * seen)


def plan_windows(
    times: Sequence[int],
    *,
    field: TimeField,
    is_contact: bool,
    start: int | None,
    end: int,
    capacity: int,
    resolution: int = 1,
) -> Iterator[Window]:
    """Windows that tile [start, end) with at most `capacity` of the sorted `times` (milliseconds) in each.

    Contacts within one step of the resolution stay together: if they exceed `capacity`, they get a separate window.
    """
    position = 0 if start is None else bisect_left(times, start)
    last = bisect_left(times, end)
    opened = start
    while last - position > capacity:
        cut = _floor(times[position + capacity], resolution)
        first = _floor(times[position], resolution)
        if cut == first:
            if opened is None or opened < first:
                # The range before the indivisible window is a separate window.
                yield Window(field, is_contact, opened, first)
                opened = first
            cut = first + resolution
        if cut >= end:
            break
        yield Window(field, is_contact, opened, cut)
        opened = cut
        position = bisect_left(times, cut, position, last)
    if opened is None or opened < end:
        yield Window(field, is_contact, opened, end)


def plan_lists(
    capabilities: Capabilities,
    created: Callable[[bool], Sequence[int]],
    start: int | None,
    end: int,
) -> Iterator[Window]:
    """The windows of both lists in one sequence, so that reading them overlaps; `created` returns a list's times."""
    for is_contact in LEADS_FIRST:
        yield from plan_windows(
            created(is_contact),
            field="createdAt",
            is_contact=is_contact,
            start=start,
            end=end,
            capacity=capabilities.capacity(is_contact),
            resolution=capabilities.resolution,
        )


def scrub_span(
    times: Sequence[int], *, after: int | None, end: int, share: float, capacity: int
) -> tuple[int | None, int]:
    """The next range of a rolling scrub: a `share` of the sorted `times`, beginning at `after`.

    After the end it starts again from the open beginning. It holds at least `capacity` contacts.
    """
    last = bisect_left(times, end)
    begin = after if after is not None and after < end else None
    position = 0 if begin is None else bisect_left(times, begin, 0, last)
    rows = max(capacity, ceil(last * share))
    # Contacts created since the round began must not make a separate range.
    if position + rows + rows // 2 >= last:
        return begin, end
    # With an indivisible window at the start, the range must end after it, or the scrub would never advance.
    return begin, max(times[position + rows], (times[0] if begin is None else begin) + 1)


def ranges_around(
    chosen: Sequence[int], times: Sequence[int], *, resolution: int = 1, company: int, neighbours: int = 0
) -> list[tuple[int, int]]:
    """Disjoint ranges [start, end) that hold all `chosen` times and at most `company` others of the sorted `times`.

    Each is widened to include the nearest `neighbours` others, as far as `company` and the adjacent ranges allow. A
    creation time shared by more contacts gets a separate range. Every chosen time is one of `times`.
    """
    ranges: list[tuple[int, int]] = []
    for time in chosen:
        start = _floor(time, resolution)
        end = start + resolution
        if ranges and start < ranges[-1][1]:
            continue
        if ranges and others_in(ranges[-1][0], end, chosen, times) <= company:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    for place in range(len(ranges)):
        floor = ranges[place - 1][1] if place else -inf
        ceiling = ranges[place + 1][0] if place + 1 < len(ranges) else inf
        while others_in(*ranges[place], chosen, times) < neighbours:
            wider = [
                (start, end)
                for start, end in _wider(ranges[place], times, resolution)
                if floor <= start and end <= ceiling and others_in(start, end, chosen, times) <= company
            ]
            if not wider:
                break
            ranges[place] = min(wider, key=lambda span: span[1] - span[0])
    return ranges


def _wider(span: tuple[int, int], times: Sequence[int], resolution: int) -> Iterator[tuple[int, int]]:
    """`span` extended to the last of the sorted `times` before it, and to the first one after it."""
    start, end = span
    first, after = bisect_left(times, start), bisect_left(times, end)
    if first > 0:
        yield _floor(times[first - 1], resolution), end
    if after < len(times):
        yield start, _floor(times[after], resolution) + resolution


def others_in(start: int, end: int, chosen: Sequence[int], times: Sequence[int]) -> int:
    """How many of the sorted `times` in [start, end) are not among the sorted `chosen` ones."""
    return bisect_left(times, end) - bisect_left(times, start) - bisect_left(chosen, end) + bisect_left(chosen, start)


def remaining(windows: Iterable[Window], done: Iterable[Window]) -> Iterator[Window]:
    """The parts of `windows` not covered by `done`, in order; a done window with an open end covers nothing."""
    covered = _covered(done)
    for window in windows:
        spans = covered.get((window.field, window.is_contact), [])
        opened, end = _begin(window), inf if window.end is None else window.end
        position = bisect_right(spans, opened, key=itemgetter(1))
        while opened < end:
            start, stop = spans[position] if position < len(spans) else (inf, inf)
            if start > opened:
                yield replace(window, start=_bound(opened), end=_bound(min(start, end)))
            opened = stop
            position += 1


def _covered(done: Iterable[Window]) -> dict[tuple[TimeField, bool], list[tuple[float, float]]]:
    """Disjoint sorted ranges for each field and list; an open start is infinite."""
    ranges: dict[tuple[TimeField, bool], list[tuple[float, float]]] = {}
    for window in done:
        if window.end is not None:
            ranges.setdefault((window.field, window.is_contact), []).append((_begin(window), window.end))
    return {chosen: union(each) for chosen, each in ranges.items()}


def _begin(window: Window) -> float:
    return -inf if window.start is None else window.start


def _bound(time: float) -> int | None:
    return int(time) if isfinite(time) else None


def requests_of(times: Sequence[int], *, start: int | None, end: int, capacity: int) -> int:
    """The number of windows that a plan over the `times` in [start, end) needs."""
    windows = plan_windows(times, field="createdAt", is_contact=False, start=start, end=end, capacity=capacity)
    return sum(1 for _ in windows)


def _floor(time: int, resolution: int) -> int:
    return time - time % resolution
