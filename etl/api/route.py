"""The network route to the server as set up on this machine: proxy from the environment, trusted certificates.

An error here is a setting to correct, not a failure of the server: it is reported with the variable or the key, and
retried only if it may be transient. A proxy's address may contain a password, so it is shown without the part before
its `@`.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from etl.api.client import TransportError
from etl.api.response import HINTS, FailureKind
from etl.config import Http
from etl.errors import UsageError


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a server."""

    tls: ssl.SSLContext | bool
    """The TLS context that verifies its certificate; True: the system's authorities."""
    proxy: str | None = None
    """The address of the proxy, if any."""
    variable: str = ""
    """The environment variable that names the proxy."""


def route(base_url: str, settings: Http) -> Route:
    """The route to `base_url`. Raises UsageError if the settings of this machine are not usable."""
    tls: ssl.SSLContext | bool = True
    if settings.ca_bundle is not None:
        try:
            tls = ssl.create_default_context(cafile=str(settings.ca_bundle))
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"cannot read the CA bundle: {error}", where="http.ca_bundle") from None
    if not settings.proxy_from_environment:
        return Route(tls)
    parts, proxies = urlsplit(base_url), getproxies_environment()
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    scheme = parts.scheme if proxies.get(parts.scheme) else "all"
    proxy = proxies.get(scheme, "")
    if not proxy or any(map(proxy_bypass, (host, f"{host}:{port}"))):
        return Route(tls)
    variable = next(name for name in os.environ if name.lower() == f"{scheme}_proxy" and os.environ[name] == proxy)
    if fault := _fault(proxy):
        hint = f"Write {variable}=http://host:port, percent-encode a password in it, or unset it."
        raise UsageError(f"{variable} {fault}", where="http.proxy_from_environment", hint=hint)
    return Route(tls, proxy, variable)


def _fault(proxy: str) -> str:
    """Why this is not a supported proxy address; "" if it is."""
    shown = f"…@{proxy.rpartition('@')[2]}" if "@" in proxy else proxy
    scheme, separator, _ = proxy.partition("://")
    if not separator:
        return f"names a proxy without a scheme: {shown}"
    if scheme.lower() != "http":
        return f"names a proxy that is not an http:// address, which is not supported: {shown}"
    try:
        parts = urlsplit(proxy)
        sound = bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    return "" if sound and not any(c.isspace() for c in proxy) else f"is not the address of a proxy: {shown}"


STRICT = range(80, 94)
"""OpenSSL's errors under X509_V_FLAG_X509_STRICT, which Python sets from 3.13 on."""
EXPIRY = {9, 10}
"""Not yet valid, and expired."""
_PASSING = ("EOF", "INTERNAL_ERROR")
"""Handshake errors that may be transient: the server hung up, or failed."""
_BUNDLE = (
    "If a private authority or a proxy that decrypts TLS signs for the server, name its certificate in http.ca_bundle"
)


def certificate_failure(error: ssl.SSLCertVerificationError) -> TransportError:
    """Translate an untrusted certificate: not retryable."""
    hint = f"{_BUNDLE}; SSL_CERT_FILE and SSL_CERT_DIR apply, too."
    if error.verify_code in STRICT:
        hint = (
            "Python 3.13 and newer check private authorities more strictly (VERIFY_X509_STRICT): have the certificates "
            "in http.ca_bundle reissued with key usage and key identifiers, or run Python 3.12."
        )
    elif error.verify_code in EXPIRY:
        hint = f"Check the clock of this machine, or ask the server's owner to renew it. {_BUNDLE}."
    elif "match" in str(error) or "not valid for" in str(error):
        hint = f"Check the host in base_url: the certificate is for another host. {_BUNDLE}."
    reason = f"the server's certificate is not valid: {error}"
    return TransportError(reason, kind=FailureKind.UNREACHABLE, hint=hint)


def handshake_failure(error: ssl.SSLError) -> TransportError:
    """Translate a failed handshake: retryable only if the cause may be transient."""
    passing = isinstance(error, ssl.SSLEOFError) or any(word in (error.reason or "") for word in _PASSING)
    hint = "Check scheme, host and port of base_url, and the proxy in between; http.ca_bundle cannot correct this."
    kind = FailureKind.UNAVAILABLE if passing else FailureKind.UNREACHABLE
    return TransportError(
        f"the TLS handshake with the server failed: {error.reason or error}", kind=kind, hint="" if passing else hint
    )


def proxy_failure(variable: str, status: int) -> TransportError:
    """Translate a proxy's refusal to connect."""
    if status == 407:
        return TransportError(
            f"the proxy of {variable} asks for a password (407)", kind=FailureKind.UNREACHABLE, hint=HINTS[status]
        )
    return TransportError(
        f"the proxy of {variable} answered {status}", hint=f"Ask its owner, or correct or unset {variable}."
    )
