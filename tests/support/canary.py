"""One token and one contact that nobody could miss, and a search for them in everything that a command leaves behind.

The token has a character for every encoding to change; the contact's name one for JSON to escape. A token is looked for
as it is, encoded, reversed and in pieces, a contact's values as they are and encoded: none of it may be found.
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
"""Characters of a token that are already too many to be told."""
DATA = ("*.duckdb", "*.wal", "*.parquet", "pages-*.jsonl")
"""What contacts are kept in, in a target or on the way to it."""


def encodings(text: str) -> Iterator[bytes]:
    """The ways to write a text: as it is, escaped for JSON and for addresses, in hex, in base64 of any alignment."""
    raw = text.encode()
    for spelled in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]):
        yield spelled.encode()
    for address in (quote(text), quote(text, safe=""), quote_plus(text)):
        yield address.encode()
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    for encode in (b64encode, urlsafe_b64encode):
        for shift in range(3):
            # Letters that also hold bits of what stands before or behind are left out.
            yield encode(bytes(shift) + raw)[4 if shift else 0 : (shift + len(raw)) // 3 * 4]


def pieces(text: bytes, size: int) -> Iterator[bytes]:
    """Every part of a text of this length, the whole text where it is shorter."""
    yield from (text[start : start + size] for start in range(max(1, len(text) - size + 1)))


@cache
def token_traces(token: str = TOKEN) -> frozenset[bytes]:
    """What must be found nowhere at all."""
    found = {piece for spelled in encodings(token) for piece in pieces(spelled, 2 * PIECE)}
    return frozenset(found | set(pieces(token.encode(), PIECE)) | set(pieces(token[::-1].encode(), PIECE)))


@cache
def contact_traces() -> frozenset[bytes]:
    """What must be found nowhere but in data files."""
    surname, mailbox, national = NAME.split()[1], EMAIL.split("@", maxsplit=1)[0], NUMBER.lstrip("0")
    return frozenset(e for text in (NAME, surname, EMAIL, mailbox, NUMBER, national) for e in encodings(text))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leaks(outputs: Mapping[str, bytes]) -> list[str]:
    """Where the canary was found: the output and what stands in it. File names are outputs, too."""
    found = []
    for name, content in outputs.items():
        text = name.encode() + b"\n" + content
        is_data = any(fnmatch(Path(name).name, pattern) for pattern in DATA)
        traces = token_traces() if is_data else token_traces() | contact_traces()
        found += [f"{name}: {trace.decode()}" for trace in sorted(traces) if trace in text]
    return found
