"""A server that shares nothing with the sandbox: a few lines of the standard library, written from docs/api.md alone.

It guards against a misunderstanding that the sandbox and the exporter share.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import TOKEN, Job

SAMPLE = (
    b'{"_id":"65aa0000000000000000a001","_agency":"65aa0000000000000000b001","_customer":"65aa0000000000000000c001",'
    b'"platform":["WHATSAPP"],"secondaryPlatform":["website"],"isSubscriber":true,"websiteVisits":0,"isOnline":false,'
    b'"userInteracted":true,"profile":{"userDetails":{"contact":{"email":"","phone":{"number":"5550100","prefix":"1"}},'
    b'"userProvidedName":"Ada Example","tags":["vip"],"attributes":[{"key":"city","value":"Lyon"}],"country":"",'
    b'"whatsAppNumber":"15550100"},"marketing":{"urlsVisited":[]},"notes":[]},"status":"OPEN",'
    b'"lastMessage":{"by":"user","at":"2025-01-05T10:00:00.000Z"},"isContact":true,"isImported":false,"isMigrated":false,'
    b'"segments":[],"isLiveChatActive":false,"isPaid":true,"hasOrdered":{"status":false},"unreadMessages":0,'
    b'"unreadMessage":[],"lastSeenAt":"2025-01-05T10:00:00.000Z","__v":0,'
    b'"createdAt":"2025-01-01T00:00:00.000Z","updatedAt":"2025-01-05T10:00:00.000Z"}'
)
"""The invented contact of docs/api.md, as written there."""
KNOWN = {
    *("searchText", "tags", "tagsV2", "status", "isOnline", "userInteracted", "isLiveChatActive", "isSubscriber"),
    *("ctwaNewUsers", "ctwaOldUsers", "_botWebsite", "_botWhatsapp", "_botTelegram", "_botFacebook", "_botAutomation"),
    *("_agentAssigned", "segments", "applicableFilters", "lastSeenAt", "createdAt", "hasOrdered", "lastMessageBy"),
    *("page", "isExport", "isContact"),
}
"""Every field of a request that docs/api.md names."""
SPEAK: dict[str, Callable[[list[str]], str]] = {
    "as documented": lambda rows: f'{{"success":true,"message":"ok","code":200,"data":[{",".join(rows)}]}}',
    "data alone": lambda rows: f'{{"data":[{",".join(rows)}]}}',
    "data first, with a total": lambda rows: f'{{"data":[{",".join(rows)}],"total":{len(rows)},"success":true}}',
    "pretty": lambda rows: "\r\n" + json.dumps({"success": True, "data": [json.loads(row) for row in rows]}, indent=2),
    "escaped": lambda rows: json.dumps({"success": True, "message": "", "data": [json.loads(row) for row in rows]}),
}
"""Ways to spell one and the same answer."""


@contextmanager
def plain_server(
    contacts: list[bytes], speak: str = "as documented", *, protocol: str = "HTTP/1.1"
) -> Iterator[tuple[str, list[str]]]:
    """Serve these contacts in pages of 20, with inclusive date filters; also what was wrong with the requests."""
    wrong: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = protocol

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            wrong.extend(faults(self, body))
            found = [raw for raw in contacts if matches(json.loads(raw), body)]
            start = 20 * (body["page"] - 1)
            answer = SPEAK[speak]([raw.decode() for raw in found[start : start + 20]]).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json; charset=utf-8")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", wrong
        finally:
            server.shutdown()
            thread.join()


def faults(request: BaseHTTPRequestHandler, body: dict[str, Any]) -> list[str]:
    """What docs/api.md does not allow in a request."""
    headers = {"authorization": f"Bearer {TOKEN}", "authtype": "Key", "content-type": "application/json"}
    found = [name for name, value in headers.items() if request.headers.get(name) != value]
    found += [f"{request.path} is no path"] * (request.path != "/inbox/users")
    found += [f"fields {set(body) ^ KNOWN}"] * (set(body) != KNOWN)
    found += ["isExport"] * (body["isExport"] != "none")
    return found


def matches(contact: dict[str, Any], body: dict[str, Any]) -> bool:
    """In the list asked for, and in both ranges of time, bounds included; no time is in no range."""
    in_list = bool(contact.get("isContact", True)) is body["isContact"]
    return in_list and all(within(contact.get(field), **body[field]) for field in ("createdAt", "lastSeenAt"))


def within(moment: str | None, startAt: str, endsAt: str) -> bool:  # noqa: N803 - the API's own words
    """Whether a time is in a range; "" is an open end."""
    if not startAt and not endsAt:
        return True
    return bool(moment) and (not startAt or startAt <= str(moment)) and (not endsAt or str(moment) <= endsAt)


def lead(number: int) -> bytes:
    """A website visitor of its own second."""
    at = f"2025-02-{number // 86400 + 1:02d}T00:{number // 60 % 60:02d}:{number % 60:02d}.{number:03d}Z"
    details = {"name": f"Visitor {number}", "city": "Göteborg", "gender": "", "picture": None}
    return json.dumps(
        {
            "_id": f"{number:024x}",
            "uuid": f"visitor-{number}",
            "isContact": number % 3 == 0,
            "profile": {"userDetails": details},
            "createdAt": at,
            "lastSeenAt": at,
            "lastMessage": {"text": "😀"},
        },
        ensure_ascii=number % 2 == 0,
    ).encode()


def test_the_sample_of_the_api_is_exported_as_it_is_written(tmp_path: Path) -> None:
    """Every cell of docs/api.md's own contact, by hand."""
    with plain_server([SAMPLE]) as (url, wrong):
        job = Job(tmp_path, {"main": url})
        assert job.run().exit_code == 0
        assert wrong == []
    [row] = job.in_parquet(1)
    assert job.in_duckdb() == [row]
    later = datetime(2025, 1, 5, 10, tzinfo=UTC)
    filled = {
        "account": "main",
        "contact_id": "65aa0000000000000000a001",
        "status": "OPEN",
        "last_message_by": "user",
        "agency_id": "65aa0000000000000000b001",
        "customer_id": "65aa0000000000000000c001",
        "platforms": ["WHATSAPP"],
        "secondary_platforms": ["website"],
        "tags": ["vip"],
        "attributes": [("city", "Lyon")],
        "user_provided_name": "Ada Example",
        "phone_prefix": "1",
        "phone_number": "5550100",
        "whatsapp_number": "15550100",
        "urls_visited": [],
        "notes": [],
        "segments": [],
        "website_visits": 0,
        "unread_messages": 0,
        "document_version": 0,
        "is_subscriber": True,
        "is_online": False,
        "user_interacted": True,
        "is_contact": True,
        "is_imported": False,
        "is_migrated": False,
        "is_live_chat_active": False,
        "is_paid": True,
        "has_ordered": False,
        "seq": 1,
        "last_message_at": later,
        "last_seen_at": later,
        "updated_at": later,
        "created_at": datetime(2025, 1, 1, tzinfo=UTC),
    }
    stamps = {"row_hash", "observed_at"}
    assert {name: row[name] for name in filled} == filled
    assert {name for name, cell in row.items() if cell is None} == row.keys() - filled.keys() - stamps
    assert row["row_hash"]


