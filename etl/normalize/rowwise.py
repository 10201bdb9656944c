"""The tolerant path: one contact at a time; values are coerced if safe, else kept in `extra`, or the contact rejected.

It accepts every contact. It is the definition of a normalized contact; the columnar path must agree with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import msgspec
from msgspec import Raw

from etl.normalize.cells import EXACT, LOOSE, Cell
from etl.normalize.json_text import Json, Reader, canonical, pairs, pruned, text_of
from etl.normalize.pages import MAX_CONTACT_BYTES
from etl.normalize.shape import ITEM_FIELDS, TREE, Path, Tree
from etl.schema import NOTE_FIELDS, READ, Kind

Row: TypeAlias = list[object]
"""The cells of schema.READ in order, then `extra`, then `read_no`."""

EXTRA = len(READ)
"""The index of `extra` in a row."""
_READ_NO = EXTRA + 1


@dataclass(frozen=True, slots=True)
class Reject:
    """A contact that cannot be kept."""

    reason: str
    """missing_id, null_id, empty_id, wrong_type_id, conflicting_ids, too_large, too_deep, not_json, not_an_object."""
    path: str | None
    raw: bytes
    contact_id: str | None = None


@dataclass(slots=True)
class RowResult:
    """The result of reading contacts row by row."""

    rows: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    unknown: set[Path] = field(default_factory=set)
    """Paths of fields that have no column."""
    misfits: Counter[Path] = field(default_factory=Counter)
    """Contacts by the path of a column that has another type in them."""


@dataclass(frozen=True, slots=True)
class _Scalar:
    index: int
    plain: type | None
    """Values of this type are used unchanged, which saves a call for two fields out of three."""
    exact: Cell | None
    """Parses values of the column's type; None if they are used unchanged."""
    loose: Cell


@dataclass(frozen=True, slots=True)
class _List:
    index: int
    kind: Kind


_PLAIN: dict[Kind, type] = {Kind.TEXT: str, Kind.BOOLEAN: bool}

_Step: TypeAlias = "_Scalar | _List | dict[str, _Step]"


def _steps(tree: Tree) -> dict[str, _Step]:
    """The column tree with the action at each leaf, so that nothing is looked up twice."""
    place = {column.name: index for index, column in enumerate(READ)}
    found: dict[str, _Step] = {}
    for name, step in tree.items():
        if isinstance(step, dict):
            found[name] = _steps(step)
        elif step.kind in LOOSE:
            found[name] = _Scalar(place[step.name], _PLAIN.get(step.kind), EXACT.get(step.kind), LOOSE[step.kind])
        else:
            found[name] = _List(place[step.name], step.kind)
    return found


_STEPS = _steps(TREE)


def read_rows(raws: Sequence[bytes], numbers: Sequence[int]) -> RowResult:
    """Every contact of `raws` as a row (with its number from `numbers`) or a reject."""
    result = RowResult()
    reader = RowReader(result)
    for raw, number in zip(raws, numbers, strict=True):
        outcome = reader.contact(raw)
        if isinstance(outcome, Reject):
            result.rejects.append(outcome)
        else:
            outcome[_READ_NO] = number
            result.rows.append(outcome)
    for name in ("repeated", "replaced"):
        result.counts[name] += getattr(reader.json, name)
    return result


