"""The faults of a server: tables of their kinds, by the stage of serving that they affect.

Each is a pure function of that stage's result and the fault's parameters; `strikes.py` decides when one strikes.
"""

import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import formatdate, parsedate_to_datetime
from types import MappingProxyType
from typing import Any
from zlib import crc32

from etl.sandbox.answer import JSON_TYPE, Answer, Wire, refusal
from etl.sandbox.filters import Body
from etl.sandbox.pages import Page

Spec = Mapping[str, Any]
"""A fault as data; its parameters differ by kind."""


# --- faults of the request: the server reads another body than was sent ----------------------------------------------

_OPEN = {"startAt": "", "endsAt": ""}
REQUESTS: Mapping[str, Callable[[Body, Spec], Body]] = MappingProxyType(
    {
        "ignore_dates": lambda body, _: {**body, "createdAt": _OPEN, "lastSeenAt": _OPEN},
        "ignore_page": lambda body, _: {**body, "page": 1},
    }
)

# --- faults of the page: good JSON with other rows -------------------------------------------------------------------

_ID = re.compile(rb'"_id":"([^"]*)"')


def _matches(row: bytes, spec: Spec) -> bool:
    """Whether a contact is not one of the one in `of` that the filter never matches."""
    found = _ID.search(row)
    return found is None or crc32(found[1]) % int(spec.get("of", 50)) > 0


PAGES: Mapping[str, Callable[[Page, Spec], Page]] = MappingProxyType(
    {
        "short_page": lambda page, spec: replace(page, rows=page.rows[: -spec.get("drop", 1)]),
        "hole": lambda page, spec: replace(page, rows=page.rows[spec.get("drop", 1) :]),
        "duplicate_row": lambda page, _: replace(page, rows=page.rows[:1] + page.rows),
        "torn": lambda page, _: replace(page, rows=page.rows[:1] + page.rows[:1] + page.rows[2:]),
        "unmatched": lambda page, spec: replace(page, rows=[row for row in page.rows if _matches(row, spec)]),
        "reversed": lambda page, _: replace(page, rows=page.rows[::-1]),
        "empty_list": lambda page, _: replace(page, rows=[]),
        "foreign_row": lambda page, spec: replace(page, rows=[*page.rows, str(spec.get("row", "5")).encode()]),
    }
)

# --- faults of the answer and its transport --------------------------------------------------------------------------

_HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"
_BODIES: Mapping[str, tuple[bytes, str]] = MappingProxyType(
    {"html": (_HTML, "text/html"), "text": (b"upstream error", "text/plain"), "empty": (b"", "text/plain")}
)
_SHAPES: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        "bare_list": lambda data: data,
        "status_message": lambda data: b'{"status":200,"message":"ok","data":' + data + b"}",
        "no_data": lambda _: b'{"success":true,"message":"ok","code":200}',
        "null_data": lambda _: b'{"success":true,"message":"ok","code":200,"data":null}',
        "object_data": lambda data: b'{"success":true,"message":"ok","code":200,"data":{"users":' + data + b"}}",
        "error": lambda _: b'{"error":"timeout","data":[]}',
        "nobody": lambda _: b'{"data":[]}',
        "texts": lambda _: b'{"success":true,"code":200,"data":["lastSeenAt must be a date"]}',
        "object": lambda _: b"{}",
        "list": lambda _: b"[]",
    }
)
_DATA = re.compile(rb'"data":(\[.*\])', re.DOTALL)


def _status(answer: Answer, spec: Spec) -> Answer:
    """Another status; `as` is json, html, text or empty, and `retry_after` the header, verbatim."""
    status, retry = spec.get("status", 500), spec.get("retry_after")
    failed = refusal(status, spec.get("message", "Something went wrong"))
    body, content_type = _BODIES.get(spec.get("as", "json"), (failed.body, JSON_TYPE))
    wait = {} if retry is None else {"Retry-After": str(retry)}
    return replace(answer, status=status, body=body, headers={**answer.headers, "Content-Type": content_type, **wait})


def _refused(answer: Answer, spec: Spec) -> Answer:
    """A failure under status 200."""
    text = {"success": False, "message": spec.get("message", "Something went wrong"), "code": spec.get("code", 500)}
    return replace(answer, body=json.dumps(text).encode())


def _shaped(answer: Answer, spec: Spec) -> Answer:
    found = _DATA.search(answer.body)
    return replace(answer, body=_SHAPES[spec.get("shape", "bare_list")](found[1] if found else b"[]"))


def _encoded(answer: Answer, spec: Spec) -> Answer:
    text = answer.body.decode("utf-8", "replace")
    return replace(answer, body=text.encode(spec.get("charset", "utf-8-sig"), "replace"))


