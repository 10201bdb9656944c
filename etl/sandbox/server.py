"""The simulated server on a loopback socket.

    async with serve(Settings(contacts=500)) as sandbox:
        ...  # sandbox.url, sandbox.world, sandbox.stats

Besides the API it answers `GET /_truth` (NDJSON, see `Service.truth`) and `GET /_stats` (JSON), without a token.
"""

import asyncio
import contextlib
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from aiohttp import web

from etl.sandbox.answer import WHOLE, Answer
from etl.sandbox.lifetime import alive
from etl.sandbox.service import Request, Service, Stats
from etl.sandbox.settings import Settings
from etl.sandbox.world import World

Clock = Callable[[], float]
"""Seconds since 1970."""
PIECES = 20
"""Pieces in which a slow body arrives."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A running server."""

    url: str
    """Base URL, without a trailing slash."""
    service: Service

    @property
    def world(self) -> World:
        """The simulated account."""
        return self.service.world

    @property
    def stats(self) -> Stats:
        """Counters of the server so far."""
        return self.service.stats


class Front:
    """Receives requests from the socket and sends the answers, including transport faults."""

    def __init__(self, service: Service, clock: Clock) -> None:
        self.service = service
        self.clock = clock
        self.in_flight = 0
        self._jitter = Random(service.settings.seed)  # noqa: S311 - reproducible on purpose

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; requests of tests (`/_truth`, `/_stats`) are not counted."""
        if request.path == "/_truth":
            return await self._truth(request)
        if request.path == "/_stats":
            return web.json_response(self.service.stats.as_dict())
        self.service.stats.arrive(self.clock())
        self.in_flight += 1
        try:
            return await self._answered(request)
        finally:
            self.in_flight -= 1

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = Request(request.method, request.path, request.headers, await request.read())
        in_flight, half = self.in_flight, self._latency() / 2
        if half:
            await asyncio.sleep(half)
        answer = self.service.handle(seen, self.clock(), in_flight)
        if half or answer.wire.delay:
            await asyncio.sleep(half + answer.wire.delay)
        if answer.wire == WHOLE and answer.headers.get("Date"):
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        return await _send_raw(request, answer)

    def _latency(self) -> float:
        settings = self.service.settings
        swing = settings.latency_jitter * (2 * self._jitter.random() - 1) if settings.latency_jitter else 0
        return settings.latency * (1 + swing)

    async def _truth(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for line in self.service.truth(self.clock()):
            await response.write(line)
        return response


async def _send_raw(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Write an answer directly to the transport, with its faults, and close the connection."""
    transport, wire = request.transport, answer.wire
    if transport is None or transport.is_closing():
        return web.Response()
    body = answer.body if wire.cut is None else answer.body[: int(len(answer.body) * wire.cut)]
    if not wire.headless:
        transport.write(_head(answer))
        await _trickle(transport, _framed(body, answer), wire.drip)
        await _flushed(transport)
    _hang_up(transport, reset=wire.reset)
    return web.Response()


def _head(answer: Answer) -> bytes:
    length = "Transfer-Encoding: chunked" if answer.wire.chunked else f"Content-Length: {len(answer.body)}"
    named = [f"{name}: {value}" for name, value in answer.headers.items() if value]
    lines = [f"HTTP/1.1 {answer.status} Answer", *named, length, "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace")


def _framed(body: bytes, answer: Answer) -> bytes:
    """The body as sent; a chunked one that is cut lacks its last chunk."""
    if not answer.wire.chunked:
        return body
    return b"%x\r\n%s\r\n" % (len(body), body) + (b"0\r\n\r\n" if answer.wire.cut is None else b"")


async def _trickle(transport: asyncio.WriteTransport, body: bytes, seconds: float) -> None:
    step = max(1, len(body) // PIECES) if seconds else max(1, len(body))
    for first in range(0, len(body), step):
        transport.write(body[first : first + step])
        if seconds:
            await asyncio.sleep(seconds / PIECES)


async def _flushed(transport: asyncio.WriteTransport) -> None:
    """Wait until the kernel has the bytes, and the client has had a moment to read them."""
    for _ in range(500):
        if not transport.get_write_buffer_size():
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)


def _hang_up(transport: asyncio.WriteTransport, *, reset: bool) -> None:
    plug = transport.get_extra_info("socket")
    if reset and plug is not None:
        # If the client has closed the connection first, there is nothing to reset.
        with contextlib.suppress(OSError):
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


@asynccontextmanager
async def serve(settings: Settings, port: int = 0, *, clock: Clock = time.time) -> AsyncIterator[Sandbox]:
    """A server on 127.0.0.1 until the block ends; port 0 means any free port.

    Raises `OSError` if the port is taken, and `ValueError` for a fault that does not exist or a foreign state file.
    """
    service = Service(alive(settings, clock()))
    server = web.Server(Front(service, clock).handle, keepalive_timeout=settings.keep_alive, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield Sandbox(f"http://127.0.0.1:{runner.addresses[0][1]}", service)
    finally:
        await runner.cleanup()


def run(settings: Settings, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready` with the URL as soon as requests are answered."""
    asyncio.run(_run(settings, port, ready))


async def _run(settings: Settings, port: int, ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with serve(settings, port) as sandbox:
        ready(sandbox.url)
        await stop.wait()
