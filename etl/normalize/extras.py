"""Read the values that Arrow skips from the JSON text of contacts: the column `extra`, and drifting columns.

A column drifts when many contacts have another type there. Its values are read one by one by the tolerant path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
from msgspec import Raw

from etl.model import RawPage
from etl.normalize.json_text import Json, canonical, pruned
from etl.normalize.rowwise import EXTRA, RowReader, RowResult
from etl.normalize.shape import Path, picker
from etl.schema import READ

Wanted: TypeAlias = Mapping[Path, frozenset[int]]
"""By path, the rows whose value there is wanted."""

_COLUMNS = {column.path: (place, column.name) for place, column in enumerate(READ)}
_PLAIN = frozenset(b'tf-0123456789"')
"""First bytes of true, false, numbers and strings: without an escape their text is canonical."""
_NOTHING = frozenset((b"null", b'""', b"[]", b"{}"))


@dataclass(slots=True)
class Extras:
    """`extra` and the drifting columns of some contacts, by row."""

    texts: dict[int, str] = field(default_factory=dict)
    """Canonical JSON; a row with nothing left is absent."""
    cells: dict[str, dict[int, object]] = field(default_factory=dict)
    """The cells of each drifting column."""
    unread: set[int] = field(default_factory=set)
    """Rows that must be read by another path: nested too deeply, or on a page with an item that is not a contact."""
    counts: Counter[str] = field(default_factory=Counter)
    """See model.NormalizedBatch."""


def extras_of_pages(pages: Sequence[RawPage], wanted: Wanted, drifting: frozenset[Path]) -> Extras:
    """The `wanted` values of `pages`, rows numbered across pages; a page without a wanted row is not decoded."""
    reading = _Reading(wanted, drifting)
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
    return reading.done()


def extras_of_contacts(raws: Sequence[bytes], wanted: Wanted, drifting: frozenset[Path]) -> Extras:
    """The `wanted` values of the contacts in `raws`."""
    reading = _Reading(wanted, drifting)
    for row in sorted(reading.rows):
        try:
            picked = reading.picker.of_contact(raws[row])
        except (msgspec.DecodeError, RecursionError):
            reading.extras.unread.add(row)
        else:
            reading.add(row, picked)
    return reading.done()


class _Reading:
    """Collects the wanted values row by row."""

    def __init__(self, wanted: Wanted, drifting: frozenset[Path]) -> None:
        self.rows = frozenset[int]().union(*wanted.values())
        self.picker = picker(frozenset(wanted))
        self.extras = Extras(cells={_COLUMNS[path][1]: {} for path in drifting})
        self._result = RowResult()
        self._rows = RowReader(self._result)
        self._drifting = drifting
        self._partly = {path: rows for path, rows in wanted.items() if rows != self.rows}

    def add(self, row: int, picked: msgspec.Struct) -> None:
        found: dict[str, Json] = {}
        try:
            for path, raw in self.picker.values(picked):
                if path in self._drifting:
                    _put(found, path, self._rows.json.read(bytes(raw)))
                elif path not in self._partly or row in self._partly[path]:
                    _put(found, path, self._value(raw))
            if found and self._drifting:
                cells = self._rows.cells(found)
                if cells[EXTRA] is not None:
                    self.extras.texts[row] = str(cells[EXTRA])
                for path in self._drifting:
                    place, name = _COLUMNS[path]
                    self.extras.cells[name][row] = cells[place]
            elif found:
                self.extras.texts[row] = canonical(found)
        except RecursionError:
            self.extras.unread.add(row)

    def done(self) -> Extras:
        repaired = self._rows.json
        self.extras.counts.update(self._result.counts, repeated=repaired.repeated, replaced=repaired.replaced)
        return self.extras

    def _value(self, raw: Raw) -> Json:
        """The value for `extra`; None if it is empty."""
        text = bytes(raw)
        if text in _NOTHING:
            return None
        if text[0] in _PLAIN and b"\\" not in text:
            return raw
        return pruned(self._rows.json.read(text))


def _put(found: dict[str, Json], path: Path, value: Json) -> None:
    """Put `value` at `path`, unless it is None."""
    if value is None:
        return
    for parent in path[:-1]:
        below = found.setdefault(parent, {})
        if not isinstance(below, dict):
            raise TypeError(f"{path} lies inside another path")
        found = below
    found[path[-1]] = value
