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
from etl.api.route import certificate_failure, handshake_failure, proxy_failure, route
from etl.config import Http
from etl.errors import UsageError

CHUNK = 1 << 18
FED = 1 << 12
"""Bytes decompressed at a time: the rest of them is copied when a gzip member ends."""
MOST_MEMBERS = 10_000
"""A valid response is one gzip member, or one for each piece that the server wrote."""
MOST_UNPACKED, UNSUSPECTED = 200, 1 << 20
"""The maximum expansion of one compressed byte, checked only for bodies larger than the second."""
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
        timeout=aiohttp.ClientTimeout(
            total=settings.attempt_timeout.total_seconds(), sock_connect=settings.connect_timeout.total_seconds()
        ),
        proxy=way.proxy,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[_reuse_trace()],
        auto_decompress=False,
    ) as session:

        async def send(body: Body) -> HttpResponse:
            # Directly after a response, the loop must first notice whether the server closed the connection.
            await lowlevel.checkpoint()
            secret, passage = credential.token.get_secret_value(), _Passage(way.variable)
            try:
                async with session.post(
                    base_url + PATH,
                    data=msgspec.json.encode(body),
                    headers={"Authorization": f"Bearer {secret}"},
                    allow_redirects=False,
                    trace_request_ctx=passage,
                ) as response:
                    content = await _read_body(response, settings.max_body)
                    return HttpResponse(response.status, response.headers, content, secret)
            except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
                raise _translated(error, passage) from None

        yield send


_HEADERS = {
    # Not documented for this white label; without it the server answers 401.
    "authtype": "Key",
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "User-Agent": "etl",
}


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


def _translated(error: Exception, passage: _Passage) -> TransportError:
    """Translate `error`: local causes in words, and nothing that the server sent."""
    kind = FailureKind.UNAVAILABLE
    match error:
        case aiohttp.ServerDisconnectedError() if passage.reused:
            kind, reason = FailureKind.STALE, "the server had closed the idle connection"
        case TimeoutError() if not isinstance(error, aiohttp.ConnectionTimeoutError):
            # An overloaded server responds late before it reports the overload.
            kind, reason = FailureKind.THROTTLED, "no complete response within the time limit"
        case TimeoutError():
            reason = "no connection within the time limit"
        case (
            aiohttp.ClientConnectorError() | aiohttp.ClientConnectorCertificateError() | aiohttp.ClientHttpProxyError()
        ):
            return _unconnected(error, passage.variable)
        case aiohttp.ClientResponseError():
            kind, reason = FailureKind.GARBLED, "a response that is not valid HTTP"
        case zlib.error():
            kind, reason = FailureKind.GARBLED, _NOT_GZIP
        case _:
            reason = f"the connection broke before the response was complete ({type(error).__name__})"
    return TransportError(reason, kind=kind)


def _unconnected(error: aiohttp.ClientError, variable: str) -> TransportError:
    """Translate a failure to connect, through the proxy that `variable` names, if any."""
    kind, hint = FailureKind.UNAVAILABLE, f"Check the proxy that {variable} names." if variable else ""
    match error:
        case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as cause):
            return certificate_failure(cause)
        case aiohttp.ClientConnectorError(os_error=ssl.SSLError() as cause):
            return handshake_failure(cause)
        case aiohttp.ClientHttpProxyError():
            return proxy_failure(variable, error.status)
        case aiohttp.ClientConnectorDNSError() if error.os_error.errno in _UNKNOWN_HOST:
            kind, reason = FailureKind.UNREACHABLE, f"unknown host: {error.host}"
        case aiohttp.ClientProxyConnectionError():
            reason = f"no connection to the proxy of {variable}: {error}"
        case _:
            reason = f"no connection: {error}"
    return TransportError(reason, kind=kind, hint=hint)


_UNKNOWN_HOST = {socket.EAI_NONAME, socket.EAI_NODATA}
"""Errors of a name service that knows no such host, rather than being temporarily unavailable."""


async def _read_body(response: aiohttp.ClientResponse, cap: int) -> bytes:
    """The complete body, decompressed; reading stops as soon as it exceeds `cap` bytes."""
    named = ",".join(response.headers.getall("Content-Encoding", ())).lower().split(",")
    layers = [layer for name in named if (layer := name.strip()) not in {"", "identity"}]
    # A failure is identified by its status, even if its body is badly compressed or missing.
    if layers not in ([], ["gzip"], ["x-gzip"]):
        if response.status != HTTPStatus.OK:
            return b""
        raise TransportError("a response in an unrequested Content-Encoding", kind=FailureKind.GARBLED)
    pieces = _capped(response.content.iter_chunked(CHUNK), cap)
    if layers:
        pieces = _capped(_gunzipped(pieces), cap)
    try:
        return b"".join([piece async for piece in pieces])
    except (TransportError, zlib.error):
        if response.status != HTTPStatus.OK:
            return b""
        raise


async def _capped(pieces: AsyncIterator[bytes], cap: int) -> AsyncIterator[bytes]:
    """The same pieces; raises TransportError if they exceed `cap` bytes in total."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > cap:
            hint = "Raise http.max_body if pages are that large."
            raise TransportError(f"a response of more than {cap} bytes", kind=FailureKind.GARBLED, hint=hint)
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
                    f"a compressed response that expands more than {MOST_UNPACKED} times", kind=FailureKind.GARBLED
                )
            if members > MOST_MEMBERS:
                raise TransportError(
                    f"a compressed response of more than {MOST_MEMBERS} parts", kind=FailureKind.GARBLED
                )
    if not member.eof:
        raise TransportError(_NOT_GZIP, kind=FailureKind.GARBLED)


_GZIP = zlib.MAX_WBITS | 16
_NOT_GZIP = "a body that is not valid gzip"
