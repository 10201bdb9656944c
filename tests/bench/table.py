"""The rows of the result, as a table for people and as a document for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

Document: TypeAlias = dict[str, Any]
"""A row as JSON."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: medians over its runs."""

    case: str
    what: str
    runs: int
    contacts: int = 0
    """Contacts of one run; 0 if the row is not about contacts."""
    seconds: float | None = None
    cpu: float | None = None
    """Seconds of all cores."""
    peak_mb: float | None = None
    speed: float | None = None
    """Contacts a second, as a multiple of the bare pipeline's in the same round."""
    work: float | None = None
    """CPU seconds, as a multiple of the same."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Further figures, by name with unit."""

    @property
    def rate(self) -> float | None:
        """Contacts a second."""
        return self.contacts / self.seconds if self.contacts and self.seconds else None

    @property
    def cpu_each(self) -> float | None:
        """Microseconds of CPU for one contact."""
        return self.cpu / self.contacts * 1e6 if self.contacts and self.cpu is not None else None

    def document(self) -> Document:
        """The row as JSON."""
        return {**asdict(self), "contacts_per_second": self.rate, "cpu_us_per_contact": self.cpu_each}


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("", lambda row: row.case),
    ("what", lambda row: row.what),
    ("runs", lambda row: str(row.runs)),
    ("contacts", lambda row: _number(row.contacts or None, 0)),
    ("seconds", lambda row: _number(row.seconds, 2)),
    ("contacts/s", lambda row: _number(row.rate, 0)),
    ("CPU us each", lambda row: _number(row.cpu_each, 1)),
    ("peak MB", lambda row: _number(row.peak_mb, 0)),
    ("x bare", lambda row: _number(row.speed, 2)),
    ("CPU x bare", lambda row: _number(row.work, 2)),
    ("", lambda row: ", ".join(f"{name} {_fact(value)}" for name, value in row.facts.items())),
)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:,.{digits}f}"


def _fact(value: float) -> str:
    return _number(value, 2 if isinstance(value, float) else 0)


def render(rows: Sequence[Row]) -> str:
    """The rows under their headings, aligned; an empty line between cases."""
    return _aligned([name for name, _ in _COLUMNS], [[cell(row) for _, cell in _COLUMNS] for row in rows])


_TEXTS = (0, 1, len(_COLUMNS) - 1)
"""Columns of text, in both tables; the others are numbers."""
_COMPARED = (
    ("seconds", "seconds", 2),
    ("contacts_per_second", "contacts/s", 0),
    ("cpu_us_per_contact", "CPU us each", 1),
    ("peak_mb", "peak MB", 0),
)
"""Figures of a document, their headings and digits."""


def render_changes(before: Sequence[Document], after: Sequence[Document]) -> str:
    """The rows that two documents share: each figure before and now, and now as a multiple of before.

    Ratios are meaningful only on the same machine and with the same number of contacts.
    """
    known = {(row["case"], row["what"], row["contacts"]): row for row in before}
    both = [(known[key], row) for row in after if (key := (row["case"], row["what"], row["contacts"])) in known]
    headings = ["", "what", "contacts", *(word for _, name, _ in _COMPARED for word in (name, "now", "x"))]
    return _aligned(headings, [_change(old, new) for old, new in both])


def _change(old: Document, new: Document) -> list[str]:
    cells = [str(new["case"]), str(new["what"]), _number(new["contacts"] or None, 0)]
    for name, _, digits in _COMPARED:
        was, now = old[name], new[name]
        cells += [_number(was, digits), _number(now, digits), _number(now / was if was and now else None, 2)]
    return cells


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows whose first cell is their case."""
    cells = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(_padded(row, widths)).rstrip() for row in cells]
    for place in reversed(range(len(rows))):
        if not place or rows[place][0] != rows[place - 1][0]:
            lines.insert(place + 1, "")
    return "\n".join(lines)


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column in _TEXTS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
