"""Lossless JSON input and output: numbers keep the server's token, texts become storable, output has one format.

A number is read as `msgspec.Raw`, its exact token (1.50, 1e400, 5,000 digits): Python never rounds it, and it is
written back as a copy. This module does not depend on contacts.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TypeAlias

import msgspec
from msgspec import Raw

Json: TypeAlias = "bool | str | Raw | list[Json] | dict[str, Json] | None"
"""A decoded value; a number is the Raw of its token."""

_BROKEN = "\udcff"
"""Marks one undecodable sequence of bytes until `_storable` replaces it: a surrogate, so never a valid text."""
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_PERHAPS_UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def _mark_broken(error: UnicodeError) -> tuple[str, int]:
    """Continue after one undecodable sequence, as `errors="replace"` does."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _BROKEN, error.end


codecs.register_error("etl.mark", _mark_broken)


class Reader:
    """Decodes JSON and counts repairs: `repeated` keys, and texts with an inserted U+FFFD (`replaced`)."""

    def __init__(self) -> None:
        self.repeated = 0
        self.replaced = 0
        self._decode = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_float=Raw,
            parse_int=Raw,
            parse_constant=int,  # raises ValueError: NaN and Infinity are not JSON
        ).decode

    def read(self, raw: bytes) -> Json:
        """The value of one JSON text; for a repeated key, the last value.

        Raises ValueError if it is not JSON, RecursionError if it is nested too deeply.
        """
        try:
            text, broken = raw.decode(), False
        except UnicodeDecodeError:
            text, broken = raw.decode(errors="etl.mark"), True
        value: Json = self._decode(text)
        return self._storable(value) if broken or _PERHAPS_UNSTORABLE.search(text) else value

    def _object(self, pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.repeated += len(pairs) - len(found)
        return found

    def _storable(self, value: Json) -> Json:
        """`value` without NUL and lone surrogates, which no UTF-8 column can hold (or no database accepts)."""
        if isinstance(value, str):
            fixed = _UNSTORABLE.sub("\ufffd", value)
            self.replaced += fixed != value
            return fixed
        if isinstance(value, list):
            return [self._storable(item) for item in value]
        if isinstance(value, dict):
            return self._object([(str(self._storable(key)), self._storable(item)) for key, item in value.items()])
        return value


def pairs(raw: bytes) -> list[tuple[str, Json]]:
    """The members of the object `raw` in order, including repeated ones; objects inside it are lists, too."""
    decode = json.JSONDecoder(object_pairs_hook=list, parse_float=Raw, parse_int=Raw).decode
    found: list[tuple[str, Json]] = decode(raw.decode(errors="etl.mark"))
    return found


def token(number: Raw) -> str:
    """A number as the server wrote it."""
    return bytes(number).decode()


def text_of(value: Json) -> str:
    """The JSON text of `value`: compact, keys in the server's order, non-ASCII and numbers as the server wrote them."""
    return msgspec.json.encode(value).decode()


def canonical(value: Json) -> str:
    """The JSON text of `value` with sorted keys: equal values have equal texts."""
    return msgspec.json.encode(value, order="deterministic").decode()


def pruned(value: Json) -> Json:
    """`value` without empty members of objects (null, "", [], {}), which are removed from it; None if nothing is left.

    Lists are kept as they are: the position of an item may have a meaning.
    """
    if isinstance(value, dict):
        empty: list[str] = []
        for key, item in value.items():
            if item:
                if item.__class__ is dict and pruned(item) is None:
                    empty.append(key)
            elif item != 0:  # false is 0
                empty.append(key)
        for key in empty:
            del value[key]
    return value if value or value == 0 else None


def without_lone_surrogates(body: bytes) -> bytes:
    r"""`body` of the same length with every lone surrogate escape as \ufffd, so that strict parsers accept it."""
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], body)
