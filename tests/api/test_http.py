"""The transport over real sockets: a loopback server that cuts, floods, corrupts and stalls, byte by byte."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import ssl
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from random import Random

import anyio
import pytest
from pydantic import SecretStr

from etl.api.client import Client, Transport, TransportError
from etl.api.http import Credential, connect
from etl.api.request import Query
from etl.api.response import ApiFailure, FailureKind, HttpResponse, Page
from etl.config import Http
from etl.errors import ContractError, SourceUnavailable, UsageError
from tests.support.certificates import OPENSSL, Authority
from tests.support.wire import PAGE, Turn, Wire, answer, closes, drips, repeats, resets, says, serve, silence

CANARY = "canary-0123456789abcdef"
EVERYTHING = Query(is_contact=True)
BODY = EVERYTHING.body(1)
SHORT = Http(attempt_timeout=timedelta(seconds=0.5))
HEAD = b"HTTP/1.1 200 OK\r\n"


def settings(**values: object) -> Http:
    """The default settings with these overrides."""
    return Http.model_validate(values)


@asynccontextmanager
async def talk(
    *turns: Turn, http: Http | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Wire, Transport]]:
    """A server that plays these turns, and a transport to it."""
    async with (
        serve(*turns, tls=tls) as wire,
        connect(wire.url, Credential(SecretStr(CANARY)), http or settings(), concurrency=4) as send,
    ):
        yield wire, send


async def broken(*turns: Turn, http: Http | None = None) -> ApiFailure:
    """The failure that one request to such a server ends in."""
    async with talk(*turns, http=http) as (_, send):
        with pytest.raises(TransportError) as caught:
            await send(BODY)
    return caught.value.failure


def client(send: Transport, jitter: float = 0.0) -> Client:
    """A client that does not wait between attempts."""
    return Client(send, account="main", concurrency=4, jitter=lambda: jitter)


async def test_a_request_is_what_the_api_wants() -> None:
    """Every request is one POST with the token, `authtype: Key` and a JSON body (A49, M11)."""
    async with talk(says(answer(PAGE, "Date: Sun, 05 Jan 2025 10:00:00 GMT"))) as (wire, send):
        reply = await send(BODY)
    head, _, content = wire.requests[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert first == "POST /inbox/users HTTP/1.1"
    assert headers["authorization"] == f"Bearer {CANARY}"
    assert headers["authtype"] == "Key"
    assert headers["content-type"].startswith("application/json")
    assert json.loads(content) == BODY
    assert (reply.status, reply.body) == (200, PAGE)
    assert reply.headers["date"] == reply.headers["Date"] == "Sun, 05 Jan 2025 10:00:00 GMT"


async def test_a_connection_is_kept_for_the_next_request() -> None:
    """Consecutive requests share one connection, and cookies are not sent back."""
    async with talk(says(answer(PAGE, "Set-Cookie: session=1"))) as (wire, send):
        for _ in range(3):
            await send(BODY)
    assert (wire.connections, len(wire.requests)) == (1, 3)
    assert b"ookie" not in b"".join(wire.requests)


async def test_every_status_comes_back_as_it_is() -> None:
    """The transport returns every status as a response, not as an error; interpreting it is left to the caller (A4)."""
    for status in ("204 No Content", "401 Unauthorized", "404 Not Found", "429 Too Many", "500 Oops", "599 Odd"):
        async with talk(says(answer(b"", "Retry-After: 3", status=status))) as (_, send):
            reply = await send(BODY)
        assert (f"{reply.status}", reply.headers["Retry-After"]) == (status.split()[0], "3")


# --- N4 to N8: truncated responses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [resets(), closes(), resets(HEAD), closes(HEAD + b"Content-Length: 9\r\n")])
async def test_a_connection_broken_before_the_body_is_asked_again(turn: Turn) -> None:
    """A reset or close before the body is retried (N4)."""
    assert (await broken(turn)).kind is FailureKind.UNAVAILABLE
    async with talk(turn, turn, says(answer())) as (_, send):
        assert isinstance(await client(send).read(EVERYTHING), Page)


WHOLE = answer(json.dumps({"success": True, "data": [{"_id": f"{n:024x}", "name": "Ada"} for n in range(42)]}).encode())


@pytest.mark.parametrize("breaks", [closes, resets])
async def test_no_answer_cut_at_any_byte_is_taken(breaks: type[Turn]) -> None:
    """A 2 KB response, cut at each of its bytes by a close or a reset, is never accepted as complete (N5)."""
    assert len(WHOLE) > 2000
    turns = [breaks(WHOLE[:length]) for length in range(len(WHOLE))]
    taken: list[HttpResponse] = []

    async def job(send: Transport) -> None:
        while len(wire.requests) < len(turns):
            try:
                taken.append(await send(BODY))
            except TransportError as caught:
                assert caught.failure.kind in {FailureKind.UNAVAILABLE, FailureKind.GARBLED}  # noqa: PT017

    async with talk(*turns) as (wire, send), anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(job, send)
    assert len(wire.requests) >= len(turns)
    assert taken == []


@pytest.mark.parametrize("breaks", [closes, resets])
async def test_a_chunked_answer_without_its_end_is_not_taken(breaks: type[Turn]) -> None:
    """A chunked response without the final chunk, cut anywhere in the framing, is not accepted (N6)."""
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PAGE), PAGE)
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    for length in (0, 2, 9, len(chunked) - 7, len(chunked) - 5, len(chunked) - 2, len(chunked) - 1):
        assert (await broken(breaks(head + chunked[:length]))).kind is FailureKind.UNAVAILABLE
    async with talk(says(head + chunked)) as (_, send):
        assert (await send(BODY)).body == PAGE


@pytest.mark.parametrize(
    "chunk", [b"xyz\r\n", b"-5\r\n", b"5;" + b"a" * 100_000 + b"\r\n", b"fffffffffffffffffffff\r\n"]
)
async def test_a_wrong_chunk_is_not_taken(chunk: bytes) -> None:
    """A chunk with an invalid size breaks the response (N6, N13)."""
    assert (await broken(closes(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk))).kind in {
        FailureKind.UNAVAILABLE,
        FailureKind.GARBLED,
    }


async def test_a_body_longer_than_declared_ends_where_it_was_declared() -> None:
    """Bytes after the declared length are not part of the response and do not corrupt the next one."""
    async with talk(says(answer(PAGE + b"HTTP/1.1 500 Oops\r\n\r\n", length=len(PAGE))), says(answer())) as (_, send):
        assert (await send(BODY)).body == PAGE
        try:
            assert (await send(BODY)).status in {200, 500}
        except TransportError:
            assert (await send(BODY)).body == PAGE


# --- N9, N10: stalls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turn",
    [silence, says(HEAD), says(answer()[:-1]), repeats(b"x", first=HEAD + b"Content-Length: 999\r\n\r\n", pause=0.02)],
    ids=["no answer", "half a head", "all but a byte", "a byte now and then"],
)
async def test_a_slow_answer_is_given_up_at_the_deadline(turn: Turn) -> None:
    """The whole response has a deadline, however steadily its bytes arrive; the next attempt may succeed (N9, N10)."""
    async with asyncio.timeout(20), talk(turn, says(answer()), http=SHORT) as (wire, send):
        asking = client(send)
        assert isinstance(await asking.read(EVERYTHING), Page)
        assert len(wire.requests) >= 2
        assert asking.statistics().in_flight == 0


async def test_a_silent_server_ends_as_unavailable() -> None:
    """A server that accepts and never responds ends the run as unavailable, with all slots free (N3, N10)."""
    async with talk(silence, http=settings(attempt_timeout="30ms")) as (_, send):
        asking = client(send)
        with pytest.raises(SourceUnavailable, match="no complete response within the time limit"):
            await asking.read(EVERYTHING)
        assert asking.statistics().in_flight == 0


# --- N11 to N14: floods and garbage -----------------------------------------------------------------------------------


def packed(content: bytes, *, encoding: str = "gzip") -> bytes:
    """A response with this body and this `Content-Encoding`."""
    return answer(content, f"Content-Encoding: {encoding}")


async def test_a_compressed_answer_is_unpacked() -> None:
    """Gzip is requested and decoded, in pieces of any size, including empty and large bodies."""
    for content in (b"", PAGE, b"".join(b"%d" % n for n in range(2**18))):
        whole = packed(gzip.compress(content))
        async with talk(drips(whole[:-3], whole[-3:]), says(whole)) as (wire, send):
            assert (await send(BODY)).body == content
            assert (await send(BODY)).body == content
        assert b"Accept-Encoding: gzip\r\n" in wire.requests[0]


async def test_a_compressed_answer_ends_with_its_checksum() -> None:
    """A gzip body that is cut short or followed by garbage is rejected, even if its length is as declared (N11)."""
    content = gzip.compress(PAGE)
    second = gzip.compress(b"  ")
    behind = (b"x", b"\0", b"\0" * 512, b"\x1f", b"\x1f\x8b", b"\x1f\x8bx", second[:-1], second + b"x")
    for spoilt in (*(content[:length] for length in range(len(content))), *(content + rest for rest in behind)):
        assert (await broken(says(packed(spoilt)))).kind is FailureKind.GARBLED


LARGE = json.dumps({"success": True, "data": [{"_id": f"{n:024x}"} for n in range(20_000)]}).encode()
MEMBERS = {
    "two": lambda whole: gzip.compress(whole[:30]) + gzip.compress(whole[30:]),
    "an empty last one": lambda whole: gzip.compress(whole) + gzip.compress(b""),
    "an empty first one": lambda whole: gzip.compress(b"") + gzip.compress(whole),
    "one with a name": lambda whole: (
        gzip.compress(whole[:9]) + b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"n\0" + tail(whole[9:])
    ),
    "many": lambda whole: b"".join(gzip.compress(whole[at : at + 1000]) for at in range(0, len(whole), 1000)),
}


def tail(content: bytes) -> bytes:
    """A gzip member without its header."""
    return gzip.compress(content)[10:]


@pytest.mark.parametrize("content", [PAGE, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("members", MEMBERS)
async def test_a_compressed_answer_may_have_several_members(members: str, content: bytes) -> None:
    """RFC 1952: a gzip file is a series of members; here sent whole and split anywhere (N11)."""
    whole = packed(MEMBERS[members](content))
    pieces = [whole[at : at + len(whole) // 7] for at in range(0, len(whole), len(whole) // 7)]
    async with talk(says(whole), drips(*pieces, pause=0)) as (_, send):
        assert [(await send(BODY)).body for _ in range(2)] == [content, content]


@pytest.mark.parametrize("encoding", ["GZIP", "x-gzip", "X-GZip", " gzip ", "gzip, identity", "identity,gzip", "gzip,"])
async def test_gzip_goes_by_all_its_names(encoding: str) -> None:
    """Encoding names are case-insensitive; identity is not a layer, and x-gzip is gzip (RFC 9110) (N11)."""
    async with talk(says(packed(gzip.compress(PAGE), encoding=encoding))) as (_, send):
        assert (await send(BODY)).body == PAGE


@pytest.mark.parametrize("encoding", ["", "identity", "IDENTITY", " , "])
async def test_an_encoding_that_is_none_does_no_harm(encoding: str) -> None:
    """An uncompressed response may declare that it is one (N11)."""
    async with talk(says(packed(PAGE, encoding=encoding))) as (_, send):
        assert (await send(BODY)).body == PAGE


async def test_two_headers_of_gzip_are_two_layers() -> None:
    """Two `Content-Encoding: gzip` headers mean the same as one that lists gzip twice (N11)."""
    twice = answer(gzip.compress(gzip.compress(PAGE)), "Content-Encoding: gzip", "Content-Encoding: gzip")
    assert (await broken(says(twice))).kind is FailureKind.GARBLED


TOLD = b'{"success":false,"message":"Unauthorized"}'
BODIES = {
    "packed": (gzip.compress(TOLD), "gzip", TOLD),
    "in two members": (gzip.compress(TOLD[:9]) + gzip.compress(TOLD[9:]), "gzip", TOLD),
    "empty": (b"", "gzip", b""),
    "not packed": (TOLD, "gzip", b""),
    "in another way": (TOLD, "br", b""),
    "a bomb": (gzip.compress(bytes(2**24)), "gzip", b""),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("status", ["401 Unauthorized", "429 Too Many Requests", "503 Service Unavailable"])
async def test_a_refusal_counts_however_its_body_is_packed(status: str, name: str) -> None:
    """The status decides: an unreadable body does not turn a 429 into a contract violation (N11, N12, A5)."""
    content, encoding, told = BODIES[name]
    refused = answer(content, f"Content-Encoding: {encoding}", "Retry-After: 3", status=status)
    async with talk(says(refused)) as (_, send):
        reply = await send(BODY)
    assert (reply.status, reply.body, reply.headers["Retry-After"]) == (int(status[:3]), told, "3")


@pytest.mark.parametrize("first", [b"", PAGE], ids=["alone", "behind a page"])
async def test_a_million_empty_members_are_given_up_soon(first: bytes) -> None:
    """Empty gzip members cost time, not memory; more than ten thousand are rejected (N12)."""
    many = gzip.compress(first) + gzip.compress(b"", mtime=0) * 1_000_000
    started = time.process_time()
    refusal = await broken(says(packed(many)))
    assert (refusal.kind, refusal.message) == (FailureKind.GARBLED, "a compressed response of more than 10000 parts")
    assert time.process_time() - started < 3
    async with talk(says(packed(gzip.compress(PAGE) + gzip.compress(b"", mtime=0) * 9_999))) as (_, send):
        assert (await send(BODY)).body == PAGE


async def test_an_answer_that_unpacks_to_nothing_for_ever_is_given_up() -> None:
    """Endless empty blocks have no content to count, so the compressed bytes count towards the cap (N12, N13)."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    head = packer.compress(PAGE) + packer.flush(zlib.Z_SYNC_FLUSH)
    turn = repeats(b"\0\0\0\xff\xff" * 4096, first=HEAD + b"Content-Encoding: gzip\r\n\r\n" + head)
    refusal = await broken(turn, http=settings(max_body="1MiB"))
    assert "more than 1048576 bytes" in refusal.message


