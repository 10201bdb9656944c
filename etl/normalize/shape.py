"""The contact's shape, derived from the column table: its tree, the Arrow read schema and the msgspec row types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, TypeAlias

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


def _struct(name: str, fields: list[tuple[str, object, object]], *, strict: bool) -> type[msgspec.Struct]:
    """A struct type of (JSON name, type, default); its attributes are f0, f1, ... in this order."""
    return msgspec.defstruct(
        name,
        [(f"f{i}", kind, default) for i, (_, kind, default) in enumerate(fields)],
        rename={f"f{i}": field for i, (field, _, _) in enumerate(fields)},
        forbid_unknown_fields=strict,
        gc=False,
    )


_Note = _struct("Note", [(name, str | None, None) for name in NOTE_FIELDS], strict=True)
_Attribute = _struct(
    "Attribute",
    [("key", str, msgspec.NODEFAULT), ("value", str | None, None)],
    strict=True,
)
_STRICT: dict[Kind, object] = {
    Kind.TEXT: str | None,
    Kind.INTEGER: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
    Kind.BOOLEAN: bool | None,
    Kind.TIME: str | None,
    Kind.TEXTS: list[str | None] | None,
    Kind.ATTRIBUTES: list[_Attribute] | None,  # type: ignore[valid-type]  # types made at run time
    Kind.NOTES: list[_Note | None] | None,  # type: ignore[valid-type]
}

Branch: TypeAlias = "dict[str, Branch | None]"
"""Paths as a tree; None marks the end of a path."""


def branch(paths: Iterable[Path]) -> Branch:
    """`paths` as a tree."""
    root: Branch = {}
    for path in paths:
        node = root
        for name in path[:-1]:
            below = node.setdefault(name, {})
            if below is None:
                raise ValueError(f"{path} lies inside another path")
            node = below
        node.setdefault(path[-1], None)
    return root


def _strict_type(tree: Tree, more: Branch) -> type[msgspec.Struct]:
    fields: list[tuple[str, object, object]] = []
    for name, step in tree.items():
        below = more.get(name) or {}
        if isinstance(step, dict):
            kind: object = _strict_type(step, below) | None
        else:
            kind = Raw if name in more else _STRICT[step.kind]
        fields.append((name, kind, None))
    fields += [(name, Raw, None) for name in more if name not in tree]
    return _struct("Contact", fields, strict=True)


@lru_cache(maxsize=64)
def strict_decoder(known: frozenset[Path]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Decodes a contact that has every column's exact type and no field beyond the columns and `known`.

    A column among the `known` may have any type.
    """
    return msgspec.json.Decoder(_strict_type(TREE, branch(known)))


Pick: TypeAlias = "tuple[tuple[str, Path, Pick | None], ...]"
"""For each attribute of a picked struct: its path in the contact, and for an object, the plan below it."""


@dataclass(frozen=True, slots=True)
class Picker:
    """Extracts the values at some paths from JSON text and skips all else."""

    contact: msgspec.json.Decoder[msgspec.Struct]
    page: msgspec.json.Decoder[msgspec.Struct]
    plan: Pick

    def of_contact(self, raw: bytes) -> msgspec.Struct:
        """The values of a contact at the paths, for `values`."""
        return self.contact.decode(raw)

    def of_page(self, body: bytes) -> list[msgspec.Struct]:
        """The values of each contact of a page at the paths, for `values`."""
        found: list[msgspec.Struct] = self.page.decode(body).f0  # type: ignore[attr-defined]  # a type made at run time
        return found

    def values(self, picked: msgspec.Struct) -> Iterator[tuple[Path, Raw]]:
        """The values that are present, by path."""
        return _picked(picked, self.plan)


def _picked(found: object, plan: Pick) -> Iterator[tuple[Path, Raw]]:
    for attribute, path, below in plan:
        value = getattr(found, attribute)
        if value is None:
            continue
        if below is None:
            yield path, value
        else:
            yield from _picked(value, below)


def _picker_parts(wanted: Branch, above: Path) -> tuple[type[msgspec.Struct], Pick]:
    fields: list[tuple[str, object, object]] = []
    plan: list[tuple[str, Path, Pick | None]] = []
    for i, (name, below) in enumerate(wanted.items()):
        kind: object = Raw
        steps: Pick | None = None
        if below is not None:
            inner, steps = _picker_parts(below, (*above, name))
            kind = inner | None
        fields.append((name, kind, None))
        plan.append((f"f{i}", (*above, name), steps))
    return _struct("Picked", fields, strict=False), tuple(plan)


@lru_cache(maxsize=64)
def picker(paths: frozenset[Path]) -> Picker:
    """A picker of `paths`; their parents are objects of the column table."""
    kind, plan = _picker_parts(branch(sorted(paths)), ())
    page = _struct("Page", [("data", list[kind], msgspec.NODEFAULT)], strict=False)  # type: ignore[valid-type]
    return Picker(msgspec.json.Decoder(kind), msgspec.json.Decoder(page), plan)


def pickable(path: Path) -> bool:
    """Whether msgspec supports fields with these names."""
    return all(name.isprintable() and not {'"', "\\"} & set(name) for name in path)
