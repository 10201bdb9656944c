"""Cell by cell: what docs/tables.md ("Values") says about odd values, through the whole product over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import expected_rows
from tests.support.live import Job, Live, Row, live

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)
USER = "profile.userDetails"
NAME, TAGS, ATTRIBUTES = f"{USER}.name", f"{USER}.tags", f"{USER}.attributes"


def nested(path: str, value: Any) -> Any:
    """{"a": {"b": value}} for the path "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


# What stands at a path (JSON text) -> column, the cell, and what must be in `extra` at the same path (JSON text).
CELLS: list[tuple[str, str, str, Any, str | None]] = [
    # text: verbatim, but for "", lone surrogates, NUL and invalid UTF-8
    (NAME, '"  Ada \\t"', "name", "  Ada \t", None),
    (NAME, '""', "name", None, None),
    (NAME, "null", "name", None, None),
    (NAME, '"\\ud83d cut"', "name", "\ufffd cut", None),
    (NAME, '"\\ud83d\\ude00"', "name", "😀", None),
    (NAME, '"a\\u0000b"', "name", "a\ufffdb", None),
    (NAME, '"caf\udce9"', "name", "caf\ufffd", None),
    (NAME, "5", "name", "5", None),
    (NAME, "0.10", "name", "0.10", None),
    (NAME, '{"a":{"b":1}}', "name", '{"a":{"b":1}}', None),
    (f"{USER}.contact.phone.number", "5550100", "phone_number", "5550100", None),
    (f"{USER}.contact.email", '"=A1@Example.COM "', "email", "=A1@Example.COM ", None),
    ("status", '"Waiting for parts"', "status", "Waiting for parts", None),
    # whole numbers of 64 bits
    ("websiteVisits", '"12"', "website_visits", 12, None),
    ("websiteVisits", "12.0", "website_visits", 12, None),
    ("websiteVisits", "-3", "website_visits", -3, None),
    ("websiteVisits", "9223372036854775807", "website_visits", 2**63 - 1, None),
    ("websiteVisits", "9223372036854775808", "website_visits", None, "9223372036854775808"),
    ("websiteVisits", "1.5", "website_visits", None, "1.5"),
    ("websiteVisits", "1e400", "website_visits", None, "1e400"),
    ("websiteVisits", '"many"', "website_visits", None, '"many"'),
    ("websiteVisits", "[3]", "website_visits", None, "[3]"),
    ("websiteVisits", '""', "website_visits", None, None),
    ("__v", '"7"', "document_version", 7, None),
    # booleans
    ("isOnline", '"true"', "is_online", True, None),
    ("isOnline", '"false"', "is_online", False, None),
    ("isOnline", "1", "is_online", True, None),
    ("isOnline", "0", "is_online", False, None),
    ("isOnline", '"perhaps"', "is_online", None, '"perhaps"'),
    ("isOnline", "2", "is_online", None, "2"),
    # times
    ("lastSeenAt", '"2025-01-01T00:00:00.000Z"', "last_seen_at", NEW_YEAR, None),
    ("lastSeenAt", '"2025-01-01T00:00:00.123456Z"', "last_seen_at", NEW_YEAR + timedelta(microseconds=123456), None),
    ("lastSeenAt", '"2025-01-01T05:30:00+05:30"', "last_seen_at", NEW_YEAR, None),
    ("lastSeenAt", '"2025-01-01T00:00:00"', "last_seen_at", NEW_YEAR, None),
    ("lastSeenAt", "1735689600", "last_seen_at", NEW_YEAR, None),
    ("lastSeenAt", "1735689600000", "last_seen_at", NEW_YEAR, None),
    ("lastSeenAt", '"1735689600000"', "last_seen_at", NEW_YEAR, None),
    ("lastSeenAt", '"2999-12-31T23:59:59.999Z"', "last_seen_at", datetime(2999, 12, 31, 23, 59, 59, 999000, UTC), None),
    ("lastSeenAt", '""', "last_seen_at", None, None),
    ("lastSeenAt", '"yesterday"', "last_seen_at", None, '"yesterday"'),
    ("lastSeenAt", '"2025-02-30T00:00:00Z"', "last_seen_at", None, '"2025-02-30T00:00:00Z"'),
    ("lastSeenAt", "true", "last_seen_at", None, "true"),
    ("hasOrdered.lastAt", "1735689600", "last_ordered_at", NEW_YEAR, None),
    # lists
    (TAGS, '["b","a","b"]', "tags", ["b", "a", "b"], None),
    (TAGS, "[]", "tags", [], None),
    (TAGS, "null", "tags", None, None),
    (TAGS, '"vip,lead"', "tags", None, '"vip,lead"'),
    (TAGS, "[7]", "tags", ["7"], None),
    ("profile.marketing.urlsVisited", '["u",{"url":"v"},[1]]', "urls_visited", ["u", '{"url":"v"}', "[1]"], None),
    ("segments", '{"0":"x"}', "segments", None, '{"0":"x"}'),
    # attributes and notes
    (ATTRIBUTES, '[{"key":"n","value":5},{"key":"o","value":{"a":1}}]', "attributes", {"n": "5", "o": '{"a":1}'}, None),
    (
        *(ATTRIBUTES, '[{"key":"c","value":"Lyon"},{"key":"c","value":"Oslo"}]', "attributes", {"c": "Oslo"}),
        '[{"key":"c","value":"Lyon"},{"key":"c","value":"Oslo"}]',
    ),
    (ATTRIBUTES, '{"city":"Lyon"}', "attributes", None, '{"city":"Lyon"}'),
    (
        *("profile.notes", '[{"title":"t","description":"d","_id":"i"},{"title":""}]', "notes"),
        [{"title": "t", "description": "d", "_id": "i"}, {"title": None, "description": None, "_id": None}],
        None,
    ),
    ("profile.notes", '"call back"', "notes", None, '"call back"'),
    # containers that are none
    ("profile", '"none"', "name", None, '"none"'),
    ("profile", "null", "tags", None, None),
    ("lastMessage", "[1]", "last_message_text", None, "[1]"),
    (f"{USER}.contact.phone", '"+1 212 555 0100"', "phone_number", None, '"+1 212 555 0100"'),
    # no column at all
    ("loyalty.level", '"gold"', "uuid", None, '"gold"'),
    ("with.dot", "0", "uuid", None, "0"),
    ("ctwa", "false", "uuid", None, "false"),
    ("loyalty", "{}", "uuid", None, None),
    ("unreadMessage", "[]", "uuid", None, None),
]
REJECTED = [
    "",
    '"_id":null,',
    '"_id":"",',
    '"_id":true,',
    '"_id":{"$oid":"x"},',
    '"_id":["x"],',
    '"_id":"x","_id":"y",',
]