async def test_no_bit_flipped_in_a_compressed_answer_changes_a_page() -> None:
    """A gzip response with one byte flipped in header, data or checksum is the same page or none (N11)."""
    content = gzip.compress(PAGE, mtime=0)
    turns = []
    for place in range(len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 0x55
        turns.append(says(packed(bytes(spoilt))))
    kinds = []
    async with talk(*turns) as (wire, send):
        while len(wire.requests) < len(turns):
            try:
                assert (await send(BODY)).body == PAGE
            except TransportError as caught:
                kinds.append(caught.failure.kind)
    # The flips that go unnoticed are in header bytes without meaning: time, level, system.
    assert len(kinds) >= len(content) - 6
    assert set(kinds) == {FailureKind.GARBLED}


@pytest.mark.parametrize(
    "content",
    [packed(PAGE), packed(PAGE, encoding="deflate"), packed(PAGE, encoding="br"), packed(PAGE, encoding="zstd")],
    ids=["gzip", "deflate", "br", "zstd"],
)
async def test_a_wrong_content_encoding_breaks_the_contract(content: bytes) -> None:
    """Plain text declared as compressed ends as a contract violation, not as an unavailable server (N11)."""
    assert (await broken(says(content))).kind is FailureKind.GARBLED
    async with talk(says(content)) as (wire, send):
        with pytest.raises(ContractError):
            await client(send).read(EVERYTHING)
    assert len(wire.requests) == 3


async def test_one_layer_of_compression_is_the_most() -> None:
    """A body compressed twice is decoded at most once and is then not a page (N11)."""
    twice = gzip.compress(gzip.compress(PAGE))
    async with talk(says(packed(twice, encoding="gzip, gzip"))) as (_, send):
        with pytest.raises(ContractError):
            await client(send).read(EVERYTHING)


FLOODS: dict[str, Turn] = {
    "endless chunks": repeats(b"8000\r\n%s\r\n" % (b" " * 0x8000), first=HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
    "no length": repeats(b" " * 0x8000, first=HEAD + b"\r\n"),
    "a declared terabyte": repeats(b" " * 0x8000, first=HEAD + b"Content-Length: 1099511627776\r\n\r\n"),
    "a bomb": says(packed(gzip.compress(b" " * 2**26))),
    "a declared megabyte and a byte": says(answer(b" " * (2**20 + 1))),
}


@pytest.mark.parametrize("turn", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_given_up_at_the_cap(turn: Turn) -> None:
    """A body beyond the cap, compressed or not, declared or not, is rejected as a contract violation (N12, N13)."""
    refusal = await broken(turn, http=settings(max_body="1MiB"))
    assert refusal.kind is FailureKind.GARBLED
    assert "more than 1048576 bytes" in refusal.message
    assert "http.max_body" in refusal.hint


async def test_a_body_of_just_the_cap_is_taken() -> None:
    """The cap applies to the decoded body, and a body of exactly that size is accepted (N12)."""
    spaces = b" " * 2**16
    for content in (answer(spaces), packed(gzip.compress(spaces))):
        async with talk(says(content), http=settings(max_body="64KiB")) as (_, send):
            assert (await send(BODY)).body == spaces


MODEST = """
import asyncio, resource, sys
from pydantic import SecretStr
from etl.api.client import TransportError
from etl.api.http import Credential, connect
from etl.config import Http

async def main():
    async with connect(sys.argv[1], Credential(SecretStr("t")), Http(max_body="16MiB"), concurrency=1) as send:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            await send({})
        except TransportError as broken:
            print(broken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)

asyncio.run(main())
"""


async def test_a_bomb_does_not_fill_the_memory() -> None:
    """A megabyte that expands to 128 MB takes less than twice the cap of memory (N12)."""
    chance = Random(12)
    bomb = b"".join(chance.randbytes(1024) + bytes(2**17) for _ in range(2**10))
    async with serve(says(packed(gzip.compress(bomb, 6)))) as wire:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MODEST, wire.url), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        told, _ = await asyncio.wait_for(child.communicate(), 20)
    message, _, grown = told.decode().rpartition(" ")
    assert message.startswith("a response of more than 16777216 bytes")
    assert int(grown) * 1024 < 2 * 2**24


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: %s\r\n" % (n, b"x" * 50) for n in range(10_000)),
        b"X: " + b"x" * 2**20 + b"\r\n",
        b"X" * 2**20 + b": x\r\n",
    ],
    ids=["many", "long value", "long name"],
)
async def test_a_header_bomb_breaks_the_contract(head: bytes) -> None:
    """Ten thousand headers, or one of a megabyte, are rejected (N14)."""
    assert (await broken(says(HEAD + head + b"\r\n"))).kind is FailureKind.GARBLED


