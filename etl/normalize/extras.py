"""Read the values that Arrow skips from the JSON text of contacts: the column `extra`, and drifting columns.

A column drifts when many contacts have another type there. Its values are read one by one by the tolerant path.
Fields without a column are decoded and encoded by msgspec, except where that would change them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import msgspec

from etl.model import RawPage
from etl.normalize.json_text import Json, pruned
from etl.normalize.rowwise import EXTRA, RowReader, RowResult, further_fields
from etl.normalize.shape import TREE, Fields, Path, Tree, raw_decoder, value_decoder
from etl.schema import READ, Column

_COLUMNS = {column.path: (place, column.name) for place, column in enumerate(READ)}
_MINUS_ZERO = re.compile(rb"-0[,}\]\s]")
"""An integer that msgspec does not keep, perhaps: it may be in a text."""

_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(slots=True)
class Extras:
    """`extra` and the drifting columns of some contacts, by row."""

    texts: dict[int, bytes] = field(default_factory=dict)
    """Canonical JSON; a row with nothing left is absent."""
    cells: dict[str, dict[int, object]] = field(default_factory=dict)
    """The cells of each drifting column."""
    unread: set[int] = field(default_factory=set)
    """Rows that must be read by another path: nested too deeply, with a NUL, or on a page that is not only contacts."""
    counts: Counter[str] = field(default_factory=Counter)
    """See model.NormalizedBatch."""


def extras_of_pages(
    pages: Sequence[RawPage], rows: Collection[int], unknown: Mapping[Path, Collection[int]], drifting: frozenset[Path]
) -> Extras:
    """The values at the paths `unknown` and `drifting` in the `rows` of `pages`, which are numbered across pages.

    `unknown` has the rows that have a value at each path, as Arrow found them; no object in them has a repeated key.
    """
    reading = _Reading(unknown, drifting)
    for path, found in unknown.items():
        if path[:-1] in _COLUMNS:
            reading.lists[path[:-1]] = reading.lists.get(path[:-1], frozenset()).union(found)
    start = 0
    for page in pages:
        here = [row for row in range(start, start + page.rows) if row in rows]
        as_sent = bool(drifting) or (bool(here) and _MINUS_ZERO.search(page.body) is not None)
        try:
            if as_sent and here:
                rest, drifted = (decoder.page.decode(page.body)["data"] for decoder in reading.raw)
                for row in here:
                    reading.add_as_sent(row, rest[row - start], drifted[row - start])
            elif here:
                values = reading.values.page.decode(page.body)["data"]
                for row in here:
                    reading.add(row, values[row - start])
        except (msgspec.MsgspecError, RecursionError):
            reading.extras.unread.update(here)
        start += page.rows
    return reading.done()


def extras_of_contacts(
    raws: Sequence[bytes], rows: Collection[int], unknown: Collection[Path], drifting: frozenset[Path]
) -> Extras:
    """The values at the paths `unknown` and `drifting` in the `rows` of `raws`."""
    reading = _Reading(unknown, drifting)
    for row in rows:
        try:
            reading.add_as_sent(row, *(decoder.contact.decode(raws[row]) for decoder in reading.raw))
        except (msgspec.MsgspecError, RecursionError):
            reading.extras.unread.add(row)
    return reading.done()


class _Reading:
    """Collects values row by row."""

    def __init__(self, unknown: Collection[Path], drifting: frozenset[Path]) -> None:
        paths = frozenset(unknown)
        self.values = value_decoder(paths)
        self.raw = raw_decoder(paths), raw_decoder(drifting)
        self.extras = Extras(cells={_COLUMNS[path][1]: {} for path in drifting})
        self.lists: dict[Path, frozenset[int]] = {}
        """By path, the rows whose list has items with fields that its column has not."""
        self._result = RowResult()
        self._rows = RowReader(self._result)
        self._drifting = drifting

    def add(self, row: int, values: Fields) -> None:
        """Add the fields without a column, as `value_decoder` decoded them."""
        for (*parents, name), found in self.lists.items():
            if row not in found:
                holder = values
                for parent in parents:
                    holder = holder.get(parent) or {}
                holder.pop(name, None)
        if left := pruned(values):
            text = self.extras.texts[row] = _encode(left)
            if b"\\u0000" in text:
                self.extras.unread.add(row)

    def add_as_sent(self, row: int, rest: msgspec.Struct, drifted: msgspec.Struct) -> None:
        """Add the fields without a column and the drifting columns, as `raw_decoder` decoded them."""
        read = self._rows.json.read
        extra, columns = (cast("dict[str, Json]", read(_encode(part))) for part in (rest, drifted))
        cells = self._rows.cells(columns, _without_empty(extra, TREE))
        if cells[EXTRA] is not None:
            self.extras.texts[row] = str(cells[EXTRA]).encode()
        for path in self._drifting:
            place, name = _COLUMNS[path]
            self.extras.cells[name][row] = cells[place]

    def done(self) -> Extras:
        repaired = self._rows.json
        self.extras.counts.update(self._result.counts, repeated=repaired.repeated, replaced=repaired.replaced)
        return self.extras


def _without_empty(found: dict[str, Json], tree: Tree) -> dict[str, Json]:
    """`found` without empty members of objects, and without lists of items that have no field."""
    kept: dict[str, Json] = {}
    for name, value in found.items():
        step = tree.get(name)
        if isinstance(step, dict) and isinstance(value, dict):
            left: Json = _without_empty(value, step)
        elif isinstance(step, Column) and isinstance(value, list):
            left = further_fields(value, ())
        else:
            left = pruned(value)
        if left or left == 0:  # false is 0
            kept[name] = left
    return kept
