"""The contact's shape, derived from the column table: its tree, the Arrow read schema and the msgspec row types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypedDict

import msgspec
import pyarrow as pa
from msgspec import Meta, Raw

from etl.schema import NOTE_FIELDS, READ, Column, Kind

Path: TypeAlias = tuple[str, ...]
Tree: TypeAlias = "dict[str, Column | Tree]"
"""The columns in the structure of the API's contact: by field name a column or the fields of an object."""

ATTRIBUTE_FIELDS = ("key", "value")

_TEXT = pa.string()
_READ_AS: dict[Kind, pa.DataType] = {
    Kind.TEXT: _TEXT,
    Kind.INTEGER: pa.int64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.TIME: _TEXT,  # Arrow's own parser of times rejects "" and microseconds
    Kind.TEXTS: pa.list_(_TEXT),
    Kind.ATTRIBUTES: pa.list_(pa.struct([(name, _TEXT) for name in ATTRIBUTE_FIELDS])),
    Kind.NOTES: pa.list_(pa.struct([(name, _TEXT) for name in NOTE_FIELDS])),
}


def _grow(columns: Iterable[Column]) -> Tree:
    root: Tree = {}
    for column in columns:
        node = root
        for name in column.path[:-1]:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise TypeError(f"{column.path} lies inside another column")
            node = child
        node[column.path[-1]] = column
    return root


TREE: Tree = _grow(READ)


def _arrow_fields(tree: Tree, without: frozenset[Path]) -> list[pa.Field]:
    return [
        pa.field(name, pa.struct(_arrow_fields(step, without)) if isinstance(step, dict) else _READ_AS[step.kind])
        for name, step in tree.items()
        if isinstance(step, dict) or step.path not in without
    ]


@lru_cache(maxsize=64)
def contact_schema(without: frozenset[Path]) -> pa.Schema:
    """The schema of one contact for `pyarrow.json`: only types that it reads without changing a value.

    Columns at the paths `without` are left out.
    """
    return pa.schema(_arrow_fields(TREE, without))


@lru_cache(maxsize=64)
def page_schema(without: frozenset[Path]) -> pa.Schema:
    """The schema of one page for `pyarrow.json`."""
    return pa.schema([("data", pa.list_(pa.struct(list(contact_schema(without)))))])


def _struct(name: str, fields: Mapping[str, object], *, strict: bool = False) -> type[msgspec.Struct]:
    """A struct type of these fields, by JSON name; absent ones are None, and encoding leaves them out."""
    return msgspec.defstruct(
        name,
        [(f"f{i}", kind, None) for i, kind in enumerate(fields.values())],
        rename={f"f{i}": field for i, field in enumerate(fields)},
        forbid_unknown_fields=strict,
        omit_defaults=True,
        gc=False,
    )


Branch: TypeAlias = "dict[str, Branch | None]"
"""Paths as a tree; None marks the end of a path."""


def branch(paths: Iterable[Path]) -> Branch:
    """`paths` as a tree."""
    root: Branch = {}
    for path in sorted(paths):
        node = root
        for name in path[:-1]:
            below = node.setdefault(name, {})
            if below is None:
                raise ValueError(f"{path} lies inside another path")
            node = below
        node.setdefault(path[-1], None)
    return root


_EXACT: dict[Kind, object] = {
    Kind.TEXT: str | None,
    Kind.INTEGER: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
    Kind.BOOLEAN: bool | None,
    Kind.TIME: str | None,
    Kind.TEXTS: list[str | None] | None,
}
ITEM_FIELDS: dict[Kind, tuple[str, ...]] = {Kind.ATTRIBUTES: ATTRIBUTE_FIELDS, Kind.NOTES: NOTE_FIELDS}
"""The fields that the items of a list have in the columns of these kinds."""


def _strict_type(tree: Tree, more: Branch) -> type[msgspec.Struct]:
    fields: dict[str, object] = {}
    for name, step in tree.items():
        below = more.get(name) or {}
        if isinstance(step, dict):
            fields[name] = _strict_type(step, below) | None
        elif name in more and more[name] is None:
            fields[name] = Raw
        elif step.kind in ITEM_FIELDS:
            texts = dict.fromkeys(ITEM_FIELDS[step.kind], str | None)
            item = _struct("Item", texts | dict.fromkeys(below, Raw), strict=True)
            fields[name] = list[item | None] | None  # type: ignore[valid-type]  # a type made at run time
        else:
            fields[name] = _EXACT[step.kind]
    return _struct("Contact", fields | {name: Raw for name in more if name not in tree}, strict=True)


@lru_cache(maxsize=64)
def strict_decoder(known: frozenset[Path]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Decodes a contact that has every column's exact type and no field beyond the columns and `known`.

    A column among the `known` may have any type. In attributes, a key may be absent or null, and an item null.
    """
    return msgspec.json.Decoder(_strict_type(TREE, branch(known)))


Fields: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PartDecoder:
    """Decodes the fields at some paths of a contact, and skips all others."""

    page: msgspec.json.Decoder[Fields]
    """Of all contacts of a page: `{"data": [...]}`."""
    contact: msgspec.json.Decoder[Any]


@lru_cache(maxsize=64)
def value_decoder(paths: frozenset[Path]) -> PartDecoder:
    """A decoder to dictionaries of the fields that are present; floats are `Raw`, and an integer -0 becomes 0.

    Items of a list that is a column are structs of the fields of `paths` in it, without those that are null.
    """
    return _part_decoder(paths, _values, Any)


@lru_cache(maxsize=64)
def raw_decoder(paths: frozenset[Path]) -> PartDecoder:
    """A decoder to structs of `Raw`; encoding one gives the part of the contact as the server sent it."""
    return _part_decoder(paths, _struct, Raw)


def _values(name: str, fields: Mapping[str, object]) -> object:
    return TypedDict(name, fields, total=False)  # type: ignore[operator]  # a type made at run time


_Make: TypeAlias = Callable[[str, Mapping[str, object]], object]


def _part_decoder(paths: frozenset[Path], make: _Make, leaf: object) -> PartDecoder:
    contact = _part_type(branch(paths), TREE, make, leaf)
    page = _values("Page", {"data": list[contact]})  # type: ignore[valid-type]
    return PartDecoder(*(msgspec.json.Decoder(kind, float_hook=Raw) for kind in (page, contact)))


def _part_type(wanted: Branch, tree: Tree, make: _Make, leaf: object) -> Any:
    fields: dict[str, object] = {}
    for name, below in wanted.items():
        step = tree.get(name)
        if below is None:
            fields[name] = leaf
        elif isinstance(step, dict):
            fields[name] = _part_type(below, step, make, leaf) | None
        else:
            item = _struct("Item", dict.fromkeys(below, leaf))
            fields[name] = list[item | None] | None  # type: ignore[valid-type]
    return make("Part", fields)


def pickable(path: Path) -> bool:
    """Whether msgspec supports fields with these names."""
    return all(name.isprintable() and not {'"', "\\"} & set(name) for name in path)
