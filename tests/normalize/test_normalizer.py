"""Normalizing a contact: cells, `extra`, rejects and counts, case by case."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from etl.errors import ContractError
from etl.model import NormalizedBatch, RawPage
from etl.normalize.normalizer import Normalizer
from etl.schema import NORMALIZED_SCHEMA, REJECT_PART_SCHEMA

SAMPLE = (
    '{"_id":"65aa0000000000000000a001","_agency":"65aa0000000000000000b001","_customer":"65aa0000000000000000c001",'
    '"platform":["WHATSAPP"],"secondaryPlatform":["website"],"isSubscriber":true,"websiteVisits":0,"isOnline":false,'
    '"userInteracted":true,"profile":{"userDetails":{"contact":{"email":"","phone":{"number":"5550100","prefix":"1"}},'
    '"userProvidedName":"Ada Example","tags":["vip"],"attributes":[{"key":"city","value":"Lyon"}],"country":"",'
    '"whatsAppNumber":"15550100"},"marketing":{"urlsVisited":[]},"notes":[]},"status":"OPEN",'
    '"lastMessage":{"by":"user","at":"2025-01-05T10:00:00.000Z"},"isContact":true,"isImported":false,"isMigrated":false,'
    '"segments":[],"isLiveChatActive":false,"isPaid":true,"hasOrdered":{"status":false},"unreadMessages":0,'
    '"unreadMessage":[],"lastSeenAt":"2025-01-05T10:00:00.000Z","__v":0,'
    '"createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-05T10:00:00.000Z"}'
)


ATTRIBUTES, NOTES = "profile.userDetails.attributes", "profile.notes"


def normalized(*contacts: str | bytes, separator: bytes = b",") -> NormalizedBatch:
    """The contacts, normalized as one page."""
    raws = [contact.encode() if isinstance(contact, str) else contact for contact in contacts]
    batch = Normalizer("main")([RawPage(b'{"success":true,"data":[' + separator.join(raws) + b"]}", len(raws), 7)])
    batch.contacts.validate(full=True)
    batch.rejects.validate(full=True)
    assert batch.contacts.schema == NORMALIZED_SCHEMA
    assert batch.rejects.schema == REJECT_PART_SCHEMA
    assert len(batch.contacts) + len(batch.rejects) == batch.counts["received"] == len(raws)
    return batch


def row(contact: str | bytes) -> dict[str, object]:
    """The single row of a contact, its attributes as pairs."""
    found: dict[str, object] = normalized(contact).contacts.to_pylist()[0]
    return found


def cell(path: str, token: str, column: str) -> tuple[object, object]:
    """The cell for a value at a path, and the rest of the value in `extra`."""
    text = token
    for name in reversed(path.split(".")):
        text = f"{json.dumps(name)}:{text}" if text is token else f"{json.dumps(name)}:{{{text}}}"
    found = row(f'{{"_id":"x",{text}}}')
    return found[column], found["extra"]


def test_sample_of_the_contract() -> None:
    """The sample contact of the API's contract fills the expected columns and leaves nothing in `extra`."""
    found = row(SAMPLE)
    told = {name: value for name, value in found.items() if value not in (None, False, 0, [])}
    seen, created = datetime(2025, 1, 5, 10, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
    assert told == {
        "account": "main",
        "contact_id": "65aa0000000000000000a001",
        "agency_id": "65aa0000000000000000b001",
        "customer_id": "65aa0000000000000000c001",
        "platforms": ["WHATSAPP"],
        "secondary_platforms": ["website"],
        "status": "OPEN",
        "user_provided_name": "Ada Example",
        "phone_prefix": "1",
        "phone_number": "5550100",
        "whatsapp_number": "15550100",
        "tags": ["vip"],
        "attributes": [("city", "Lyon")],
        "is_subscriber": True,
        "user_interacted": True,
        "is_contact": True,
        "is_paid": True,
        "last_message_by": "user",
        "last_message_at": seen,
        "last_seen_at": seen,
        "created_at": created,
        "updated_at": seen,
        "read_no": 7,
    }
    assert (found["website_visits"], found["is_online"], found["notes"], found["email"]) == (0, False, [], None)


BIG = "9" * 5000
INTEGERS = [
    ("0", 0),
    ("-0", 0),
    ("12", 12),
    ("-7", -7),
    ("12.0", 12),
    ("12.000", 12),
    ("1.2e1", 12),
    ("1e3", 1000),
    ("120e-1", 12),
    ("9223372036854775807", 2**63 - 1),
    ("-9223372036854775808", -(2**63)),
    ('"12"', 12),
    ('"-12"', -12),
    ('"12.0"', 12),
    ('"012"', 12),
    ("null", None),
    ('""', None),
]
NO_INTEGERS = [
    "1.5",
    "0.1",
    "9223372036854775808",
    "-9223372036854775809",
    "1e400",
    "1e-400",
    BIG,
    "1e19",
    "9223372036854775807.5",
    "true",
    "false",
    '"1.5"',
    '"abc"',
    '" 12"',
    '"12 "',
    '"+12"',
    '"1_000"',
    '"1,000"',
    '"0x10"',
    '"NaN"',
    '"Infinity"',
    '"\u0661\u0662"',
    '["12"]',
    '{"n":12}',
    '"9223372036854775808"',
    '"-"',
    '"."',
    '"e5"',
]


@pytest.mark.parametrize(("token", "expected"), INTEGERS)
def test_integer_cells(token: str, expected: int | None) -> None:
    """Integers, also as text or with a zero fraction, become integers (A31, A32)."""
    assert cell("websiteVisits", token, "website_visits") == (expected, None)


@pytest.mark.parametrize("token", NO_INTEGERS, ids=lambda token: token[:24])
def test_what_is_no_integer_is_kept(token: str) -> None:
    """Any other value is null, and `extra` keeps it as the server wrote it, never rounded (A32)."""
    kept = json.dumps(json.loads(token), ensure_ascii=False, separators=(",", ":")) if token[0] in '"[{' else token
    assert cell("websiteVisits", token, "website_visits") == (None, f'{{"websiteVisits":{kept}}}')


BOOLEANS = [
    ("true", True),
    ("false", False),
    ('"true"', True),
    ('"false"', False),
    ('"True"', True),
    ('"FALSE"', False),
    ("1", True),
    ("0", False),
    ("1.0", True),
    ("0.0", False),
    ('"1"', True),
    ('"0"', False),
    ("null", None),
    ('""', None),
]
NO_BOOLEANS = ["2", "-1", "0.5", '"yes"', '"no"', '"t"', '" true"', "[true]", '{"a":true}', '"on"', '"Y"', "1e400"]


@pytest.mark.parametrize(("token", "expected"), BOOLEANS)
def test_boolean_cells(token: str, expected: bool | None) -> None:
    """True and false as words or as one and zero become booleans (A31)."""
    assert cell("hasOrdered.status", token, "has_ordered") == (expected, None)


@pytest.mark.parametrize("token", NO_BOOLEANS)
def test_what_is_no_boolean_is_kept(token: str) -> None:
    """Any other value is null, and `extra` keeps it under its own path."""
    assert cell("hasOrdered.status", token, "has_ordered") == (None, f'{{"hasOrdered":{{"status":{token}}}}}')


TEXTS = [
    ('"a"', "a"),
    ('" a "', " a "),
    ("5", "5"),
    ("0.10", "0.10"),
    ("1e400", "1e400"),
    ("-0", "-0"),
    (BIG, BIG),
    ("true", "true"),
    ("false", "false"),
    ("null", None),
    ('""', None),
    ("[]", "[]"),
    ("{}", "{}"),
    ('[1.50, "a",null]', '[1.50,"a",null]'),
    ('{"b": 1, "a": "\u00e9"}', '{"b":1,"a":"\u00e9"}'),
    ('"\u00e9"', "\u00e9"),
    ('"\\u00e9"', "\u00e9"),
    ('"\\ud83d\\ude00"', "\U0001f600"),
    ('"\\ud83d"', "\ufffd"),
    ('"a\\ude00b"', "a\ufffdb"),
    ('"\\ud83d\\ud83d\\ude00"', "\ufffd\U0001f600"),
    ('"\\ud83dx"', "\ufffdx"),
    ('"\\u0000"', "\ufffd"),
    ('"a\\u0000b"', "a\ufffdb"),
    ('"\\\\u0000"', "\\u0000"),
    ('"\\\\ud83d"', "\\ud83d"),
    ('"\\\\\\ud83d"', "\\\ufffd"),
    ('"\u202eabc"', "\u202eabc"),
    ('"\\u200b"', "\u200b"),
    ('"2025-01-01"', "2025-01-01"),
    ('"null"', "null"),
    ('"\ufffd"', "\ufffd"),
    ('"\\n\\t\\/"', "\n\t/"),
    ('{"a":1,"a":2}', '{"a":2}'),
    ('"NaN"', "NaN"),
]


@pytest.mark.parametrize(("token", "expected"), TEXTS, ids=[token[:24] for token, _ in TEXTS])
def test_text_cells(token: str, expected: str | None) -> None:
    """Text is unchanged but for characters that no column can hold; other values become JSON text (A31, A32, A35)."""
    assert cell("profile.userDetails.name", token, "name") == (expected, None)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\xff", "\ufffd"),
        (b"a\xffb", "a\ufffdb"),
        (b"\xc0\x80", "\ufffd\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xf0\x9f\x98", "\ufffd"),
        (b"\xf0\x9f\x98\x80", "\U0001f600"),
        (b"\xc3(", "\ufffd("),
        (b"\xf4\x90\x80\x80", "\ufffd" * 4),
        (b"\xff\\ud83d", "\ufffd\ufffd"),
        (b"\\ud83d\xff", "\ufffd\ufffd"),
    ],
)
def test_invalid_utf8_is_replaced(raw: bytes, expected: str) -> None:
    """Invalid UTF-8 becomes U+FFFD, as in every decoder, and is counted (A35)."""
    batch = normalized(b'{"_id":"x","status":"' + raw + b'"}', b'{"_id":"y","status":"OPEN"}')
    assert batch.contacts["status"].to_pylist() == [expected, "OPEN"]
    assert batch.counts["replaced"] == ("\ufffd" in expected)