class RowReader:
    """Reads contacts along the column tree and counts in `result`."""

    def __init__(self, result: RowResult) -> None:
        self.json = Reader()
        self._counts = result.counts
        self._unknown = result.unknown
        self._misfits = result.misfits

    def contact(self, raw: bytes) -> Row | Reject:
        """The contact in `raw` as a row, without its number."""
        if len(raw) > MAX_CONTACT_BYTES:
            return Reject("too_large", None, raw, _id_without_decoding(raw))
        repeated = self.json.repeated
        try:
            contact = self.json.read(raw)
            if not isinstance(contact, dict):
                return Reject("not_an_object", None, raw)
            reason = _id_fault(contact)
            if reason is None and self.json.repeated > repeated:
                ids = [value for name, value in pairs(raw) if name == "_id"]
                reason = "conflicting_ids" if any(value != ids[0] for value in ids) else None
            return self.cells(contact) if reason is None else Reject(reason, "_id", raw)
        except RecursionError:
            return Reject("too_deep", None, raw)
        except ValueError:
            return Reject("not_json", None, raw)

    def cells(self, contact: dict[str, Json], extra: dict[str, Json] | None = None) -> Row:
        """The row of a contact, or of a part of it; `extra` is the rest of the contact for the column `extra`."""
        row: Row = [None] * (len(READ) + 2)
        extra = {} if extra is None else extra
        self._object(contact, _STEPS, (), row, extra)
        row[EXTRA] = canonical(extra) if extra else None
        return row

    def _object(
        self, found: dict[str, Json], steps: dict[str, _Step], above: Path, row: Row, extra: dict[str, Json]
    ) -> None:
        """Put the fields of one object of the column tree into `row`, the rest into `extra`."""
        for name, value in found.items():
            if value is None or value == "":
                continue
            step = steps.get(name)
            if isinstance(step, _Scalar):
                if type(value) is step.plain:
                    row[step.index] = value
                    continue
                cell = row[step.index] = step.exact(value) if step.exact else None
                if cell is not None:
                    continue
                self._misfits[*above, name] += 1
                cell = row[step.index] = step.loose(value)
                self._counts["nulled" if cell is None else "coerced"] += 1
                kept = pruned(value) if cell is None else None
            elif isinstance(step, dict):
                kept = self._parent(step, value, (*above, name), row, extra.get(name))
            elif step is None:
                self._unknown.add((*above, name))
                kept = pruned(value)
            else:
                kept = self._list(step, value, (*above, name), row)
            if kept is not None:
                extra[name] = kept

    def _parent(self, steps: dict[str, _Step], value: Json, path: Path, row: Row, extra: Json) -> Json:
        if not isinstance(value, dict):
            self._counts["nulled"] += 1
            return pruned(value)
        inner = extra if isinstance(extra, dict) else {}
        self._object(value, steps, path, row, inner)
        return inner or None

    def _list(self, step: _List, value: Json, path: Path, row: Row) -> Json:
        """Put the cell of a list into `row`; return the whole list or the fields of its items that the cell has not."""
        counted = self._counts.total()
        if not isinstance(value, list):
            self._counts["nulled"] += 1
            self._misfits[path] += 1
            return pruned(value)
        complete, row[step.index] = self._items(step.kind, value)
        if not complete or self._counts.total() > counted:
            self._misfits[path] += 1
        if not complete:
            return value
        if step.kind not in ITEM_FIELDS:
            return None
        further = further_fields(value, ITEM_FIELDS[step.kind])
        self._unknown.update((*path, name) for item in further if isinstance(item, dict) for name in item)
        return further or None

    def _items(self, kind: Kind, items: list[Json]) -> tuple[bool, object]:
        """The cell of a list, and whether it represents the fields of the column completely."""
        if kind is Kind.ATTRIBUTES:
            return self._attributes(items)
        if kind is Kind.NOTES:
            return self._notes(items)
        return True, [self._text(item) for item in items]

    def _text(self, value: Json) -> str | None:
        """The text in a list or an object of texts; any other value as its JSON text."""
        if value is None or isinstance(value, str):
            return value or None
        self._counts["coerced"] += 1
        return text_of(value)

    def _attributes(self, items: list[Json]) -> tuple[bool, list[tuple[str, str | None]]]:
        """The map of the items, and whether it represents their keys and values completely."""
        complete, found = True, dict[str, str | None]()
        for item in items:
            key = item.get("key") if isinstance(item, dict) else None
            if not isinstance(item, dict) or not isinstance(key, str):
                self._counts["nulled"] += 1
                complete = False
                continue
            complete = complete and key not in found
            found[key] = self._text(item.get("value"))
        return complete, list(found.items())

    def _notes(self, items: list[Json]) -> tuple[bool, list[dict[str, str | None] | None]]:
        """The notes, and whether they represent their fields of the items completely."""
        complete, found = True, list[dict[str, str | None] | None]()
        for item in items:
            if isinstance(item, dict):
                note = {name: item.get(name) for name in NOTE_FIELDS}
                complete = complete and all(isinstance(text, str | None) for text in note.values())
                found.append({name: self._text(text) for name, text in note.items()})
            else:
                self._counts["nulled"] += item is not None
                complete = complete and item is None
                found.append(None)
        return complete, found


def further_fields(items: list[Json], known: Sequence[str]) -> list[Json]:
    """Of each item, the fields that are not `known` and not null, in the position of the item; [] if there are none.

    Their values are kept as they are. The items are objects or null.
    """
    further: list[Json] = [
        {name: value for name, value in item.items() if value is not None and name not in known}
        if isinstance(item, dict)
        else None
        for item in items
    ]
    return further if any(further) else []


def without_columns(extra: str) -> str:
    """`extra` as an earlier version made it, but without the fields of list items that have a column."""
    found = RowReader(RowResult())
    return str(found.cells(cast("dict[str, Json]", found.json.read(extra.encode())))[EXTRA])


class _Identified(msgspec.Struct):
    contact_id: str = msgspec.field(name="_id")


def _id_without_decoding(raw: bytes) -> str | None:
    """The `_id` of a contact that is not decoded completely, if it is a text."""
    try:
        return msgspec.json.decode(raw, type=_Identified).contact_id or None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _id_fault(contact: dict[str, Json]) -> str | None:
    """Why the contact's `_id` is not a valid id; None if it is."""
    if "_id" not in contact:
        return "missing_id"
    match contact["_id"]:
        case None:
            return "null_id"
        case "":
            return "empty_id"
        case str() | Raw():
            return None
        case _:
            return "wrong_type_id"
