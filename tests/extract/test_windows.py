"""Windows: the request, the rows allowed in the response, and the splitting of full windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.api.request import TimeField, iso
from etl.api.response import Row
from etl.errors import ContractError
from etl.extract.windows import RangeSemantics, Window, may_be_read, split
from etl.times import milliseconds

RESOLUTIONS = (1, 1000, 86_400_000)
FIELDS: tuple[TimeField, ...] = ("createdAt", "lastSeenAt")
DAY = RESOLUTIONS[2]

times = st.integers(-5, 60) | st.integers(-3 * DAY, 3 * DAY) | st.integers(0, 2 * 10**12)
bounds = st.builds(
    RangeSemantics, st.sampled_from([0, 1, 1000]), st.sampled_from([0, 1, 1000]), st.sampled_from(RESOLUTIONS)
)
ends = st.tuples(st.none() | times, st.none() | times).map(
    lambda pair: pair if None in pair or pair[0] < pair[1] else (pair[1], pair[0] + 1)
)
windows = st.builds(
    lambda field, listed, pair: Window(field, listed, *pair), st.sampled_from(FIELDS), st.booleans(), ends
)


def row(time: int | None) -> Row:
    """A contact created and seen at this time."""
    text = None if time is None else iso(time)
    return Row(msgspec.Raw(b'"a"'), text, text)


def rows(*moments: int | None) -> list[Row]:
    """Contacts with these times."""
    return [row(time) for time in moments]


def ordered(parts: Sequence[Window]) -> list[Window]:
    """The parts sorted by start, the open one first."""
    return sorted(parts, key=lambda part: -math.inf if part.start is None else part.start)


def in_window(window: Window, time: int) -> bool:
    """Whether a time lies in the half-open range."""
    return (window.start is None or window.start <= time) and (window.end is None or time < window.end)


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_window_is_asked_as_the_server_reads_it() -> None:
    """The half-open range is sent with the server's paddings, and the field is named if required (A21, A50)."""
    window = Window("lastSeenAt", is_contact=False, start=1000, end=2000)
    plain, padded = (
        window.query(RangeSemantics()),
        window.query(RangeSemantics(start_pad=1, end_pad=5, applicable=True)),
    )
    assert (plain.field, plain.is_contact, plain.start, plain.end, plain.applicable) == (
        "lastSeenAt",
        False,
        1000,
        1999,
        (),
    )
    assert (padded.start, padded.end, padded.applicable) == (999, 2004, ("lastSeenAt",))


def test_an_open_end_stays_open() -> None:
    """No padding closes an open end."""
    query = Window("createdAt", is_contact=True, start=None, end=None).query(RangeSemantics(start_pad=1, end_pad=1))
    assert (query.start, query.end) == (None, None)


@given(windows, bounds, st.integers(1, 40))
def test_no_contact_is_between_what_two_windows_ask(window: Window, read: RangeSemantics, size: int) -> None:
    """The requests of adjacent windows leave no millisecond out (A21)."""
    parts = ordered(split(window, rows(*range(size)), read, newest_first=False))
    for earlier, later in pairwise(parts):
        before, after = earlier.query(read), later.query(read)
        assert before.end is not None
        assert after.start is not None
        assert after.start <= before.end + 1


# --- rows allowed in the response -----------------------------------------------------------------------------------


@given(windows, bounds, st.lists(times, max_size=5))
def test_rows_inside_are_always_accepted(window: Window, read: RangeSemantics, moments: list[int]) -> None:
    """A row inside the window, or one without a readable time, never violates the filter."""
    inside = [time for time in moments if in_window(window, time)]
    window.check(rows(*inside, None), read)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("time", [-DAY * 9, DAY * 20])
def test_a_row_far_outside_breaks_the_contract(field: TimeField, resolution: int, time: int) -> None:
    """A server that returns rows outside the requested range does not honour its filter (A20)."""
    window = Window(field, is_contact=True, start=0, end=DAY * 10)
    with pytest.raises(ContractError, match=f"does not honour its {field} filter") as caught:
        window.check(rows(5, time), RangeSemantics(resolution=resolution))
    assert "1970-01-01T00:00:00.000Z" in caught.value.where


