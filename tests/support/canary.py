"""A canary token and a canary contact, and a search for them in everything that a command leaves behind.

Every encoding changes a character of the token, and JSON escapes one of the contact's name. The search covers the token
raw, encoded, reversed and in pieces, and the contact's values raw and encoded: none may be found.
"""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from urllib.parse import quote, quote_plus

TOKEN = 'Kanarie~7Qx/Zv+9"Wm%=Ty\\uR3s&5'  # noqa: S105 - invented, and good for nothing
NAME = "Zdeňka Kanárková-Quist"
EMAIL = "zdenka.kanarkova@canary.example.com"
PREFIX, NUMBER = "+44", "07700900461"
PHONE = "+447700900461"
CONTACT_ID = "65aa00000000000ca0a41e00"
CONTACT = {
    "_id": CONTACT_ID,
    "platform": ["WHATSAPP"],
    "profile": {
        "userDetails": {
            "name": NAME,
            "contact": {"email": EMAIL, "phone": {"prefix": PREFIX, "number": NUMBER}},
            "whatsAppNumber": PHONE.removeprefix("+"),
        }
    },
    "isContact": True,
    "lastMessage": {"by": "user", "at": "2025-01-05T10:00:00.000Z", "text": f"I am {NAME}, call {PREFIX} {NUMBER}"},
    "lastSeenAt": "2025-01-05T10:00:00.000Z",
    "createdAt": "2025-01-01T00:00:00.123Z",
    "updatedAt": "2025-01-05T10:00:00.000Z",
}
RAW = json.dumps(CONTACT).encode()
"""The contact as the server shows it."""

PIECE = 8
"""Length of the pieces of a token that must not be shown."""
DATA = ("*.duckdb", "*.wal", "*.parquet", "pages-*.jsonl")
"""Files that hold contacts, in a target or on the way to it."""


def encodings(text: str) -> Iterator[bytes]:
    """The encodings of a text: raw, escaped for JSON and for URLs, in hex, in base64 at any alignment."""
    raw = text.encode()
    for spelled in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]):
        yield spelled.encode()
    for address in (quote(text), quote(text, safe=""), quote_plus(text)):
        yield address.encode()
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    for encode in (b64encode, urlsafe_b64encode):
        for shift in range(3):
            # Characters that share bits with the text before or after are left out.
            yield encode(bytes(shift) + raw)[4 if shift else 0 : (shift + len(raw)) // 3 * 4]


def pieces(text: bytes, size: int) -> Iterator[bytes]:
    """Every part of this length of a text, or the whole text if it is shorter."""
    yield from (text[start : start + size] for start in range(max(1, len(text) - size + 1)))


@cache
def token_traces(token: str = TOKEN) -> frozenset[bytes]:
    """Traces of the token, which must not appear anywhere."""
    found = {piece for spelled in encodings(token) for piece in pieces(spelled, 2 * PIECE)}
    return frozenset(found | set(pieces(token.encode(), PIECE)) | set(pieces(token[::-1].encode(), PIECE)))


@cache
def contact_traces() -> frozenset[bytes]:
    """Traces of the contact, which may appear only in data files."""
    surname, mailbox, national = NAME.split()[1], EMAIL.split("@", maxsplit=1)[0], NUMBER.lstrip("0")
    return frozenset(e for text in (NAME, surname, EMAIL, mailbox, NUMBER, national) for e in encodings(text))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leaks(outputs: Mapping[str, bytes]) -> list[str]:
    """The outputs that contain the canary, each with the trace found; file names count as output."""
    found = []
    for name, content in outputs.items():
        text = name.encode() + b"\n" + content
        is_data = any(fnmatch(Path(name).name, pattern) for pattern in DATA)
        traces = token_traces() if is_data else token_traces() | contact_traces()
        found += [f"{name}: {trace.decode()}" for trace in sorted(traces) if trace in text]
    return found
