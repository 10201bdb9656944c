"""The simulated contacts: realistic in every channel, odd on request, and reproducible from the seed."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import phonenumbers
import pytest

from etl.sandbox import nasty
from etl.sandbox.settings import Settings
from etl.sandbox.world import World

START = 1_760_000_000.0
CLEAN = Settings(contacts=400, nasty_share=0)
DOCUMENTED = {
    *("_id", "uuid", "_agency", "_customer", "_agentAssigned", "platform", "secondaryPlatform", "status"),
    *("isSubscriber", "isOnline", "userInteracted", "isContact", "isImported", "isMigrated", "isLiveChatActive"),
    *("isPaid", "websiteVisits", "unreadMessages", "__v", "unreadMessage", "segments", "lastSeenAt", "createdAt"),
    *("updatedAt", "lastMessage.by", "lastMessage.at", "lastMessage.text", "hasOrdered.status", "hasOrdered.lastAt"),
    *("profile.notes.title", "profile.notes.description", "profile.notes._id", "profile.marketing.urlsVisited"),
    *(
        f"profile.userDetails.{name}"
        for name in (
            *("name", "userProvidedName", "contact.email", "contact.phone.prefix", "contact.phone.number"),
            *("whatsAppNumber", "telegramUserName", "instagramProfileId", "facebookProfileId", "picture", "city"),
            *("country", "gender", "tags", "attributes.key", "attributes.value"),
        )
    ),
}
"""Every path of the API's field table."""


def decoded(world: World) -> list[dict[str, Any]]:
    """All contacts of a clean world as dicts."""
    return [json.loads(raw) for raw in world.contacts(START).values()]


def paths(value: object, prefix: str = "") -> Iterable[str]:
    """Dotted paths of the leaves; all items of a list share one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value:
        for item in value:
            yield from paths(item, prefix)
    else:
        yield prefix


def test_every_documented_field_occurs() -> None:
    """Each documented path occurs in the population, and no other in a clean account."""
    found = {path for contact in decoded(World(CLEAN, START)) for path in paths(contact)}
    assert found - {"profile.notes", "unreadMessage.text"} == DOCUMENTED


def test_contacts_have_the_usual_size() -> None:
    """A contact has 1.2 to 2 KB of JSON, 1.57 KB in the median."""
    sizes = [len(raw) for raw in World(CLEAN, START).contacts(START).values()]
    assert 1_530 <= statistics.median(sizes) <= 1_610
    assert sum(1_150 <= size <= 2_100 for size in sizes) / len(sizes) > 0.98


def test_phones_are_valid_in_several_countries() -> None:
    """Prefix and national number make a number that phonenumbers accepts, with and without + and leading 0."""
    regions = set()
    for contact in decoded(World(CLEAN, START)):
        phone = contact["profile"]["userDetails"]["contact"]["phone"]
        if phone["number"]:
            number = phonenumbers.parse(f"+{phone['prefix'].lstrip('+')}{phone['number'].lstrip('0')}")
            assert phonenumbers.is_valid_number(number)
            regions.add(phonenumbers.region_code_for_number(number))
    assert len(regions) >= 7


def test_times_are_plausible() -> None:
    """`_id` starts with the creation second, no contact was seen before creation, and creation is spread over years."""
    contacts = World(CLEAN, START).account.living().values()
    times = [(contact.id, contact.created or 0, contact.last_seen or 0) for contact in contacts]
    for identity, created, seen in times:
        assert int(identity[:8], 16) == created // 1_000_000
        assert 0 < created <= seen <= START * 1_000_000
    created_at = [created for _, created, _ in times]
    assert max(created_at) - min(created_at) > 2 * 365 * 86_400 * 1_000_000


@pytest.mark.parametrize("kind", nasty.KINDS)
def test_every_oddity_is_json_under_its_own_id(kind: str) -> None:
    """Each oddity (A24, A25, A28, A30-A32, A35-A37, A39) is still one JSON object, and the truth log has its id."""
    for small in (False, True):
        settings = replace(CLEAN, contacts=30, nasty_share=1, nasty_kinds=(kind,), small=small)
        plain = World(replace(settings, nasty_share=0), START).account.rows
        for contact in World(settings, START).account.rows.values():
            value = json.loads(contact.raw.decode("utf-8", "replace"))
            assert isinstance(value, dict)
            assert contact.id == (f"#{contact.serial}" if kind in nasty.REJECTED else str(value["_id"]))
            assert contact.raw != plain[contact.serial].raw


def test_no_created_at() -> None:
    """`no_created_at_share` gives contacts without `createdAt`: absent, null or "" (A27)."""
    contacts = decoded(World(replace(CLEAN, no_created_at_share=1), START))
    assert {json.dumps(contact.get("createdAt", "absent")) for contact in contacts} == {'"absent"', "null", '""'}


def test_same_seed_same_bytes() -> None:
    """Contacts depend on the seed alone; another seed gives others."""
    settings = Settings(contacts=100, nasty_share=0.5)
    assert World(settings, START).contacts(START) == World(settings, START).contacts(START)
    assert World(settings, START).contacts(START).keys().isdisjoint(World(CLEAN, START + 1e7).contacts(START))
    assert World(replace(settings, seed=2), START).contacts(START) != World(settings, START).contacts(START)


def test_ties() -> None:
    """`ties` gives that many contacts the same `createdAt` (M5)."""
    created = [contact["createdAt"] for contact in decoded(World(replace(CLEAN, ties=70), START))]
    assert max(map(created.count, created)) == 70
