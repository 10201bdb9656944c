"""The fast path: Arrow decodes and flattens many contacts at once, without a Python object per cell.

It changes no value that it accepts. It rejects (a whole batch) or leaves out (single contacts) any data that it cannot
read faithfully, and the tolerant path reads it. This module is optimised by measurement: `""` becomes null by a new
validity bitmap over the same bytes, and texts are searched in Arrow's buffers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from etl.model import RawPage
from etl.normalize.cells import EARLIEST, LATEST, iso_micros
from etl.normalize.pages import MAX_CONTACT_BYTES, one_line
from etl.normalize.shape import ITEM_FIELDS, TREE, Path, Tree, contact_schema, page_schema, pickable
from etl.schema import ARROW, NOTE_FIELDS, TIME, Column, Kind

MANY = 8
"""If more than one contact in this many is rejected, they are not located one by one."""
MAX_BYTES = 2**30
"""Arrow counts the bytes of a block in 32 bits."""

_FALSE, _BLANK, _ONE = pa.scalar(False), pa.scalar(""), pa.scalar(1)
"""Created once: Arrow tries to import two absent libraries for every Python value in a call."""

Unknown = Literal["infer", "ignore"]
"""How Arrow treats fields without a column: infer their types, or skip them."""

_ROW = re.compile(r" in row (\d+)$")
"""The end of Arrow's message for a line that it could not parse."""


class Refused(Exception):
    """The batch contains something that Arrow cannot read faithfully."""

    def __init__(self, row: int | None = None) -> None:
        self.row = row
        """The line that Arrow could not parse, counted from 0, if it reports one."""
        super().__init__(row)


@dataclass(slots=True)
class Flat:
    """The columns of a batch."""

    columns: dict[str, pa.Array] = field(default_factory=dict)
    """One array for every column of schema.READ, except those that drift."""
    odd: list[pa.Array] = field(default_factory=list)
    """Masks of the contacts that must be read by another path."""
    unknown: dict[Path, pa.Array] = field(default_factory=dict)
    """By path, masks of the contacts whose value there goes to `extra`."""


def flatten_pages(pages: Sequence[RawPage], most_unknown: int, drifting: frozenset[Path]) -> Flat:
    """All contacts of `pages` as columns, except `drifting` ones, and masks of their fields without a column.

    Relies on the fetcher for the checks of a strict parser: the bodies are JSON, and not nested by the ten thousand,
    which overruns Arrow's stack. Raises Refused, also if a field without a column has values of several types, and if
    more than `most_unknown` of these fields, or some with names that msgspec does not support, have values.
    """
    if max(len(page.body) for page in pages) > MAX_CONTACT_BYTES:
        raise Refused
    table = _decode([one_line(page.body) for page in pages], page_schema(drifting), "infer")
    data = table["data"].chunk(0)
    if data.value_lengths().to_pylist() != [page.rows for page in pages]:
        raise Refused
    try:
        flat = _flat(data.values, drifting)
    except RecursionError as error:
        raise Refused from error
    if len(flat.unknown) > most_unknown or not all(map(pickable, flat.unknown)):
        raise Refused
    return flat


def flatten_contacts(raws: Sequence[bytes], drifting: frozenset[Path]) -> Flat:
    """The contacts in `raws`, all of them JSON objects, as columns, except `drifting` ones.

    Fields without a column are skipped. Raises Refused.
    """
    contacts = _decode(list(map(one_line, raws)), contact_schema(drifting), "ignore")
    if len(contacts) != len(raws):
        raise Refused
    return _flat(contacts.to_batches()[0].to_struct_array(), drifting)


def refused_contacts(raws: Sequence[bytes], drifting: frozenset[Path]) -> Sequence[int]:
    """The positions of the contacts for which `flatten_contacts` rejects `raws`; all, if unknown or too many.

    Arrow stops at the first, so finding them all costs one more read in total, regardless of their number.
    """
    lines, found, start = list(map(one_line, raws)), list[int](), 0
    while len(found) <= len(raws) // MANY:
        try:
            _decode(lines[start:], contact_schema(drifting), "ignore")
        except Refused as refused:
            if refused.row is None:
                break
            found.append(start + refused.row)
            start = found[-1] + 1
        else:
            return found
    return range(len(raws))


def _flat(contacts: pa.StructArray, drifting: frozenset[Path]) -> Flat:
    flat = Flat()
    _flatten(contacts, TREE, (), drifting, flat)
    ids = flat.columns["contact_id"]
    if ids.null_count:
        flat.odd.append(ids.is_null())
    return flat


def _decode(lines: Sequence[bytes], schema: pa.Schema, unknown: Unknown) -> pa.Table:
    blob = b"\n".join(lines)
    if len(blob) > MAX_BYTES:
        raise Refused
    try:
        # `pyarrow.json` does not check UTF-8; this validation is three times as fast as decoding.
        ends = pa.array([0, len(blob)], pa.int32()).buffers()[1]
        pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(blob)]).validate(full=True)
        return pj.read_json(
            pa.BufferReader(blob),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(blob) + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unknown),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:  # the latter if the message quotes invalid UTF-8
        row = _ROW.search(str(error))
        raise Refused(int(row[1]) if row else None) from error


def _flatten(array: pa.StructArray, tree: Tree, above: Path, drifting: frozenset[Path], flat: Flat) -> None:
    for index, arrow_field in enumerate(array.type):
        path = (*above, arrow_field.name)
        if path in drifting:
            continue
        step = tree.get(arrow_field.name)
        child = array.field(index)
        if step is None:
            _note_unknown(path, _says_something(child), flat)
        elif isinstance(step, dict):
            _flatten(child, step, path, drifting, flat)
        else:
            flat.columns[step.name] = _column(step, child, flat)


