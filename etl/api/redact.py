"""Redact server messages for error output: short, without the token or anything that looks personal. Pure."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from functools import lru_cache
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
    discreet = message.replace(secret, "…") if secret else message
    printable = "".join(c if c.isprintable() else " " for c in discreet[: 4 * SHOWN])
    words = ("…" if _quotes(word, secret) else word for word in printable.split(" "))
    return _PERSONAL.sub("…", " ".join(words))[:SHOWN]


def _quotes(word: str, secret: str) -> bool:
    """Whether a word contains a piece of the token, plain or encoded: some servers repeat its beginning."""
    traces = _traces(secret)
    return any(word[start : start + PIECE] in traces for start in range(len(word) - PIECE + 1))


@lru_cache(maxsize=8)
def _traces(secret: str) -> frozenset[str]:
    """Every piece of the token in the encodings in which a server or a proxy may repeat it."""
    raw = secret.encode()
    shifted = (b64encode(bytes(shift) + raw).decode()[4 if shift else 0 :] for shift in range(3))
    spelled = (secret, secret[::-1], quote(secret, safe=""), json.dumps(secret), raw.hex(), *shifted)
    return frozenset(text[start : start + PIECE] for text in spelled for start in range(len(text) - PIECE + 1))