def contact(number: int, path: str, value: str) -> bytes:
    """A contact of 2024 that has `value`, as JSON text, at a path."""
    created = f'"createdAt":"2024-03-01T00:00:{number % 60:02d}.{number // 60:03d}Z",'
    member = json.dumps(nested(path, "VALUE"))[1:-1].replace('"VALUE"', value)
    seen = "" if path == "lastSeenAt" else '"lastSeenAt":"2024-04-01T00:00:00.000Z",'
    return f'{{"_id":"{number:024x}",{created}{seen}{member}}}'.encode("utf-8", "surrogateescape")


def adopt(server: Live, *contacts: bytes) -> None:
    """The account has these contacts, exactly as they are written."""
    server.change(lambda world, now: [world.adopt(raw, now) for raw in contacts])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Row], dict[str, Row], Job]]:
    """Every case as a contact of one account, exported once: rows by id from DuckDB and Parquet."""
    with live(contacts=0) as server:
        adopt(server, *(contact(number, path, value) for number, (path, value, *_) in enumerate(CELLS, 1)))
        nobody = '{{{}"createdAt":"2024-01-01T00:00:{:02d}.000Z","name":"kept raw"}}'
        adopt(server, *(nobody.format(spelled, number).encode() for number, spelled in enumerate(REJECTED)))
        adopt(server, b'{"_id":77,"createdAt":"2024-02-01T00:00:00.000Z"}')
        job = Job(tmp_path_factory.mktemp("values"), {"main": server.url}, settings="[guard]\nmax_reject_share = 1\n")
        assert job.run().exit_code == 40
        rows = ({row["contact_id"]: row for row in source} for source in (job.in_duckdb(), job.in_parquet(1)))
        yield *rows, job


