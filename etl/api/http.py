"""The transport over real HTTP: one aiohttp session per account; the only module that knows aiohttp's client.

TLS is verified and cannot be switched off, redirects are off, a proxy from the environment is used only when asked,
bodies are read whole and no further than the cap. Every foreign error becomes `Broken` here, and what a broken answer
said is not quoted: it could be the token, or a contact.
"""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp
import msgspec
from anyio import lowlevel
from pydantic import SecretStr

from etl.api.answer import Kind, Reply
from etl.api.client import Broken, Transport
from etl.api.request import PATH, Body
from etl.config import Http
from etl.errors import UsageError

CHUNK = 1 << 18
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
    """A transport to `base_url`, open until the block ends; every request carries the credential's token of then."""
    connector = aiohttp.TCPConnector(limit=concurrency, ssl=_tls(settings), keepalive_timeout=IDLE_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector,
        headers=_HEADERS,
        timeout=_timeout(settings),
        trust_env=settings.proxy_from_environment,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[_reuse_trace()],
        auto_decompress=False,
    ) as session:

        async def send(body: Body) -> Reply:
            # Who asks at once after an answer must let the loop see whether the server closed the connection behind it.
            await lowlevel.checkpoint()
            secret = credential.token.get_secret_value()
            return await _send(session, base_url + PATH, body, secret, settings.max_body)

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


def _tls(settings: Http) -> ssl.SSLContext | bool:
    if settings.ca_bundle is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(settings.ca_bundle))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot read the CA bundle: {error}", where="http.ca_bundle") from None


@dataclass(slots=True)
class _Passage:
    """The way of one request."""

    reused: bool = False
    """Whether it went over a connection that had been used before."""


def _reuse_trace() -> aiohttp.TraceConfig:
    async def note(_session: object, context: SimpleNamespace, _event: object) -> None:
        context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note)
    return trace


async def _send(session: aiohttp.ClientSession, url: str, body: Body, secret: str, cap: int) -> Reply:
    passage = _Passage()
    headers = {"Authorization": f"Bearer {secret}"}
    try:
        data = msgspec.json.encode(body)
        async with session.post(
            url, data=data, headers=headers, allow_redirects=False, trace_request_ctx=passage
        ) as response:
            return Reply(response.status, response.headers, await _whole(response, cap), secret)
    except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
        raise _broken(error, passage) from None


def _broken(error: Exception, passage: _Passage) -> Broken:
    """What `error` means: local causes in words, and nothing of what the server said."""
    kind = Kind.UNAVAILABLE
    match error:
        case aiohttp.ServerDisconnectedError() if passage.reused:
            kind, reason = Kind.STALE, "the server had closed the idle connection"
        case TimeoutError() if not isinstance(error, aiohttp.ConnectionTimeoutError):
            # A server that is asked too much answers late before it says so.
            kind, reason = Kind.THROTTLED, "no whole answer within the time limit"
        case TimeoutError():
            reason = "no connection within the time limit"
        case aiohttp.ClientConnectorCertificateError():
            reason = f"the server's certificate is not valid: {error.certificate_error}"
        case aiohttp.ClientConnectorDNSError() if _is_unknown(error):
            kind, reason = Kind.NO_HOST, f"no host of that name: {error.host}"
        case aiohttp.ClientConnectorError():
            reason = f"no connection: {error}"
        case aiohttp.ClientHttpProxyError():
            reason = f"the proxy answered {error.status}"
        case aiohttp.ClientResponseError():
            kind, reason = Kind.GARBLED, "an answer that is not valid HTTP"
        case zlib.error():
            kind, reason = Kind.GARBLED, _NOT_GZIP
        case _:
            reason = f"the connection broke before the whole answer had come ({type(error).__name__})"
    return Broken(reason, kind=kind)


def _is_unknown(error: aiohttp.ClientConnectorDNSError) -> bool:
    """Whether the name service knows no such host, rather than being out of reach for now."""
    return error.os_error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}


async def _whole(response: aiohttp.ClientResponse, cap: int) -> bytes:
    """The whole body, unpacked; a body of more than `cap` bytes is given up as soon as it is."""
    unpacked = _UNPACKERS.get(response.headers.get("Content-Encoding", "").strip().lower())
    if unpacked is None:
        raise Broken("an answer in a Content-Encoding that was not asked for", kind=Kind.GARBLED)
    pieces: list[bytes] = []
    size = 0
    async for piece in unpacked(response.content.iter_chunked(CHUNK)):
        pieces.append(piece)
        size += len(piece)
        if size > cap:
            reason = f"an answer of more than {cap} bytes; raise http.max_body if pages are as large as that"
            raise Broken(reason, kind=Kind.GARBLED)
    return b"".join(pieces)


def _plain(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    return chunks


async def _gunzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """One layer of gzip, up to its checksum, in small pieces: a bomb is counted as it goes off."""
    packed = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    came = went = 0
    async for chunk in chunks:
        came += len(chunk)
        piece = packed.decompress(chunk, CHUNK)
        while piece:
            yield piece
            went += len(piece)
            if went > max(UNSUSPECTED, MOST_UNPACKED * (came - len(packed.unconsumed_tail))):
                raise Broken(f"a compressed answer of more than {MOST_UNPACKED} times its size", kind=Kind.GARBLED)
            piece = packed.decompress(packed.unconsumed_tail, CHUNK)
        if packed.unused_data:
            break
    if not packed.eof or packed.unused_data:
        raise Broken(_NOT_GZIP, kind=Kind.GARBLED)


_UNPACKERS = {"": _plain, "identity": _plain, "gzip": _gunzipped}
_NOT_GZIP = "a body that is not the gzip it says it is"