RUBBISH = [
    b"SSH-2.0-" + CANARY.encode() + b"\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x28 " + CANARY.encode() + b"\r\n\r\n",
    b"HTTP/1.1 two-hundred " + CANARY.encode() + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon " + CANARY.encode() + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + CANARY.encode() + b"\r\n\r\n",
]


@pytest.mark.parametrize("content", RUBBISH)
async def test_what_is_no_http_is_told_without_a_quote(content: bytes) -> None:
    """A response that is not HTTP is a contract violation, and the message quotes nothing of it (X1, X9)."""
    refusal = await broken(says(content))
    assert (refusal.kind, refusal.message) == (FailureKind.GARBLED, "a response that is not valid HTTP")


# --- N15 to N18: wrong responses --------------------------------------------------------------------------------------


async def test_a_page_of_html_breaks_the_contract() -> None:
    """A captive portal's page with status 200 ends the run after the allowed attempts and is not quoted (N15)."""
    html = b"<html><body>Welcome, Ada Example</body></html>"
    async with talk(says(answer(html, "Content-Type: text/html"))) as (wire, send):
        with pytest.raises(ContractError) as caught:
            await client(send).read(EVERYTHING)
    assert len(wire.requests) == 3
    assert caught.value.message == "an HTML page instead of JSON"


