"""Requests to the API: every documented field, in the API's own spelling, and only reads."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl.api.request import FILTERS, Query, checked_filters, iso
from etl.errors import UsageError
from etl.times import milliseconds

# The request of docs/api.md, "Requests", with the empty value of each field: "all fields are required".
EMPTY = {
    "searchText": "",
    "tags": [],
    "tagsV2": [],
    "status": [],
    "isOnline": False,
    "userInteracted": False,
    "isLiveChatActive": False,
    "isSubscriber": False,
    "ctwaNewUsers": False,
    "ctwaOldUsers": False,
    "_botWebsite": [],
    "_botWhatsapp": [],
    "_botTelegram": [],
    "_botFacebook": [],
    "_botAutomation": [],
    "_agentAssigned": [],
    "segments": [],
    "applicableFilters": [],
    "lastSeenAt": {"startAt": "", "endsAt": ""},
    "createdAt": {"startAt": "", "endsAt": ""},
    "hasOrdered": {"status": False, "lastAt": ""},
    "lastMessageBy": [],
    "page": 1,
    "isExport": "none",
    "isContact": True,
}
YEAR_1, YEAR_9999 = -62_135_596_800_000, 253_402_300_799_999
VALUES: dict[type, st.SearchStrategy[object]] = {
    str: st.text(max_size=5),
    bool: st.booleans(),
    list: st.lists(st.text(max_size=3), max_size=2),
    dict: st.dictionaries(st.sampled_from(["startAt", "endsAt", "status"]), st.text(max_size=3)),
}
some_filters = st.fixed_dictionaries({}, optional={name: VALUES[kind] for name, kind in FILTERS.items()})


def test_an_empty_query_names_every_documented_field() -> None:
    """A query without filters sends every field that docs/api.md lists, each with its empty value."""
    assert Query(is_contact=True).body(1) == EMPTY


def test_a_range_is_sent_as_start_and_ends() -> None:
    """A range is sent in its field as `startAt` and `endsAt`, the API's odd pair of names; the other stays open."""
    body = Query(is_contact=False, field="lastSeenAt", start=0, end=1_736_071_200_000).body(1)
    assert body["lastSeenAt"] == {"startAt": "1970-01-01T00:00:00.000Z", "endsAt": "2025-01-05T10:00:00.000Z"}
    assert body["createdAt"] == {"startAt": "", "endsAt": ""}


@given(filters=some_filters, page=st.integers(0, 10**6), listed=st.booleans())
def test_no_filter_turns_a_read_into_anything_else(filters: dict[str, object], page: int, listed: bool) -> None:
    """User filters cannot change list, page or `isExport: none`, and all fields are known ones (M11)."""
    body = Query(listed, filters=checked_filters(filters)).body(page)
    assert (body["isContact"], body["page"], body["isExport"]) == (listed, page, "none")
    assert body.keys() == EMPTY.keys()
    assert {name: body[name] for name in filters if name != "isContact"} == {
        name: value for name, value in filters.items() if name != "isContact"
    }
    assert json.loads(json.dumps(body)) == body


def test_two_bodies_share_nothing_that_can_be_changed() -> None:
    """A transport that modifies a body in place does not affect the next one."""
    first = Query(is_contact=True).body(1)
    for value in first.values():
        if isinstance(value, list | dict):
            value.clear()
    assert Query(is_contact=True).body(1) == EMPTY


@given(st.integers(YEAR_1, YEAR_9999))
@example(YEAR_1)
@example(YEAR_9999)
def test_a_time_is_read_back_as_it_was_sent(time: int) -> None:
    """A time is written with milliseconds, Z and a four-digit year, even for early years (A30)."""
    text = iso(time)
    assert milliseconds(text) == time
    assert len(text) == len("2025-01-05T10:00:00.000Z")


@given(st.integers(-(10**18), 10**18))
def test_a_time_beyond_the_calendar_is_its_nearest_end(time: int) -> None:
    """A window padded beyond the years 1 and 9999 is clamped to the calendar and does not fail (A30)."""
    assert milliseconds(iso(time)) == min(max(time, YEAR_1), YEAR_9999)


def test_a_query_tells_its_range_in_words() -> None:
    """Messages name the field and both ends of a range."""
    assert Query(is_contact=True).span() == "everything"
    assert Query(is_contact=True, start=0).span() == "createdAt 1970-01-01T00:00:00.000Z to ..."


def test_an_unknown_filter_names_the_nearest() -> None:
    """A mistyped filter is a usage error that suggests the nearest name; nothing is sent without it."""
    with pytest.raises(UsageError, match="Did you mean searchText") as caught:
        checked_filters({"serchText": "a"})
    assert caught.value.where == "extract.filters.serchText"


@pytest.mark.parametrize("name", ["page", "isExport"])
def test_the_fields_that_steer_a_request_are_no_filters(name: str) -> None:
    """Users can set neither the page nor `isExport`, which could start an export on the server (M11)."""
    with pytest.raises(UsageError, match="no filter"):
        checked_filters({name: "all"})


@pytest.mark.parametrize(
    ("name", "value"), [("tags", "vip"), ("isOnline", "yes"), ("createdAt", []), ("searchText", 5)]
)
def test_a_filter_of_the_wrong_type_is_refused(name: str, value: object) -> None:
    """A filter value of a type other than the API's is a usage error that names the type."""
    with pytest.raises(UsageError, match="expected a value of type"):
        checked_filters({name: value})