@pytest.mark.parametrize("speak", SPEAK)
def test_every_spelling_of_the_answer_gives_the_same_rows(speak: str, tmp_path: Path) -> None:
    """A37, A55, N17: envelope, order of members, blanks and escapes do not matter; requests are as docs/api.md says."""
    contacts = [SAMPLE, *(lead(number) for number in range(130))]
    with plain_server(contacts, speak) as (url, wrong):
        job = Job(tmp_path, {"main": url}, sinks=("duckdb",))
        assert job.run().exit_code == 0
        assert job.run().exit_code == 0
    assert wrong == []
    found = {row["contact_id"]: row for row in job.in_duckdb()}
    assert found.keys() == {json.loads(raw)["_id"] for raw in contacts}
    for number in range(130):
        row = found[f"{number:024x}"]
        assert (row["name"], row["city"], row["gender"], row["last_message_text"]) == (
            f"Visitor {number}",
            "Göteborg",
            None,
            "😀",
        )
        assert row["is_contact"] is (number % 3 == 0)


def test_a_server_of_the_last_century_will_do(tmp_path: Path) -> None:
    """N21: HTTP/1.0, one connection a request."""
    with plain_server([lead(number) for number in range(70)], protocol="HTTP/1.0") as (url, _):
        job = Job(tmp_path, {"main": url}, sinks=("duckdb",))
        assert job.run().exit_code == 0
    assert job.rows("select count(*) from contacts") == [(70,)]


def test_ids_that_look_alike_are_different_contacts(tmp_path: Path) -> None:
    """A24: ids are compared byte by byte; nothing is trimmed, folded or normalised."""
    alike = [
        "65AA0000000000000000a001",
        "65aa0000000000000000a001",
        "65aa0000000000000000a001 ",
        "é",
        "e\u0301",
        "0",
        "00",
    ]
    with plain_server([json.dumps({**json.loads(lead(n)), "_id": i}).encode() for n, i in enumerate(alike)]) as (
        url,
        _,
    ):
        job = Job(tmp_path, {"main": url})
        assert job.run().exit_code == 0
    assert {row["contact_id"] for row in job.in_duckdb()} == set(alike)
    assert {row["contact_id"] for row in job.in_parquet(1)} == set(alike)


def test_an_account_without_a_single_time_is_exported_but_not_proven_in_silence(tmp_path: Path) -> None:
    """A26, A27, A51: only `_id` may be relied on; all rows are there, or the exit code says why not."""
    with plain_server([b'{"_id":"%d"}' % number for number in range(45)]) as (url, _):
        job = Job(tmp_path, {"main": url}, sinks=("duckdb",))
        report = job.run(allow_unproven=True)
        assert report.exit_code == 0
    assert job.rows("select count(*) from contacts") == [(45,)]


def test_contacts_without_last_seen_are_found_by_their_creation(tmp_path: Path) -> None:
    """A26: proven, because no window rests on the field that is missing."""
    contacts = [{**json.loads(lead(number)), "lastSeenAt": ""} for number in range(45)]
    with plain_server([json.dumps(contact).encode() for contact in contacts]) as (url, _):
        job = Job(tmp_path, {"main": url}, sinks=("duckdb",))
        report = job.run()
        assert report.exit_code == 0, report.error
    assert job.rows("select count(*) from contacts") == [(45,)]