@pytest.mark.parametrize("lead", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "text/html", "application/octet-stream", ""])
async def test_json_is_taken_whatever_it_is_called(lead: bytes, kind: str) -> None:
    """JSON under any Content-Type, with or without a BOM, is a page (N16, N17)."""
    async with talk(says(answer(lead + PAGE, f"Content-Type: {kind}"))) as (_, send):
        assert (await client(send).read(EVERYTHING)).body == PAGE


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    """A redirect is a contract violation at once; no connection to its target is opened (N18, X10)."""
    async with serve(says(answer())) as elsewhere:
        moved = answer(b"", f"Location: {elsewhere.url}/inbox/users", status=f"{status} Moved")
        async with talk(says(moved)) as (wire, send):
            with pytest.raises(ContractError, match="a redirect, which is never followed"):
                await client(send).read(EVERYTHING)
    assert len(wire.requests) == 1
    assert (elsewhere.connections, elsewhere.requests) == (0, [])


# --- N1, N2, N19, N20: connecting -------------------------------------------------------------------------------------


async def test_a_closed_port_is_unavailable() -> None:
    """A refused connection is reported with host and port (N1)."""
    async with serve(silence) as wire:
        port = wire.url.rpartition(":")[2]
    async with connect(wire.url, Credential(SecretStr(CANARY)), settings(), concurrency=1) as send:
        with pytest.raises(SourceUnavailable, match=f"127.0.0.1:{port}"):
            await client(send).read(EVERYTHING)


