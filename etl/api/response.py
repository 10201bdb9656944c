"""Parse an HTTP response into a page or a failure with its kind. Pure: no I/O, no clock.

A 200 is a page only if its envelope reports no failure, in any of the ways servers do, and `data` is a list: an empty
list next to an error would otherwise prove that there are no contacts. A body truncated or replaced by a proxy is a
failure and is never read as a prefix. A status that rejects the token is attributed to the API only in the API's own
envelope: firewalls, proxies and captive portals return 401 and 403, too.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from functools import lru_cache
from http import HTTPStatus
from typing import TypeAlias

import msgspec

from etl.api.redact import shown
from etl.times import to_milliseconds


class FailureKind(Enum):
    """Why a response is not a page, by the required reaction."""

    AUTH = auto()
    """The API rejects the token: not retryable, unless the token was valid a moment ago."""
    BLOCKED = auto()
    """Something in front of the API rejected the request: wait, then retry."""
    THROTTLED = auto()
    """Requests too fast: wait, then retry."""
    UNAVAILABLE = auto()
    """The server or the connection to it failed: retry."""
    UNREACHABLE = auto()
    """No connection, and waiting will not help (unknown host, invalid certificate): not retryable."""
    STALE = auto()
    """The server had closed the idle connection before the request arrived: retry at once."""
    GARBLED = auto()
    """Not a response of this API (truncated, HTML, empty): retry, then give up."""
    CONTRACT = auto()
    """A permanent rejection: not retryable."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One complete HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    secret: str = field(default="", repr=False)
    """The token of the request: no message may quote it."""


@dataclass(frozen=True, slots=True)
class ApiFailure:
    """A response that is not a page."""

    kind: FailureKind
    message: str
    retry_after: str | None = None
    """The `Retry-After` header, unparsed."""
    status: int = 0
    hint: str = ""
    """A suggested fix, if the kind alone does not imply one."""


class Row(msgspec.Struct, gc=False, frozen=True):
    """The fields of a contact that the fetcher needs; all others are skipped, not decoded."""

    contact_id: msgspec.Raw = msgspec.field(name="_id", default=msgspec.Raw(b"null"))
    """The id as JSON text: the fetcher compares ids, it does not validate them."""
    created_at: object = msgspec.field(name="createdAt", default=None)
    last_seen_at: object = msgspec.field(name="lastSeenAt", default=None)
    is_contact: object = msgspec.field(name="isContact", default=None)


EnvelopeSignature: TypeAlias = tuple[str, ...]
"""The success, code and error fields of an envelope, each as one word; message and total are left out."""


@dataclass(frozen=True, slots=True)
class Page:
    """An accepted page."""

    body: bytes
    """The complete body, UTF-8, no BOM."""
    rows: Sequence[Row]
    date: int | None = None
    """The server's clock at the response, milliseconds since the epoch, from its `Date` header."""
    total: int | None = None
    """The number of matches, if the server reports it; never relied on alone."""
    mislabelled: bool = False
    """Whether its `Content-Type` is not JSON, which is harmless but counted."""
    number: int = 1
    """The page number that was requested."""
    attempt: int = 1
    """The attempt that returned it."""
    signature: EnvelopeSignature = ()
    """The fields of the envelope besides the rows."""

    @property
    def ids(self) -> frozenset[bytes]:
        """The ids of the rows, as JSON text."""
        return frozenset(bytes(row.contact_id) for row in self.rows)


def id_text(raw: bytes) -> str | None:
    """A raw JSON id as the normalizer would keep it; None if it is not a valid id."""
    if raw.startswith(b'"') and b"\\" not in raw:
        return raw[1:-1].decode("utf-8", errors="replace") or None
    value = json.loads(raw, parse_int=str, parse_float=str)
    return value if isinstance(value, str) and value else None


class _Envelope(msgspec.Struct, gc=False):
    """All fields that can report a failure, of any type; other fields are ignored."""

    data: list[Row] | msgspec.UnsetType = msgspec.UNSET
    success: object = None
    ok: object = None
    code: object = None
    status: object = None
    status_code: object = msgspec.field(name="statusCode", default=None)
    http_status: object = msgspec.field(name="httpStatus", default=None)
    error: object = None
    errors: object = None
    message: object = None
    total: object = None


_decode = msgspec.json.Decoder(_Envelope).decode
_FIELDS = {known.name: known.encode_name for known in msgspec.structs.fields(_Envelope) if known.name != "data"}

_SIGNATURE = tuple(name for name in _FIELDS if name not in {"message", "total"})

