"""What the server answered: an accepted page, or a refusal with its kind. Pure: no I/O, no clock.

A 200 is not yet a page. The envelope must tell of no failure, in whatever way servers do, and `data` must be a list;
only then do the rows count: an empty list beside an error would prove that nobody is there. A body cut off or replaced
by a proxy is a refusal and is never read as a prefix. A status that refuses the token counts as the API's word only in
the API's own envelope: firewalls, proxies and captive portals answer 401 and 403, too.
Source: API.md, "Answers"; FAULTS.md groups N and A.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from functools import lru_cache
from http import HTTPStatus
from typing import TypeAlias

import msgspec

from etl.api.redact import shown


class FailureKind(Enum):
    """Why an answer is no page, by what to do about it."""

    AUTH = auto()
    """The API refuses the token: asking again is of no use, unless it was good a moment ago."""
    BLOCKED = auto()
    """Something in front of the API refused the request: wait, then ask again."""
    THROTTLED = auto()
    """Too fast: wait, then ask again."""
    UNAVAILABLE = auto()
    """The server or the way to it failed: ask again."""
    UNREACHABLE = auto()
    """No way to the server that waiting would open (unknown host, certificate not valid): asking again is of no use."""
    STALE = auto()
    """The server had closed the idle connection before the request came: ask again at once."""
    GARBLED = auto()
    """Not an answer of this API (cut off, HTML, empty): ask again, then give up."""
    CONTRACT = auto()
    """A refusal that will not change: asking again is of no use."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One HTTP answer, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    secret: str = field(default="", repr=False)
    """The token it was asked with: no message may quote it."""


@dataclass(frozen=True, slots=True)
class ApiFailure:
    """An answer that is no page."""

    kind: FailureKind
    message: str
    retry_after: str | None = None
    """The `Retry-After` header, as it came."""
    status: int = 0
    hint: str = ""
    """What to do about it, where the kind alone does not say."""


class Row(msgspec.Struct, gc=False, frozen=True):
    """What the fetcher must know of a contact; everything else is skipped, not decoded."""

    contact_id: msgspec.Raw = msgspec.field(name="_id", default=msgspec.Raw(b"null"))
    """The id as JSON text: the fetcher compares ids, it does not judge them."""
    created_at: object = msgspec.field(name="createdAt", default=None)
    last_seen_at: object = msgspec.field(name="lastSeenAt", default=None)
    is_contact: object = msgspec.field(name="isContact", default=None)


EnvelopeSignature: TypeAlias = tuple[str, ...]
"""What an envelope says of success, codes and errors, each as one word; its message and total are left out."""


@dataclass(frozen=True, slots=True)
class Page:
    """An accepted page."""

    body: bytes
    """The whole answer, UTF-8, no BOM."""
    rows: Sequence[Row]
    date: int | None = None
    """The server's clock when it answered, milliseconds since the epoch, from its `Date` header."""
    total: int | None = None
    """The number of matches, where the server tells one; never relied on alone."""
    mislabelled: bool = False
    """Whether its `Content-Type` is another than JSON, which does no harm but is counted."""
    number: int = 1
    """As which page it was asked for."""
    attempt: int = 1
    """On which attempt it came."""
    manner: EnvelopeSignature = ()
    """What the envelope says beside the rows."""

    @property
    def ids(self) -> frozenset[bytes]:
        """The ids listed, as JSON text."""
        return frozenset(bytes(row.contact_id) for row in self.rows)


def id_text(raw: bytes) -> str | None:
    """A raw JSON id as the normalizer would keep it; None where it is no id."""
    if raw.startswith(b'"') and b"\\" not in raw:
        return raw[1:-1].decode("utf-8", errors="replace") or None
    value = json.loads(raw, parse_int=str, parse_float=str)
    return value if isinstance(value, str) and value else None


class _Envelope(msgspec.Struct, gc=False):
    """All that can tell of a failure, whatever its type; another field does no harm."""

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

