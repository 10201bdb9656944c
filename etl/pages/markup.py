"""Pieces that sections share: described plots, tables that scroll, times and amounts. All text is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import htpy as h
from markupsafe import Markup

from etl.display import printable

Cell = str | int | h.Element


def plot(title: str, said: str, drawn: Callable[[], str] | None) -> h.Element:
    """A figure: its title, what it says in words, and the drawing, which screen readers skip."""
    drawing = Markup(drawn()) if drawn else None  # noqa: S704 - a drawing of our own numbers and escaped names
    return h.figure[h.figcaption[h.h3[title], h.p[said]], drawing]


def table(
    caption: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, text: Iterable[int] = (0,), wide: int = -1
) -> h.Element:
    """A table in a box that scrolls sideways on narrow screens; the columns in `text` are not numbers."""
    left = set(text)

    def kind(place: int) -> str:
        return " ".join(name for name, is_so in (("text", place in left), ("wide", place == wide)) if is_so)

    def shown(cell: Cell) -> h.Node:
        return f"{cell:,}" if isinstance(cell, int) else printable(cell) if isinstance(cell, str) else cell

    return h.div(".scroll", tabindex="0", role="region", aria_label=caption)[
        h.table[
            h.caption[caption],
            h.thead[h.tr[(h.th(scope="col", class_=kind(place) or None)[name] for place, name in enumerate(headings))]],
            h.tbody[
                (
                    h.tr[(h.td(class_=kind(place) or None)[shown(cell)] for place, cell in enumerate(row))]
                    for row in rows
                )
            ],
        ]
    ]


def section(name: str, title: str, said: str, *content: h.Node) -> h.Element:
    """A section that the navigation leads to."""
    return h.section(id=name, aria_labelledby=f"{name}-title")[
        h.h2(id=f"{name}-title")[title], h.p(".lead")[said], *content
    ]


def pairs(rows: Iterable[tuple[str, h.Node]]) -> h.Element:
    """Subjects with what is known of each."""

    def shown(value: h.Node) -> h.Node:
        return printable(value) if isinstance(value, str) else value

    return h.dl(".pairs")[((h.dt[shown(subject)], h.dd[shown(value)]) for subject, value in rows)]


def counted(rows: Sequence[tuple[str, int]]) -> h.Element:
    """A list of names with counts."""
    return h.ul(".list")[
        (
            h.li[h.span[h.code[printable(name) if name.strip() else f"“{name}”"]], h.span[f"{count:,}"]]
            for name, count in rows
        )
    ]


def bar(share: float) -> h.Element:
    """A share of a whole, as a bar; the number stands next to it."""
    return h.svg(".bar", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")[
        h.rect(".whole", width="100", height="8", rx="2"),
        h.rect(".part", width=f"{100 * share:.1f}", height="8", rx="2"),
    ]


def breakable(name: str) -> h.Node:
    """A column's name, which a narrow screen may break after an underscore."""
    first, *others = name.split("_")
    return [first, [["_", h.wbr, part] for part in others]]


def clock(moment: datetime) -> h.Element:
    """A time, to the minute, in UTC."""
    utc = moment.astimezone(UTC)
    return h.time(datetime=utc.strftime("%Y-%m-%dT%H:%M:%SZ"))[f"{utc.day} {utc:%b %Y, %H:%M} UTC"]


def span(seconds: float) -> str:
    """A length of time in its largest fitting unit, rounded down."""
    seconds = max(0.0, seconds)
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{seconds:.1f} s" if seconds < 10 else f"{int(seconds / size)} {unit}"
    return f"{int(seconds / 86_400)} days"


def signed(count: int) -> str:
    """A difference, with its sign."""
    return f"{count:+,}".replace("-", "−")


def many(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