_BY_STATUS: Mapping[int, tuple[FailureKind, str]] = {
    204: (FailureKind.GARBLED, "an empty response"),
    401: (FailureKind.AUTH, "the token is rejected, or the `authtype: Key` header was lost on the way"),
    403: (FailureKind.AUTH, "the token may not read contacts"),
    407: (FailureKind.UNREACHABLE, "a proxy asks for a password"),
    408: (FailureKind.THROTTLED, "the server timed out"),
    425: (FailureKind.THROTTLED, "the server is not ready"),
    429: (FailureKind.THROTTLED, "too many requests"),
    503: (FailureKind.THROTTLED, "the server is busy"),
    511: (FailureKind.BLOCKED, "the network asks for a login"),
    **dict.fromkeys(range(520, 531), (FailureKind.UNAVAILABLE, "something in front of the API cannot reach it")),
}
_OF_FRAMEWORKS = frozenset({400, 404, 407, 408, 410, 411, 413, 414, 415, 422, 425, 429, 431})
"""Statuses below 500 that web servers and frameworks return by themselves in HTML; the API sends all others as JSON."""
_FRONT = "something in front of the API (a firewall, a proxy, a captive portal)"
_FRONT_KEYS = frozenset({"ray", "rayid", "cfray", "incident", "incidentid", "supportid", "blockid", "reference"})
"""Keys under which firewalls put the number of a blocked request."""
_FRONT_HEADERS = ("cf-mitigated", "x-amzn-waf-action")
"""Headers that firewalls set on responses sent in place of the server."""
HINTS: Mapping[int, str] = {
    407: "Write user and password into the variable that names the proxy: http://user:password@host:port.",
    511: "Log in to the network of this machine, then run again.",
}
FRONT_HINT = (
    "Have the firewall, proxy or captive portal in front of the API let this machine through; "
    "if that does not help, check base_url and the token."
)
_MALFORMED_TOKEN = "24 hex characters"  # noqa: S105 - words of an error message
"""For a malformed token the API returns 400 and this ObjectId cast error."""


def parse_response(reply: HttpResponse) -> Page | ApiFailure:
    """Return the page in `reply`, or the failure."""
    if reply.status == HTTPStatus.OK:
        return _page(reply)
    document: Mapping[str, object] = {}
    with suppress(ValueError, RecursionError):
        parsed = json.loads(reply.body)
        document = parsed if isinstance(parsed, dict) else {}
    own = _is_own(document, reply.status) and not any(name in reply.headers for name in _FRONT_HEADERS)
    kind, message = _by_status(reply.status, own=own)
    said = shown(document.get("message"), reply.secret)
    if reply.status == HTTPStatus.BAD_REQUEST and _MALFORMED_TOKEN in said:
        kind, message = FailureKind.AUTH, "the token is malformed"
    foreign = kind is FailureKind.BLOCKED or (
        kind in {FailureKind.THROTTLED, FailureKind.UNAVAILABLE} and _is_html(reply.body)
    )
    return ApiFailure(
        kind,
        f"HTTP {reply.status}: {message}" + (f": {said}" if said else ""),
        reply.headers.get("Retry-After"),
        reply.status,
        HINTS.get(reply.status, FRONT_HINT if foreign else ""),
    )


def _is_own(document: Mapping[str, object], status: int) -> bool:
    """Whether a failure has the format of the API, or of the frameworks it may be built with."""
    if any(key.lower().replace("_", "").replace("-", "") in _FRONT_KEYS for key in document):
        return False
    codes = {_word(document.get("code")), _word(document.get("statusCode"))}
    return document.get("success") is not None or bool(_words(document.get("message"))) or str(status) in codes


def _is_html(body: bytes) -> bool:
    return body.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<")


def _by_status(status: int, *, own: bool) -> tuple[FailureKind, str]:
    """The failure for a status, in the API's `own` envelope or outside it."""
    if not own and HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _OF_FRAMEWORKS:
        return FailureKind.BLOCKED, f"{_FRONT} rejected the request"
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return FailureKind.UNAVAILABLE, "the server failed"
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return FailureKind.CONTRACT, "a redirect, which is never followed"
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return FailureKind.GARBLED, "a response without contacts"
    return FailureKind.CONTRACT, "the request is rejected"


def _page(reply: HttpResponse) -> Page | ApiFailure:
    body = reply.body.removeprefix(codecs.BOM_UTF8)
    content_type = reply.headers.get("Content-Type", "json")
    charset = _CHARSET.search(content_type)
    if charset is not None and charset[1].lower() not in {"utf-8", "utf8"}:
        try:
            body.decode()
        except UnicodeDecodeError:
            return ApiFailure(FailureKind.GARBLED, f"a response in {charset[1]} instead of UTF-8")
    envelope: _Envelope | ApiFailure
    try:
        envelope = _decode(body)
    except RecursionError:
        return ApiFailure(FailureKind.GARBLED, "JSON nested too deeply")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        envelope = _tolerant_envelope(body)
    if isinstance(envelope, ApiFailure):
        return envelope
    rows = _rows(envelope, reply)
    if isinstance(rows, ApiFailure):
        return rows
    signature = tuple(_word(getattr(envelope, name)) for name in _SIGNATURE)
    total = envelope.total if type(envelope.total) is int else None
    return Page(body, rows, server_time(reply.headers), total, "json" not in content_type.lower(), signature=signature)