def at(*parts: int) -> datetime:
    """A time in UTC."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


NOON = at(2025, 1, 5, 12)
TIMES = [
    ("null", None),
    ('""', None),
    *(
        (f'"2025-01-05{form}"', NOON)
        for form in (
            "T12:00:00.000Z",
            "T12:00:00Z",
            "T12:00Z",
            "T12Z",
            "T12:00:00.000000Z",
            "T12:00:00.0Z",
            " 12:00:00Z",
            "T12:00:00",
            "T12:00",
            "T12",
            " 12:00:00",
            "t12:00:00z",
            "T12:00:00+00:00",
            "T12:00:00-00:00",
            "T12:00:00+0000",
            "T12:00:00+00",
            "T13:00:00+01:00",
            "T13:00:00+0100",
            "T13:00:00+01",
            "T17:30:00+05:30",
            "T04:00:00-08:00",
            "T12:00:00,000Z",
            "T12:00:00.000000000Z",
            "T12:00:00.0000009Z",
        )
    ),
    ('"2025-01-06T11:59:00+23:59"', NOON),
    ('"2025-01-04T12:01:00-23:59"', NOON),
    ('"2025-01-05"', at(2025, 1, 5)),
    ('"2025-01-05T12:00:00.5Z"', NOON + timedelta(milliseconds=500)),
    ('"2025-01-05T12:00:00.123456Z"', NOON + timedelta(microseconds=123456)),
    ('"2025-01-05T12:00:00.1234567Z"', NOON + timedelta(microseconds=123456)),
    ('"2024-02-29T00:00:00Z"', at(2024, 2, 29)),
    ('"2025-03-30T02:30:00"', at(2025, 3, 30, 2, 30)),
    ('"0001-01-01T00:00:00Z"', at(1, 1, 1)),
    ('"1969-12-31T23:59:59Z"', at(1969, 12, 31, 23, 59, 59)),
    ('"9999-12-31T23:59:59.999999Z"', at(9999, 12, 31, 23, 59, 59, 999999)),
    ('"2999-01-01T00:00:00Z"', at(2999, 1, 1)),
    *(
        (token, NOON)
        for token in (
            "1736078400",
            "1736078400000",
            "1736078400000000",
            "1736078400.0",
            "1736078400000.000",
            "1.7360784e9",
            '"1736078400"',
            '"1736078400000"',
            '"1736078400000000"',
            '"1736078400.000"',
        )
    ),
    ("1736078400.5", NOON + timedelta(milliseconds=500)),
    ("1736078400000.25", NOON + timedelta(microseconds=250)),
    ('"1736078400.123456"', NOON + timedelta(microseconds=123456)),
    ("0", at(1970, 1, 1)),
    ("-1", at(1969, 12, 31, 23, 59, 59)),
    ("99999999999", at(5138, 11, 16, 9, 46, 39)),
    ("100000000000", at(1973, 3, 3, 9, 46, 40)),
]
NO_TIMES = [
    *(
        f'"{text}"'
        for text in (
            "2025",
            "2025-01",
            "20250105",
            "20250105T120000Z",
            "2025-W01-1",
            "2025-005",
            "05.01.2025",
            "01/05/2025",
            "now",
            "Sun Jan 05 2025",
            "2025-1-5",
            "2025-01-05Z",
            "2025-01-05T",
            "2025-01-05x12:00:00Z",
            "2025-01-05T12:00:00 Z",
            " 2025-01-05",
            "2025-01-05 ",
            "2025-13-01",
            "2025-00-01",
            "2025-01-32",
            "2025-02-29",
            "2025-02-30T00:00:00Z",
            "2025-01-05T24:00:00Z",
            "2025-01-05T25:00:00Z",
            "2025-01-05T12:60:00Z",
            "2025-01-05T23:59:60Z",
            "2016-12-31T23:59:60Z",
            "2025-01-05T12:00:00.Z",
            "2025-01-05T12:00:00+24:00",
            "2025-01-05T12:00:00+01:60",
            "2025-01-05T12:00:00+1:00",
            "0000-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "-0001-01-01T00:00:00Z",
            "+2025-01-05T12:00:00Z",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "12:00:00",
            "1736078400000000000",
            "12345",
            "0",
            "-1",
            "1e9",
            "+1736078400",
            "null",
            "\u0662\u0660\u0662\u0665-01-05",
        )
    ),
    "1736078400000000000",
    "1e400",
    "100000000000000000",
    "-99999999999",
    BIG,
    "true",
    "false",
    '["2025-01-05"]',
    '{"$date":"2025-01-05"}',
]


@pytest.mark.parametrize(("token", "expected"), TIMES)
def test_time_cells(token: str, expected: datetime | None) -> None:
    """ISO 8601 with offset, without zone or as a date, and epoch numbers by magnitude, are parsed (A28, A30)."""
    assert cell("lastMessage.at", token, "last_message_at") == (expected, None)


@pytest.mark.parametrize("token", NO_TIMES, ids=lambda token: token[:24])
def test_what_is_no_time_is_kept(token: str) -> None:
    """Any other value is null and kept unchanged in `extra` (A30)."""
    assert cell("lastMessage.at", token, "last_message_at") == (None, f'{{"lastMessage":{{"at":{token}}}}}')


@pytest.mark.parametrize(
    ("token", "expected", "extra"),
    [
        ('["a","b"]', ["a", "b"], None),
        ("[]", [], None),
        ("null", None, None),
        ('""', None, None),
        ('["a",null,""]', ["a", None, None], None),
        ('[1,1.50,true,{"b":1,"a":[2]},[]]', ["1", "1.50", "true", '{"b":1,"a":[2]}', "[]"], None),
        ('"a"', None, '{"segments":"a"}'),
        ("5", None, '{"segments":5}'),
        ('{"a":"b"}', None, '{"segments":{"a":"b"}}'),
        ("{}", None, None),
        ("true", None, '{"segments":true}'),
    ],
)
def test_list_cells(token: str, expected: object, extra: str | None) -> None:
    """A list becomes a list of text; any other value is null and kept in `extra` (A39, A40)."""
    assert cell("segments", token, "segments") == (expected, extra)


@pytest.mark.parametrize(
    ("token", "expected", "kept"),
    [
        ("[]", [], False),
        ("null", None, False),
        ('[{"key":"a","value":"b"}]', [("a", "b")], False),
        ('[{"key":"a","value":""}]', [("a", None)], False),
        ('[{"key":"","value":"b"}]', [("", "b")], False),
        ('[{"key":"a"}]', [("a", None)], False),
        ('[{"key":"a","value":1.50}]', [("a", "1.50")], False),
        ('[{"key":"a","value":{"x":[true]}}]', [("a", '{"x":[true]}')], False),
        ('[{"key":"a","value":"1"},{"key":"b","value":"2"},{"key":"a","value":"3"}]', [("a", "3"), ("b", "2")], True),
        ('[{"key":"a","value":"b","by":null}]', [("a", "b")], False),
        ('[{"key":5,"value":"b"},{"key":"a","value":"b"}]', [("a", "b")], True),
        ('[{"value":"b"}]', [], True),
        ('["a"]', [], True),
        ("[null]", [], True),
        ('{"a":"b"}', None, True),
        ('"a"', None, True),
    ],
)
def test_attributes(token: str, expected: object, kept: bool) -> None:
    """The last value of a key wins; if the map loses information, `extra` has the whole list as well (A40)."""
    extra = f'{{"profile":{{"userDetails":{{"attributes":{token}}}}}}}' if kept else None
    assert cell("profile.userDetails.attributes", token, "attributes") == (expected, extra)


@pytest.mark.parametrize(
    ("token", "expected", "kept"),
    [
        ("[]", [], False),
        ('[{"_id":"n","title":"t"}]', [("t", None, "n")], False),
        ('[{"description":""}]', [(None, None, None)], False),
        ("[{}]", [(None, None, None)], False),
        ('[{"title":5}]', [("5", None, None)], True),
        ("[null]", [None], False),
        ('["t"]', [None], True),
        ('"t"', None, True),
    ],
)
def test_notes(token: str, expected: list[tuple[str, ...]] | None, kept: bool) -> None:
    """A note has a title, a description and an id; a list that these do not represent is in `extra` as well (A39)."""
    notes: object = expected and [
        note and dict(zip(("title", "description", "_id"), note, strict=True)) for note in expected
    ]
    assert cell("profile.notes", token, "notes") == (notes, f'{{"profile":{{"notes":{token}}}}}' if kept else None)


@pytest.mark.parametrize(
    ("path", "items", "further"),
    [
        (ATTRIBUTES, '[{"by":"bot","key":"a","value":"b"}]', '[{"by":"bot"}]'),
        (ATTRIBUTES, '[{"key":"a"},{"at":1.50,"key":"b"},{"key":"c","x":null}]', '[{},{"at":1.50},{}]'),
        (ATTRIBUTES, '[{"key":"a","z":"","b":{"y":null,"x":[]}}]', '[{"b":{"x":[],"y":null},"z":""}]'),
        (ATTRIBUTES, '[{"key":"a","n":-0},{"key":"b","n":"\\u0000"}]', '[{"n":-0},{"n":"�"}]'),
        (ATTRIBUTES, '[{"key":"a","n":1},{"key":"a","n":2}]', '[{"key":"a","n":1},{"key":"a","n":2}]'),
        (ATTRIBUTES, '[{"n":1}]', '[{"n":1}]'),
        (NOTES, '[{"_id":"n","at":1,"title":"t"},null,{"title":"u"}]', '[{"at":1},null,{}]'),
        (NOTES, '[{"at":1,"title":5}]', '[{"at":1,"title":5}]'),
    ],
)
def test_further_fields_of_items(path: str, items: str, further: str) -> None:
    """Fields of items that have no column are in `extra`, item by item; if the column is incomplete, the whole list."""
    for name in reversed(path.split(".")):
        items, further = f'{{"{name}":{items}}}', f'{{"{name}":{further}}}'
    batch = normalized(*(f'{{"_id":"{number}",{items[1:]}' for number in range(9)))
    assert batch.contacts["extra"].to_pylist() == [further] * 9
    assert row(f'{{"_id":"x",{items[1:]}')["extra"] == further


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ('"b":1.50,"a":"\u00e9"', '{"a":"\u00e9","b":1.50}'),
        ('"a":null,"b":"","c":[],"d":{},"e":{"f":{"g":[]}}', None),
        ('"a":[null,"",{}]', '{"a":[null,"",{}]}'),
        ('"a":{"z":1,"b":"","c":{"y":true,"x":null}}', '{"a":{"c":{"y":true},"z":1}}'),
        ('"a":false,"b":0', '{"a":false,"b":0}'),
        ('"a":1e400', '{"a":1e400}'),
        (f'"a":{BIG}', f'{{"a":{BIG}}}'),
        ('"a":"2025-01-01"', '{"a":"2025-01-01"}'),
        ('"profile":5', '{"profile":5}'),
        ('"profile":""', None),
        ('"profile":[{"a":1}]', '{"profile":[{"a":1}]}'),
        ('"profile":{"userDetails":"x"}', '{"profile":{"userDetails":"x"}}'),
        ('"profile":{"userDetails":{"nick":"Bo"},"vip":true}', '{"profile":{"userDetails":{"nick":"Bo"},"vip":true}}'),
        ('"unreadMessage":[]', None),
        ('"unreadMessage":["m"]', '{"unreadMessage":["m"]}'),
        ('"we\\"ird":1', '{"we\\"ird":1}'),
        ('"":1', '{"":1}'),
        ('"a":1,"a":2', '{"a":2}'),
        ('"\\ud800":1', '{"\ufffd":1}'),
        ('"a":"\\u0000"', '{"a":"\ufffd"}'),
        ('"a":"\\/\\u00e9\\t"', '{"a":"/\u00e9\\t"}'),
    ],
    ids=lambda text: str(text)[:40],
)
def test_extra(fields: str, extra: str | None) -> None:
    """Every non-empty field without a column is in `extra`, nested as sent, with numbers unchanged (A32, A37)."""
    assert row(f'{{"_id":"x",{fields}}}')["extra"] == extra


def test_removed_field_is_null() -> None:
    """A contact with only an id is a row of nulls (A26, A27, A38)."""
    assert {name for name, value in row('{"_id":"x"}').items() if value is not None} == {
        "account",
        "contact_id",
        "read_no",
    }


LARGE = f'{{"_id":"big","status":"{"x" * 2**24}"}}'


@pytest.mark.parametrize(
    ("contact", "reason", "path", "contact_id"),
    [
        ("{}", "missing_id", "_id", None),
        ('{"id":"x"}', "missing_id", "_id", None),
        ('{"_id":null}', "null_id", "_id", None),
        ('{"_id":""}', "empty_id", "_id", None),
        ('{"_id":true}', "wrong_type_id", "_id", None),
        ('{"_id":["x"]}', "wrong_type_id", "_id", None),
        ('{"_id":{"$oid":"x"}}', "wrong_type_id", "_id", None),
        ('{"_id":"x","_id":"y"}', "conflicting_ids", "_id", None),
        ('{"_id":"x","_id":5}', "conflicting_ids", "_id", None),
        ("null", "not_an_object", None, None),
        ("5", "not_an_object", None, None),
        ('"x"', "not_an_object", None, None),
        ('[{"_id":"x"}]', "not_an_object", None, None),
        (LARGE, "too_large", None, "big"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("company", [0, 9])
def test_rejects(contact: str, reason: str, path: str | None, contact_id: str | None, company: int) -> None:
    """A contact that cannot be stored is a reject with its raw JSON and does not affect others (A25, A34, A36)."""
    neighbours = [f'{{"_id":"n{index}","websiteVisits":{index}}}' for index in range(company)]
    batch = normalized(*neighbours, contact)
    assert batch.contacts["contact_id"].to_pylist() == [f"n{index}" for index in range(company)]
    told = {"account": "main", "contact_id": contact_id, "reason": reason, "path": path, "raw": contact}
    assert batch.rejects.to_pylist() == [told]
    assert batch.counts["rejected"] == 1


@pytest.mark.parametrize(
    ("token", "kept"),
    [("5", "5"), ("5.10", "5.10"), ('" A "', " A "), (BIG, BIG), ('"a","_id":"a"', "a")],
    ids=lambda text: text[:12],
)
def test_ids(token: str, kept: str) -> None:
    """An id is kept byte by byte, a number as its token (A24, A25, A31)."""
    assert row(f'{{"_id":{token}}}')["contact_id"] == kept


def test_ids_are_compared_byte_by_byte() -> None:
    """Repeated contacts, and ids that differ in case, spaces or form, all remain rows (A23, A24)."""
    ids = ["a", "A", "a ", "\u00e9", "e\u0301", "a"]
    batch = normalized(*(json.dumps({"_id": value}) for value in ids))
    assert batch.contacts["contact_id"].to_pylist() == ids
    assert batch.contacts["read_no"].to_pylist() == list(range(7, 13))


def test_counts() -> None:
    """Coerced cells, nulled cells, replaced texts and repeated keys are counted (A31, A35, A36)."""
    batch = normalized(
        '{"_id":5,"websiteVisits":"3","isOnline":"maybe","segments":[1],"status":"a","status":"b"}',
        '{"_id":"x","status":"\\ud83d","profile":{"userDetails":{"name":"\\u0000"}}}',
        '{"_id":"y"}',
    )
    assert dict(+batch.counts) == {"received": 3, "coerced": 3, "nulled": 1, "replaced": 2, "repeated": 1}


def test_nothing_is_counted_twice() -> None:
    """A contact that is read in bulk first and then individually counts once (A35)."""
    batch = normalized('{"_id":"x","lastSeenAt":"soon","new":"\\u0000"}', '{"_id":"y","new":"\\u0000"}')
    assert dict(+batch.counts) == {"received": 2, "nulled": 1, "replaced": 2}


def test_line_breaks_between_tokens() -> None:
    """A pretty-printed page is read like any other, with clean and odd contacts."""
    contacts = [SAMPLE, '{"_id": "x", "websiteVisits": "5", "more": {"a": [1.50, 2]}}'] * 5
    pretty = [re.sub(r"([{,])", "\\1\r\n  ", contact) for contact in contacts]
    assert normalized(*pretty, separator=b",\n").contacts.to_pylist() == normalized(*contacts).contacts.to_pylist()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"data":5}', b'{"data":[{]}', b'{"data":[{"_id":"x"},NaN]}', b'{"data":[{"_id":"x"}]}'],
)
def test_pages_that_cannot_be_split(body: bytes) -> None:
    """A page that cannot be split into its contacts is a server fault and loses nothing (N7, A32)."""
    with pytest.raises(ContractError):
        Normalizer("main")([RawPage(body, 2, 0)])


def test_deep_nesting() -> None:
    """A field nested to the parser's limit ends in a reject or an error, never in a crash (A33)."""
    deep = '{"_id":"x","a":' + '{"b":' * 970 + "1" + "}" * 970 + "}"
    try:
        batch = normalized(deep, '{"_id":"y"}')
    except ContractError:
        return
    assert "y" in batch.contacts["contact_id"].to_pylist()


