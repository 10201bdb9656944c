"""The transport over real HTTP: one aiohttp session per account; the only module that knows aiohttp's client.

TLS is verified and cannot be switched off, redirects are off, nothing of the environment is trusted but the proxy that
`route` found (`~/.netrc` would put another password in the token's place), bodies are read whole and no further than
the cap. Every foreign error becomes `TransportError` here, and a broken answer is not quoted: it could show the token
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
"""Bytes that are unpacked at a time: what is left of them when a gzip member ends is copied."""
MOST_MEMBERS = 10_000
"""A lawful answer is one gzip member, or one for each piece that the server wrote."""
MOST_UNPACKED, UNSUSPECTED = 200, 1 << 20
"""How many bytes one compressed byte may become, once a body has more than so many (FAULTS.md N12)."""
IDLE_SECONDS = 4.0
"""The server closes a connection that is idle for 5 s (API.md): it is given up a little earlier."""


@dataclass(slots=True)
class Credential:
    """The token in use, and where to look when it is refused."""

    token: SecretStr
    reread: Callable[[], SecretStr] | None = None

    def renew(self) -> bool:
        """Look again; whether there is another token now."""
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
    """A transport to `base_url`, open until the block ends; every request carries the credential's token of then.

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
            # Who asks at once after an answer must let the loop see whether the server closed the connection behind it.
            await lowlevel.checkpoint()
            secret = credential.token.get_secret_value()
            return await _send(session, base_url + PATH, body, secret, settings.max_body, _Passage(way.variable))

        yield send


_HEADERS = {
    # Not documented for this white label; without it the server answers 401 (API.md).
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
    """The way of one request."""

    variable: str = ""
    """Which environment variable names the proxy on it."""
    reused: bool = False
    """Whether it went over a connection that had been used before."""


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
    """What `error` means: local causes in words, and nothing of what the server said."""
    kind = FailureKind.UNAVAILABLE
    match error:
        case aiohttp.ServerDisconnectedError() if passage.reused:
            kind, reason = FailureKind.STALE, "the server had closed the idle connection"
        case TimeoutError() if not isinstance(error, aiohttp.ConnectionTimeoutError):
            # A server that is asked too much answers late before it says so.
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
    """What it means that no connection could be made, over the proxy that `variable` names where there is one."""
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
    """Whether the name service knows no such host, rather than being out of reach for now."""
    return error.os_error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}


async def _whole(response: aiohttp.ClientResponse, cap: int) -> bytes:
    """The whole body, unpacked; a body of more than `cap` bytes is given up as soon as it is."""
    try:
        return b"".join([piece async for piece in _unpacked(response, cap)])
    except (TransportError, zlib.error):
        if response.status == HTTPStatus.OK:
            raise
        # A refusal is told by its status, be its body packed wrongly, or not there at all.
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
    """The same pieces, as long as they are no more than `cap` bytes."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > cap:
            reason = f"an answer of more than {cap} bytes; raise http.max_body if pages are as large as that"
            raise TransportError(reason, kind=FailureKind.GARBLED)
        yield piece


async def _gunzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """One layer of gzip, each of its members up to the checksum, in small pieces: a bomb is counted as it goes off."""
    member, members = zlib.decompressobj(_GZIP), 1
    came = went = 0
    async for chunk in chunks:
        rest, piece = memoryview(chunk), b""
        # A piece as long as it may be can have more behind it, although nothing is left to be fed.
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