def test_a_row_within_one_granule_outside_is_tolerated() -> None:
    """A server that compares whole seconds returns rows up to a second outside (A21)."""
    window = Window("createdAt", is_contact=True, start=5000, end=6000)
    window.check(rows(4000, 6999), RangeSemantics(resolution=1000))
    for time in (3999, 7001):
        with pytest.raises(ContractError):
            window.check(rows(time), RangeSemantics(resolution=1000))


def test_an_open_window_has_no_outside_on_that_side() -> None:
    """Nothing is too old for a window without a start, and nothing too new for one without an end (A28)."""
    Window("createdAt", is_contact=True, start=None, end=10).check(rows(-(10**12)), RangeSemantics())
    Window("createdAt", is_contact=True, start=10, end=None).check(rows(32_503_680_000_000), RangeSemantics())


# --- splitting a full window ----------------------------------------------------------------------------------------


@given(windows, bounds, st.lists(times, max_size=30), st.booleans())
def test_the_parts_tile_the_window(
    window: Window, read: RangeSemantics, moments: list[int], newest_first: bool
) -> None:
    """Whatever the rows of a full page, the parts cover the window without gap or overlap, or there are none."""
    parts = ordered(split(window, rows(*moments), read, newest_first=newest_first))
    if parts:
        assert len(parts) > 1
        assert (parts[0].start, parts[-1].end) == (window.start, window.end)
        assert all(earlier.end == later.start for earlier, later in pairwise(parts))
        assert {(part.field, part.is_contact) for part in parts} == {(window.field, window.is_contact)}


@given(windows, bounds, st.lists(times, max_size=30), st.booleans())
def test_every_part_is_smaller(window: Window, read: RangeSemantics, moments: list[int], newest_first: bool) -> None:
    """Splitting makes progress: no part is empty and none is the window itself."""
    for part in split(window, rows(*moments), read, newest_first=newest_first):
        assert part != window
        assert part.start is None or part.end is None or part.start < part.end


@given(windows, bounds, st.lists(times, min_size=1, max_size=30), st.booleans())
def test_cuts_lie_where_the_server_sees_them(
    window: Window, read: RangeSemantics, moments: list[int], newest_first: bool
) -> None:
    """A cut lies on a step that the server distinguishes, so that no contact falls between two parts (A21)."""
    for part in split(window, rows(*moments), read, newest_first=newest_first):
        if part.start != window.start:
            assert part.start is not None
            assert part.start % read.resolution == 0


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_an_indivisible_window_of_one_granule_is_cut_out_and_left_whole(resolution: int, *, newest_first: bool) -> None:
    """Contacts that no cut can separate get a window of exactly their resolution, which is not split further (M5)."""
    time, read = 7 * DAY, RangeSemantics(resolution=resolution)
    wide = Window("createdAt", is_contact=True, start=None, end=30 * DAY)
    parts = ordered(split(wide, rows(*[time] * 50), read, newest_first=newest_first))
    assert [(part.start, part.end) for part in parts] == [
        (None, time),
        (time, time + resolution),
        (time + resolution, 30 * DAY),
    ]
    assert split(parts[1], rows(*[time] * 50), read, newest_first=newest_first) == ()


def test_a_full_page_without_readable_times_halves_the_window() -> None:
    """Rows without times do not show where to cut: it is the middle, or nowhere in an open window (A27)."""
    window = Window("lastSeenAt", is_contact=True, start=0, end=100)
    assert [(part.start, part.end) for part in split(window, rows(None), RangeSemantics(), newest_first=True)] == [
        (0, 50),
        (50, 100),
    ]
    for start, end in ((None, 100), (0, None), (None, None), (5, 6)):
        assert split(Window("lastSeenAt", True, start, end), rows(None), RangeSemantics(), newest_first=True) == ()