_TELLING = tuple(name for name in _FIELDS if name not in {"message", "total"})

_BY_STATUS: Mapping[int, tuple[FailureKind, str]] = {
    204: (FailureKind.GARBLED, "an empty answer"),
    401: (FailureKind.AUTH, "the token is refused, or the `authtype: Key` header was lost on the way"),
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
"""Statuses below 500 that web servers and frameworks give by themselves, in HTML; the API tells all others in JSON."""
_FRONT = "something in front of the API (a firewall, a proxy, a captive portal)"
_FRONT_KEYS = frozenset({"ray", "rayid", "cfray", "incident", "incidentid", "supportid", "blockid", "reference"})
"""Under these keys firewalls number what they blocked."""
_FRONT_HEADERS = ("cf-mitigated", "x-amzn-waf-action")
"""Firewalls set these on what they answer in place of the server."""
HINTS: Mapping[int, str] = {
    407: "Write user and password into the variable that names the proxy: http://user:password@host:port.",
    511: "Log in to the network of this machine, then run again.",
}
FRONT_HINT = (
    "Have the firewall, proxy or captive portal in front of the API let this machine through; "
    "if it goes on, check base_url and the token."
)
_MALFORMED_TOKEN = "24 hex characters"  # noqa: S105 - words of an error message
"""KNOWN: a malformed token is answered with 400 and this ObjectId cast error."""


def parse_response(reply: HttpResponse) -> Page | ApiFailure:
    """Decide what `reply` is."""
    if reply.status == HTTPStatus.OK:
        return _page(reply)
    document = _document(reply.body)
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


def _document(body: bytes) -> Mapping[str, object]:
    """The JSON object that a refusal came with; an empty one where it is anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_own(told: Mapping[str, object], status: int) -> bool:
    """Whether a refusal is told as the API does, or the frameworks that it may be made with."""
    if any(key.lower().replace("_", "").replace("-", "") in _FRONT_KEYS for key in told):
        return False
    codes = {_word(told.get("code")), _word(told.get("statusCode"))}
    return told.get("success") is not None or bool(_words(told.get("message"))) or str(status) in codes


def _is_html(body: bytes) -> bool:
    return body.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<")


def _by_status(status: int, *, own: bool) -> tuple[FailureKind, str]:
    """What a status means in the API's `own` envelope or in none."""
    if not own and HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _OF_FRAMEWORKS:
        return FailureKind.BLOCKED, f"{_FRONT} refused the request"
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return FailureKind.UNAVAILABLE, "the server failed"
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return FailureKind.CONTRACT, "a redirect, which is never followed"
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return FailureKind.GARBLED, "an answer without contacts"
    return FailureKind.CONTRACT, "the request is refused"


def _page(reply: HttpResponse) -> Page | ApiFailure:
    body = reply.body.removeprefix(codecs.BOM_UTF8)
    charset = _foreign_charset(reply, body)
    if charset:
        return ApiFailure(FailureKind.GARBLED, f"an answer in {charset} instead of UTF-8")
    envelope = _envelope(body)
    if isinstance(envelope, ApiFailure):
        return envelope
    code = _failing_code(envelope)
    if code or envelope.data is msgspec.UNSET or _tells_of_failure(envelope):
        return _told(envelope, code, reply)
    total = envelope.total if type(envelope.total) is int else None
    mislabelled = "json" not in reply.headers.get("Content-Type", "json").lower()
    return Page(body, envelope.data, server_time(reply.headers), total, mislabelled, manner=_manner(envelope))


def _envelope(body: bytes) -> _Envelope | ApiFailure:
    try:
        return _decode(body)
    except RecursionError:
        return ApiFailure(FailureKind.GARBLED, "JSON nested too deeply")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _tolerant_envelope(body)


def _tolerant_envelope(body: bytes) -> _Envelope | ApiFailure:
    """The envelope of a body that holds what a strict decoder refuses: lone surrogates, odd ids, non-objects."""
    if not body.strip():
        return ApiFailure(FailureKind.GARBLED, "an empty answer")
    if _is_html(body):
        return ApiFailure(FailureKind.GARBLED, "an HTML page instead of JSON", hint=FRONT_HINT)
    try:
        text = body.decode("utf-8", errors="replace")
        document = json.loads(text, parse_constant=_no_constant, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return ApiFailure(FailureKind.GARBLED, f"{len(body)} bytes that are not JSON")
    if not isinstance(document, dict):
        return ApiFailure(FailureKind.GARBLED, f"a JSON {type(document).__name__} instead of an object with data")
    return _Envelope(_listed(document.get("data")), **{name: document.get(key) for name, key in _FIELDS.items()})


def _listed(data: object) -> list[Row] | msgspec.UnsetType:
    """The rows of a list of contacts: one that holds nothing but other things is where servers put complaints, too."""
    if isinstance(data, list) and (not data or any(isinstance(item, dict) for item in data)):
        return [_row(item) for item in data]
    return msgspec.UNSET


def _row(item: object) -> Row:
    if not isinstance(item, dict):
        return Row()
    # A lone surrogate becomes what the normalizer makes of it: ids are compared with what it kept.
    contact_id = _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", json.dumps(item.get("_id"), ensure_ascii=False))
    return Row(msgspec.Raw(contact_id.encode()), item.get("createdAt"), item.get("lastSeenAt"), item.get("isContact"))


def _no_constant(name: str) -> object:
    message = f"{name} is not JSON"
    raise ValueError(message)


def _foreign_charset(reply: HttpResponse, body: bytes) -> str:
    """The charset that the answer declares, if it is not UTF-8 and the body is not either; else ""."""
    declared = _CHARSET.search(reply.headers.get("Content-Type", ""))
    if declared is None or declared[1].lower() in {"utf-8", "utf8"}:
        return ""
    try:
        body.decode()
    except UnicodeDecodeError:
        return declared[1]
    return ""


def _failing_code(envelope: _Envelope) -> int:
    """The failing HTTP status that the body tells, 0 where it tells none."""
    inner = envelope.error.get("code") if isinstance(envelope.error, dict) else None
    told = (envelope.code, envelope.status, envelope.status_code, envelope.http_status, inner)
    numbers = [int(found[0]) for each in told if each is not None and (found := _NUMBER.match(_word(each)))]
    return next((number for number in numbers if number >= HTTPStatus.BAD_REQUEST), 0)


def _tells_of_failure(envelope: _Envelope) -> bool:
    """Whether anything but a code says so."""
    return (
        not {_word(envelope.success), _word(envelope.ok)} <= _YES
        or not {_word(envelope.error), _word(envelope.errors)} <= _NOTHING
        or _FAILURE.search(f"{_word(envelope.code)} {_word(envelope.status)}") is not None
    )


def _manner(envelope: _Envelope) -> EnvelopeSignature:
    return tuple(_word(getattr(envelope, name)) for name in _TELLING)


def _word(told: object) -> str:
    """What was told as one word, the same from both readers; of a list or an object, whether it holds anything."""
    return str(bool(told) if isinstance(told, (list, dict)) else told).lower()


def _told(envelope: _Envelope, code: int, reply: HttpResponse) -> ApiFailure:
    """A 200 that says in its body that it is none."""
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
    if _tells_of_failure(envelope):
        return ApiFailure(FailureKind.UNAVAILABLE, f"HTTP 200 that tells of a failure{because}", wait)
    return ApiFailure(FailureKind.GARBLED, "an answer without a list of contacts in `data`")


def _words(told: object) -> str:
    """The text in a message or an error, in the shapes that servers give it."""
    match told:
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
    """The `Date` header in milliseconds since the epoch; None when missing or unreadable."""
    return _http_date(headers.get("Date", ""))


@lru_cache(maxsize=8)  # all answers of a second carry the same one
def _http_date(text: str) -> int | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