async def test_a_host_without_an_address_is_named() -> None:
    """An unknown host name ends the run at once as unavailable, and the message names it (N2)."""
    async with connect("https://nowhere.invalid", Credential(SecretStr(CANARY)), settings(), concurrency=1) as send:
        asking = client(send)
        with pytest.raises(SourceUnavailable, match=r"nowhere\.invalid"):
            await asking.read(EVERYTHING)
    # If the name service itself is unreachable, the request is retried.
    assert asking.statistics().retried in {0, 4}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that no system trusts."""
    if OPENSSL is None:
        pytest.skip("needs the openssl command")
    return Authority.found(tmp_path_factory.mktemp("tls"))


async def over_tls(tls: ssl.SSLContext, *, attempts: int = 1, **values: object) -> Page:
    """One page from a server with this TLS context; an untrusted server is not retried."""
    async with talk(says(answer()), http=settings(**values), tls=tls) as (wire, send):
        asking = client(send)
        try:
            return await asking.read(EVERYTHING)
        finally:
            assert asking.statistics().sent == attempts
            if not values:
                # An untrusted server does not receive a byte of the request.
                assert wire.requests == []


async def test_a_custom_bundle_is_trusted(authority: Authority) -> None:
    """An authority named in the configuration is trusted, and the host name is still checked (N19)."""
    good = authority.issue("good", "IP:127.0.0.1").context()
    assert (await over_tls(good, ca_bundle=authority.bundle)).body == PAGE


@pytest.mark.parametrize(
    ("name", "alternative", "until", "trusted", "reason", "hint"),
    [
        ("unknown", "IP:127.0.0.1", "20991231235959Z", False, "unable to get local issuer certificate", "authority"),
        ("elsewhere", "DNS:elsewhere.example.com", "20991231235959Z", True, "not valid for '127.0.0.1'", "base_url"),
        ("expired", "IP:127.0.0.1", "20210101000000Z", True, "certificate has expired", "clock"),
    ],
)
async def test_a_server_that_is_not_who_it_says_is_refused(
    authority: Authority, name: str, alternative: str, until: str, *, trusted: bool, reason: str, hint: str
) -> None:
    """Unknown authorities and foreign or expired certificates end as unavailable at once, with the cause (N19, X11)."""
    tls = authority.issue(name, alternative, until=until).context()
    values = {"ca_bundle": authority.bundle} if trusted else {}
    with pytest.raises(SourceUnavailable, match="the server's certificate is not valid") as caught:
        await over_tls(tls, **values)
    assert reason in caught.value.message
    assert hint in caught.value.hint
    assert "http.ca_bundle" in caught.value.hint


async def test_an_authority_that_newer_pythons_refuse_is_told_as_such(tmp_path: Path) -> None:
    """Python 3.13 checks private authorities more strictly; the hint says so and does not blame the server (N19)."""
    if OPENSSL is None:
        pytest.skip("needs the openssl command")
    lax = Authority.found(tmp_path, lax=True)
    tls = lax.issue("lax", "IP:127.0.0.1").context()
    if sys.version_info < (3, 13):
        assert (await over_tls(tls, ca_bundle=lax.bundle)).body == PAGE
        return
    with pytest.raises(SourceUnavailable, match="the server's certificate is not valid") as caught:
        await over_tls(tls, ca_bundle=lax.bundle)
    assert "VERIFY_X509_STRICT" in caught.value.hint
    assert "http.ca_bundle" in caught.value.hint


async def test_a_self_signed_server_is_refused(authority: Authority) -> None:
    """A self-signed certificate is not trusted (N19)."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.bundle, authority.folder / "ca.key")
    with pytest.raises(SourceUnavailable, match="self-signed certificate") as caught:
        await over_tls(tls)
    assert "http.ca_bundle" in caught.value.hint