def _tolerant_envelope(body: bytes) -> _Envelope | ApiFailure:
    """The envelope of a body that a strict decoder rejects: lone surrogates, odd ids, non-objects."""
    if not body.strip():
        return ApiFailure(FailureKind.GARBLED, "an empty response")
    if _is_html(body):
        return ApiFailure(FailureKind.GARBLED, "an HTML page instead of JSON", hint=FRONT_HINT)
    try:
        text = body.decode("utf-8", errors="replace")
        # `int` rejects NaN and Infinity, which are not JSON.
        document = json.loads(text, parse_constant=int, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return ApiFailure(FailureKind.GARBLED, f"{len(body)} bytes that are not JSON")
    if not isinstance(document, dict):
        return ApiFailure(FailureKind.GARBLED, f"a JSON {type(document).__name__} instead of an object with data")
    data, rows = document.get("data"), list[Row]()
    # If no item is an object, it is not a list of contacts: some servers put error messages there.
    if not isinstance(data, list) or (data and not any(isinstance(item, dict) for item in data)):
        data = None
    for item in data or ():
        contact = item if isinstance(item, dict) else {}
        # Replace lone surrogates as the normalizer does: ids are compared with those it kept.
        contact_id = _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", json.dumps(contact.get("_id"), ensure_ascii=False))
        times = contact.get("createdAt"), contact.get("lastSeenAt")
        rows.append(Row(msgspec.Raw(contact_id.encode()), *times, contact.get("isContact")))
    fields = {name: document.get(key) for name, key in _FIELDS.items()}
    return _Envelope(msgspec.UNSET if data is None else rows, **fields)


def _word(value: object) -> str:
    """A field as one word, the same from both decoders; for a list or an object, whether it is non-empty."""
    return str(bool(value) if isinstance(value, (list, dict)) else value).lower()


def _rows(envelope: _Envelope, reply: HttpResponse) -> list[Row] | ApiFailure:
    """The rows of an envelope, or the failure that it reports in spite of the status 200."""
    inner = envelope.error.get("code") if isinstance(envelope.error, dict) else None
    codes = (envelope.code, envelope.status, envelope.status_code, envelope.http_status, inner)
    numbers = [int(found[0]) for value in codes if value is not None and (found := _NUMBER.match(_word(value)))]
    code = next((number for number in numbers if number >= HTTPStatus.BAD_REQUEST), 0)
    reports_failure = (
        not {_word(envelope.success), _word(envelope.ok)} <= _YES
        or not {_word(envelope.error), _word(envelope.errors)} <= _NOTHING
        or _FAILURE.search(f"{_word(envelope.code)} {_word(envelope.status)}") is not None
    )
    if envelope.data is not msgspec.UNSET and not code and not reports_failure:
        return envelope.data
    words = filter(None, map(_words, (envelope.message, envelope.error, envelope.errors)))
    said, wait = shown(next(words, ""), reply.secret), reply.headers.get("Retry-After")
    because = f": {said}" if said else ""
    if _MALFORMED_TOKEN in said:
        return ApiFailure(FailureKind.AUTH, f"the token is malformed{because}", status=code)
    if code:
        fields = {"success": envelope.success, "message": envelope.message}
        own = _is_own({**fields, "code": envelope.code, "statusCode": envelope.status_code}, code)
        kind, message = _by_status(code, own=own)
        hint = FRONT_HINT if kind is FailureKind.BLOCKED else ""
        return ApiFailure(kind, f"HTTP 200 with code {code}: {message}{because}", wait, code, hint)
    if envelope.success is False:
        return ApiFailure(FailureKind.CONTRACT, f"HTTP 200 with success false{because}")
    if reports_failure:
        return ApiFailure(FailureKind.UNAVAILABLE, f"HTTP 200 that reports a failure{because}", wait)
    return ApiFailure(FailureKind.GARBLED, "a response without a list of contacts in `data`")


def _words(value: object) -> str:
    """The text in a message or an error, in the formats that servers use."""
    match value:
        case str(text) | {"message": str(text)} | [str(text), *_] | [{"message": str(text)}, *_]:
            return text
    return ""


_NUMBER = re.compile(r"\s*\d{1,9}", re.ASCII)
_YES = frozenset({"none", "true", "1", "yes", "ok"})
_NOTHING = frozenset({"none", "null", "false", "0", "no", ""})
_FAILURE = re.compile(r"\berr|error|fail|false|\bko\b")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARSET = re.compile(r"charset=\"?([\w-]{1,40})", re.IGNORECASE)


def server_time(headers: Mapping[str, str]) -> int | None:
    """The `Date` header in milliseconds since the epoch; None if missing or unreadable."""
    return http_date(headers.get("Date", ""))


@lru_cache(maxsize=8)  # all responses within a second have the same one
def http_date(text: str) -> int | None:
    """An HTTP date in milliseconds since the epoch; None if unreadable."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return to_milliseconds(moment.replace(tzinfo=moment.tzinfo or UTC))