def _cut(answer: Answer, spec: Spec) -> Answer:
    """Truncated, with the Content-Length of the rest."""
    return replace(answer, body=answer.body[: int(len(answer.body) * spec.get("at", 0.5))])


def _bad_gzip(answer: Answer, _: Spec) -> Answer:
    packed = bytearray(gzip.compress(answer.body, 1))
    packed[len(packed) // 2] ^= 0xFF
    return replace(answer, body=bytes(packed), headers={**answer.headers, "Content-Encoding": "gzip"})


def _bomb(answer: Answer, spec: Spec) -> Answer:
    """Blanks before the JSON, compressed to a thousandth."""
    size = spec.get("megabytes", 100) * 2**20
    packed = gzip.compress(b" " * size + answer.body, 9)
    return replace(answer, body=packed, headers={**answer.headers, "Content-Encoding": "gzip"})


def _padded(answer: Answer, spec: Spec) -> Answer:
    return replace(answer, body=b" " * (spec.get("megabytes", 100) * 2**20) + answer.body)


def _headed(answer: Answer, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return replace(answer, headers={**answer.headers, **named})


def _dated(answer: Answer, spec: Spec) -> Answer:
    """A `Date` that is wrong by some seconds, a text instead, or none ("")."""
    if "text" in spec:
        return _headed(answer, Date=spec["text"])
    now = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    return _headed(answer, Date=formatdate(now + spec.get("seconds", 86_400), usegmt=True))


def _headers(answer: Answer, spec: Spec) -> Answer:
    return _headed(answer, **{f"X-Filler-{n}": "x" * 100 for n in range(spec.get("count", 10_000))})


def _flying(answer: Answer, wire: Wire) -> Answer:
    return replace(answer, wire=wire)


def _not_a_number(answer: Answer, _: Spec) -> Answer:
    return replace(answer, body=answer.body.replace(b'"__v":0', b'"__v":NaN', 1))


def _deep(answer: Answer, spec: Spec) -> Answer:
    return replace(answer, body=b"[" * spec.get("depth", 100_000))


def _typed(answer: Answer, spec: Spec) -> Answer:
    return _headed(answer, Content_Type=spec.get("type", "text/plain"))


def _redirect(answer: Answer, spec: Spec) -> Answer:
    moved = replace(answer, status=spec.get("status", 302), body=b"")
    return _headed(moved, Location=spec.get("location", "https://elsewhere.example.com/login"))


ANSWERS: Mapping[str, Callable[[Answer, Spec], Answer]] = MappingProxyType(
    {
        "status": _status,
        "retry_after": lambda answer, spec: _status(answer, {"status": 429, "retry_after": "1", **spec}),
        "html": lambda answer, _: _headed(replace(answer, body=_HTML), Content_Type="text/html"),
        "success_false": _refused,
        "envelope": _shaped,
        "empty": lambda answer, _: replace(answer, body=b""),
        "no_content": lambda answer, _: replace(answer, status=204, body=b""),
        "truncated_json": _cut,
        "nan": _not_a_number,
        "deep": _deep,
        "charset": _encoded,
        "content_type": _typed,
        "bad_gzip": _bad_gzip,
        "gzip_bomb": _bomb,
        "huge": _padded,
        "redirect": _redirect,
        "date": _dated,
        "headers": _headers,
        "reset": lambda answer, _: _flying(answer, Wire(headless=True, reset=True)),
        "close": lambda answer, _: _flying(answer, Wire(headless=True)),
        "close_after": lambda answer, _: _flying(answer, Wire(close=True)),
        "reset_mid_body": lambda answer, spec: _flying(answer, Wire(cut=spec.get("at", 0.5), reset=True)),
        "close_mid_body": lambda answer, spec: _flying(answer, Wire(cut=spec.get("at", 0.5))),
        "chunk_cut": lambda answer, spec: _flying(answer, Wire(cut=spec.get("at", 0.5), chunked=True)),
        "chunked": lambda answer, _: _flying(answer, Wire(chunked=True)),
        "slow_body": lambda answer, spec: _flying(answer, Wire(drip=spec.get("seconds", 5.0))),
        "delay": lambda answer, spec: _flying(answer, Wire(delay=spec.get("seconds", 1.0))),
        "hang": lambda answer, spec: _flying(answer, Wire(delay=spec.get("seconds", 3600.0), headless=True)),
    }
)

# --- faults that need more than one request --------------------------------------------------------------------------

OTHERS = ("page_size", "duplicate_page")
"""Another page size (`size`); the body of the last good answer once more. `strikes.Plan` implements them."""

KINDS = frozenset((*REQUESTS, *PAGES, *ANSWERS, *OTHERS))
"""Every kind of fault."""
