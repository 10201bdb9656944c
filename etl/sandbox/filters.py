"""Every filter of a request, as a table of predicates, and the date windows, which an index answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from etl.sandbox.contacts import Contact
from etl.sandbox.settings import Settings
from etl.sandbox.times import DAY, EVER, MILLISECOND, SECOND, Granule, Span, read, window

Body = Mapping[str, Any]
"""A decoded request body, as any client may send it."""
Predicate = Callable[[Contact], bool]

EMPTY_BODY: Body = MappingProxyType(
    {
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
)
"""A body with every field of the API that filters nothing: page 1 of the contacts."""
OPTIONAL = frozenset({"tagsV2", "isSubscriber", "ctwaNewUsers", "ctwaOldUsers"})
"""Undocumented fields, only seen in a client: no server may require them."""

_Listed = Callable[[Contact], tuple[str, ...]]
LISTS: Mapping[str, _Listed] = MappingProxyType(
    {
        "tags": lambda contact: contact.facts.tags,
        "status": lambda contact: (contact.status,),
        "_botWebsite": lambda contact: contact.facts.bots,
        "_botWhatsapp": lambda contact: contact.facts.bots,
        "_botTelegram": lambda contact: contact.facts.bots,
        "_botFacebook": lambda contact: contact.facts.bots,
        "_botAutomation": lambda contact: contact.facts.bots,
        "_agentAssigned": lambda contact: (contact.facts.agent,),
        "segments": lambda contact: contact.facts.segments,
        "lastMessageBy": lambda contact: (contact.last_by,),
    }
)
"""List filters: the contact has one of the values. `tagsV2` is ignored, as its meaning is UNKNOWN."""
FLAGS: Mapping[str, Predicate] = MappingProxyType(
    {
        "isOnline": lambda contact: contact.facts.online,
        "userInteracted": lambda contact: contact.facts.interacted,
        "isLiveChatActive": lambda contact: contact.facts.live_chat,
        "isSubscriber": lambda contact: contact.facts.subscriber,
        "ctwaNewUsers": lambda contact: contact.facts.ad_click == "new",
        "ctwaOldUsers": lambda contact: contact.facts.ad_click == "old",
    }
)
"""Boolean filters, honoured only if named in `applicableFilters`; then false filters as well as true."""
DATES = ("createdAt", "lastSeenAt")
RESOLUTIONS = MappingProxyType({"ms": MILLISECOND, "s": SECOND, "day": DAY})


@dataclass(frozen=True, slots=True)
class Query:
    """The meaning of a request."""

    is_contact: bool
    page: int
    created: Span
    seen: Span
    predicates: tuple[Predicate, ...]
    filters: Body
    """The body without its page; equal for all pages of one listing."""
    wants_deleted: bool
    """The status filter names DELETED."""


def query(body: Body, settings: Settings) -> Query:
    """The meaning of a valid body on this server."""
    named = frozenset(body.get("applicableFilters", ()))
    created, seen = (_dates(body.get(field, {}), settings, named=field in named) for field in DATES)
    return Query(
        is_contact=body["isContact"],
        page=body["page"],
        created=created,
        seen=seen,
        predicates=tuple(_predicates(body, named, lists_named=settings.lists_named)),
        filters={field: value for field, value in body.items() if field != "page"},
        wants_deleted="DELETED" in body.get("status", ()),
    )


def _dates(value: Mapping[str, str], settings: Settings, *, named: bool) -> Span:
    honoured = settings.applicable_filters == "free" or (settings.applicable_filters == "named" and named)
    start, end = value.get("startAt", ""), value.get("endsAt", "")
    if not honoured or not (start or end):
        return EVER
    zone = timedelta(minutes=settings.zone_offset_minutes)
    resolution = Granule(RESOLUTIONS[settings.granularity], settings.zone_offset_minutes * 60 * SECOND)
    return window(
        read(start, zone) if start else None,
        read(end, zone) if end else None,
        resolution,
        start_in=settings.start_bound == "inclusive",
        end_in=settings.end_bound == "inclusive",
    )


def _predicates(body: Body, named: frozenset[str], *, lists_named: bool) -> list[Predicate]:
    search, ordered = body.get("searchText", ""), body.get("hasOrdered", {})
    listed = [name for name in LISTS if body.get(name) and (name in named or not lists_named)]
    return [
        *((_matches(search),) if search else ()),
        *(_has_one(LISTS[name], frozenset(body[name])) for name in listed),
        *(_is(FLAGS[name], wanted=body[name]) for name in FLAGS if name in named and name in body),
        *((_ordered(ordered),) if ordered.get("status") or "hasOrdered" in named else ()),
    ]


def _matches(search: str) -> Predicate:
    """Name, e-mail or phone contains the text, in any case."""
    text = search.casefold()
    return lambda contact: any(
        text in fact.casefold() for fact in (contact.facts.name, contact.facts.email, contact.facts.phone)
    )


def _has_one(values: _Listed, wanted: frozenset[str]) -> Predicate:
    return lambda contact: not wanted.isdisjoint(values(contact))


def _is(flag: Predicate, *, wanted: bool) -> Predicate:
    return lambda contact: flag(contact) is wanted


def _ordered(wanted: Body) -> Predicate:
    """Has ordered (since `lastAt`), or has not."""
    since = read(wanted["lastAt"], timedelta()) if wanted.get("lastAt") else EVER.start
    if not wanted.get("status"):
        return lambda contact: contact.facts.ordered_at is None
    return lambda contact: contact.facts.ordered_at is not None and contact.facts.ordered_at >= since
