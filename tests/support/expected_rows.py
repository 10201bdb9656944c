"""What `contacts` must hold for a contact, written from docs/tables.md ("Values") and docs/api.md alone.

It shares no code with `etl`: one plain recursive reader, cell by cell, slow and obvious. Numbers keep their text
(`Number`), so that nothing is rounded on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import phonenumbers


class Number(str):
    """A JSON number as it was written."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Equal as numbers: 1.50 is 1.5, and no text is a number."""
        return isinstance(other, Number) and Decimal(self) == Decimal(other)

    __hash__ = None  # type: ignore[assignment]


class Unusable(Exception):
    """The contact cannot be kept: it belongs into `rejects`."""


class _Twice:
    """Two different values of one key."""


UNSAFE = object()
"""A cell that cannot be coerced: null, and its raw value in `extra`."""
EMPTY: tuple[object, ...] = (None, "", [], {})


def parse(raw: bytes) -> Any:
    """The JSON document with numbers as written; invalid UTF-8 becomes U+FFFD, and the last of repeated keys wins."""
    return json.loads(
        raw.decode("utf-8", errors="replace"), parse_int=Number, parse_float=Number, object_pairs_hook=_members
    )


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        members[key] = _Twice if key == "_id" and key in members and members[key] != value else value
    return members


def row(raw: bytes, account: str) -> dict[str, Any]:
    """The expected row without what only a run knows (`row_hash`, `observed_at`, `seq`); raises `Unusable`."""
    contact = parse(raw)
    cells: dict[str, Any] = {"account": account, "contact_id": _identity(contact)}
    extra = _clean(contact)
    extra.pop("_id", None)
    for column, (path, read) in COLUMNS.items():
        cells[column] = _cell(contact, extra, path.split("."), read)
    cells["phone_e164"] = e164(cells["phone_prefix"], cells["phone_number"])
    cells["extra"] = _without_empty(extra) or None
    return cells


def _identity(contact: Any) -> str:
    found = contact.get("_id") if isinstance(contact, dict) else None
    if not isinstance(found, str) or not found:
        raise Unusable
    return str(text(found))


def _cell(contact: Any, extra: Any, path: list[str], read: Callable[[Any], Any]) -> Any:
    """Read one cell; unless its raw value must stay, it leaves `extra`."""
    for key in path[:-1]:
        contact = contact.get(key) if isinstance(contact, dict) else None
        extra = extra.get(key) if isinstance(extra, dict) else None
    value = contact.get(path[-1]) if isinstance(contact, dict) else None
    cell = None if value is None or value == "" else read(value)
    keeps = cell is UNSAFE or (read is attributes and _loses(value))
    if not keeps and isinstance(extra, dict):
        extra.pop(path[-1], None)
    return None if cell is UNSAFE else cell


