"""Responses of the simulated account: pages, totals, filters, and rejected requests."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from etl.sandbox.answer import Answer
from etl.sandbox.filters import EMPTY_BODY
from etl.sandbox.settings import Settings
from etl.sandbox.world import World

START = 1_760_000_000.0
SMALL = Settings(contacts=120, small=True, nasty_share=0, is_contact="same", page_size=25)


def ask(world: World, now: float = START, **fields: Any) -> Answer:
    """The response to an empty body with these fields."""
    return world.answer({**EMPTY_BODY, **fields}, now)


def rows(answer: Answer) -> list[dict[str, Any]]:
    """The contacts of a good response."""
    assert answer.status == 200
    return list(json.loads(answer.body)["data"])


def ids(world: World, now: float = START, **fields: Any) -> list[str]:
    """Ids of all pages that match the filters."""
    found: list[str] = []
    page: int = world.settings.page_base
    while listed := rows(ask(world, now, page=page, **fields)):
        found += [row["_id"] for row in listed]
        page += 1
    return found


def iso(seconds: float) -> str:
    """A time in the API's format."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dates(start: float | None = None, end: float | None = None) -> Any:
    """A date filter."""
    return {"startAt": "" if start is None else iso(start), "endsAt": "" if end is None else iso(end)}


# --- pages ----------------------------------------------------------------------------------------------------------


def test_pages_show_everyone_once_newest_first() -> None:
    """A page scan of an unchanging account shows each contact once, newest first, and ends with an empty page."""
    world = World(SMALL, START)
    assert sorted(ids(world)) == sorted(world.contacts(START))
    created = [row["createdAt"] for page in range(1, 6) for row in rows(ask(world, page=page))]
    assert created == sorted(created, reverse=True)
    assert rows(ask(world, page=6)) == []


@pytest.mark.parametrize(
    ("sort", "field", "reverse"),
    [("created_desc", "createdAt", True), ("created_asc", "createdAt", False), ("last_seen_desc", "lastSeenAt", True)],
)
def test_sort(sort: Any, field: str, reverse: bool) -> None:
    """`sort` orders the list, with and without a filter on the other time."""
    world = World(replace(SMALL, sort=sort), START)
    fields: dict[str, Any]
    for fields in ({}, {"createdAt": dates(end=START - 9e6)}, {"lastSeenAt": dates(end=START - 9e6)}):
        values = [row[field] for row in rows(ask(world, **fields))]
        assert len(values) == 25
        assert values == sorted(values, reverse=reverse)


def test_shuffled() -> None:
    """`sort = shuffled` reorders the list for each request (A22), reproducibly from the seed."""
    world, same = World(replace(SMALL, sort="shuffled"), START), World(replace(SMALL, sort="shuffled"), START)
    first, second = ask(world).body, ask(world).body
    assert first != second
    assert (first, second) == (ask(same).body, ask(same).body)
    assert len(rows(ask(world, page=5))) == 20


@pytest.mark.parametrize(
    ("is_contact", "lost", "shared"), [("disjoint", False, False), ("overlap", False, True), ("same", False, True)]
)
def test_is_contact(is_contact: Any, lost: bool, shared: bool) -> None:
    """The two lists together hold all contacts and overlap as configured."""
    world = World(replace(SMALL, is_contact=is_contact), START)
    contacts, others = set(ids(world)), set(ids(world, isContact=False))
    assert (contacts | others != set(world.contacts(START))) is lost
    assert bool(contacts & others) is shared
    assert (len(contacts) == 120) is (is_contact == "same")


@pytest.mark.parametrize(
    ("total", "told"),
    [
        *(("exact", 120), ("wrong", 109), ("capped", 100), ("zero", 0), ("negative", -1), ("null", None)),
        *(("text", "120"), ("per_page", 25)),
    ],
)
def test_total(total: Any, told: object) -> None:
    """`total` reports the number of matches, more or less reliably (A19), and by default not at all (A51)."""
    world = World(replace(SMALL, total=total, total_cap=100), START)
    assert json.loads(ask(world).body)["total"] == told
    assert "total" not in json.loads(ask(World(SMALL, START)).body)


@pytest.mark.parametrize(("past_end", "status", "count"), [("empty", 200, 0), ("repeat", 200, 20), ("404", 404, 0)])
def test_past_end(past_end: Any, status: int, count: int) -> None:
    """`past_end` decides the response to a page beyond the end (A13, A14)."""
    world = World(replace(SMALL, past_end=past_end), START)
    answer = ask(world, page=9)
    assert answer.status == status
    assert not count or answer.body == ask(world, page=5).body


