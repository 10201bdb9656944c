"""A loopback server scripted byte by byte: the bytes that it sends, and when it falls silent or disconnects."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

PAGE = b'{"success":true,"message":"ok","code":200,"data":[{"_id":"65aa0000000000000000a001"}]}'

Turn = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""The server's reaction to one request; it may leave the connection open, close it or break it."""


@dataclass(slots=True)
class Wire:
    """The connections and requests that a scripted server has seen."""

    url: str = ""
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    """The head and the body of each request."""


def answer(body: bytes = PAGE, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """A whole HTTP response as bytes; `length` is the value of `Content-Length`, if it is to be wrong."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def says(data: bytes) -> Turn:
    """Send `data` and keep the connection open."""

    async def turn(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return turn


def drips(*pieces: bytes, pause: float = 0.01) -> Turn:
    """Send the pieces one by one."""

    async def turn(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return turn


def closes(data: bytes = b"") -> Turn:
    """Send `data`, then close in order (FIN)."""

    async def turn(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return turn


def resets(data: bytes = b"") -> Turn:
    """Send `data`, then break off (RST)."""

    async def turn(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        # Lingering for zero seconds turns the close into a reset.
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return turn


async def silence(writer: asyncio.StreamWriter) -> None:
    """Accept the request and never answer."""
    del writer


def repeats(data: bytes, *, first: bytes = b"", pause: float = 0.0) -> Turn:
    """Send `first`, then `data` again and again until the client leaves."""

    async def turn(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(pause)

    return turn


@asynccontextmanager
async def serve(*turns: Turn, tls: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    """A server on a free loopback port that takes these turns, one per request, and repeats the last one."""
    wire, tasks = Wire(), set[asyncio.Task[None]]()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.connections += 1
        try:
            while not writer.is_closing():
                request = await _request(reader)
                turn = turns[min(len(wire.requests), len(turns) - 1)]
                wire.requests.append(request)
                await turn(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            if not writer.is_closing():
                writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(converse(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    wire.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Connections end in the loop's next round.
        await asyncio.sleep(0)


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head + await reader.readexactly(sum(lengths))
