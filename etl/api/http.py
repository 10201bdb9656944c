"""HTTP transport: one aiohttp session per account; the only module that uses aiohttp's client.

TLS is verified and cannot be switched off, redirects are off, and the environment is not trusted except for the proxy
that `route` found (`~/.netrc` would replace the token with another password). Bodies are read completely, up to the
cap. Every foreign error becomes `TransportError` here; a broken response is not quoted, since it could show the token
or a contact.
"""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from types import SimpleNamespace

import aiohttp
import msgspec
from anyio import lowlevel
from pydantic import SecretStr

from etl.api.client import Transport, TransportError
from etl.api.request import PATH, Body
from etl.api.response import FailureKind, HttpResponse
from etl.api.route import certificate_trouble, handshake_trouble, proxy_trouble, route
from etl.config import Http
from etl.errors import UsageError

CHUNK = 1 << 18
FED = 1 << 12
"""Bytes decompressed at a time: the rest of them is copied when a gzip member ends."""
MOST_MEMBERS = 10_000
"""A valid response is one gzip member, or one for each piece that the server wrote."""
MOST_UNPACKED, UNSUSPECTED = 200, 1 << 20
"""The maximum expansion of one compressed byte, checked only for bodies larger than the second (N12)."""
IDLE_SECONDS = 4.0
"""The server closes a connection that is idle for 5 s; the client closes it a little earlier."""


@dataclass(slots=True)
class Credential:
    """The token in use, and how to read it again when it is rejected."""

    token: SecretStr
    reread: Callable[[], SecretStr] | None = None

    def renew(self) -> bool:
        """Read the token again; returns whether it changed."""
        if self.reread is None:
            return False
        used = self.token
        with suppress(UsageError):
            self.token = self.reread()
        return used != self.token


@asynccontextmanager
async def connect(
    base_url: str, credential: Credential, settings: Http, *, concurrency: int
) -> AsyncIterator[Transport]:
    """A transport to `base_url`, open until the block ends; every request uses the credential's current token.

    Raises UsageError as `route` does.
    """
    way = route(base_url, settings)
    connector = aiohttp.TCPConnector(limit=concurrency, ssl=way.tls, keepalive_timeout=IDLE_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector,
        headers=_HEADERS,
        timeout=_timeout(settings),
        proxy=way.proxy,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[_reuse_trace()],
        auto_decompress=False,
    ) as session:

        async def send(body: Body) -> HttpResponse:
            # Directly after a response, the loop must first notice whether the server closed the connection.
            await lowlevel.checkpoint()
            secret = credential.token.get_secret_value()
            return await _send(session, base_url + PATH, body, secret, settings.max_body, _Passage(way.variable))

        yield send


_HEADERS = {
    # Not documented for this white label; without it the server answers 401.
    "authtype": "Key",
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "User-Agent": "etl",
}


def _timeout(settings: Http) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=settings.attempt_timeout.total_seconds(),
        sock_connect=settings.connect_timeout.total_seconds(),
    )


@dataclass(slots=True)
class _Passage:
    """How one request is sent."""

    variable: str = ""
    """The environment variable that names its proxy."""
    reused: bool = False
    """Whether its connection had been used before."""


def _reuse_trace() -> aiohttp.TraceConfig:
    async def note(_session: object, context: SimpleNamespace, _event: object) -> None:
        context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note)
    return trace


async def _send(
    session: aiohttp.ClientSession, url: str, body: Body, secret: str, cap: int, passage: _Passage
) -> HttpResponse:
    headers = {"Authorization": f"Bearer {secret}"}
    try:
        data = msgspec.json.encode(body)
        async with session.post(
            url, data=data, headers=headers, allow_redirects=False, trace_request_ctx=passage
        ) as response:
            return HttpResponse(response.status, response.headers, await _whole(response, cap), secret)
    except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
        raise _broken(error, passage) from None


def _broken(error: Exception, passage: _Passage) -> TransportError:
    """Translate `error`: local causes in words, and nothing that the server sent."""
    kind = FailureKind.UNAVAILABLE
    match error:
        case aiohttp.ServerDisconnectedError() if passage.reused:
            kind, reason = FailureKind.STALE, "the server had closed the idle connection"
        case TimeoutError() if not isinstance(error, aiohttp.ConnectionTimeoutError):
            # An overloaded server responds late before it reports the overload.
            kind, reason = FailureKind.THROTTLED, "no whole answer within the time limit"
        case TimeoutError():
            reason = "no connection within the time limit"
        case (
            aiohttp.ClientConnectorError() | aiohttp.ClientConnectorCertificateError() | aiohttp.ClientHttpProxyError()
        ):
            return _unconnected(error, passage.variable)
        case aiohttp.ClientResponseError():
            kind, reason = FailureKind.GARBLED, "an answer that is not valid HTTP"
        case zlib.error():
            kind, reason = FailureKind.GARBLED, _NOT_GZIP
        case _:
            reason = f"the connection broke before the whole answer had come ({type(error).__name__})"
    return TransportError(reason, kind=kind)


