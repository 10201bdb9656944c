"""The request body of `POST /inbox/users`: every field, and only reads.

The vendor asks that all fields be present, empty if not used. Times are internally milliseconds since the epoch, the
API's own precision; a range is half-open, [start, end), and None is an open end.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from etl.display import redacted
from etl.errors import UsageError
from etl.times import to_datetime

PATH = "/inbox/users"
TimeField = Literal["createdAt", "lastSeenAt"]

Body = dict[str, object]

_TEXTS: tuple[str, ...] = (
    "tags",
    "tagsV2",
    "status",
    "_botWebsite",
    "_botWhatsapp",
    "_botTelegram",
    "_botFacebook",
    "_botAutomation",
    "_agentAssigned",
    "segments",
    "applicableFilters",
    "lastMessageBy",
)
_FLAGS: tuple[str, ...] = (
    "isOnline",
    "userInteracted",
    "isLiveChatActive",
    "isSubscriber",
    "ctwaNewUsers",
    "ctwaOldUsers",
)
_OPEN_RANGE = MappingProxyType({"startAt": "", "endsAt": ""})
_NO_ORDER = MappingProxyType({"status": False, "lastAt": ""})

FILTERS: Mapping[str, type] = MappingProxyType(
    {
        "searchText": str,
        **dict.fromkeys(_TEXTS, list),
        **dict.fromkeys(_FLAGS, bool),
        "isContact": bool,
        "lastSeenAt": dict,
        "createdAt": dict,
        "hasOrdered": dict,
    }
)
"""The request fields that a filtered export may set, and their types; `page` and `isExport` are reserved."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of the API: which list, which range of which time, which user filters."""

    is_contact: bool
    field: TimeField = "createdAt"
    start: int | None = None
    """First millisecond sent as `startAt`."""
    end: int | None = None
    """The value sent as `endsAt`, unchanged: the probe determines whether the server includes it."""
    applicable: tuple[str, ...] = ()
    filters: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def body(self, page: int) -> Body:
        """The request body for the page that the server numbers `page`."""
        return {
            "searchText": "",
            **{name: [] for name in _TEXTS},
            **dict.fromkeys(_FLAGS, False),
            "lastSeenAt": dict(_OPEN_RANGE),
            "createdAt": dict(_OPEN_RANGE),
            "hasOrdered": dict(_NO_ORDER),
            self.field: {"startAt": iso(self.start), "endsAt": iso(self.end)},
            "applicableFilters": list(self.applicable),
            **self.filters,
            "isContact": self.is_contact,
            "page": page,
            # Any other value may start an export job on the server: a read must stay a read.
            "isExport": "none",
        }

    def span(self) -> str:
        """The range as text, for messages."""
        if self.start is None and self.end is None:
            return "everything"
        return f"{self.field} {iso(self.start) or '...'} to {iso(self.end) or '...'}"


def iso(milliseconds: int | None) -> str:
    """A time in the API's format, `2025-01-05T10:00:00.000Z`, in the years 1 to 9999; "" for an open end."""
    if milliseconds is None:
        return ""
    return to_datetime(milliseconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def checked_filters(filters: Mapping[str, object]) -> dict[str, object]:
    """`filters` if the API has every name and each value has its type. Raises UsageError with the nearest name."""
    for name, value in filters.items():
        where = f"extract.filters.{redacted(name)}"
        if name not in FILTERS:
            nearest = difflib.get_close_matches(name, FILTERS, n=1, cutoff=0.0)[0]
            raise UsageError(f"the API has no filter {redacted(name)}", where=where, hint=f"Did you mean {nearest}?")
        if not isinstance(value, FILTERS[name]):
            raise UsageError(f"expected a value of type {FILTERS[name].__name__}, not {value!r}", where=where)
    return dict(filters)
