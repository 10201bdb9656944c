"""Events in the simulated account, spontaneous and on demand, and the truth log."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.sandbox.answer import Answer
from etl.sandbox.filters import EMPTY_BODY
from etl.sandbox.settings import Settings
from etl.sandbox.world import World

START = 1_760_000_000.0
SMALL = Settings(contacts=120, small=True, nasty_share=0, is_contact="same", page_size=25)
LIVELY = replace(SMALL, inserts=2, touches=5, deletes=1, flips=1, edits=1, imports=0.1, import_size=7)


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


SAMPLE = (
    b'{"_id":"65aa0000000000000000a001","_agency":"65aa0000000000000000b001","_customer":"65aa0000000000000000c001",'
    b'"platform":["WHATSAPP"],"secondaryPlatform":["website"],"isSubscriber":true,"websiteVisits":0,"isOnline":false,'
    b'"userInteracted":true,"profile":{"userDetails":{"contact":{"email":"","phone":{"number":"5550100","prefix":"1"}},'
    b'"userProvidedName":"Ada Example","tags":["vip"],"attributes":[{"key":"city","value":"Lyon"}],"country":"",'
    b'"whatsAppNumber":"15550100"},"marketing":{"urlsVisited":[]},"notes":[]},"status":"OPEN",'
    b'"lastMessage":{"by":"user","at":"2025-01-05T10:00:00.000Z"},"isContact":true,"isImported":false,"isMigrated":false,'
    b'"segments":[],"isLiveChatActive":false,"isPaid":true,"hasOrdered":{"status":false},"unreadMessages":0,'
    b'"unreadMessage":[],"lastSeenAt":"2025-01-05T10:00:00.000Z","__v":0,'
    b'"createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-05T10:00:00.000Z"}'
)
"""The sample contact of the API's description."""


def test_the_documented_contact_passes_as_written() -> None:
    """A contact given as JSON is returned byte by byte, matches filters on its times and fields, and can change."""
    world = World(SMALL, START)
    ada = world.adopt(SAMPLE, START)
    new_year = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
    answer = ask(world, createdAt=dates(new_year, new_year), searchText="ada ex", status=["OPEN"])
    assert answer.body == b'{"success":true,"message":"ok","code":200,"data":[' + SAMPLE + b"]}"
    world.touch(ada, START + 1)
    assert json.loads(world.contacts(START + 1)[ada]) == json.loads(SAMPLE) | {
        "lastSeenAt": iso(START + 1),
        "updatedAt": iso(START + 1),
        "unreadMessages": 1,
        "lastMessage": {"by": "user", "at": iso(START + 1), "text": ""},
    }
    assert world.adopt(b'{"_id":null}', START + 2).startswith("#")


def test_late() -> None:
    """A new contact becomes visible `late` seconds after its `createdAt` (A44, A53)."""
    world = World(replace(SMALL, late=900), START)
    new = world.insert(START + 1)
    assert new not in world.contacts(START + 900.9)
    assert new in world.contacts(START + 901)
    assert json.loads(world.contacts(START + 901)[new])["createdAt"] == iso(START + 1)
    assert new not in world.existed_throughout(START + 900, START + 901)


def test_lag() -> None:
    """A change becomes visible `lag` seconds after its timestamp (A44)."""
    world = World(replace(SMALL, lag=30), START)
    someone, before = next(iter(world.contacts(START).items()))
    world.touch(someone, START + 1)
    assert world.contacts(START + 30)[someone] == before
    assert json.loads(world.contacts(START + 31)[someone])["lastSeenAt"] == iso(START + 1)


@pytest.mark.parametrize(("how", "listed", "by_status"), [("none", 0, 0), ("listed", 1, 1), ("hidden", 0, 1)])
def test_soft_delete(how: Any, listed: int, by_status: int) -> None:
    """`soft_delete` decides whether a deleted contact is still listed (A54); in the truth log it is always gone."""
    world = World(replace(SMALL, soft_delete=how), START)
    gone = next(iter(world.contacts(START)))
    world.delete(gone, START + 1)
    assert ids(world, START + 1).count(gone) == listed
    assert ids(world, START + 1, status=["DELETED"]).count(gone) == by_status
    assert gone not in world.contacts(START + 1)
    assert world.version_at(gone, START) is not None
    assert world.version_at(gone, START + 1) is None
    world.restore(gone, START + 2)
    assert ids(world, START + 2).count(gone) == 1
    assert gone not in world.existed_throughout(START, START + 2)


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("touch", {"lastSeenAt", "updatedAt", "unreadMessages", "lastMessage"}),
        ("edit", {"status", "updatedAt", "__v"}),
        ("flip", {"isContact", "updatedAt"}),
        ("presence", {"unreadMessages"}),
    ],
)
def test_changes(kind: str, moved: set[str]) -> None:
    """Each change modifies its own fields of the contact and is in the truth log (M3, M10, M13)."""
    world = World(SMALL, START)
    someone, raw = next(iter(world.contacts(START).items()))
    world.change(kind, someone, START + 5)
    old, new = json.loads(raw), json.loads(world.contacts(START + 5)[someone])
    assert {key for key in old if old[key] != new[key]} <= moved
    assert [(event.at, event.kind, event.id) for event in world.truth.events] == [(START + 5, kind, someone)]
    assert world.version_at(someone, START + 4) == raw
    assert someone in world.existed_throughout(START, START + 9)