@pytest.mark.parametrize(
    "number", range(len(CELLS)), ids=lambda n: f"{CELLS[n][0]}={CELLS[n][1]}".encode("utf-8", "replace").decode()
)
def test_an_odd_value_is_kept_as_the_design_says(
    number: int, exported: tuple[dict[str, Row], dict[str, Row], Job]
) -> None:
    """A30, A31, A32, A35, A37, A39, A40: the cell, and what `extra` keeps, in DuckDB and in Parquet."""
    path, _, column, cell, kept = CELLS[number]
    for rows in exported[:2]:
        row = rows[f"{number + 1:024x}"]
        found = dict(row[column]) if column == "attributes" and row[column] is not None else row[column]
        assert (found, type(found)) == (cell, type(cell))
        extra = None if row["extra"] is None else expected_rows.parse(row["extra"].encode())
        assert extra == (None if kept is None else nested(path, expected_rows.parse(kept.encode())))


def test_who_has_no_usable_id_is_rejected_once_with_its_raw_json(
    exported: tuple[dict[str, Row], dict[str, Row], Job],
) -> None:
    """A25: each row of `rejects` has reason, path and the contact as it was sent; a numeric id is kept as its text."""
    rows, _, job = exported
    rejects = job.rows("select account, seq, contact_id, reason, path, raw from rejects")
    assert sorted(raw.partition('"createdAt"')[0][1:] for *_, raw in rejects) == sorted(REJECTED)
    assert {(account, seq, path) for account, seq, _, _, path, _ in rejects} == {("main", 1, "_id")}
    assert all(reason and raw.endswith('"kept raw"}') for _, _, _, reason, _, raw in rejects)
    assert "77" in rows


def test_what_was_coerced_nulled_replaced_or_repeated_is_counted(
    exported: tuple[dict[str, Row], dict[str, Row], Job],
) -> None:
    """The run says how many cells were not as documented."""
    [(detail,)] = exported[2].rows("select detail from runs")
    cells = json.loads(detail)["cells"]
    assert all(cells[name] > 0 for name in ("coerced", "nulled", "replaced")), cells


def test_a_contact_beyond_16_mib_is_rejected(tmp_path: Path) -> None:
    """A34: it goes to `rejects`; the others of its page are kept."""
    huge = b'{"_id":"huge","createdAt":"2024-01-01T00:00:00.000Z","name":"' + b"x" * (16 * 2**20) + b'"}'
    with live(contacts=5, small=True) as server:
        adopt(server, huge)
        job = Job(tmp_path, {"main": server.url}, settings="[guard]\nmax_reject_share = 1\n")
        assert job.run().exit_code == 40
        assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids()) - {"huge"}
    assert job.rows("select contact_id from rejects") == [("huge",)]


PHONES = [
    *(("91", "9876543210"), ("+44", "02079460123"), ("1", "2125550100"), ("49", "015228817386"), ("+971", "501234567")),
    *(("+1", "(212) 555-0100"), ("44", "123"), ("", "2125550100"), ("999", "12345678"), ("+46", "0701740605")),
    *(("39", "0612345678"), ("55", "11961234567"), ("abc", "5"), ("+ 1", "2125550100")),
    *(("49", "+49 1512 3456789"), ("49", "+43 660 1234567"), ("49", "4915123456789"), ("91", "0091 98765 43210")),
    *((91, 9876543210), (49, 4915123456789), (91, -1), (91, 0), (91, 12345678901234567890)),
]


def test_phone_e164_agrees_with_the_phonenumbers_library(tmp_path: Path) -> None:
    """The one number that the library finds in prefix and number and calls valid, also in JSON numbers; else null."""
    with live(contacts=0) as server:
        phones = [json.dumps({"prefix": prefix, "number": national}) for prefix, national in PHONES]
        adopt(server, *(contact(number, f"{USER}.contact.phone", phone) for number, phone in enumerate(phones)))
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        job.run()
    found = dict(job.rows("select contact_id, phone_e164 from contacts"))
    for number, (prefix, national) in enumerate(PHONES):
        assert found[f"{number:024x}"] == expected_rows.e164(str(prefix), str(national)), (prefix, national)
