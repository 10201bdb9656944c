"""Create contacts: drawn from the tables of `people`, as a function of seed, serial and time."""

from dataclasses import replace
from random import Random
from typing import TypeVar

from etl.sandbox import nasty, people
from etl.sandbox.contacts import Contact, Facts
from etl.sandbox.settings import Settings
from etl.sandbox.times import DAY, SECOND, iso

YEARS = 3 * 365 * DAY
"""The span over which the contacts of a new account were created."""

Item = TypeVar("Item")


def object_id(seed: int, serial: int, created: int) -> str:
    """A Mongo ObjectId: the creation second, five bytes of the machine, a counter of three bytes."""
    machine = (seed + 1) * 0x9E3779B97F & 0xFFFFFFFFFF
    return f"{created // SECOND & 0xFFFFFFFF:08x}{machine:010x}{serial & 0xFFFFFF:06x}"


def newborn(settings: Settings, draw: Random, serial: int, created: int | None, now: int) -> Contact:
    """Contact number `serial`; for one of the past (`created` None) the moment is drawn, too.

    The `_id` of a contact that is not from the past shows when it was entered, unlike `createdAt`.
    """
    draw.seed(settings.seed << 32 | serial)
    past = created is None
    moment = creation(draw, now) if created is None else created
    seen = activity(draw, moment, now) if past else now
    make = plain if settings.small else real
    contact = make(draw, serial, object_id(settings.seed, serial, moment if past else now), moment, seen)
    return _odd(settings, draw, contact)


def _odd(settings: Settings, draw: Random, contact: Contact) -> Contact:
    """The contact, or with the shares of the settings one without `createdAt` or with an oddity."""
    chance = draw.random()
    if chance < settings.no_created_at_share:
        return replace(contact, created=None, created_as=_ABSENT[contact.serial % len(_ABSENT)])
    if chance < settings.no_created_at_share + settings.nasty_share:
        kinds = settings.nasty_kinds or _KINDS
        return nasty.KINDS[kinds[int(draw.random() * len(kinds))]](contact)
    return contact


_ABSENT = ("ms", "blank", "null")
"""Formats without a time: no member at all, "" or null."""
_KINDS = tuple(nasty.KINDS)


def creation(draw: Random, now: int) -> int:
    """A moment of the past three years: growing all the time, and a quarter in bursts of some minutes."""
    if draw.random() < 0.25:
        age = (int(draw.random() * 40) / 40 + 0.01) * YEARS - draw.gauss(0, 300) * SECOND
    else:
        age = draw.random() ** 1.7 * YEARS + SECOND
    return (now - int(age)) // 1000 * 1000


def activity(draw: Random, created: int, now: int) -> int:
    """When the contact was last seen: at any time since its creation, most often soon after it."""
    return created + int(draw.random() ** 3 * (now - created)) // 1000 * 1000


def plain(draw: Random, serial: int, identity: str, created: int, seen: int) -> Contact:
    """A contact of a few fields."""
    name, email, number = f"Example {serial}", f"c{serial}@example.com", f"21255501{serial % 100:02d}"
    head = (
        f'{{"_id":"{identity}","platform":["WHATSAPP"],"isOnline":false,"profile":{{"userDetails":{{"name":"{name}",'
        f'"contact":{{"email":"{email}","phone":{{"number":"{number}","prefix":"1"}}}},"tags":["vip"],'
        f'"attributes":[{{"key":"city","value":"Lyon"}}]}}}},"segments":[],'
    )
    facts, status = Facts(name, email, "1" + number, ("vip",)), people.STATUSES[serial % len(people.STATUSES)]
    return Contact(serial, identity, head.encode(), facts, status, draw.random() < 0.8, created, seen, seen)


def real(draw: Random, serial: int, identity: str, created: int, seen: int) -> Contact:
    """A contact with all the fields its channel has, 1.2 to 2 KB of JSON."""
    channel, country = _pick(draw, people.CHANNELS), _pick(draw, people.COUNTRIES)
    number = country.stem + str(int(draw.random() * 10**country.free)).zfill(country.free)
    facts = _facts(draw, serial, channel, country.prefix.lstrip("+") + number.lstrip("0"), seen)
    details = ",".join(
        (*_named(draw, channel, facts, country), *_contact(facts, country, number), *_labels(draw, serial, facts))
    )
    head = (
        f'{{"_id":"{identity}",{_owner(channel, identity, facts)},"isSubscriber":{_flag(facts.subscriber)},'
        f'"isOnline":{_flag(facts.online)},"userInteracted":{_flag(facts.interacted)},'
        f'"profile":{{"userDetails":{{{details}}},"marketing":{{"urlsVisited":[{_urls(draw, channel)}]}},'
        f'"notes":[{_notes(draw, channel, serial)}]}},{_flags(draw, channel, facts)}'
    )
    return Contact(
        *(
            serial,
            identity,
            head.encode(),
            facts,
            _pick(draw, people.STATUSES),
            draw.random() < 0.8,
            created,
            seen,
            seen,
        ),
        last_by=_pick(draw, people.SPEAKERS),
        last_text=_pick(draw, people.MESSAGES),
        unread=int(draw.random() ** 4 * 12),
    )


def _pick(draw: Random, table: tuple[Item, ...]) -> Item:
    """One of the table; several times as fast as `Random.choice`."""
    return table[int(draw.random() * len(table))]


def _some(draw: Random, table: tuple[Item, ...], most: int) -> tuple[Item, ...]:
    """Up to `most` neighbours of the table."""
    first = int(draw.random() * len(table))
    return table[first : first + int(draw.random() * (most + 1))]


def _flag(value: object) -> str:
    return "true" if value else "false"


def _texts(values: tuple[str, ...]) -> str:
    return "[" + ",".join(f'"{value}"' for value in values) + "]"


