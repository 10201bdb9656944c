"""The simulator over real HTTP: access, rate limits, and network faults as a client sees them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from etl.sandbox import nasty
from etl.sandbox.filters import EMPTY_BODY
from etl.sandbox.server import Sandbox, serve
from etl.sandbox.service import MALFORMED_TOKEN, Request, Service
from etl.sandbox.settings import Settings
from etl.sandbox.world import World

START = 1_760_000_000.0
TINY = Settings(contacts=120, small=True, nasty_share=0, is_contact="same")
HEADERS = {"Authorization": f"Bearer {TINY.token}", "authtype": "Key", "Content-Type": "application/json"}
OTHER = "another"


class Got(NamedTuple):
    """The response that a client received."""

    status: int
    headers: Any
    body: bytes

    def ids(self) -> list[str]:
        """Ids of the contacts in a good response."""
        return [row["_id"] for row in json.loads(self.body)["data"]]


Post = Callable[..., Awaitable[Got]]


@asynccontextmanager
async def opened(settings: Settings, **headers: str) -> AsyncIterator[tuple[Sandbox, Post]]:
    """A sandbox and a function that asks it for contacts."""
    async with serve(settings) as sandbox, aiohttp.ClientSession(headers={**HEADERS, **headers}) as session:

        async def post(**changes: object) -> Got:
            body = {**EMPTY_BODY, **changes}
            async with session.post(f"{sandbox.url}/inbox/users", json=body, allow_redirects=False) as response:
                return Got(response.status, response.headers, await response.read())

        yield sandbox, post


def service(**changes: Any) -> Callable[..., Any]:
    """A service without a network, as a function of the time and the headers."""
    served = Service(World(replace(TINY, **changes), START))

    def handle(now: float = START, in_flight: int = 1, headers: dict[str, str] | None = None, **body: object) -> Any:
        request = Request(
            "POST", "/inbox/users", HEADERS if headers is None else headers, json.dumps({**EMPTY_BODY, **body}).encode()
        )
        return served.handle(request, now, in_flight)

    return handle


# --- requests and responses -----------------------------------------------------------------------------------------


async def test_the_documented_request_is_answered() -> None:
    """A body with every field gets the documented envelope, headers and keep-alive."""
    async with opened(TINY) as (sandbox, post):
        before = int(time.time())
        got = await post()
        answer = json.loads(got.body)
        assert {key: answer[key] for key in ("success", "message", "code")} == {
            "success": True,
            "message": "ok",
            "code": 200,
        }
        assert answer.keys() == {"success", "message", "code", "data"}
        assert len(answer["data"]) == 50
        assert got.headers["Content-Type"] == "application/json; charset=utf-8"
        assert before <= parsedate_to_datetime(got.headers["Date"]).timestamp() <= time.time()
        assert sandbox.stats.requests == 1


async def test_segments() -> None:
    """`GET /inbox/segments` returns the dimension table and requires the same headers."""
    async with serve(TINY) as sandbox, aiohttp.ClientSession() as session:
        url = f"{sandbox.url}/inbox/segments"
        async with session.get(url) as refused, session.get(url, headers=HEADERS) as response:
            assert refused.status == 401
            assert {"_id", "_customer", "segmentName"} <= (await response.json())["data"][0].keys()


async def test_violations_are_counted() -> None:
    """An export or an unknown path is rejected and counted (M11)."""
    async with opened(TINY) as (sandbox, post):
        assert (await post(isExport="csv")).status == 400
        async with aiohttp.ClientSession() as session, session.delete(f"{sandbox.url}/inbox/users") as response:
            assert response.status == 404
        assert sandbox.stats.violations == {"isExport": 1, "DELETE /inbox/users": 1}


async def test_truth_and_stats_are_served() -> None:
    """`/_truth` returns all living contacts verbatim, the deleted ones and a summary; `/_stats` counts requests."""
    async with opened(TINY) as (sandbox, post), aiohttp.ClientSession() as session:
        gone = next(iter(sandbox.world.contacts(0)))
        sandbox.world.delete(gone, time.time())
        await post(page=2)
        async with session.get(f"{sandbox.url}/_truth") as response:
            lines = (await response.read()).splitlines()
        living = {json.loads(line)["id"]: line.partition(b'"contact":')[2][:-1] for line in lines[:-2]}
        assert living == sandbox.world.contacts(0)
        assert json.loads(lines[-2])["id"] == gone
        assert json.loads(lines[-1])["summary"]["events"] == {"delete": 1}
        async with session.get(f"{sandbox.url}/_stats") as response:
            stats = await response.json()
        assert (stats["requests"], stats["by_status"], stats["by_page"]) == (1, {"200": 1}, {"2": 1})
        assert stats["bytes"] > 1000


# --- access and rate limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        *(({"Authorization": HEADERS["Authorization"]}, 401), ({"authtype": "Key"}, 401)),
        *(({**HEADERS, "Authorization": "Bearer " + "0" * 24}, 401), ({**HEADERS, "Authorization": "Basic x"}, 401)),
        *(({**HEADERS, "Authorization": "Bearer nonsense"}, 400), (HEADERS, 200)),
    ],
)
def test_access(headers: dict[str, str], status: int) -> None:
    """No `authtype` or an unknown token is a 401 (A1, A49), a malformed token the known 400 (A48)."""
    answer = service()(headers=headers)
    assert answer.status == status
    assert (MALFORMED_TOKEN in answer.body.decode()) is (status == 400)


def test_authtype_and_token_are_settings() -> None:
    """`require_authtype` and `token` decide which requests may read."""
    assert service(require_authtype=False, token=OTHER)(headers={"Authorization": f"Bearer {OTHER}"}).status == 200


def test_token_expires() -> None:
    """After `token_expires_after` requests the token is rejected (A2), and `token_next` is valid."""
    handle = service(token_expires_after=2, token_next=OTHER)
    assert [handle().status for _ in range(3)] == [200, 200, 401]
    assert handle(headers={**HEADERS, "Authorization": f"Bearer {OTHER}"}).status == 200


def test_rate_limit() -> None:
    """More than `rate_limit` requests a second get a 429 with `retry_after` (A5, A7)."""
    handle = service(rate_limit=2, retry_after="3")
    assert [handle(START + at).status for at in (0, 0, 0.1, 0.6, 0.7, 1.1)] == [200, 429, 429, 200, 429, 200]
    assert handle(START + 1.1).headers["Retry-After"] == "3"
    silent = service(rate_limit=1, retry_after="")
    assert "Retry-After" not in [silent(), silent()][1].headers


async def test_max_in_flight_allowed() -> None:
    """More than `max_in_flight_allowed` concurrent requests get a 429; the server counts them itself."""
    async with opened(replace(TINY, max_in_flight_allowed=3, latency=0.1)) as (sandbox, post):
        got = await asyncio.gather(*(post() for _ in range(5)))
        assert sorted(answer.status for answer in got) == [200, 200, 200, 429, 429]
        assert sandbox.stats.max_in_flight == 5


async def test_latency() -> None:
    """A request takes `latency`, give or take `latency_jitter`, so that responses overtake each other (N23)."""
    async with opened(replace(TINY, latency=0.1, latency_jitter=0.9)) as (_, post):
        order: list[int] = []

        async def one(page: int) -> None:
            await post(page=page)
            order.append(page)

        begin = time.perf_counter()
        await asyncio.gather(*(one(page) for page in range(1, 9)))
        assert 0.05 < time.perf_counter() - begin < 1
        assert order != sorted(order)


async def test_gzip() -> None:
    """`gzip` compresses responses for clients that accept it, and is off by default."""
    async with opened(replace(TINY, gzip=True)) as (_, post), opened(TINY) as (_, plain):
        packed = await post()
        assert packed.headers["Content-Encoding"] == "gzip"
        assert len(packed.ids()) == 50
        assert "Content-Encoding" not in (await plain()).headers


async def test_keep_alive() -> None:
    """An idle connection is closed after `keep_alive` seconds (N21)."""
    async with serve(replace(TINY, keep_alive=0.2)) as sandbox:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(sandbox.url.rpartition(":")[2]))
        writer.write(b"GET /_stats HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"}}")
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()


# --- network faults -------------------------------------------------------------------------------------------------


WIRES: dict[str, tuple[dict[str, Any], type[BaseException] | None]] = {
    "reset": ({}, aiohttp.ClientConnectionError),
    "close": ({}, aiohttp.ClientConnectionError),
    "close_after": ({}, None),
    "reset_mid_body": ({"at": 0.3}, aiohttp.ClientError),
    "close_mid_body": ({"at": 0.7}, aiohttp.ClientPayloadError),
    "chunk_cut": ({}, aiohttp.ClientPayloadError),
    "chunked": ({}, None),
    "slow_body": ({"seconds": 0.3}, None),
    "delay": ({"seconds": 0.2}, None),
    "hang": ({}, TimeoutError),
}


@pytest.mark.parametrize("kind", WIRES)
async def test_faults_of_the_wire(kind: str) -> None:
    """Each network fault reaches the client (N4-N6, N9, N10, N21), and the next request is served."""
    spec, error = WIRES[kind]
    async with opened(replace(TINY, faults=({"kind": kind, "nth": 1, **spec},))) as (_, post):
        begin = time.perf_counter()
        if error:
            with pytest.raises(error):
                await asyncio.wait_for(post(), 0.5)
        else:
            assert len((await post()).ids()) == 50
        assert kind not in ("slow_body", "delay") or time.perf_counter() - begin > 0.15
        assert len((await post()).ids()) == 50


async def test_no_date() -> None:
    """A fault can remove the `Date` header (N25)."""
    async with opened(replace(TINY, faults=({"kind": "date", "text": ""},))) as (_, post):
        got = await post()
        assert "Date" not in got.headers
        assert len(got.ids()) == 50


# --- the whole ------------------------------------------------------------------------------------------------------


def test_every_setting_is_tested() -> None:
    """The name of each setting occurs in a test of the sandbox."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [field.name for field in fields(Settings) if field.name not in text] == []


def test_the_sandbox_stands_apart() -> None:
    """The sandbox imports nothing from the rest of the package."""
    sources = Path(nasty.__file__).parent.glob("*.py")
    imports = {
        line
        for path in sources
        for line in path.read_text().splitlines()
        if line.startswith(("from etl", "import etl"))
    }
    assert {line for line in imports if not line.startswith("from etl.sandbox")} == set()


async def test_throughput() -> None:
    """Pages per second, client included (printed, not asserted)."""
    async with opened(replace(Settings(), contacts=5000, nasty_share=0)) as (_, post):
        begin = time.perf_counter()
        await asyncio.gather(*(post(page=page % 60 + 1) for page in range(300)))
        print(f"\n{300 / (time.perf_counter() - begin):.0f} pages of 50 a second, server and client on one core")