@given(
    st.lists(st.integers(0, 40) | st.integers(0, 5 * DAY), max_size=80),
    st.sampled_from(RESOLUTIONS),
    st.integers(2, 9),
    st.sampled_from(["newest", "oldest", "shuffled"]),
    st.randoms(use_true_random=False),
    ends,
)
def test_cutting_ends_with_every_contact_in_one_proven_part(
    created: list[int],
    resolution: int,
    page_size: int,
    order: str,
    chance: object,
    pair: tuple[int | None, int | None],
) -> None:
    """For any list in any order, splitting ends with each contact in one part: a short page, or an indivisible one."""
    window, read = Window("createdAt", True, *pair), RangeSemantics(resolution=resolution)
    left, done, requests = [window], [], 0
    while left:
        part = left.pop()
        requests += 1
        inside = sorted((time for time in created if in_window(part, time)), reverse=order == "newest")
        if order == "shuffled":
            chance.shuffle(inside)
        page = rows(*inside[:page_size])
        further = split(part, page, read, newest_first=order == "newest") if len(page) == page_size else ()
        left.extend(further)
        if not further:
            done.append(part)
    for time in created:
        assert sum(in_window(part, time) for part in done) == in_window(window, time)
    for part in done:
        held = {time // resolution for time in created if in_window(part, time)}
        count = sum(in_window(part, time) for time in created)
        assert count < page_size or len(held) == 1
    assert requests <= 20 + 12 * len(created)


# --- times ----------------------------------------------------------------------------------------------------------

TIMES = [
    ("2025-01-05T10:00:00.000Z", 1_736_071_200_000),
    ("2025-01-05T10:00:00Z", 1_736_071_200_000),
    ("2025-01-05T10:00:00.123456Z", 1_736_071_200_123),
    ("2025-01-05T12:00:00.000+02:00", 1_736_071_200_000),
    ("2025-01-05T10:00:00", 1_736_071_200_000),
    ("2025-01-05", 1_736_035_200_000),
    ("1969-12-31T23:59:59.999Z", -1),
    ("1969-12-31T23:59:59.9995Z", -1),
    ("0001-01-01T00:00:00Z", -62_135_596_800_000),
    ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ("0001-01-01T00:00:00+14:00", -62_135_647_200_000),
    ("2025-06-30T23:59:60Z", None),
    ("2025-02-30T00:00:00Z", None),
    ("2025-13-01T00:00:00Z", None),
    ("10000-01-01T00:00:00Z", None),
    ("yesterday", None),
    ("1736071200", None),
    ("", None),
    (None, None),
    (1_736_071_200, None),
    (1_736_071_200_000.5, None),
    (True, None),
    ({"$date": 1}, None),
]


@pytest.mark.parametrize(("value", "time"), TIMES)
def test_a_time_is_read_or_it_is_none(value: object, time: int | None) -> None:
    """ISO 8601 in any zone is read to the millisecond; any other value is no time, and no row is lost by it (A30)."""
    assert milliseconds(value) == time


@given(st.text(max_size=30) | st.datetimes().map(str) | st.floats() | st.none())
def test_no_value_breaks_the_reading(value: object) -> None:
    """Any value is a time or none (A30)."""
    time = milliseconds(value)
    assert time is None or isinstance(time, int)


@pytest.mark.parametrize(
    ("contacts", "leads", "waits"),
    [
        ((10, 20), (20, 30), False),
        ((20, 30), (10, 20), False),
        ((10, 20), (19, 30), True),
        ((10, 20), (None, 11), True),
        ((10, 20), (None, 10), False),
        ((None, 10), (None, 5), True),
        ((10, None), (5, 10), False),
        ((10, None), (5, 11), True),
        ((10, None), (50, None), True),
    ],
)
def test_contacts_wait_for_leads_of_the_same_time(
    contacts: tuple[int | None, int | None], leads: tuple[int | None, int | None], waits: bool
) -> None:
    """A lead that becomes a contact between the two reads is seen in one of them (M13)."""
    window, others = Window("createdAt", True, *contacts), [Window("createdAt", False, *leads)]
    assert may_be_read(window, others) is not waits
    assert may_be_read(Window("createdAt", False, *contacts), others)
    assert may_be_read(window, [Window("createdAt", True, *leads), Window("lastSeenAt", False, *leads)])