def _note_unknown(path: Path, mask: pa.Array, flat: Flat) -> None:
    if mask.true_count:
        flat.unknown[path] = mask


def _says_something(array: pa.Array) -> pa.BooleanArray:
    """Which values are not null, "", [] or {}; objects are searched, items of lists are not."""
    kind = array.type
    if pa.types.is_null(kind):
        return pa.repeat(_FALSE, len(array))
    if pa.types.is_string(kind):
        return pc.fill_null(pc.binary_length(array).cast(pa.bool_()), _FALSE)
    if pa.types.is_list(kind):
        return pc.fill_null(pc.list_value_length(array).cast(pa.bool_()), _FALSE)
    if pa.types.is_struct(kind) and not any("\0" in child.name for child in kind):  # a NUL must be counted
        nothing = pa.repeat(_FALSE, len(array))
        return reduce(pc.or_, (_says_something(array.field(i)) for i in range(kind.num_fields)), nothing)
    return array.is_valid()


def _column(column: Column, array: pa.Array, flat: Flat) -> pa.Array:
    match column.kind:
        case Kind.TEXT:
            return _texts(array)
        case Kind.TIME:
            return _times(_texts(array), flat)
        case Kind.TEXTS:
            return _list(array, _texts(array.values))
        case Kind.ATTRIBUTES:
            return _attributes(column, array, flat)
        case Kind.NOTES:
            _note_item_fields(column, array, flat)
            items, kind = array.values, pa.struct([(name, pa.string()) for name in NOTE_FIELDS])
            texts = [_texts(_child(items, name)) for name in NOTE_FIELDS]
            notes = pa.Array.from_buffers(kind, len(items), items.buffers()[:1], children=texts)
            return _list(array, notes)
        case _:
            return array


def _texts(array: pa.StringArray) -> pa.StringArray:
    """The texts with "" as null: the bitmap of lengths above zero is the new validity. Raises Refused on a NUL."""
    _, ends, data = array.buffers()
    if data is not None and b"\0" in data.to_pybytes():  # one memchr
        raise Refused
    full = pa.Array.from_buffers(array.type, len(array), [None, ends, data])  # a null has no bytes either
    present = pc.binary_length(full).cast(pa.bool_())
    return pa.Array.from_buffers(array.type, len(array), [present.buffers()[1], ends, data])


def _times(texts: pa.StringArray, flat: Flat) -> pa.TimestampArray:
    """The texts as times; a contact with an invalid time is odd."""
    for kind in (TIME, pa.timestamp("us")):  # all with a zone, or all without
        try:
            times = texts.cast(kind).cast(TIME)
        except pa.ArrowInvalid:
            continue
        ends = pc.min_max(times.cast(pa.int64()))
        low, high = ends["min"].as_py(), ends["max"].as_py()
        if low is None or (low >= EARLIEST and high <= LATEST):
            return times
    micros = [None if text is None else iso_micros(text) for text in texts.to_pylist()]
    times = pa.array(micros, pa.int64()).cast(TIME)
    flat.odd.append(pc.and_(texts.is_valid(), times.is_null()))
    return times


def _list(array: pa.ListArray, values: pa.Array) -> pa.ListArray:
    """`array` with other values at the same positions."""
    kind = pa.list_(values.type)
    return pa.Array.from_buffers(kind, len(array), array.buffers()[:2], children=[values])


def _child(array: pa.StructArray, name: str) -> pa.Array:
    return array.field(array.type.get_field_index(name))


def _attributes(column: Column, array: pa.ListArray, flat: Flat) -> pa.MapArray:
    _note_item_fields(column, array, flat)
    items = array.values
    keys = _child(items, "key")
    _texts(keys)  # only to reject a NUL; a key may be ""
    misfit = pc.or_(items.is_null(), keys.is_null())
    # A unique number for each pair of list and key: one that occurs twice is a key repeated in a list.
    codes = keys.dictionary_encode()
    lists, distinct = pc.list_parent_indices(array), pa.scalar(len(codes.dictionary) + 1)
    numbers = pc.add(pc.multiply(lists, distinct), codes.indices.cast(pa.int64()))
    if misfit.true_count or pc.count_distinct(numbers).as_py() < len(keys) - keys.null_count:
        counted = pc.value_counts(numbers)
        repeated = counted.field("values").filter(pc.greater(counted.field("counts"), _ONE)).drop_null()
        repeats = _among(len(array), lists.filter(pc.is_in(numbers, value_set=repeated)))
        flat.odd.append(pc.or_(_rows_of(array, misfit), repeats))
    entries = pa.StructArray.from_arrays(
        [pc.fill_null(keys, _BLANK), _texts(_child(items, "value"))],
        fields=[pa.field("key", pa.string(), nullable=False), pa.field("value", pa.string())],
    )
    return pa.Array.from_buffers(ARROW[column.kind], len(array), array.buffers()[:2], children=[entries])


def _note_item_fields(column: Column, array: pa.ListArray, flat: Flat) -> None:
    """Mark lists whose items have fields that the column has not."""
    items = array.values
    for index, arrow_field in enumerate(items.type):
        if arrow_field.name not in ITEM_FIELDS[column.kind]:
            _note_unknown((*column.path, arrow_field.name), _rows_of(array, items.field(index).is_valid()), flat)


def _rows_of(array: pa.ListArray, mask: pa.BooleanArray) -> pa.BooleanArray:
    """Which lists contain an item that `mask` selects."""
    return _among(len(array), pc.list_parent_indices(array).filter(mask))


def _among(length: int, rows: pa.Array) -> pa.BooleanArray:
    return pc.is_in(pa.array(range(length), pa.int64()), value_set=rows)