def test_many_tags_and_many_keys() -> None:
    """Fifty thousand tags and ten thousand unknown keys are kept (A34)."""
    tags = [f"t{index}" for index in range(50_000)]
    custom = {f"key {index}": index for index in range(10_000)}
    batch = normalized(
        json.dumps({"_id": "x", "profile": {"userDetails": {"tags": tags, "custom": custom}}}), '{"_id":"y"}'
    )
    assert batch.contacts["tags"][0].as_py() == tags
    assert json.loads(batch.contacts["extra"][0].as_py()) == {"profile": {"userDetails": {"custom": custom}}}


def test_no_contacts() -> None:
    """Pages without contacts, and no pages at all, give empty tables."""
    for pages in ([], [RawPage(b'{"data":[]}', 0, 0)]):
        batch = Normalizer("main")(pages)
        assert (batch.contacts, batch.rejects) == (NORMALIZED_SCHEMA.empty_table(), REJECT_PART_SCHEMA.empty_table())


def test_order_of_pages_does_not_change_a_row() -> None:
    """If a field changes its type from page to page, each row is the same in every page order (A39)."""
    values = ["1", '"x"', "[1]", '{"a":1}', "true", "null", '"2025-01-01"', "1.5"]
    contacts = [f'{{"_id":"{index}","flip":{value},"segments":{value}}}'.encode() for index, value in enumerate(values)]
    pages = [RawPage(b'{"data":[' + contact + b"]}", 1, index) for index, contact in enumerate(contacts)]
    forward, backward = Normalizer("main"), Normalizer("main")
    one = pa.concat_tables([forward([page]).contacts for page in pages]).to_pylist()
    other = pa.concat_tables([backward([page]).contacts for page in reversed(pages)]).to_pylist()
    together = Normalizer("main")(pages).contacts.to_pylist()
    assert one == other[::-1] == together
