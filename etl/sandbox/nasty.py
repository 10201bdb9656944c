"""Oddities seen or to be expected in real answers, as a table of small edits to one contact."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from etl.sandbox.contacts import Contact
from etl.sandbox.times import SECOND

Edit = Callable[[Contact], Contact]

FAR_FUTURE = 32_472_144_000 * SECOND
"""2999-01-01."""

_VALUE = r'(?:"[^"]*"|\[[^\[\]]*\]|\{[^{}]*\}|[\w.+-]+)'
_NAME = "userProvidedName|name"


def _value(keys: str, value: str) -> Edit:
    """Give the first member with one of the keys another value; a contact without any gets it at its top level."""
    pattern, raw = re.compile(f'"({keys})":{_VALUE}'.encode()), value.encode("utf-8", "surrogateescape")
    missing = b'"' + keys.partition("|")[0].encode() + b'":' + raw + b","

    def edit(contact: Contact) -> Contact:
        head, count = pattern.subn(lambda match: b'"' + match[1] + b'":' + raw, contact.head, count=1)
        return replace(contact, head=head if count else contact.head + missing)

    return edit


def _members(text: str) -> Edit:
    """Add members at the top level."""
    return lambda contact: replace(contact, head=contact.head + text.encode())


def _identity(spell: Callable[[Contact], str], key: Callable[[Contact], str]) -> Edit:
    """Write `_id` differently; `key` is its text, by which the truth log identifies the contact."""

    def edit(contact: Contact) -> Contact:
        rest = contact.head.partition(b'",')[2]
        return replace(contact, id=key(contact), head=b"{" + spell(contact).encode() + rest)

    return edit


def _nobody(member: str) -> Edit:
    """An `_id` that identifies no contact."""
    return _identity(lambda _: member, lambda contact: f"#{contact.serial}")


def _times(created_as: str = "ms", seen_as: str = "ms") -> Edit:
    """Write the times in another format; the instants, and so the windows that contain them, stay the same."""
    return lambda contact: replace(contact, created_as=created_as, seen_as=seen_as)


def _unseen(seen_as: str) -> Edit:
    return lambda contact: replace(contact, last_seen=None, seen_as=seen_as)


def _finer(contact: Contact) -> Contact:
    """Times with microseconds, which are different instants."""
    created = None if contact.created is None else contact.created + 123
    seen = None if contact.last_seen is None else contact.last_seen + 456
    return replace(contact, created=created, last_seen=seen, created_as="us", seen_as="us")


REJECTED: Mapping[str, Edit] = MappingProxyType(
    {
        "id_missing": _nobody(""),
        "id_null": _nobody('"_id":null,'),
        "id_empty": _nobody('"_id":"",'),
        "id_true": _nobody('"_id":true,'),
        "id_object": _nobody('"_id":{"$oid":"65aa0000000000000000a001"},'),
        "id_list": _nobody('"_id":["65aa0000000000000000a001"],'),
        "id_twice": _nobody('"_id":"65aa0000000000000000a001","_id":"65aa0000000000000000a002",'),
    }
)
"""Contacts without a usable key: they belong into `rejects`; the truth log names them `#serial`."""

KEPT: Mapping[str, Edit] = MappingProxyType(
    {
        "id_number": _identity(lambda c: f'"_id":{7 * 10**12 + c.serial},', lambda c: str(7 * 10**12 + c.serial)),
        "id_space": _identity(lambda c: f'"_id":"{c.id} ",', lambda c: c.id + " "),
        "id_upper": _identity(lambda c: f'"_id":"{c.id.upper()}",', lambda c: c.id.upper()),
        "id_same_twice": _identity(lambda c: f'"_id":"{c.id}","_id":"{c.id}",', lambda c: c.id),
        "surrogate": _value(_NAME, r'"cut in an emoji \ud83d"'),
        "nul": _value(_NAME, r'"a\u0000b"'),
        "invalid_utf8": _value(_NAME, '"caf\udce9"'),
        "bidi": _value(_NAME, '"\u202egnp.exe\u202c \u200f\u2066x\u2069"'),
        "control": _value(_NAME, r'"\u001b[31mred\u0007\t\r\n"'),
        "formula": _value(_NAME, '"=HYPERLINK(0)"'),
        "sql": _value(_NAME, '"Robert\'); DROP TABLE contacts;--"'),
        "html": _value(_NAME, '"<script>alert(1)</script>"'),
        "long_text": _value(_NAME, '"' + "very long " * 2000 + '"'),
        "spaces": _value(_NAME, '"  kept as it is\u00a0 "'),
        "name_number": _value(_NAME, "12345"),
        "name_object": _value(_NAME, '{"first":"Ada","last":"Example"}'),
        "name_true": _value(_NAME, "true"),
        "key_twice": _members('"status":"REVIEW",'),
        "phone_number": _value("number", "5550100"),
        "phone_float": _value("number", "9.876543210e9"),
        "phone_text": _value("phone", '"+1 212 555 0100"'),
        "phone_null": _value("phone", "null"),
        "big_integer": _value("websiteVisits", "123456789012345678901234567890"),
        "huge_exponent": _value("websiteVisits", "1e400"),
        "number_text": _value("websiteVisits", '"12"'),
        "number_blank": _value("websiteVisits", '""'),
        "number_fraction": _value("websiteVisits", "1.5"),
        "boolean_text": _value("isOnline", '"true"'),
        "boolean_number": _value("isOnline", "0"),
        "boolean_odd": _value("isOnline", '"perhaps"'),
        "email_list": _value("email", '["a@example.com","b@example.com"]'),
        "tags_text": _value("tags", '"vip,lead"'),
        "tags_null": _value("tags", "null"),
        "tags_mixed": _value("tags", '["vip",7,null,true,{"name":"x"}]'),
        "tags_many": _value("tags", "[" + ",".join(f'"tag {n}"' for n in range(500)) + "]"),
        "attributes_repeated": _value("attributes", '[{"key":"city","value":"Lyon"},{"key":"city","value":"Oslo"}]'),
        "attributes_typed": _value(
            "attributes", '[{"key":"n","value":5},{"key":"o","value":{"a":1}},{"key":"z","value":null},{"value":"w"}]'
        ),
        "attributes_map": _value("attributes", '{"city":"Lyon"}'),
        "platform_text": _value("platform", '"WHATSAPP"'),
        "unread_mixed": _value("unreadMessage", '["text",5,{"at":"2025-01-01T00:00:00.000Z"},null]'),
        "urls_objects": _value("urlsVisited", '[{"url":"https://shop.example.com/","at":"","n":2},"plain"]'),
        "unknown_object": _members('"loyalty":{"level":"gold","history":[{"year":2024,"points":12.5}]},'),
        "unknown_text": _members('"loyalty":"gold",'),
        "unknown_list": _members('"loyalty":[1,"two",{"three":3}],'),
        "unknown_deep": _members('"deep":' + '{"d":' * 40 + "1" + "}" * 40 + ","),
        "unknown_key": _members('"":1,"with.dot":2,"with \\"quote\\"":3,"$oid":"x","_ID":"y",'),
        "sparse": lambda contact: replace(contact, head=contact.head.partition(b'",')[0] + b'",'),
        "status_empty": lambda contact: replace(contact, status=""),
        "seen_blank": _unseen("blank"),
        "seen_null": _unseen("null"),
        "seen_garbage": _times(seen_as="garbage"),
        "seen_epoch_s": _times(seen_as="epoch_s"),
        "seen_epoch_text": _times(seen_as="epoch_text"),
        "seen_future": lambda contact: replace(contact, last_seen=FAR_FUTURE),
        "times_microseconds": _finer,
        "times_zoneless": _times("no_zone", "no_zone"),
        "times_offset": _times("offset", "offset"),
        "times_epoch_ms": _times("epoch_ms", "epoch_ms"),
    }
)
"""Contacts that must be kept, regardless of the odd value."""

KINDS: Mapping[str, Edit] = MappingProxyType({**REJECTED, **KEPT})
