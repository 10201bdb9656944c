"""Semantic faults: listings that lose their position, tokens that change, contacts that merge, hostile text."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from etl.api.client import Client
from etl.api.http import Credential, connect
from etl.api.request import Body, Query
from etl.api.response import ApiFailure, HttpResponse, Page, parse_response, server_time
from etl.api.retry import retry_after
from etl.config import Http
from etl.errors import SourceUnavailable
from etl.extract.fetch import read_indivisible
from etl.times import milliseconds
from tests.simulation.loop import run
from tests.support.canary import TOKEN, leaks
from tests.support.live import Job, live
from tests.support.wire import answer, says, serve

EVERYTHING = Query(is_contact=True)
SIZE = 20


async def ignore(page: Page) -> None:
    """Discard a page."""
    del page


# --- A10: a failure that shifts the listing --------------------------------------------------------------------------


@dataclass(slots=True)
class Cursor:
    """A server with a cursor: a failed page 2 counts as delivered, and the page after it is returned in its place."""

    contacts: int
    fails: int
    """Number of listings in which page 2 fails."""
    shift: int = 0

    async def __call__(self, body: Body) -> HttpResponse:
        """A page, or 500."""
        page = body["page"]
        assert isinstance(page, int)
        if page == 1:
            self.shift = 0
        elif page == 2 and self.fails and not self.shift:
            self.shift, self.fails = 1, self.fails - 1
            return HttpResponse(500, {}, b"")
        shown = range(self.contacts)[(page - 1 + self.shift) * SIZE :][:SIZE]
        return HttpResponse(
            200, {}, json.dumps({"success": True, "data": [{"_id": f"{n:024x}"} for n in shown]}).encode()
        )


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_failure_that_loses_the_place_hides_nobody(fails: int) -> None:
    """A listing in which a page failed is restarted; reads that lost the same contacts are no proof (A10)."""
    client = Client(Cursor(100, fails), account="main", concurrency=4, jitter=lambda: 0.0)
    indivisible = run(read_indivisible(client, EVERYTHING, SIZE, ignore))
    assert indivisible is None or indivisible.rows == 100


# --- A13: pages past the end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", ["first", "last", "nothing"])
@pytest.mark.parametrize(("contacts", "alone"), [(SIZE - 1, False), (2 * SIZE + 1, False), (SIZE, True), (SIZE, False)])
def test_a_page_again_after_a_short_one_is_the_end(beyond: str, contacts: int, *, alone: bool) -> None:
    """A page repeated after a short page is the end; after a full page it is no proof, except with `alone` (A13)."""

    async def answer(body: Body) -> HttpResponse:
        page, last = int(str(body["page"])), -(-contacts // SIZE)
        shown = page if page <= last else {"first": 1, "last": last, "nothing": page}[beyond]
        rows = [{"_id": f"{n:024x}"} for n in range(contacts)[(shown - 1) * SIZE :][:SIZE]]
        return HttpResponse(200, {}, json.dumps({"success": True, "data": rows}).encode())

    client = Client(answer, account="main", concurrency=4, jitter=lambda: 0.0)
    indivisible = run(read_indivisible(client, EVERYTHING, SIZE, ignore, alone=alone))
    provable = alone or contacts % SIZE or beyond == "nothing"
    assert (indivisible.rows if indivisible else 0) == (contacts if provable else 0)


# --- A2, A3: a token that changes during a run -----------------------------------------------------------------------


def test_a_token_file_that_changes_in_mid_run_is_read_again(tmp_path: Path) -> None:
    """If the token expires with four requests in flight, the run uses the new one and few requests fail (A2, A3)."""
    lapsing = {"token_expires_after": 40, "token_next": TOKEN, "latency": 0.02}
    with live(contacts=300, nasty_share=0, small=True, page_size=20, **lapsing) as server:
        job = Job(tmp_path, {"main": server.url}, settings="[extract]\nconcurrency = 4\n", sinks=("duckdb",))
        secret = tmp_path / "token"
        secret.write_text(server.world.settings.token)
        secret.chmod(0o600)

        def renew() -> None:
            for _ in range(1000):
                if server.stats()["requests"]:
                    break
                time.sleep(0.005)
            secret.write_text(TOKEN)

        thread = threading.Thread(target=renew)
        thread.start()
        words = ("--set", "accounts.0.token_env=", "--set", f"accounts.0.token_file={secret}")
        ended = job.call("run", "CONFIG", "--json", *words)
        thread.join()
        refused = server.stats()["by_status"]["401"]
        wanted = set(server.ids())
    assert ended.code == 0, ended.err
    assert 0 < refused <= 4
    assert {row["contact_id"] for row in job.in_duckdb()} == wanted
    assert leaks({"out": ended.out.encode(), "err": ended.err.encode()}) == []


# --- A4, A11: server messages ----------------------------------------------------------------------------------------

ECHOES: dict[str, Callable[[str], str]] = {
    "raw": lambda token: token,
    "URL-encoded": lambda token: quote(token, safe=""),
    "base64": lambda token: b64encode(token.encode()).decode(),
    "base64 of the header": lambda token: b64encode(f"Bearer {token}".encode()).decode(),
    "hex": lambda token: token.encode().hex(),
    "JSON-escaped": json.dumps,
    "reversed": lambda token: token[::-1],
    "its beginning": lambda token: f"{token[:12]}...",
    "its end": lambda token: f"...{token[-12:]}",
    "in two halves": lambda token: f"{token[:14]} {token[14:]}",
}


@pytest.mark.parametrize("name", ECHOES)
@pytest.mark.parametrize(("status", "fields"), [(422, {}), (500, {}), (200, {"success": False}), (200, {"code": 401})])
def test_no_echo_of_the_token_is_repeated(name: str, status: int, fields: dict[str, Any]) -> None:
    """A token that a server echoes, encoded or in part, does not appear in the error message (A4, A11, X1)."""
    message = f"not valid: {ECHOES[name](TOKEN)} (see the manual)"
    verdict = parse_response(
        HttpResponse(status, {}, json.dumps({"message": message, **fields}).encode(), secret=TOKEN)
    )
    assert isinstance(verdict, ApiFailure)
    assert "not valid" in verdict.message
    assert leaks({"message": verdict.message.encode()}) == []


# --- A5, A6: waits ---------------------------------------------------------------------------------------------------

NOON = 1_736_164_800.0
WAITS = [
    ("0", 0.0),
    ("1.5", 1.5),
    (" 7 ", 7.0),
    ("-3", 0.0),
    ("1e3", 1000.0),
    ("1000000000", 1e9),
    ("9" * 400, None),
    ("inf", None),
    ("nan", None),
    ("soon", None),
    ("", None),
    ("Mon, 06 Jan 2025 12:00:30 GMT", 30.0),
    ("Monday, 06-Jan-25 12:00:30 GMT", 30.0),
    ("Mon Jan  6 12:00:30 2025", 30.0),
    ("Mon, 06 Jan 2025 14:00:30 +0200", 30.0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ("Mon, 06 Jan 99999 12:00:00 GMT", None),
]


@pytest.mark.parametrize(("header", "seconds"), WAITS)
def test_every_spelling_of_a_wait_is_understood_or_left(header: str, seconds: float | None) -> None:
    """Seconds in any notation and all three HTTP date formats are parsed; a past date is 0, garbage None (A5, A6)."""
    assert retry_after(header, NOON) == seconds


# --- A29, A46: merged contacts and reused ids ------------------------------------------------------------------------


def test_a_contact_merged_into_another_becomes_a_tombstone(tmp_path: Path) -> None:
    """The source of a merge is deleted on its second strike with its last values kept; the target stays (A46)."""
    with live(contacts=50, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        assert job.run().exit_code == 0
        source, target = server.ids()[:2]
        last = job.rows("select name, email, phone_number from contacts where contact_id = ?", source)
        server.change(lambda w, now: (w.delete(source, now), w.touch(target, now)))
        assert [job.run(full=True).exit_code for _ in range(2)] == [0, 0]
    assert job.rows("select seq, op from contact_versions where contact_id = ? order by seq", source) == [
        (1, "upsert"),
        (3, "delete"),
    ]
    kept = "select name, email, phone_number from contact_versions where contact_id = ? and op = 'delete'"
    assert job.rows(kept, source) == last
    assert job.rows("select seq from contacts where contact_id in (?, ?)", source, target) == [(2,)]


def test_an_id_that_comes_again_is_the_newer_contact(tmp_path: Path) -> None:
    """A contact with a reused id replaces the deleted one, creation time included; the history has both (A29, A46)."""
    born = b'{"_id":"again","name":"x","createdAt":"%s-03-01T00:00:00.000Z","lastSeenAt":"%s-03-01T00:00:00.000Z"}'
    with live(contacts=50, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        server.change(lambda w, now: w.adopt(born % (b"2024", b"2024"), now))
        assert job.run().exit_code == 0
        server.change(lambda w, now: (w.delete("again", now), w.adopt(born % (b"2025", b"2025"), now)))
        assert job.run(full=True).exit_code == 0
    years = "select seq, year(created_at) from {} where contact_id = 'again' order by seq"
    assert job.rows(years.format("contacts")) == [(2, 2025)]
    assert job.rows(years.format("contact_versions")) == [(1, 2024), (2, 2025)]


# --- N1: a refused connection ----------------------------------------------------------------------------------------


async def test_a_port_that_is_closed_for_a_while_is_asked_again() -> None:
    """A server that restarts during a run costs retries and does not fail the run (N1)."""
    async with serve(says(answer())) as wire:
        port = int(wire.url.rpartition(":")[2])
    async with connect(wire.url, Credential(SecretStr(TOKEN)), Http(), concurrency=1) as send:
        client = Client(send, account="main", concurrency=1, jitter=lambda: 0.4)
        asking = asyncio.ensure_future(client.read(EVERYTHING))
        await asyncio.sleep(0.05)

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(converse, "127.0.0.1", port):
            assert isinstance(await asking, Page)
    assert 1 <= client.statistics().retried < 5


# --- X13: hostile text -----------------------------------------------------------------------------------------------

HOSTILE = {
    "at signs": "@" * 200_000,
    "a mailbox without an end": "a" * 200_000,
    "mailboxes": "a@" * 100_000,
    "a number without an end": "1" * 200_000,
    "numbers with gaps": "1 " * 100_000,
    "brackets": "+1((((" * 40_000,
    "blanks": " " * 200_000,
    "semicolons": "charset=" * 25_000,
}
PARSERS: dict[str, Callable[[str], object]] = {
    "message": lambda text: parse_response(HttpResponse(422, {}, json.dumps({"message": text}).encode())),
    "charset": lambda text: parse_response(HttpResponse(200, {"Content-Type": f"text/html; {text}"}, b"\xff{}")),
    "body": lambda text: parse_response(HttpResponse(200, {}, text.encode())),
    "time": milliseconds,
    "Date": lambda text: server_time({"Date": text}),
    "Retry-After": lambda text: retry_after(text, NOON),
}


@pytest.mark.parametrize("parser", PARSERS)
def test_no_text_of_a_server_takes_long_to_read(parser: str) -> None:
    """200 kB of text that is slow for regular expressions is parsed within 0.5 s of CPU time (X13)."""
    for text in HOSTILE.values():
        started = time.process_time()
        PARSERS[parser](text)
        assert time.process_time() - started < 0.5


def test_a_date_of_the_server_is_the_only_clock_of_its_waits() -> None:
    """A `Retry-After` date counts from the response's own `Date`, even if that is decades off (A6, N25)."""
    header = formatdate(NOON + 5, usegmt=True)
    server = HttpResponse(429, {"Retry-After": header, "Date": formatdate(NOON, usegmt=True)}, b"")
    answers = [server, HttpResponse(200, {}, b'{"data":[]}')]

    async def send(body: Body) -> HttpResponse:
        del body
        return answers.pop(0)

    client = Client(send, account="main", concurrency=1, jitter=lambda: 0.0)
    run(client.read(EVERYTHING))
    assert client.statistics().waited == 5.0


def test_a_wait_beyond_the_bearable_ends_the_run_naming_it() -> None:
    """A wait one second longer than the limit of ten minutes ends the run with the value in the message (A6)."""

    async def send(body: Body) -> HttpResponse:
        del body
        return HttpResponse(429, {"Retry-After": "601"}, b"")

    client = Client(send, account="main", concurrency=1, jitter=lambda: 0.0)
    with pytest.raises(SourceUnavailable, match="wait 601 s, more than 600 s"):
        run(client.read(EVERYTHING))