async def test_an_old_protocol_is_refused(authority: Authority) -> None:
    """A server that supports nothing newer than TLS 1.1 is rejected (N19, X11)."""
    tls = authority.issue("old", "IP:127.0.0.1").context()
    tls.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(SourceUnavailable, match="no connection"):
        await over_tls(tls, attempts=5, ca_bundle=authority.bundle)


def alert(number: int) -> bytes:
    """A TLS record that refuses the handshake."""
    return b"\x15\x03\x03\x00\x02\x02" + bytes([number])


@pytest.mark.parametrize(
    ("says", "attempts"),
    [(b"", 5), (alert(80), 5), (alert(40), 1), (alert(70), 1), (answer(), 1)],
    ids=["cut", "internal error", "handshake refused", "protocol refused", "plain http"],
)
async def test_a_broken_handshake_is_unavailable(says: bytes, attempts: int) -> None:
    """A server that cuts or refuses the handshake, or responds in plain text, never receives the token (N19).

    Only failures that may be temporary are retried.
    """
    heard: list[bytes] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(2**16))
        writer.write(says)
        writer.close()

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server:
        address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with connect(address, Credential(SecretStr(CANARY)), settings(), concurrency=1) as send:
            with pytest.raises(SourceUnavailable):
                await client(send).read(EVERYTHING)
    assert len(heard) == attempts
    assert CANARY.encode() not in b"".join(heard)