def _facts(draw: Random, serial: int, channel: str, phone: str, seen: int) -> Facts:
    chance = draw.random()
    phoned = channel == "WHATSAPP" or chance < 0.4
    return Facts(
        name=f"{_pick(draw, people.FIRST_NAMES)} {_pick(draw, people.LAST_NAMES)}",
        email=f"contact.{serial}@example.com" if channel == "WEBSITE" or chance < 0.3 else "",
        phone=phone if phoned else "",
        tags=_some(draw, people.TAGS, 4),
        bots=(_pick(draw, people.BOTS[channel]), *((people.AUTOMATION,) if chance < 0.1 else ())),
        agent=_pick(draw, people.AGENTS) if chance < 0.35 else "",
        segments=_some(draw, people.SEGMENTS, 2),
        subscriber=chance < 0.7,
        online=chance > 0.97,
        interacted=chance < 0.9,
        live_chat=0.5 < chance < 0.55,
        ad_click=("new" if chance < 0.15 else "old") if channel == "WHATSAPP" and chance < 0.3 else "",
        ordered_at=seen if chance < 0.2 else None,
    )


def _owner(channel: str, identity: str, facts: Facts) -> str:
    """The owners of the contact; website visitors have a `uuid`, and any contact may have an agent."""
    visitor = f'"uuid":"{identity[:8]}-{identity[8:12]}-4{identity[13:16]}-8{identity[17:20]}-{identity[12:]}",'
    return (
        f'{visitor if channel == "WEBSITE" else ""}"_agency":"{people.AGENCY}","_customer":"{people.CUSTOMER}",'
        + (f'"_agentAssigned":"{facts.agent}",' if facts.agent else "")
        + f'"platform":["{channel}"],"secondaryPlatform":[{"" if channel == "WEBSITE" else _SECONDARY}]'
    )


_SECONDARY = '"website"'


def _named(draw: Random, channel: str, facts: Facts, country: people.Country) -> tuple[str, ...]:
    """The members of `userDetails` that identify the person, which differ by channel."""
    handle = facts.email.partition("@")[0] or f"user{int(draw.random() * 10**8):08d}"
    picture = f'"picture":"https://cdn.example.com/pictures/{handle}/profile-256x256.jpg"'
    number = f"{int(draw.random() * 10**15):015d}"
    if channel == "WEBSITE":
        where = f'"city":"{country.city}","country":"{country.name}","gender":"{_pick(draw, people.GENDERS)}"'
        return f'"name":"{facts.name}"', picture, where
    code = country.prefix.lstrip("+")
    spaced = f"{code} {facts.phone[len(code) :]}" if draw.random() < 0.03 else facts.phone
    return {
        "WHATSAPP": (f'"userProvidedName":"{facts.name}"', f'"whatsAppNumber":"{spaced}"', '"country":""'),
        "TELEGRAM": (f'"userProvidedName":"{facts.name}"', f'"telegramUserName":"{handle}"', picture),
        "FACEBOOK": (f'"name":"{facts.name}"', f'"facebookProfileId":"{number}"', picture, '"gender":""'),
        "INSTAGRAM": (f'"name":"{facts.name}"', f'"instagramProfileId":"{number}"', picture),
    }[channel]


def _contact(facts: Facts, country: people.Country, number: str) -> tuple[str]:
    prefix, national = (country.prefix, number) if facts.phone else ("", "")
    return (f'"contact":{{"email":"{facts.email}","phone":{{"number":"{national}","prefix":"{prefix}"}}}}',)


def _labels(draw: Random, serial: int, facts: Facts) -> tuple[str, str]:
    """Tags and attributes; the attributes fill the contact up to its usual size."""
    first, count = int(draw.random() * len(_ATTRIBUTES)), 7 + int(draw.random() * 8)
    order = f'{{"key":"order_number","value":"{100000 + serial}"}}'
    return (
        f'"tags":{_texts(facts.tags)}',
        f'"attributes":[{order},{",".join(_ATTRIBUTES_TWICE[first : first + count])}]',
    )


_ATTRIBUTES = tuple(f'{{"key":"{key}","value":"{value}"}}' for key, value in people.ATTRIBUTES)
_ATTRIBUTES_TWICE = _ATTRIBUTES * 2


def _urls(draw: Random, channel: str) -> str:
    return _texts(_some(draw, people.PAGES, 3))[1:-1] if channel == "WEBSITE" else ""


def _notes(draw: Random, channel: str, serial: int) -> str:
    if draw.random() > (0.5 if channel == "WEBSITE" else 0.15):
        return ""
    note = f'{{"title":"Call {serial}","description":"{_pick(draw, people.MESSAGES)}"'
    return note + (f',"_id":"65aa0000000000{serial & 0xFFFFFFFFFF:010x}"}}' if channel == "WEBSITE" else "}")


def _flags(draw: Random, channel: str, facts: Facts) -> str:
    """The rest of the constant members, ending in the comma that the changing ones follow."""
    chance = draw.random()
    last_at = f',"lastAt":"{iso(facts.ordered_at)}"' if facts.ordered_at is not None else ""
    unread = '{"text":"Are you there?"}' if chance < 0.05 else ""
    return (
        f'"isImported":{_flag(chance < 0.2)},"isMigrated":{_flag(chance > 0.95)},"segments":{_texts(facts.segments)},'
        f'"isLiveChatActive":{_flag(facts.live_chat)},"isPaid":{_flag(0.3 < chance < 0.5)},'
        f'"websiteVisits":{int(chance * 20) if channel == "WEBSITE" else 0},'
        f'"hasOrdered":{{"status":{_flag(facts.ordered_at is not None)}{last_at}}},"unreadMessage":[{unread}],'
    )
