"""Make external text safe to show: no terminal control characters, nothing that may be a token. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""C0 and C1 controls, line and paragraph separators, bidirectional controls and zero-width characters.

The two joiners (U+200C, U+200D) are not included: many languages and emoji need them.
"""
_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_WORD = re.compile(r"[^\W_]+")
_CHOSEN = re.compile(r"(?:[A-Z]+|[A-Z]?[^\W\d_A-Z]+(?:[A-Z][^\W\d_A-Z]+){0,3})?\d{0,8}")
"""A word that people choose as a name: letters in lower case, upper case or CamelCase, then an optional number."""
_LONGEST_WORD = 24
_HEX = re.compile(r"[0-9A-Fa-f]{12,}")


def printable(text: str, keep: str = "") -> str:
    r"""`text` with each terminal control character as its escape, `\u001b`; those in `keep` stay.

    The escapes are those of JSON: escaping a JSON document does not change its value.
    """
    return _STEERING.sub(
        lambda found: found[0] if found[0] in keep else _ESCAPES.get(found[0]) or f"\\u{ord(found[0]):04x}", text
    )


def lines(texts: Iterable[str]) -> str:
    """Lines for people: each text stays one line, whatever it contains."""
    return "\n".join(map(printable, texts))


def redacted(text: str) -> str:
    """`text` if it is plausibly a name or a path; else its length, because it may be a misplaced token."""
    plausible = all(
        len(word) <= _LONGEST_WORD and _CHOSEN.fullmatch(word) and not _HEX.fullmatch(word)
        for word in _WORD.findall(text)
    )
    return text if plausible else f"<{len(text)} characters, not shown>"