def _clean(value: Any) -> Any:
    """The same document with clean texts."""
    if isinstance(value, dict):
        return {_cleaned(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return _cleaned(value) if isinstance(value, str) and not isinstance(value, Number) else value


def _without_empty(value: Any) -> Any:
    """`value` without the fields that say nothing, down through all objects."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_empty(item) for key, item in value.items()}
    return {key: item for key, item in kept.items() if item not in EMPTY}


# --- one reader per type of column -----------------------------------------------------------------------------------


def text(value: Any) -> Any:
    """Text verbatim; anything else as its JSON text."""
    if isinstance(value, Number):
        return str(value)
    return _cleaned(value) if isinstance(value, str) else json_text(value)


def _cleaned(value: str) -> str:
    return re.sub("[\ud800-\udfff\0]", "\ufffd", value)


def json_text(value: Any) -> str:
    """A value as compact JSON."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_text(key)}:{json_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(json_text(item) for item in value) + "]"
    return json.dumps(_cleaned(value) if isinstance(value, str) else value, ensure_ascii=False)


def integer(value: Any) -> Any:
    """A whole number of 64 bits, also as text."""
    if isinstance(value, bool) or not isinstance(value, str) or not re.fullmatch(r"-?\d+", value):
        return UNSAFE
    return int(value) if -(2**63) <= int(value) < 2**63 else UNSAFE


def boolean(value: Any) -> Any:
    """True or false, also as text or as 1 and 0."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False, "1": True, "0": False}.get(str(value), UNSAFE)


def time(value: Any) -> Any:
    """ISO 8601, UTC where no zone is named; or seconds or milliseconds since 1970, told apart by their size."""
    if not isinstance(value, str):
        return UNSAFE
    if re.fullmatch(r"\d+", value):
        seconds = int(value) if int(value) < 10**11 else int(value) / 1000
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return UNSAFE
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def texts(value: Any) -> Any:
    """A list of text; items of other types as their JSON text."""
    if not isinstance(value, list):
        return UNSAFE
    return [None if item is None else text(item) for item in value]


def attributes(value: Any) -> Any:
    """Key and value; of a repeated key the last."""
    if not isinstance(value, list):
        return UNSAFE
    keyed = [item for item in value if isinstance(item, dict) and isinstance(item.get("key"), str)]
    return {text(item["key"]): None if item.get("value") in (None, "") else text(item["value"]) for item in keyed}


def _loses(value: Any) -> bool:
    """Whether the map cannot hold everything the list says: a repeated key, or an item without one."""
    keys = [item.get("key") if isinstance(item, dict) else None for item in value] if isinstance(value, list) else []
    return len(set(keys) - {None}) < len(keys)


def notes(value: Any) -> Any:
    """Title, description and id of every note."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return UNSAFE
    return [
        {name: text(item[name]) if item.get(name) else None for name in ("title", "description", "_id")}
        for item in value
    ]


def e164(prefix: str | None, number: str | None) -> str | None:
    """The valid number that the phonenumbers library finds in digits and punctuation, if all readings give one."""
    code, digits = (re.sub(r"[\s+()-]", "", part or "") for part in (prefix, number))
    if not code.isdecimal() or not digits.isdecimal() or code.startswith("0"):
        return None
    if str(number).strip().startswith("+"):
        found = {_library(digits)}
    else:
        found = {_library(code + digits)}
        found |= {_library(digits.removeprefix(abroad)) for abroad in ("00", "0011") if digits.startswith(abroad)}
        found |= {_library(digits[3:])} if digits.startswith(f"011{code}") else set()
        while digits.startswith(code):
            found.add(_library(digits))
            digits = digits.removeprefix(code)
    found.discard(None)
    only = found.pop() if len(found) == 1 else None
    return only if only and only.startswith(f"+{code}") else None


def _library(international: str) -> str | None:
    try:
        parsed = phonenumbers.parse(f"+{international}")
    except phonenumbers.NumberParseException:
        return None
    valid = phonenumbers.is_valid_number(parsed)
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164) if valid else None


_USER = "profile.userDetails"
COLUMNS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "uuid": ("uuid", text),
    "agency_id": ("_agency", text),
    "customer_id": ("_customer", text),
    "agent_id": ("_agentAssigned", text),
    "platforms": ("platform", texts),
    "secondary_platforms": ("secondaryPlatform", texts),
    "status": ("status", text),
    "name": (f"{_USER}.name", text),
    "user_provided_name": (f"{_USER}.userProvidedName", text),
    "email": (f"{_USER}.contact.email", text),
    "phone_prefix": (f"{_USER}.contact.phone.prefix", text),
    "phone_number": (f"{_USER}.contact.phone.number", text),
    "whatsapp_number": (f"{_USER}.whatsAppNumber", text),
    "telegram_username": (f"{_USER}.telegramUserName", text),
    "instagram_profile_id": (f"{_USER}.instagramProfileId", text),
    "facebook_profile_id": (f"{_USER}.facebookProfileId", text),
    "picture_url": (f"{_USER}.picture", text),
    "city": (f"{_USER}.city", text),
    "country": (f"{_USER}.country", text),
    "gender": (f"{_USER}.gender", text),
    "tags": (f"{_USER}.tags", texts),
    "attributes": (f"{_USER}.attributes", attributes),
    "notes": ("profile.notes", notes),
    "urls_visited": ("profile.marketing.urlsVisited", texts),
    "segments": ("segments", texts),
    "is_subscriber": ("isSubscriber", boolean),
    "is_online": ("isOnline", boolean),
    "user_interacted": ("userInteracted", boolean),
    "is_contact": ("isContact", boolean),
    "is_imported": ("isImported", boolean),
    "is_migrated": ("isMigrated", boolean),
    "is_live_chat_active": ("isLiveChatActive", boolean),
    "is_paid": ("isPaid", boolean),
    "website_visits": ("websiteVisits", integer),
    "unread_messages": ("unreadMessages", integer),
    "last_message_by": ("lastMessage.by", text),
    "last_message_at": ("lastMessage.at", time),
    "last_message_text": ("lastMessage.text", text),
    "has_ordered": ("hasOrdered.status", boolean),
    "last_ordered_at": ("hasOrdered.lastAt", time),
    "last_seen_at": ("lastSeenAt", time),
    "created_at": ("createdAt", time),
    "updated_at": ("updatedAt", time),
    "document_version": ("__v", integer),
}
"""Where each column stands in the API's contact, and how it is read."""
