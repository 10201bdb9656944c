"""The plan: windows built from known times tile the range, fit in a page, and keep indivisible windows whole."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from etl.extract.plan import plan_windows, ranges_around, requests_of, scrub_span
from etl.extract.windows import Window

DAY = 86_400_000
some_times = st.lists(st.integers(-30, 60) | st.integers(0, 3 * DAY), max_size=120).map(sorted)
granules = st.sampled_from([1, 7, 1000, DAY])


def plan(times: list[int], start: int | None, end: int, capacity: int, resolution: int = 1) -> list[Window]:
    """The windows of a plan."""
    return list(
        plan_windows(
            times, field="createdAt", is_contact=True, start=start, end=end, capacity=capacity, resolution=resolution
        )
    )


def held(window: Window, times: list[int]) -> list[int]:
    """The times in a window."""
    return [t for t in times if (window.start is None or t >= window.start) and t < window.end]


@given(some_times, st.none() | st.integers(-40, DAY), st.integers(-40, 3 * DAY), st.integers(1, 20), granules)
def test_windows_tile_the_range(times: list[int], start: int | None, end: int, capacity: int, resolution: int) -> None:
    """There is no gap and no overlap from start to end, and no window has zero length."""
    windows = plan(times, start, end, capacity, resolution)
    if start is not None and start >= end:
        assert windows == []
        return
    assert (windows[0].start, windows[-1].end) == (start, end)
    assert all(earlier.end == later.start for earlier, later in pairwise(windows))
    assert all(window.start is None or window.start < window.end for window in windows)
    assert {(window.field, window.is_contact) for window in windows} == {("createdAt", True)}


@given(some_times, st.none() | st.integers(-40, DAY), st.integers(-40, 3 * DAY), st.integers(1, 20), granules)
@example([5] * 50, None, 100, 10, 1)
@example([5] * 50 + [6] * 50, 0, 6, 10, 1)
def test_windows_hold_at_most_their_capacity(
    times: list[int], start: int | None, end: int, capacity: int, resolution: int
) -> None:
    """No window exceeds its capacity, except one that covers a single step of the resolution (M5)."""
    for window in plan(times, start, end, capacity, resolution):
        inside = held(window, times)
        assert len(inside) <= capacity or len({time // resolution for time in inside}) == 1


@given(some_times, st.integers(-40, 3 * DAY), st.integers(1, 20), granules)
def test_cuts_lie_on_granules(times: list[int], end: int, capacity: int, resolution: int) -> None:
    """If the server distinguishes only seconds or days, no cut lies between them (A21)."""
    assert all(window.end % resolution == 0 for window in plan(times, None, end, capacity, resolution)[:-1])


@given(some_times, st.integers(1, 20))
def test_a_plan_is_not_wasteful(times: list[int], capacity: int) -> None:
    """Without indivisible windows, a plan needs one window per full capacity plus one for the rest (M1)."""
    apart = sorted(set(times))
    windows = plan(apart, None, 4 * DAY, capacity)
    assert len(windows) <= len(apart) // capacity + 1
    assert requests_of(apart, start=None, end=4 * DAY, capacity=capacity) == len(windows)


def test_an_empty_account_is_one_window() -> None:
    """Without known times the plan is one window over everything (A42)."""
    assert plan([], None, 100, 49) == [Window("createdAt", True, None, 100)]
    assert requests_of([], start=None, end=100, capacity=49) == 1


def test_what_stands_before_an_indivisible_window_is_read_apart() -> None:
    """An indivisible window covers just its resolution, so that its ordered reads include no other contacts (M5)."""
    assert [(w.start, w.end) for w in plan([1, 5, 5, 5, 5, 9], None, 20, 3)] == [(None, 5), (5, 6), (6, 20)]


@given(
    some_times.filter(len),
    st.integers(-40, 3 * DAY),
    st.integers(1, 40),
    st.integers(1, 20),
    st.none() | st.integers(-40, DAY),
)
@example([-1, 0, 0], 1, 3, 1, None)
def test_a_scrub_goes_round(times: list[int], end: int, rounds: int, capacity: int, after: int | None) -> None:
    """Successive scrubs cover the range without gaps within the given rounds, and then start over (M10)."""
    share = 1 / rounds
    spans = [scrub_span(times, after=after, end=end, share=share, capacity=capacity)]
    while spans[-1][1] < end:
        spans.append(scrub_span(times, after=spans[-1][1], end=end, share=share, capacity=capacity))
        assert len(spans) <= len(times) + 2
    assert spans[0][0] == (after if after is not None and after < end else None)
    assert all(earlier[1] == later[0] for earlier, later in pairwise(spans))
    assert all(start is None or start < stop for start, stop in spans)
    assert spans[-1][1] == end
    if after is None:
        assert len(spans) <= rounds
    assert scrub_span(times, after=end, end=end, share=share, capacity=capacity)[0] is None


def test_a_scrub_of_a_small_account_is_the_whole() -> None:
    """A scrub of an account of a few windows reads all of it every time: a share would save nothing (M10)."""
    assert scrub_span(list(range(20)), after=None, end=100, share=1 / 30, capacity=49) == (None, 100)
    assert scrub_span([], after=None, end=100, share=1 / 30, capacity=49) == (None, 100)


@given(some_times.filter(bool), st.data(), granules, st.integers(0, 7), st.integers(0, 4))
def test_those_asked_for_directly_stand_in_ranges_of_few(
    times: list[int], data: st.DataObject, resolution: int, company: int, neighbours: int
) -> None:
    """Every chosen time is in one of disjoint ranges, with few others unless they share its resolution (A52)."""
    chosen = sorted(data.draw(st.lists(st.sampled_from(times), max_size=20, unique=True)))
    ranges = ranges_around(chosen, times, resolution=resolution, company=company, neighbours=neighbours)
    assert all(any(start <= time < end for start, end in ranges) for time in chosen)
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(ranges))
    for start, end in ranges:
        others = [time for time in times if start <= time < end and time not in chosen]
        assert len(others) <= company or end - start == resolution


def test_those_asked_for_directly_have_neighbours() -> None:
    """A range extends to the nearest neighbours: if they are missing too, the server does not show the range."""
    assert ranges_around([50], [10, 40, 45, 50, 58, 90], company=6, neighbours=3) == [(40, 59)]
    assert ranges_around([50], [45, 50, 50, 50], company=1, neighbours=3) == [(50, 51)]
    assert ranges_around([50, 52], [50, 51, 52], company=0, neighbours=3) == [(50, 51), (52, 53)]