def test_flip_moves_between_lists() -> None:
    """A flipped contact moves to the other list (M13)."""
    world = World(replace(SMALL, is_contact="disjoint"), START)
    lead = world.insert(START, is_contact=False)
    assert lead in ids(world, isContact=False)
    world.flip(lead, START + 1)
    assert lead not in ids(world, START + 1, isContact=False)
    assert lead in ids(world, START + 1)


def test_import_many() -> None:
    """A bulk import has one `createdAt`, which may be in the past (M5, M6)."""
    world = World(SMALL, START)
    new = world.import_many(60, START - 5e6)
    assert sorted(ids(world, createdAt=dates(START - 5e6, START - 5e6))) == sorted(new)


@pytest.mark.parametrize("kind", ["inserts", "touches", "deletes", "flips", "edits", "imports"])
def test_churn_rates(kind: str) -> None:
    """Each rate produces that many events a second, and no others."""
    settings = replace(SMALL, import_size=3, import_backdated=60, **{kind: 2.0})  # type: ignore[arg-type]
    world = World(settings, START)
    world.advance(START + 10)
    expected = {"imports": {"insert": 60}, "touches": {"touch": 20}}.get(kind, {kind[:-1]: 20})
    assert dict(world.truth.counts) == expected


def test_import_backdated() -> None:
    """`import_backdated` moves the `createdAt` of imports into the past (M6)."""
    world = World(replace(SMALL, contacts=0, imports=1, import_size=5, import_backdated=3600), START)
    world.advance(START + 1)
    ages = {
        START + 1 - datetime.fromisoformat(json.loads(raw)["createdAt"]).timestamp()
        for raw in world.contacts(0).values()
    }
    assert len(ages) == 1
    assert 3600 <= ages.pop() <= 3601


@given(steps=st.lists(st.floats(0, 20), max_size=8))
def test_time_may_be_cut_anywhere(steps: list[float]) -> None:
    """Events depend on seed and clock only, however often the world is advanced."""
    watched, unwatched = World(LIVELY, START), World(LIVELY, START)
    for step in sorted(steps):
        watched.advance(START + step)
    assert watched.contacts(START + 20) == unwatched.contacts(START + 20)
    assert watched.truth.events == unwatched.truth.events
    assert ask(watched, START + 20).body == ask(unwatched, START + 20).body


def test_truth_agrees_with_the_pages() -> None:
    """At any moment of an active account, an instantaneous page scan shows exactly the truth."""
    world = World(replace(LIVELY, no_created_at_share=0.1, soft_delete="hidden"), START)
    for second in range(0, 30, 3):
        now = START + second
        shown = {row["_id"]: row for page in range(1, 20) for row in rows(ask(world, now, page=page))}
        assert shown == {id: json.loads(raw) for id, raw in world.contacts(now).items()}  # noqa: A001
        assert shown.keys() == {id for id in world.truth.ids() if world.version_at(id, now)}  # noqa: A001
    early, late = set(world.contacts(0)), world.existed_throughout(START + 10, START + 27)
    assert late < early | world.truth.deleted().keys()


def test_page_walk_of_a_moving_list_loses_contacts() -> None:
    """The control (M1, M2): a plain page scan misses contacts that existed throughout."""
    world = World(replace(SMALL, contacts=300), START)
    deleted, seen = list(world.contacts(START))[:10], set()
    for page in range(1, 13):
        now = START + page
        seen |= {row["_id"] for row in rows(ask(world, now, page=page))}
        if page <= 10:
            world.delete(ids(world, now)[0], now)
    assert world.existed_throughout(START, START + 12) - seen
    assert deleted


def test_small_worlds_are_cheap() -> None:
    """A world of 100 small contacts is built in a few milliseconds (printed, with a loose assertion)."""
    begin = time.perf_counter()
    for seed in range(20):
        World(replace(SMALL, contacts=100, seed=seed), START)
    each = (time.perf_counter() - begin) / 20
    print(f"\n100 small contacts: {each * 1000:.2f} ms")
    assert each < 0.1


def test_settings_out_of_range() -> None:
    """All values out of range are reported together; an unknown oddity is an error that suggests the nearest one."""
    with pytest.raises(ValueError, match=r"nasty_share .* page_size .* latency .* zone_offset_minutes"):
        Settings(nasty_share=2, page_size=0, latency=-1, zone_offset_minutes=999)
    with pytest.raises(ValueError, match="did you mean 'id_null'"):
        World(replace(SMALL, nasty_kinds=("id_nul",)), START)
