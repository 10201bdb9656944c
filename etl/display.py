"""What people may be shown of what others wrote: nothing that steers a terminal, nothing that may be a token. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""Controls of C0 and C1, line and paragraph separators, what turns the direction of writing, and what has no width.

The two joiners (U+200C, U+200D) are none: words of many languages and emoji are written with them.
"""
_SPELLED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_WORD = re.compile(r"[^\W_]+")
_CHOSEN = re.compile(r"(?:[A-Z]+|[A-Z]?[^\W\d_A-Z]+(?:[A-Z][^\W\d_A-Z]+){0,3})?\d{0,8}")
"""A word as people choose one for a name: letters, in small ones, capitals or CamelCase, then perhaps a number."""
_LONGEST_WORD = 24
_HEX = re.compile(r"[0-9A-Fa-f]{12,}")


def printable(text: str, keep: str = "") -> str:
    r"""`text` with each character that steers a terminal as its escape, `\u001b`; those in `keep` stay.

    The escapes are those of JSON: a document in which they stand is equal to the one without.
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return _SPELLED.get(character) or f"\\u{ord(character):04x}"


def lines(texts: Iterable[str]) -> str:
    """Lines for people: whatever stands in one of the texts, it stays one line."""
    return "\n".join(map(printable, texts))


def discreet(text: str) -> str:
    """`text` if it is plausibly a name or a path; else its length, because it may be a token in the wrong place."""
    return text if all(_is_chosen(word) for word in _WORD.findall(text)) else f"<{len(text)} characters, not shown>"


def _is_chosen(word: str) -> bool:
    return len(word) <= _LONGEST_WORD and bool(_CHOSEN.fullmatch(word)) and not _HEX.fullmatch(word)
