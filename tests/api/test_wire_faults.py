"""Network faults beyond `test_http`: every bit of a gzip header, every chunk boundary, bombs by their ratio.

A loopback server sends byte by byte; the client under test is the production one.
"""

from __future__ import annotations

import gzip
import socket
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from random import Random

import anyio
import pytest
from pydantic import SecretStr

from etl.api.client import Client, Transport, TransportError
from etl.api.http import MOST_UNPACKED, UNSUSPECTED, Credential, connect
from etl.api.request import Query
from etl.api.response import FailureKind, Page
from etl.config import Http
from etl.errors import ContractError, SourceUnavailable
from tests.support.canary import TOKEN, leaks
from tests.support.live import Job, live
from tests.support.wire import PAGE, Turn, Wire, answer, closes, repeats, resets, says, serve

EVERYTHING = Query(is_contact=True)
BODY = EVERYTHING.body(1)
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NOON = 1_736_164_800
HOUR = 3600


@asynccontextmanager
async def talk(*turns: Turn, **settings: object) -> AsyncIterator[tuple[Wire, Transport]]:
    """A server that plays these turns, and a transport to it."""
    http = Http.model_validate(settings)
    async with serve(*turns) as wire, connect(wire.url, Credential(SecretStr(TOKEN)), http, concurrency=4) as send:
        yield wire, send


def client(send: Transport) -> Client:
    """A client that does not wait between attempts."""
    return Client(send, account="main", concurrency=4, jitter=lambda: 0.0)


async def outcomes(turns: Sequence[Turn]) -> list[bytes | FailureKind]:
    """The result of each turn: the body that was accepted, or the kind of failure."""
    found: list[bytes | FailureKind] = []
    async with talk(*turns) as (wire, send):
        while len(wire.requests) < len(turns):
            try:
                found.append((await send(BODY)).body)
            except TransportError as broken:
                found.append(broken.failure.kind)
    return found


def packed(content: bytes) -> Turn:
    """A response that declares its body as gzip."""
    return says(answer(content, "Content-Encoding: gzip"))


# --- N5, N6: cut anywhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", [closes, resets], ids=["FIN", "RST"])
async def test_no_chunked_answer_cut_at_any_byte_is_taken(breaks: Callable[[bytes], Turn]) -> None:
    """A chunked response of several chunks, cut at every byte from its head to its last, is never accepted (N6)."""
    pieces = [PAGE[start : start + 20] for start in range(0, len(PAGE), 20)]
    whole = CHUNKED + b"".join(map(chunk, pieces)) + b"0\r\n\r\n"
    assert set(await outcomes([breaks(whole[:length]) for length in range(len(whole))])) <= {
        FailureKind.UNAVAILABLE,
        FailureKind.GARBLED,
        FailureKind.STALE,
    }
    assert await outcomes([says(whole)]) == [PAGE]


@pytest.mark.parametrize("breaks", [closes, resets], ids=["FIN", "RST"])
async def test_no_compressed_answer_cut_at_any_byte_is_taken(breaks: Callable[[bytes], Turn]) -> None:
    """A compressed response cut at any byte is never accepted (N5, N11)."""
    whole = answer(gzip.compress(PAGE), "Content-Encoding: gzip")
    kinds = await outcomes([breaks(whole[:length]) for length in range(len(whole))])
    assert {type(kind) for kind in kinds} == {FailureKind}


async def test_an_answer_without_a_length_that_is_cut_is_no_page() -> None:
    """A body without a declared length counts as complete only if its JSON is; every cut is retried (N5, N7)."""
    whole = HEAD + b"Connection: close\r\n\r\n" + PAGE
    for length in range(len(HEAD) + 21, len(whole), 3):
        async with talk(closes(whole[:length]), closes(whole)) as (wire, send):
            assert (await client(send).read(EVERYTHING)).body == PAGE
            assert len(wire.requests) == 2


# --- N11, N12: compression -------------------------------------------------------------------------------------------


async def test_no_bit_of_a_compressed_head_or_tail_changes_a_page() -> None:
    """Flipping any single bit of the gzip header, checksum or length gives the same page or a broken response (N11)."""
    content = gzip.compress(PAGE, mtime=0)
    places = [*range(10), *range(len(content) - 8, len(content))]
    turns = [packed(flipped(content, place, bit)) for place in places for bit in range(8)]
    found = await outcomes(turns)
    by_place = {place: set(found[8 * n : 8 * n + 8]) for n, place in enumerate(places)}
    # Time (4 to 7), level (8) and system (9) do not affect the content; of the flags (3), only the text flag does not.
    assert all(by_place[place] == {PAGE} for place in range(4, 10))
    assert all(by_place[place] == {FailureKind.GARBLED} for place in places if place not in range(3, 10))
    assert by_place[3] == {PAGE, FailureKind.GARBLED}


