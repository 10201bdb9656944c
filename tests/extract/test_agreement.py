"""The agreement of two sweeps: which contacts both must show."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.api.request import TimeField
from etl.api.response import Row
from etl.extract import agreement
from etl.extract.agreement import Agreement


def row(number: int, created: int | None, seen: int | None) -> Row:
    """A contact with these times, in seconds since 1970."""
    times = [None if at is None else f"1970-01-01T00:{at // 60:02d}:{at % 60:02d}Z" for at in (created, seen)]
    return Row(msgspec.Raw(json.dumps(f"{number}").encode()), *times)


ROWS = st.lists(st.tuples(st.none() | st.integers(0, 60), st.none() | st.integers(0, 60)), max_size=8)


@given(times=ROWS, shown=st.sets(st.sampled_from(["createdAt", "lastSeenAt", None])))
def test_only_contacts_in_the_range_of_both_sweeps_can_differ(
    times: list[tuple[int | None, int | None]], shown: set[TimeField | None]
) -> None:
    """What a sweep loses is reported, if it was created and last seen in the range that both read.

    The other sweep shows it, or the unfiltered list does, although both sweeps have lost it.
    """
    noted, rows = Agreement(10_000, 40_000), [row(number, *each) for number, each in enumerate(times)]
    for by in shown:
        noted.note(by, rows)
    told = {
        f'"{number}"'.encode(): created * 1000
        for number, (created, seen) in enumerate(times)
        if created is not None and 10 <= created < 40 and seen is not None and seen >= 10
    }
    both = {"createdAt", "lastSeenAt"} <= shown
    assert noted.differing() == (told if shown and not both else {})


def test_too_many_contacts_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the number of new contacts."""
    monkeypatch.setattr(agreement, "MOST_COMPARED", 3)
    noted = Agreement(0, 60_000)
    noted.note("createdAt", [row(number, 1, 1) for number in range(4)])
    noted.note("lastSeenAt", [row(9, 1, 1)])
    assert noted.differing() == {}