async def test_a_bundle_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    """A missing or invalid CA bundle is reported as a setting to correct, not ignored (N19)."""
    (tmp_path / "empty.pem").touch()
    for name in ("missing.pem", "empty.pem"):
        with pytest.raises(UsageError) as caught:
            async with connect(
                "https://x", Credential(SecretStr("t")), settings(ca_bundle=tmp_path / name), concurrency=1
            ):
                pass
        assert caught.value.where == "http.ca_bundle"


@pytest.mark.parametrize("asked", [False, True])
async def test_a_proxy_of_the_environment_is_used_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, *, asked: bool
) -> None:
    """A proxy set in the environment is ignored unless the configuration enables it (N20)."""
    async with serve(says(answer(b"", status="502 Bad Gateway"))) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        async with talk(says(answer()), http=settings(proxy_from_environment=asked)) as (wire, send):
            verdict = await client(send).ask(EVERYTHING)
    assert isinstance(verdict, ApiFailure if asked else Page)
    assert (len(wire.requests), proxy.connections) == ((0, 1) if asked else (1, 0))


async def test_a_proxy_that_fails_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that requires a password, or cannot reach the server, ends as unavailable (N20)."""
    for status in ("407 Proxy Authentication Required", "502 Bad Gateway"):
        async with serve(says(answer(b"", status=status))) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            http = settings(proxy_from_environment=True)
            async with connect("https://x.example.com", Credential(SecretStr(CANARY)), http, concurrency=1) as send:
                with pytest.raises(SourceUnavailable, match=status[:3]):
                    await client(send).read(EVERYTHING)
        assert CANARY.encode() not in b"".join(proxy.requests)


async def test_a_proxy_that_asks_for_a_password_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """407 is a local configuration error: one request is made, and the hint shows how to set the password (N20)."""
    async with serve(says(answer(b"", status="407 Proxy Authentication Required"))) as proxy:
        for variable, url in (("HTTPS_PROXY", "https://x.example.com"), ("HTTP_PROXY", "http://127.0.0.1:9")):
            monkeypatch.setenv(variable, proxy.url)
            http = settings(proxy_from_environment=True)
            async with connect(url, Credential(SecretStr(CANARY)), http, concurrency=1) as send:
                with pytest.raises(SourceUnavailable, match="407") as caught:
                    await client(send).read(EVERYTHING)
            assert "http://user:password@" in caught.value.hint
    assert len(proxy.requests) == 2


async def test_a_proxy_gets_its_password_and_not_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy receives user and password of the variable; the server receives only its token (N20)."""
    async with serve(says(answer())) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:p%40ss@"))
        http = settings(proxy_from_environment=True)
        async with connect("http://127.0.0.1:9", Credential(SecretStr(CANARY)), http, concurrency=1) as send:
            assert (await send(BODY)).body == PAGE
    request = proxy.requests[0]
    assert request.startswith(b"POST http://127.0.0.1:9/inbox/users HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in request
    assert b"Authorization: Bearer " + CANARY.encode() in request


@pytest.mark.parametrize("proxied", [False, True])
async def test_no_netrc_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, proxied: bool) -> None:
    """Passwords in `.netrc` are neither sent nor do they interfere (N20, X1)."""
    (tmp_path / ".netrc").write_text("default login someone password secret\nmachine 127.0.0.1 login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with serve(says(answer())) as proxy:
        if proxied:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with talk(says(answer()), http=settings(proxy_from_environment=True)) as (wire, send):
            assert (await send(BODY)).body == PAGE
    [request] = wire.requests + proxy.requests
    assert (len(proxy.requests), request.count(b"uthorization:")) == (int(proxied), 1)


PROXIES = [
    ("HTTP_PROXY", "127.0.0.1:9", "without a scheme: 127.0.0.1:9"),
    ("http_proxy", "localhost:3128", "without a scheme: localhost:3128"),
    ("HTTP_PROXY", "user:secret@proxy:3128", "without a scheme: …@proxy:3128"),
    ("ALL_PROXY", "socks5://127.0.0.1:1080", "not an http:// address"),
    ("all_proxy", "socks5h://user:secret@h", "not an http:// address, which is not supported: …@h"),
    ("HTTP_PROXY", "https://proxy:3128", "not an http:// address"),
    ("HTTP_PROXY", "http://", "is not the address of a proxy"),
    ("HTTP_PROXY", "http://proxy:port", "is not the address of a proxy"),
    ("HTTP_PROXY", "http://proxy:99999", "is not the address of a proxy"),
    ("HTTP_PROXY", "http://user:se#cret@proxy:3128", "is not the address of a proxy: …@proxy:3128"),
    ("HTTP_PROXY", "http://[::1", "is not the address of a proxy"),
    ("HTTP_PROXY", "http://pro xy", "is not the address of a proxy"),
]


@pytest.mark.parametrize(("variable", "value", "told"), PROXIES)
async def test_a_proxy_that_cannot_be_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    """An invalid proxy variable is reported by name before any request, without the password in it (N20, X1)."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv(variable, value)
    async with serve(says(answer())) as wire:
        with pytest.raises(UsageError) as caught:
            async with connect(
                wire.url, Credential(SecretStr("t")), settings(proxy_from_environment=True), concurrency=1
            ):
                pass
        assert caught.value.message.startswith(f"{variable} ")
        assert told in caught.value.message
        assert "cret" not in str(caught.value)
        # The variable does not matter if proxies are not enabled or the host is excluded.
        async with connect(wire.url, Credential(SecretStr("t")), settings(), concurrency=1) as send:
            assert (await send(BODY)).body == PAGE
        monkeypatch.setenv("NO_PROXY", "example.com, 127.0.0.1")
        http = settings(proxy_from_environment=True)
        async with connect(wire.url, Credential(SecretStr("t")), http, concurrency=1) as send:
            assert (await send(BODY)).body == PAGE


async def test_a_proxy_that_is_not_there_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that the proxy, not the server, is unreachable, and names its variable (N1, N20)."""
    async with serve(silence) as gone:
        monkeypatch.setenv("ALL_PROXY", gone.url)
    http = settings(proxy_from_environment=True)
    async with connect("https://x.example.com", Credential(SecretStr(CANARY)), http, concurrency=1) as send:
        with pytest.raises(SourceUnavailable, match="no connection to the proxy of ALL_PROXY") as caught:
            await client(send).read(EVERYTHING)
    assert "ALL_PROXY" in caught.value.hint


# --- N21: connections closed while idle -----------------------------------------------------------------------------


async def test_a_server_that_closes_after_each_answer_costs_no_retry() -> None:
    """If every kept connection turns out closed, each request is sent again at once and no retry is used (N21)."""
    async with talk(closes(answer())) as (wire, send):
        asking = client(send, jitter=1.0)

        async def job() -> None:
            for _ in range(25):
                await asking.read(EVERYTHING)

        async with asyncio.timeout(20), anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(job)
    assert len(wire.requests) == 100
    seen = asking.statistics()
    assert (seen.sent, seen.retried, seen.waited) == (100, 0, 0.0)


async def test_a_first_connection_that_closes_is_a_failure() -> None:
    """Only a connection that has worked before counts as closed while idle, not a new one (N4, N21)."""
    async with talk(closes()) as (wire, send):
        asking = client(send)
        with pytest.raises(SourceUnavailable):
            await asking.read(EVERYTHING)
    assert (len(wire.requests), asking.statistics().retried) == (5, 4)
