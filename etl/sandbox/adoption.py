"""Turn a contact given as JSON into one of the account, unchanged."""

import json
from collections.abc import Mapping
from datetime import timedelta

from etl.sandbox.contacts import Contact, Facts
from etl.sandbox.times import read

CHANGING = ("status", "isContact", "unreadMessages", "lastMessage", "lastSeenAt", "__v", "createdAt", "updatedAt")
"""Members that `contacts` writes again with every version."""


def adopted(raw: bytes, serial: int, now: int) -> Contact:
    """The contact that is shown exactly as `raw`, one JSON object, until it changes.

    The filters use its documented members, if they have the documented types.
    """
    value: dict[str, object] = json.loads(raw.decode("utf-8", "replace"))
    constant = {key: member for key, member in value.items() if key not in CHANGING}
    identity = value.get("_id")
    usable = isinstance(identity, str | int) and not isinstance(identity, bool) and identity != ""
    return Contact(
        serial=serial,
        id=str(identity) if usable else f"#{serial}",
        head=(json.dumps(constant)[:-1] + ("," if constant else "")).encode(),
        facts=_facts(value),
        status=_text(value, "status"),
        is_contact=value.get("isContact") is not False,
        created=_instant(value, "createdAt"),
        last_seen=_instant(value, "lastSeenAt"),
        updated=_instant(value, "updatedAt") or now,
        last_by=_text(value, "lastMessage", "by"),
        verbatim=raw,
    )


def _facts(value: Mapping[str, object]) -> Facts:
    person = ("profile", "userDetails")
    name = _text(value, *person, "name") or _text(value, *person, "userProvidedName")
    phone = [_text(value, *person, "contact", "phone", part) for part in ("prefix", "number")]
    return Facts(
        name=name,
        email=_text(value, *person, "contact", "email"),
        phone="".join(phone).lstrip("+"),
        tags=_texts(value, *person, "tags"),
        agent=_text(value, "_agentAssigned"),
        segments=_texts(value, "segments"),
        subscriber=value.get("isSubscriber") is True,
        online=value.get("isOnline") is True,
        interacted=value.get("userInteracted") is True,
        live_chat=value.get("isLiveChatActive") is True,
        ordered_at=_instant(value, "hasOrdered", "lastAt"),
    )


def _at(value: object, path: tuple[str, ...]) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(value: object, *path: str) -> str:
    found = _at(value, path)
    return found if isinstance(found, str) else ""


def _texts(value: object, *path: str) -> tuple[str, ...]:
    found = _at(value, path)
    return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list) else ()


def _instant(value: object, *path: str) -> int | None:
    try:
        return read(_text(value, *path), timedelta())
    except ValueError:
        return None
