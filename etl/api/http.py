"""The transport over real HTTP: one aiohttp session per account; the only module that knows aiohttp's client.

TLS is verified and cannot be switched off, redirects are off, a proxy from the environment is used only when asked,
bodies are read whole and no further than the cap. Every foreign error becomes `Broken` here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from pydantic import SecretStr

from etl.api.answer import Kind, Reply
from etl.api.client import Broken, Transport
from etl.api.request import PATH, Body
from etl.config import Http
from etl.errors import UsageError

CHUNK = 1 << 18


@asynccontextmanager
async def connect(
    base_url: str, token: SecretStr, settings: Http, *, concurrency: int
) -> AsyncIterator[Transport]:
    """A transport to `base_url`, open until the block ends."""
    connector = aiohttp.TCPConnector(limit=concurrency, ssl=_tls(settings))
    async with aiohttp.ClientSession(
        connector=connector,
        headers=_headers(token),
        timeout=_timeout(settings),
        trust_env=settings.proxy_from_environment,
        cookie_jar=aiohttp.DummyCookieJar(),
        json_serialize=lambda body: msgspec.json.encode(body).decode(),
    ) as session:

        async def send(body: Body) -> Reply:
            return await _send(session, base_url + PATH, body, settings.max_body)

        yield send


def _headers(token: SecretStr) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {token.get_secret_value()}",
        # Not documented for this white label; without it the server answers 401 (API.md).
        "authtype": "Key",
        "Accept": "application/json",
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


async def _send(session: aiohttp.ClientSession, url: str, body: Body, cap: int) -> Reply:
    try:
        async with session.post(url, json=body, allow_redirects=False) as response:
            content = await _whole(response, cap)
            return Reply(response.status, response.headers, content)
    except aiohttp.ClientConnectorCertificateError as error:
        raise Broken(f"the server's certificate is not valid: {error.certificate_error}") from None
    except TimeoutError:
        raise Broken("no whole answer within the time limit") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Broken(f"no whole answer: {type(error).__name__}: {error}") from None


async def _whole(response: aiohttp.ClientResponse, cap: int) -> bytes:
    """The whole body; a body beyond `cap` bytes (decompressed) is given up as soon as it is."""
    if response.content_length is not None and response.content_length <= cap and not response.headers.get("Content-Encoding"):
        return await response.read()
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(CHUNK):
        size += len(chunk)
        if size > cap:
            raise Broken(f"an answer of more than {cap} bytes", kind=Kind.GARBLED)
        chunks.append(chunk)
    return b"".join(chunks)