def test_leads_in_pages_of_their_own_size() -> None:
    """Each list may have its own page size (A52); 0 means the same for both."""
    assert [len(rows(ask(World(SMALL, START), isContact=listed))) for listed in (True, False)] == [25, 25]
    world = World(replace(SMALL, leads_page_size=7), START)
    assert [len(rows(ask(world, isContact=listed))) for listed in (True, False)] == [25, 7]


def test_page_numbers() -> None:
    """`page_base`, `page_zero` and `ignore_page` decide how a page number is interpreted (A15, A16)."""
    from_one, from_zero = World(SMALL, START), World(replace(SMALL, page_base=0), START)
    assert ask(from_one, page=0).status == 400
    assert ask(from_zero, page=0).body == ask(from_one, page=1).body
    assert ask(from_zero, page=1).body == ask(from_one, page=2).body
    lenient = World(replace(SMALL, page_zero="first"), START)
    assert ask(lenient, page=0).body == ask(lenient, page=1).body
    stuck = World(replace(SMALL, ignore_page=True), START)
    assert ask(stuck, page=4).body == ask(from_one).body


# --- filters --------------------------------------------------------------------------------------------------------

REAL = Settings(contacts=400, nasty_share=0, is_contact="same", page_size=1000)
FILTERS: list[tuple[Mapping[str, Any], Any]] = [
    ({"searchText": "GARCÍA"}, lambda c: "García" in c.facts.name),
    ({"searchText": "contact.1"}, lambda c: c.facts.email.startswith("contact.1")),
    ({"searchText": "4670174"}, lambda c: c.facts.phone.startswith("4670174")),
    ({"tags": ["vip", "b2b"]}, lambda c: {"vip", "b2b"} & {*c.facts.tags}),
    ({"tagsV2": ["vip"]}, lambda _: True),
    ({"status": ["OPEN", "CLOSED"]}, lambda c: c.status in ("OPEN", "CLOSED")),
    ({"isOnline": True}, lambda _: True),
    ({"isOnline": True, "applicableFilters": ["isOnline"]}, lambda c: c.facts.online),
    ({"userInteracted": False, "applicableFilters": ["userInteracted"]}, lambda c: not c.facts.interacted),
    ({"isLiveChatActive": True, "applicableFilters": ["isLiveChatActive"]}, lambda c: c.facts.live_chat),
    ({"isSubscriber": True, "applicableFilters": ["isSubscriber"]}, lambda c: c.facts.subscriber),
    ({"ctwaNewUsers": True, "applicableFilters": ["ctwaNewUsers"]}, lambda c: c.facts.ad_click == "new"),
    ({"ctwaOldUsers": True, "applicableFilters": ["ctwaOldUsers"]}, lambda c: c.facts.ad_click == "old"),
    *(
        ({field: [bot]}, lambda c, bot=bot: bot in c.facts.bots)
        for field, bot in (
            *(("_botWebsite", "65aa00000000000400" + "00b001"), ("_botWhatsapp", "65aa00000000000200" + "00b000")),
            *(("_botTelegram", "65aa00000000000500" + "00b002"), ("_botFacebook", "65aa00000000000600" + "00b000")),
            ("_botAutomation", "65aa0000000000ff0000b0ff"),
        )
    ),
    ({"_agentAssigned": ["65aa0000000000000000a903"]}, lambda c: c.facts.agent.endswith("a903")),
    ({"segments": ["65aa00000000000000005e02"]}, lambda c: "65aa00000000000000005e02" in c.facts.segments),
    ({"hasOrdered": {"status": True, "lastAt": ""}}, lambda c: c.facts.ordered_at is not None),
    (
        {"hasOrdered": {"status": True, "lastAt": iso(START - 3e7)}},
        lambda c: (c.facts.ordered_at or 0) >= (START - 3e7) * 1e6,
    ),
    (
        {"hasOrdered": {"status": False, "lastAt": ""}, "applicableFilters": ["hasOrdered"]},
        lambda c: c.facts.ordered_at is None,
    ),
    ({"lastMessageBy": ["agent"]}, lambda c: c.last_by == "agent"),
    ({"createdAt": dates(START - 4e7, START - 1e7)}, lambda c: START - 4e7 <= c.created / 1e6 <= START - 1e7),
    ({"lastSeenAt": dates(START - 4e7)}, lambda c: c.last_seen / 1e6 >= START - 4e7),
    (
        {"createdAt": dates(end=START - 2e7), "lastSeenAt": dates(START - 4e7), "status": ["OPEN"]},
        lambda c: c.created / 1e6 <= START - 2e7 and c.last_seen / 1e6 >= START - 4e7 and c.status == "OPEN",
    ),
]
"""Fields of a body, and the contacts that match them."""


