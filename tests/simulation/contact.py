"""One version of one contact, as the oracle and the merge model read it from the server's bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from etl.api.response import Page

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PRESENCE = ("isOnline", "unreadMessages", "websiteVisits")


@dataclass(frozen=True, slots=True)
class Version:
    """The fields of a version; times are microseconds since 1970."""

    raw: bytes
    id: str | None
    """None if it identifies no contact: the version is then rejected."""
    created: int | None
    seen: int | None
    updated: int | None
    status: str
    is_contact: bool
    unread: int
    content: str
    """All fields except those of presence."""

    @property
    def deleted(self) -> bool:
        """Whether the contact is soft-deleted."""
        return self.status == "DELETED"


@lru_cache(maxsize=4096)
def version(raw: bytes) -> Version:
    """Read one contact."""
    value = json.loads(raw)
    key = value.get("_id")
    return Version(
        raw,
        str(key) if isinstance(key, str | int) and not isinstance(key, bool) and key != "" else None,
        _time(value.get("createdAt")),
        _time(value.get("lastSeenAt")),
        _time(value.get("updatedAt")),
        str(value.get("status", "")),
        value.get("isContact") is True,
        int(value.get("unreadMessages", 0)),
        json.dumps({name: member for name, member in value.items() if name not in _PRESENCE}),
    )


def _time(value: object) -> int | None:
    """A time in any format that the simulated server uses."""
    if isinstance(value, int):
        return value * (1000 if value > 10**11 else 1_000_000)
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


class _Data(msgspec.Struct):
    data: list[msgspec.Raw]


_data = msgspec.json.Decoder(_Data).decode


def versions(page: Page) -> list[Version]:
    """The contacts of a page."""
    return [version(bytes(raw)) for raw in _data(page.body).data]
