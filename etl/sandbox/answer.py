"""One answer of the server: its status, headers and bytes, and the faults of its transport."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

JSON_TYPE = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Wire:
    """How an answer travels; the default is whole and at once."""

    delay: float = 0.0
    """Seconds before its first byte."""
    cut: float | None = None
    """Share of the body after which the connection ends; None = all of it arrives."""
    reset: bool = False
    """A cut is a TCP reset instead of an orderly end."""
    headless: bool = False
    """Nothing arrives, not even the status line."""
    chunked: bool = False
    """No Content-Length; a cut body then lacks its last chunk."""
    drip: float = 0.0
    """Seconds over which the body trickles."""
    close: bool = False
    """The connection is closed after the answer."""


WHOLE = Wire()


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to one request."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": JSON_TYPE})
    wire: Wire = WHOLE


def envelope(rows: Iterable[bytes], total: object = None, *, has_total: bool = False) -> bytes:
    """The body of a good answer around contacts that are JSON already."""
    extra = b',"total":' + json.dumps(total).encode() if has_total else b""
    return b'{"success":true,"message":"ok","code":200,"data":[' + b",".join(rows) + b"]" + extra + b"}"


def refusal(status: int, message: str, data: list[str] | None = None, **headers: str) -> Answer:
    """The answer to a request that is not served; validation errors carry `data`."""
    body = {"success": False, "message": message, "code": status} | ({} if data is None else {"data": data})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": JSON_TYPE} | named)