@pytest.mark.parametrize(("fields", "expected"), FILTERS, ids=lambda value: "" if callable(value) else str(value)[:60])
def test_filters(fields: Mapping[str, Any], expected: Any) -> None:
    """Each filter of the API matches the right contacts and no others."""
    world = World(REAL, START)
    wanted = {contact.id for contact in world.account.living().values() if expected(contact)}
    assert {row["_id"] for row in rows(ask(world, **fields))} == wanted
    assert wanted


def test_applicable_filters() -> None:
    """`applicable_filters` and `lists_named` decide which filters must be named to take effect (A20, A50)."""
    past: dict[str, Any] = {"createdAt": dates(end=START - 4e7)}
    counts = {
        (mode, tuple(named)): len(
            ids(World(replace(SMALL, applicable_filters=mode), START), **past, applicableFilters=named)
        )
        for mode in ("free", "named", "ignored")
        for named in ([], ["createdAt"])
    }
    some = counts["free", ()]
    assert 0 < some < 120
    assert counts["free", ("createdAt",)] == counts["named", ("createdAt",)] == some
    assert counts["named", ()] == counts["ignored", ()] == counts["ignored", ("createdAt",)] == 120
    strict = World(replace(SMALL, lists_named=True), START)
    assert len(ids(strict, status=["OPEN"])) == 120
    assert len(ids(strict, status=["OPEN"], applicableFilters=["status"])) < 120


@pytest.mark.parametrize("start_bound", ["inclusive", "exclusive"])
@pytest.mark.parametrize("end_bound", ["inclusive", "exclusive"])
@pytest.mark.parametrize(("granularity", "resolution"), [("ms", 0.001), ("s", 1), ("day", 86_400)])
def test_bounds(start_bound: Any, end_bound: Any, granularity: Any, resolution: float) -> None:
    """The bounds of a window follow the settings, in the resolution of the server (A21)."""
    settings = replace(SMALL, start_bound=start_bound, end_bound=end_bound, granularity=granularity, contacts=0)
    world = World(settings, START)
    noon = START // 86_400 * 86_400 + 43_200.5
    found = [world.insert(START, created=noon + step * resolution) for step in (-1, 0, 1)]
    wanted = found[0 if start_bound == "inclusive" else 1 : 3 if end_bound == "inclusive" else 2]
    assert ids(world, createdAt=dates(noon - resolution, noon + resolution)) == wanted[::-1]


def test_zone_of_days() -> None:
    """`zone_offset_minutes` shifts the days of `granularity` day and the meaning of a bare date (A21)."""
    settings = replace(SMALL, contacts=0, granularity="day", zone_offset_minutes=330)
    world = World(settings, START)
    midnight = datetime(2025, 3, 1, tzinfo=UTC).timestamp() - 330 * 60
    found = [world.insert(START, created=midnight + offset) for offset in (-1, 0, 86_399, 86_400)]
    assert ids(world, createdAt={"startAt": "2025-03-01", "endsAt": "2025-03-01"}) == found[2:0:-1]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        *(({"page": "1"}, "page"), ({"page": -1}, "page"), ({"page": True}, "page"), ({"tags": "vip"}, "tags")),
        *(({"tags": [1]}, "tags"), ({"isOnline": "false"}, "isOnline"), ({"searchText": None}, "searchText")),
        *(({"createdAt": ""}, "createdAt"), ({"createdAt": {"startAt": "x", "endsAt": ""}}, "createdAt")),
        *(({"lastSeenAt": {"endAt": ""}}, "lastSeenAt"), ({"hasOrdered": True}, "hasOrdered")),
        ({"isExport": "all"}, "isExport"),
    ],
)
def test_validation(fields: Mapping[str, Any], problem: str) -> None:
    """An invalid field is a 400 whose `data` are texts that name it."""
    answer = ask(World(SMALL, START), **fields)
    assert answer.status == 400
    texts = json.loads(answer.body)["data"]
    assert [text.split()[0] for text in texts] == [problem]


def test_require_all_fields() -> None:
    """A body must have every documented field unless `require_all_fields` is off."""
    short = {"page": 1, "isContact": True, "isExport": "none"}
    assert World(SMALL, START).answer(short, START).status == 400
    assert World(replace(SMALL, require_all_fields=False), START).answer(short, START).status == 200
    assert World(SMALL, START).answer([], START).status == 400