def flipped(content: bytes, place: int, bit: int) -> bytes:
    """The content with one bit changed."""
    spoilt = bytearray(content)
    spoilt[place] ^= 1 << bit
    return bytes(spoilt)


def swelling(ratio: int, size: int) -> bytes:
    """Content of at least this size that gzip shrinks by this factor, give or take a tenth."""
    chance, block = Random(ratio), 1 << 10
    # A run of zeros costs a thousandth of its length.
    zeros = int(block * ratio / (1 - ratio / 1030))
    return b"".join(chance.randbytes(block) + bytes(zeros) for _ in range(size // (block + zeros) + 1))


@pytest.mark.parametrize(
    ("ratio", "size", "taken"), [(100, 2**24, True), (180, 2**23, True), (260, 2**22, False), (900, 2**24, False)]
)
async def test_a_bomb_is_told_by_its_ratio(ratio: int, size: int, *, taken: bool) -> None:
    """Beyond a megabyte nothing may expand to more than 200 times its size, even far below the cap (N12)."""
    content = swelling(ratio, size)
    small = gzip.compress(content, 9)
    assert len(content) > UNSUSPECTED
    assert (len(content) < MOST_UNPACKED * len(small)) is taken
    async with talk(packed(small)) as (_, send):
        if taken:
            assert (await send(BODY)).body == content
        else:
            with pytest.raises(
                TransportError, match="a compressed response that expands more than 200 times"
            ) as caught:
                await send(BODY)
            assert caught.value.failure.kind is FailureKind.GARBLED


async def test_a_small_answer_may_be_packed_as_well_as_it_goes() -> None:
    """The ratio counts only beyond a megabyte: a page of blanks of that size is accepted (N12)."""
    content = b" " * UNSUSPECTED
    async with talk(packed(gzip.compress(content, 9))) as (_, send):
        assert (await send(BODY)).body == content


async def test_an_endless_bomb_ends_the_run() -> None:
    """An endless compressed stream is requested three times, aborted each time, and reported (N12, N13)."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    head, *blocks = [packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(3)]
    # After a full flush every block is independent: repeating one for ever is a valid stream.
    assert blocks[0] == blocks[1]
    first = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunk(head)
    async with talk(repeats(chunk(blocks[0]), first=first)) as (wire, send):
        with pytest.raises(ContractError, match="more than 200 times"):
            await client(send).read(EVERYTHING)
    assert len(wire.requests) == 3


def chunk(content: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(content), content)


# --- N13, N14: floods ------------------------------------------------------------------------------------------------


async def test_endless_small_chunks_are_given_up_at_the_cap() -> None:
    """Endless chunks of one byte fill no more than the cap (N13)."""
    async with talk(repeats(chunk(b" ") * 4096, first=CHUNKED), max_body="64KiB") as (_, send):
        with pytest.raises(TransportError, match="a response of more than 65536 bytes"):
            await send(BODY)


@pytest.mark.parametrize("form", ["many", "long", "endless"])
async def test_a_header_bomb_ends_the_run(form: str) -> None:
    """Ten thousand headers, one of a megabyte, or endless headers violate the contract after three attempts (N14)."""
    heads = {
        "many": b"".join(b"X-%d: x\r\n" % n for n in range(10_000)) + b"\r\n",
        "long": b"X: " + b"x" * 2**20 + b"\r\n\r\n",
        "endless": b"".join(b"X-%d: x\r\n" % n for n in range(10_000)),
    }
    async with talk(says(HEAD + heads[form]), attempt_timeout=timedelta(seconds=5)) as (wire, send):
        with pytest.raises(ContractError, match="a response that is not valid HTTP"):
            await client(send).read(EVERYTHING)
    assert len(wire.requests) == 3


# --- N17, N18, N20: other responses than expected ---------------------------------------------------------------------


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("declared", [True, False])
async def test_another_charset_ends_the_run_or_harms_no_ascii(charset: str, *, declared: bool) -> None:
    """UTF-16 and UTF-32 are rejected, declared or not; Latin-1 with an accent only if it is declared (N17)."""
    content = PAGE.replace(b'"_id"', b'"name":"Zo\xc3\xab","_id"').decode().encode(charset)
    head = f"Content-Type: application/json{f'; charset={charset}' if declared else ''}"
    async with talk(says(answer(content, head))) as (wire, send):
        if charset == "latin-1" and not declared:
            # One invalid byte in a text does not cost the page: it becomes U+FFFD and is counted (A35).
            assert (await client(send).read(EVERYTHING)).body == content
            return
        with pytest.raises(ContractError):
            await client(send).read(EVERYTHING)
        assert len(wire.requests) == 3


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("target", ["same", "other", "//other", "metadata", "none"])
async def test_no_redirect_is_followed_anywhere(status: int, target: str) -> None:
    """Any 3xx ends the run after one request; neither another origin nor our own is contacted again (N18)."""
    async with serve(says(answer())) as elsewhere:
        places = {
            "same": "Location: /inbox/users/",
            "other": f"Location: {elsewhere.url}/inbox/users",
            "//other": f"Location: {elsewhere.url.removeprefix('http:')}/inbox/users",
            "metadata": "Location: http://169.254.169.254/latest/meta-data/",
            "none": "X-Location: nowhere",
        }
        async with talk(says(answer(b"", places[target], status=f"{status} Moved"))) as (wire, send):
            with pytest.raises(ContractError, match=f"HTTP {status}: a redirect, which is never followed"):
                await client(send).read(EVERYTHING)
    assert (len(wire.requests), elsewhere.connections) == (1, 0)


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def test_a_run_ignores_the_proxies_of_the_environment(tmp_path: Path) -> None:
    """With every proxy variable set to a closed port a run succeeds; with proxies enabled it exits with 11 (N20)."""
    with live(contacts=20, nasty_share=0, small=True) as gone:
        nobody = gone.url
    with live(contacts=20, nasty_share=0, small=True, token=TOKEN) as server:
        job = Job(tmp_path, {"main": server.url}, {"main": TOKEN}, sinks=("parquet",))
        variables = {spelled: nobody for name in PROXIES for spelled in (name, name.lower())}
        assert job.call("run", "CONFIG", **variables).code == 0
        before = {path: path.read_bytes() for path in job.parquet.rglob("*") if path.is_file()}
        ended = job.call("run", "CONFIG", "--set", "http.proxy_from_environment=true", "--json", **variables)
    assert (ended.code, ended.document["error"]["code"]) == (11, 11)
    assert {path: path.read_bytes() for path in job.parquet.rglob("*") if path.is_file()} == before
    assert leaks({"out": ended.out.encode(), "err": ended.err.encode()}) == []


# --- N3, N21: connections that are never accepted or closed while idle ------------------------------------------------


async def test_a_port_that_swallows_connections_is_given_up_in_time() -> None:
    """If no connection is accepted, each attempt ends at the connect limit, and the run as unavailable (N3)."""
    with ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            # The queue holds a connection or two; the kernel drops later ones.
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        http = Http(connect_timeout=timedelta(milliseconds=100))
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with connect(url, Credential(SecretStr(TOKEN)), http, concurrency=1) as send:
            started = anyio.current_time()
            with pytest.raises(SourceUnavailable, match="no connection within the time limit"):
                await client(send).read(EVERYTHING)
            assert 0.5 <= anyio.current_time() - started < 5


async def test_connections_that_all_close_at_once_cost_no_wait() -> None:
    """If four idle connections close together, each next request is sent again at once on a new one (N21)."""
    async with talk(*[says(answer())] * 4, *[closes()] * 4, says(answer())) as (wire, send):
        asking = client(send)

        async def once() -> None:
            assert isinstance(await asking.read(EVERYTHING), Page)

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(once)
        seen = asking.statistics()
    assert (seen.retried, seen.waited) == (0, 0.0)
    assert len(wire.requests) > 8


# --- N25: the server's clock -----------------------------------------------------------------------------------------


async def test_the_clock_follows_the_last_date_that_was_told() -> None:
    """A missing or invalid `Date` leaves the clock unchanged; a `Date` that goes back sets it back (N25)."""
    told = [NOON, None, NOON + HOUR, NOON - HOUR]
    heads = [[] if at is None else [f"Date: {formatdate(at, usegmt=True)}"] for at in told]
    async with talk(*(says(answer(PAGE, *head)) for head in [*heads, ["Date: soon"]])) as (_, send):
        asking, clocks = client(send), []
        for _ in range(5):
            await asking.read(EVERYTHING)
            clocks.append(asking.server_now)
    assert clocks == [1000 * at for at in (NOON, NOON, NOON + HOUR, NOON - HOUR, NOON - HOUR)]


async def test_a_server_without_a_clock_is_waited_for_by_our_own_backoff() -> None:
    """`Retry-After` as a date means nothing without `Date`: the client's own short backoff applies (A6, N25)."""
    busy = answer(b"", f"Retry-After: {formatdate(NOON, usegmt=True)}", status="429 Too Many")
    async with talk(says(busy), says(answer())) as (_, send):
        asking = client(send)
        assert isinstance(await asking.read(EVERYTHING), Page)
    assert asking.statistics().waited < 2


async def test_an_unfinished_answer_gives_its_slot_back() -> None:
    """No network fault leaves a slot occupied (N10)."""
    turns = [says(HEAD), closes(CHUNKED), resets(), packed(b"x"), says(answer(b"<html>"))]
    async with talk(*turns, attempt_timeout=timedelta(seconds=0.2)) as (_, send):
        asking = client(send)
        for _ in turns:
            await asking.ask(EVERYTHING)
        assert asking.statistics().in_flight == 0
        with pytest.raises((ContractError, SourceUnavailable)):
            await asking.read(EVERYTHING)
        assert asking.statistics().in_flight == 0
