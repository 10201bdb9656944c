"""The two paths of `etl.normalize` agree: Arrow's bulk reading gives the same result as row-by-row reading."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.model import NormalizedBatch, RawPage
from etl.normalize.assembly import part_of_rows, rejects_table
from etl.normalize.normalizer import Normalizer
from etl.normalize.pages import contacts_of
from etl.normalize.rowwise import read_rows
from etl.schema import NORMALIZED_SCHEMA, READ, REJECT_PART_SCHEMA

PLAIN = {
    "_id": "65aa0000000000000000a001",
    "platform": ["WHATSAPP", ""],
    "isSubscriber": True,
    "websiteVisits": 3,
    "profile": {
        "userDetails": {
            "name": "Zoë \U0001f600",
            "contact": {"email": "", "phone": {"prefix": "91", "number": "9812345678"}},
            "tags": ["vip"],
            "attributes": [{"key": "city", "value": "Lyon"}, {"key": "", "value": ""}],
        },
        "marketing": {"urlsVisited": []},
        "notes": [{"title": "call", "description": "", "_id": "n1"}],
    },
    "status": "OPEN",
    "lastMessage": {"by": "user", "at": "2025-01-05T10:00:00.000Z", "text": 'a \\ "quoted"\nline'},
    "hasOrdered": {"status": False},
    "unreadMessage": [],
    "lastSeenAt": "2025-01-05T10:00:00.000Z",
    "createdAt": "2025-01-01T00:00:00.000Z",
    "__v": 0,
}

TOKENS = (
    b"null true false 0 -0 1 12 12.0 1.50 1e400 -7 123456789012345678901234567890 9223372036854775807 "
    b'9223372036854775808 1735689600 1735689600000 1735689600123456 "" "5" "12" "true" "FALSE" "1735689600" '
    b'"2025" "2025-01-05" "2025-01-05T10:00:00" "2025-01-05T10:00:00.123456Z" "2025-01-05T10:00:00.1234567+05:30" '
    b'"2025-02-30T10:00:00Z" "9999-12-31T23:59:59-01:00" "0000-01-01T00:00:00Z" "2025-01-05T24:00:00Z" "\\ud83d" '
    b'"x\\ude00y" "\\ud83d\\ude00" "\\u0000" "a\\u0041" "\\\\u0000" "\\\\ud83d" "\xff" "\xed\xa0\x80" "\xe2\x82" '
    b'"\xc3\xa9" "+44" "07911123456" [] {} [null] [""] [1,"a",null,true,{"b":[1.0]}] {"a":1.50,"b":{"c":null}} '
    b'{"key":"k","value":"v"} [{"key":"k","value":"v"}] [{"key":"k","value":"v"},{"key":"k","value":"w"}] '
    b'[{"key":"k","value":5}] [{"key":5,"value":"v"}] [{"key":"k","value":"v","more":null}] '
    b'[{"key":"k","value":"v","more":""}] [{"value":"v"}] [{}] [[]] ["x"] '
    b'[{"title":"t","description":1,"_id":"n"}] [{"title":"t","at":"2025-01-05"}] {"x":1,"x":2} '
    b'[{"key":"k","key":"l","value":"v"}] [null,{"title":"t"}] {"z":1,"a":{"y":2}} {"\\ud800":1} {"a\\u0000":[]} '
    b'"2024-01-01" 2.5 -1e-5 "+447911123456" 7911123456.0 '
).split()
"""Every kind of JSON value, none of which contains a space."""

PARENTS: tuple[tuple[str, ...], ...] = (
    (),
    ("profile",),
    ("profile", "userDetails"),
    ("profile", "userDetails", "contact"),
    ("profile", "userDetails", "contact", "phone"),
    ("profile", "marketing"),
    ("lastMessage",),
    ("hasOrdered",),
)
UNKNOWN = ("leadScore", "custom field", 'qu"ote', "zu\u00e9", "", "_id2")
PLACES = (
    [column.path for column in READ]
    + [path for path in PARENTS if path]
    + [(*path, name) for path in PARENTS for name in UNKNOWN]
)

Node = dict[str, "list[Node | bytes]"]
"""An object: for each key its values, in order."""


def tree(value: dict[str, object]) -> Node:
    """`value` as a node, with every leaf as its JSON text."""
    return {
        key: [tree(item) if isinstance(item, dict) else json.dumps(item, ensure_ascii=False).encode()]
        for key, item in value.items()
    }


def text(node: Node | bytes) -> bytes:
    """The JSON text of a node."""
    if isinstance(node, bytes):
        return node
    return (
        b"{"
        + b",".join(json.dumps(key).encode() + b":" + text(item) for key, items in node.items() for item in items)
        + b"}"
    )


Change = tuple[tuple[str, ...], bytes, bool]


def contact(changes: Sequence[Change]) -> bytes:
    """PLAIN with values set, or repeated, at some paths."""
    root = tree(PLAIN)
    for path, value, again in changes:
        node = root
        for name in path[:-1]:
            below = node.setdefault(name, [{}])[-1]
            if isinstance(below, bytes):
                break
            node = below
        else:
            node[path[-1]] = [*node.get(path[-1], []), value] if again else [value]
    return text(root)


changes = st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(TOKENS), st.booleans()), max_size=3)
contacts = st.one_of(changes.map(contact), st.just(contact([])), st.sampled_from([b"null", b"5", b"[]", b"{}", b'"x"']))
unknown_fields = st.tuples(st.sampled_from(PLACES[-30:]), st.sampled_from(TOKENS), st.just(value=False))
odd_items: st.SearchStrategy[Change] = st.sampled_from(
    [
        (("profile", "notes"), b'[{"title":"t","at":"2025-01-05"},{"title":"u"}]', False),
        (("profile", "notes"), b'[{"_id":"n","more":-0},null,{"more":null}]', False),
        (("profile", "userDetails", "attributes"), b'[{"key":"a","value":"b","by":{"id":1.50}}]', False),
        (("profile", "userDetails", "attributes"), b'[{"key":"a","by":""},{"key":"b","at":[{}]},{"key":"c"}]', False),
        (("profile", "userDetails", "attributes"), b'[{"key":"a","by":1},{"key":"a","by":2}]', False),
        (("profile", "userDetails", "attributes"), b'[{"key":"a","by":"\\u0000","at":{"x":1,"x":2}}]', False),
        (("lastMessage", "at"), b'"2025-01-05T10:00:00"', False),
        (("lastMessage", "at"), b'"5\xc2\xa0minutes"', False),
    ]
)
mild = st.lists(st.one_of(unknown_fields, unknown_fields, odd_items), max_size=3).map(contact)
"""Contacts with unknown fields, also in lists, and unusual time formats: cases that Arrow reads in bulk."""


def page(elements: Sequence[bytes], read_no: int = 0, separator: bytes = b",") -> RawPage:
    """A page with these elements in `data`."""
    return RawPage(b'{"success":true,"data":[' + separator.join(elements) + b"]}", len(elements), read_no)


def pages_of(batch: Sequence[Sequence[bytes]]) -> list[RawPage]:
    """Pages with consecutively numbered contacts."""
    starts = [sum(map(len, batch[:index])) for index in range(len(batch))]
    return [page(elements, start) for elements, start in zip(batch, starts, strict=True)]


def row_by_row(pages: Sequence[RawPage]) -> NormalizedBatch:
    """The result of the tolerant path alone."""
    found = contacts_of(pages)
    result = read_rows(found.raws, found.numbers)
    return NormalizedBatch(part_of_rows("main", result.rows), rejects_table("main", result.rejects), result.counts)


def assert_same(batch: NormalizedBatch, expected: NormalizedBatch, received: int) -> None:
    """Assert the same cells, texts and counts, and that no row is lost."""
    for table, schema in ((batch.contacts, NORMALIZED_SCHEMA), (batch.rejects, REJECT_PART_SCHEMA)):
        table.validate(full=True)
        assert table.schema == schema
    assert batch.contacts.to_pylist(maps_as_pydicts="strict") == expected.contacts.to_pylist(maps_as_pydicts="strict")
    assert batch.contacts.to_pylist() == expected.contacts.to_pylist()
    key = [("raw", "ascending"), ("reason", "ascending")]
    assert batch.rejects.sort_by(key).to_pylist() == expected.rejects.sort_by(key).to_pylist()
    for name in ("coerced", "nulled", "replaced"):
        assert batch.counts[name] == expected.counts[name], name
    assert batch.counts["received"] == received == len(batch.contacts) + len(batch.rejects)


@pytest.mark.parametrize(
    "elements", [contacts, mild, st.one_of(mild, mild, mild, contacts)], ids=["nasty", "drifting", "mixed"]
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_both_paths_agree(elements: st.SearchStrategy[bytes], data: st.DataObject) -> None:
    """Whatever a normalizer has learned from earlier batches, it agrees with row-by-row reading (A30-A39)."""
    batches = data.draw(
        st.lists(st.lists(st.lists(elements, max_size=9), min_size=1, max_size=3), min_size=1, max_size=4)
    )
    normalizer = Normalizer("main")
    for batch in batches:
        pages = pages_of(batch)
        assert_same(normalizer(pages), row_by_row(pages), sum(map(len, batch)))


COLUMNS = [column.path for column in READ if column.path != ("_id",)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_both_paths_agree_where_columns_drift(data: st.DataObject) -> None:
    """Columns with another type in most contacts are read separately and give the same cells (A30-A39)."""
    drifting = data.draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=3, unique=True))
    tokens = data.draw(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=3))
    drifts = [(path, token, False) for path in drifting for token in tokens]
    drifted = st.tuples(st.lists(st.sampled_from(drifts), max_size=4), changes).map(lambda both: both[0] + both[1])
    elements = st.one_of(st.sampled_from(drifts).map(lambda drift: contact([drift])), drifted.map(contact), mild)
    batches = data.draw(st.lists(st.lists(elements, min_size=8, max_size=20), min_size=2, max_size=4))
    normalizer = Normalizer("main")
    for batch in batches:
        pages = pages_of([batch])
        assert_same(normalizer(pages), row_by_row(pages), len(batch))


@pytest.mark.parametrize("path", COLUMNS, ids=".".join)
def test_every_column_may_drift_to_every_type(path: tuple[str, ...]) -> None:
    """A column with another type in most or all contacts has the same cells as row-by-row reading (A30, A31, A32)."""
    mixed, plain = Normalizer("main"), contact([])
    for token in TOKENS:
        drifted = contact([(path, token, False)])
        pages = pages_of([[plain, drifted, drifted] * 3])
        assert_same(mixed(pages), row_by_row(pages), 9)
    for token in (b"12", b"1.50", b"true", b'"5"', b'{"a":1.50}', b'[1,"a"]'):
        uniform = Normalizer("main")
        for _ in range(2):
            pages = pages_of([[contact([(path, token, False)])] * 9])
            assert_same(uniform(pages), row_by_row(pages), 9)
