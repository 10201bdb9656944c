"""The column `extra` of contacts that Arrow has read: their fields without a column, taken out of their JSON text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
from msgspec import Raw

from etl.model import RawPage
from etl.normalize.json_text import Json, Reader, canonical, pruned
from etl.normalize.shape import Path, picker

Wanted: TypeAlias = Mapping[Path, frozenset[int]]
"""By path, the rows whose `extra` gets what stands there."""

_PLAIN = frozenset(b'tf-0123456789"')
"""First bytes of true, false, numbers and strings: without an escape their text is canonical."""
_NOTHING = frozenset((b"null", b'""', b"[]", b"{}"))


@dataclass(slots=True)
class Extras:
    """`extra` of some contacts, by row."""

    texts: dict[int, str] = field(default_factory=dict)
    """Canonical JSON; a row of which nothing is left is absent."""
    unread: set[int] = field(default_factory=set)
    """Rows that have to be read another way: nested too deeply, or in one page with something that is no contact."""
    repeated: int = 0
    replaced: int = 0


def extras_of_pages(pages: Sequence[RawPage], wanted: Wanted) -> Extras:
    """`extra` of contacts of `pages`, numbered through; a page without a wanted one is not decoded."""
    reading = _Reading(wanted)
    start = 0
    for page in pages:
        here = [row for row in range(start, start + page.rows) if row in reading.rows]
        try:
            picked = reading.picker.of_page(page.body) if here else []
        except (msgspec.DecodeError, RecursionError):
            reading.extras.unread.update(here)
        else:
            for row in here:
                reading.add(row, picked[row - start])
        start += page.rows
    return reading.extras


def extras_of_contacts(raws: Sequence[bytes], wanted: Wanted) -> Extras:
    """`extra` of contacts of `raws`."""
    reading = _Reading(wanted)
    for row in sorted(reading.rows):
        try:
            picked = reading.picker.of_contact(raws[row])
        except (msgspec.DecodeError, RecursionError):
            reading.extras.unread.add(row)
        else:
            reading.add(row, picked)
    return reading.extras


class _Reading:
    """Collects `extra` row by row."""

    def __init__(self, wanted: Wanted) -> None:
        self.rows = frozenset[int]().union(*wanted.values())
        self.picker = picker(frozenset(wanted))
        self.extras = Extras()
        self._reader = Reader()
        self._partly = {path: rows for path, rows in wanted.items() if rows != self.rows}

    def add(self, row: int, picked: msgspec.Struct) -> None:
        extra: dict[str, Json] = {}
        try:
            for path, raw in self.picker.values(picked):
                if path not in self._partly or row in self._partly[path]:
                    _put(extra, path, self._value(raw))
            if extra:
                self.extras.texts[row] = canonical(extra)
        except RecursionError:
            self.extras.unread.add(row)
        self.extras.repeated, self.extras.replaced = self._reader.repeated, self._reader.replaced

    def _value(self, raw: Raw) -> Json:
        text = bytes(raw)
        if text in _NOTHING:
            return None
        if text[0] in _PLAIN and b"\\" not in text:
            return raw
        return pruned(self._reader.read(text))


def _put(extra: dict[str, Json], path: Path, value: Json) -> None:
    """Put `value` at `path`, if it says something."""
    if value is None:
        return
    for parent in path[:-1]:
        below = extra.setdefault(parent, {})
        if not isinstance(below, dict):
            raise TypeError(f"{path} lies inside another path")
        extra = below
    extra[path[-1]] = value
