"""Redact server messages for error output: short, without the token or anything that looks personal. Pure."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from urllib.parse import quote

SHOWN = 200
"""Characters of a server's message that an error shows."""
PIECE = 8
"""Consecutive characters of a token that must not be shown."""

_PERSONAL = re.compile(r"[^\s@]{1,64}@[^\s@]{1,255}|\+?\d[\d ()-]{6,30}\d")


def shown(message: object, secret: str) -> str:
    """A server's message, short, on one line, without the token and without anything that looks personal."""
    if not isinstance(message, str):
        return ""
    redacted = message.replace(secret, "…") if secret else message
    words = "".join(c if c.isprintable() else " " for c in redacted[: 4 * SHOWN]).split(" ")
    # Some servers repeat the beginning of the token, some proxies the whole header, plain or encoded.
    raw = secret.encode()
    shifted = (b64encode(bytes(shift) + raw).decode()[4 if shift else 0 :] for shift in range(3))
    pieces = set[str]()
    for text in (secret, secret[::-1], quote(secret, safe=""), json.dumps(secret), raw.hex(), *shifted):
        pieces.update(text[start : start + PIECE] for start in range(len(text) - PIECE + 1))
    for index, word in enumerate(words):
        if any(word[start : start + PIECE] in pieces for start in range(len(word) - PIECE + 1)):
            words[index] = "…"
    return _PERSONAL.sub("…", " ".join(words))[:SHOWN]
