"""A server with little overhead: the sandbox's account behind a socket without a web framework.

It serves a page three times as fast as `etl sandbox`, at any request rate, and logs all requests: `GET /_log` returns
them with their times and begins a new log. `POST /_touch` changes every `every`-th contact. One process, one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Callable
from email.utils import formatdate

from etl.sandbox.settings import Settings
from etl.sandbox.world import World
from tests.bench.unknown import with_unknown_fields

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


class Log:
    """The requests since the log was last returned."""

    def __init__(self) -> None:
        self.requests: list[tuple[float, str]] = []
        """Time of each request, and the field it restricts: `createdAt`, `lastSeenAt` or `page`."""
        self._cpu = time.process_time()

    def note(self, body: dict[str, object]) -> None:
        """Record a request for contacts."""
        ranged = (name for name in ("createdAt", "lastSeenAt") if any(dict(body[name]).values()))  # type: ignore[call-overload]
        self.requests.append((time.time(), next(ranged, "page")))

    def tell(self) -> bytes:
        """`{"requests": [[at, kind], ...], "cpu": seconds of this process}`; empties the log."""
        now = time.process_time()
        told = json.dumps({"requests": self.requests, "cpu": now - self._cpu}).encode()
        self.requests, self._cpu = [], now
        return told


class Routes:
    """The responses of the server."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._log = Log()

    def answer(self, line: bytes, body: bytes) -> tuple[int, bytes]:
        """Status and body for a request line and its body."""
        if line.startswith(b"GET /_log"):
            return 200, self._log.tell()
        if line.startswith(b"POST /_touch"):
            return 200, json.dumps({"touched": self._touch(json.loads(body)["every"])}).encode()
        asked = json.loads(body)
        self._log.note(asked)
        found = self._world.answer(asked, time.time())
        return found.status, found.body

    def _touch(self, every: int) -> int:
        chosen = [*self._world.account.living()][::every]
        for identity in chosen:
            self._world.touch(identity, time.time())
        return len(chosen)


class Connection(asyncio.Protocol):
    """Requests of one client, one after another."""

    def __init__(self, routes: Routes, latency: float) -> None:
        self._routes = routes
        self._latency = latency
        self._seen = b""
        self._send: Callable[[bytes], None] = lambda _: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport)
        self._send = transport.write

    def data_received(self, data: bytes) -> None:
        """Respond if the request is complete; the response is computed now and sent `latency` later."""
        self._seen += data
        head, found, body = self._seen.partition(_HEAD_END)
        length = _LENGTH.search(head)
        if not found or len(body) < (int(length[1]) if length else 0):
            return
        self._seen = b""
        response = _response(*self._routes.answer(head, body))
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._send, response)
        else:
            self._send(response)


def _response(status: int, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} Answer\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"Date: {formatdate(usegmt=True)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def serve(settings: Settings, *, unknown: bool) -> None:
    """Print `{"url": ..., "token": ..., "contacts": ...}` when ready, and serve until killed."""
    world = World(settings, time.time())
    if unknown:
        world.account.rows.update((serial, with_unknown_fields(row)) for serial, row in world.account.rows.items())
    routes = Routes(world)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(routes, settings.latency), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(json.dumps({"url": f"http://{host}:{port}", "token": settings.token}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Take the settings from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.server")
    parser.add_argument("--contacts", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--odd", type=float, default=0.0, help="share of contacts with an oddity")
    parser.add_argument("--unknown", type=int, default=0, help="1: every contact has fields that have no column")
    asked = parser.parse_args()
    settings = Settings(contacts=asked.contacts, latency=asked.latency, nasty_share=asked.odd)
    asyncio.run(serve(settings, unknown=bool(asked.unknown)))


if __name__ == "__main__":
    main()