def _unconnected(error: aiohttp.ClientError, variable: str) -> TransportError:
    """Translate a failure to connect, through the proxy that `variable` names, if any."""
    kind, hint = FailureKind.UNAVAILABLE, f"Look at the proxy that {variable} names." if variable else ""
    match error:
        case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as cause):
            return certificate_trouble(cause)
        case aiohttp.ClientConnectorError(os_error=ssl.SSLError() as cause):
            return handshake_trouble(cause)
        case aiohttp.ClientHttpProxyError():
            return proxy_trouble(variable, error.status)
        case aiohttp.ClientConnectorDNSError() if _is_unknown(error):
            kind, reason = FailureKind.UNREACHABLE, f"no host of that name: {error.host}"
        case aiohttp.ClientProxyConnectionError():
            reason = f"no connection to the proxy of {variable}: {error}"
        case _:
            reason = f"no connection: {error}"
    return TransportError(reason, kind=kind, hint=hint)


def _is_unknown(error: aiohttp.ClientConnectorDNSError) -> bool:
    """Whether the name service knows no such host, rather than being temporarily unavailable."""
    return error.os_error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}


async def _whole(response: aiohttp.ClientResponse, cap: int) -> bytes:
    """The complete body, decompressed; reading stops as soon as it exceeds `cap` bytes."""
    try:
        return b"".join([piece async for piece in _unpacked(response, cap)])
    except (TransportError, zlib.error):
        if response.status == HTTPStatus.OK:
            raise
        # A failure is identified by its status, even if its body is badly compressed or missing.
        return b""


def _unpacked(response: aiohttp.ClientResponse, cap: int) -> AsyncIterator[bytes]:
    named = ",".join(response.headers.getall("Content-Encoding", ())).lower().split(",")
    layers = [layer for name in named if (layer := name.strip()) not in {"", "identity"}]
    pieces = _capped(response.content.iter_chunked(CHUNK), cap)
    if layers in (["gzip"], ["x-gzip"]):
        return _capped(_gunzipped(pieces), cap)
    if layers:
        raise TransportError("an answer in a Content-Encoding that was not asked for", kind=FailureKind.GARBLED)
    return pieces


async def _capped(pieces: AsyncIterator[bytes], cap: int) -> AsyncIterator[bytes]:
    """The same pieces; raises TransportError if they exceed `cap` bytes in total."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > cap:
            reason = f"an answer of more than {cap} bytes; raise http.max_body if pages are as large as that"
            raise TransportError(reason, kind=FailureKind.GARBLED)
        yield piece


async def _gunzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompress one gzip layer, each member up to its checksum, in small pieces to stop a bomb while it expands."""
    member, members = zlib.decompressobj(_GZIP), 1
    came = went = 0
    async for chunk in chunks:
        rest, piece = memoryview(chunk), b""
        # After a piece of maximum length, more output may be pending although no input is left.
        while rest or (len(piece) == CHUNK and not member.eof):
            if member.eof:
                member, members = zlib.decompressobj(_GZIP), members + 1
            fed = rest[:FED]
            piece = member.decompress(fed, CHUNK)
            taken = len(fed) - len(member.unconsumed_tail) - len(member.unused_data)
            rest, came, went = rest[taken:], came + taken, went + len(piece)
            yield piece
            if went > max(UNSUSPECTED, MOST_UNPACKED * came):
                raise TransportError(
                    f"a compressed answer of more than {MOST_UNPACKED} times its size", kind=FailureKind.GARBLED
                )
            if members > MOST_MEMBERS:
                raise TransportError(f"a compressed answer of more than {MOST_MEMBERS} parts", kind=FailureKind.GARBLED)
    if not member.eof:
        raise TransportError(_NOT_GZIP, kind=FailureKind.GARBLED)


_GZIP = zlib.MAX_WBITS | 16
_NOT_GZIP = "a body that is not the gzip it says it is"
