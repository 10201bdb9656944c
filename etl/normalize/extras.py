"""The column `extra` of contacts that Arrow has read: their fields without a column, taken out of their JSON text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Raw

from etl.normalize.json_text import Json, Reader, canonical, pruned
from etl.normalize.shape import Path, picker

_VERBATIM = frozenset(b"tf-0123456789")
"""First bytes of true, false and numbers: their text is their value."""


@dataclass(slots=True)
class Extras:
    """`extra` of some contacts, by row."""

    texts: dict[int, str] = field(default_factory=dict)
    """Canonical JSON; a row of which nothing is left is absent."""
    unread: list[int] = field(default_factory=list)
    """Rows with a value that is nested too deeply."""
    repeated: int = 0
    replaced: int = 0


def read_extras(lines: Sequence[bytes], wanted: Mapping[Path, Collection[int]]) -> Extras:
    """What stands at each path of `wanted`, in its rows of `lines`."""
    found, reader = Extras(), Reader()
    pick = picker(frozenset(wanted)).pick
    some_rows = {path: frozenset(rows) for path, rows in wanted.items() if len(rows) < len(lines)}
    for row in sorted(set[int]().union(*wanted.values())):
        extra: dict[str, Json] = {}
        try:
            for path, raw in pick(lines[row]):
                if path not in some_rows or row in some_rows[path]:
                    _put(extra, path, _value(raw, reader))
            if extra:
                found.texts[row] = canonical(extra)
        except RecursionError:
            found.unread.append(row)
    found.repeated, found.replaced = reader.repeated, reader.replaced
    return found


def _value(raw: Raw, reader: Reader) -> Json:
    text = bytes(raw)
    return raw if text[0] in _VERBATIM else pruned(reader.read(text))


def _put(extra: dict[str, Json], path: Path, value: Json) -> None:
    """Put `value` at `path`, if it says something."""
    if value is None:
        return
    *parents, name = path
    for parent in parents:
        below = extra.setdefault(parent, {})
        assert isinstance(below, dict), f"{path} lies inside another path"
        extra = below
    extra[name] = value
