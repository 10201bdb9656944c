"""Plots as inline SVG: no scripts, no styles, no fonts, and colours as variables of the page's style sheet.

Each is drawn into about the width of a phone, so that its text keeps its size; wide screens show several side by side.
Hidden from screen readers: the figure around a plot describes it, and the page has the numbers as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

import altair as alt
import vl_convert

from etl.display import printable

WIDTH = 340
"""The width of every plot, in units of its view box."""
_TEXT = {"labelColor": "var(--muted)", "titleColor": "var(--muted)", "labelFontSize": 11, "titleFontSize": 11}
_CONFIG: dict[str, Any] = {
    "aria": False,
    "background": "transparent",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        **_TEXT,
        "titleFontWeight": "normal",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "ticks": False,
        "labelPadding": 6,
        "titlePadding": 8,
    },
    "axisX": {"grid": False},
    "axisY": {"domain": False, "tickCount": 4},
    "text": {"color": "var(--muted)", "fontSize": 11},
}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LETTER = 6.8
"""The width of a letter in the widest font that a browser may choose."""
STEPS = 6
"""Shades of a heat map."""
_DROPPED = ("class", "role", "aria-", "pointer-events", "stroke-miterlimit", "font-weight")
_EMPTY = {"", "M0,0h0v0h0Z"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECIMALS = re.compile(r"(\.\d)\d+")
ET.register_namespace("", "http://www.w3.org/2000/svg")

Rows = Sequence[Mapping[str, object]]


def trend(runs: Sequence[tuple[int, int]]) -> str:
    """The number of contacts after each run."""
    rows = [{"run": seq, "contacts": contacts} for seq, contacts in runs]
    base = _chart(rows).encode(
        x=_runs(seq for seq, _ in runs),
        y=alt.Y("contacts:Q", title=None, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(format="~s")),
    )
    line = base.mark_line(color="var(--accent)", strokeWidth=2)
    dots = base.mark_circle(color="var(--accent)", size=28, opacity=1)
    return _svg(line + dots, height=130)


def per_run(runs: Sequence[tuple[int, int]]) -> str:
    """One bar for each run."""
    rows = [{"run": seq, "count": count} for seq, count in runs]
    bars = _chart(rows).mark_bar(color="var(--accent)")
    return _svg(
        bars.encode(
            x=_runs(seq for seq, _ in runs), y=alt.Y("count:Q", title=None, axis=alt.Axis(format="~s", tickMinStep=1))
        ),
        height=130,
    )


def up_and_down(runs: Sequence[tuple[int, int, int]]) -> str:
    """What each run added, upwards, and removed, downwards."""
    rows = [
        {"run": seq, "count": count, "side": side}
        for seq, up, down in runs
        for side, count in (("up", up), ("down", -down))
    ]
    colour = alt.Color(
        "side:N", legend=None, scale=alt.Scale(domain=["up", "down"], range=["var(--accent)", "var(--contrast)"])
    )
    y = alt.Y("count:Q", title=None, stack=None, axis=alt.Axis(format="~s", tickMinStep=1))
    bars = _chart(rows).mark_bar().encode(x=_runs(seq for seq, _, _ in runs), y=y, color=colour)
    zero = _chart([{"zero": 0}]).mark_rule(color="var(--muted)").encode(y="zero:Q")
    return _svg(bars + zero, height=130)


def strips(names: Sequence[str], runs: Sequence[tuple[int, str, float]]) -> str:
    """One strip of bars for each name, with a bar for each run and a scale of its own; its largest bar has a label."""
    rows, labels = list[dict[str, object]](), list[dict[str, object]]()
    for place, name in enumerate(reversed(names)):
        values = {seq: value for seq, one, value in runs if one == name}
        most = max(values.values(), default=0.0)
        rows += [
            {"run": seq, "from": place, "to": place + 0.64 * value / most} for seq, value in values.items() if value
        ]
        peak = next((seq for seq, value in values.items() if value == most), None)
        labels.append({"run": peak, "at": place + 0.66, "label": _short(most)})
    axis = alt.Axis(
        values=[place + 0.3 for place in range(len(names))],
        labelExpr=f"{json.dumps([_drawable(name) for name in names[::-1]])}[floor(datum.value)]",
        grid=False,
        labelColor="var(--ink)",
    )
    y = alt.Y("from:Q", title=None, axis=axis, scale=alt.Scale(domain=[0, len(names)], nice=False))
    x = _runs([seq for seq, _, _ in runs])
    bars = _chart(rows).mark_rect(color="var(--accent)").encode(x=x, y=y, y2="to:Q")
    peaks = _chart(labels).mark_text(baseline="bottom", fontSize=10).encode(x=x, y="at:Q", text="label:N")
    return _svg(bars + peaks, height=36 * max(1, len(names)))


def ranked(groups: Sequence[tuple[str, int]]) -> str:
    """One horizontal bar for each group, in the given order, with its count."""
    rows = [{"name": _drawable(name), "count": count, "label": f"{count:,}"} for name, count in groups]
    most = max((count for _, count in groups), default=1)
    room = 10 + _LETTER * max((len(name) for name, _ in groups), default=1)
    y = alt.Y("name:N", title=None, sort=None, axis=alt.Axis(minExtent=room, labelLimit=room, labelColor="var(--ink)"))
    x = alt.X("count:Q", title=None, axis=None, scale=alt.Scale(domain=[0, most * 1.38], nice=False))
    base = _chart(rows).encode(x=x, y=y)
    bars = base.mark_bar(color="var(--accent)")
    return _svg(
        bars + base.mark_text(align="left", dx=5).encode(text="label:N"),
        height=19 * max(1, len(groups)),
        place="plot top",
    )


def months(counts: Sequence[tuple[datetime, int]]) -> str:
    """One bar for each month."""
    rows = [{"month": month.strftime("%Y-%m-01"), "count": count} for month, count in counts]
    axis = alt.Axis(format="%b %y", labelOverlap="greedy", labelBound=True, tickCount=5)
    x = alt.X("yearmonth(month):T", title=None, axis=axis)
    y = alt.Y("count:Q", title=None, axis=alt.Axis(format="~s", tickMinStep=1))
    return _svg(_chart(rows).mark_bar(color="var(--accent)").encode(x=x, y=y), height=130)


def week(cells: Sequence[tuple[int, int, int]]) -> str:
    """A heat map of weekday and hour, shaded by rank, so that one busy hour does not hide all others."""
    order = sorted({count for _, _, count in cells if count})
    rank = {
        count: 1 + place * (STEPS - 1) // max(1, len(order) - 1) if len(order) > 1 else STEPS
        for place, count in enumerate(order)
    }
    found = {(day, hour): count for day, hour, count in cells}
    rows = [
        {"day": _DAYS[day - 1], "hour": hour, "shade": min(STEPS, rank.get(found.get((day, hour), 0), 0))}
        for day in range(1, 8)
        for hour in range(24)
    ]
    shades = alt.Scale(domain=list(range(STEPS + 1)), range=[f"var(--heat-{step})" for step in range(STEPS + 1)])
    hours = alt.Axis(
        values=[0, 6, 12, 18, 23], labelExpr="datum.value + ':00'", labelAngle=0, domain=False, labelOverlap=False
    )
    x = alt.X("hour:O", title=None, axis=hours, scale=alt.Scale(paddingInner=0.12))
    y = alt.Y("day:O", title=None, sort=list(_DAYS), axis=alt.Axis(domain=False), scale=alt.Scale(paddingInner=0.12))
    marks = _chart(rows).mark_rect().encode(x=x, y=y, color=alt.Color("shade:O", legend=None, scale=shades))
    return _svg(marks, height=130)


def window_rows(windows: Sequence[tuple[int, int]], page_size: int) -> str:
    """How many windows had how many rows, and the page size that none of them reaches."""
    step = max(1, -(-page_size // 50))
    binned: dict[int, int] = {}
    for rows, count in windows:
        binned[rows // step * step] = binned.get(rows // step * step, 0) + count
    shown = [{"from": start, "to": start + step, "count": count} for start, count in sorted(binned.items())]
    x = alt.X(
        "from:Q",
        title="rows in a window",
        scale=alt.Scale(domain=[0, page_size * 1.06], nice=False),
        axis=alt.Axis(tickCount=6),
    )
    y = alt.Y("count:Q", title=None, axis=alt.Axis(format="~s", tickMinStep=1))
    bars = _chart(shown).mark_rect(color="var(--accent)").encode(x=x, x2="to:Q", y=y, y2=alt.datum(0))
    limit = _chart([{"size": page_size, "label": f"page size {page_size}"}])
    rule = limit.mark_rule(color="var(--contrast)", strokeWidth=2, strokeDash=[4, 3]).encode(x="size:Q")
    text = limit.mark_text(align="right", dx=-6, color="var(--ink)").encode(x="size:Q", y=alt.value(6), text="label:N")
    return _svg(bars + rule + text, height=130)


def _runs(seqs: Iterable[int]) -> alt.X:
    """The axis of runs by number, with as many labels as have room."""
    known = sorted(set(seqs))
    labelled = known[::-1][:: max(1, -(-len(known) // 8))]
    scale = alt.Scale(domain=known, paddingInner=0.2)
    return alt.X("run:O", title="run", axis=alt.Axis(labelAngle=0, values=labelled), scale=scale)


def _drawable(name: str) -> str:
    """A name that the library can draw: without control characters and others that XML does not know."""
    return _NOT_XML.sub("\ufffd", printable(name))


def _chart(rows: Rows) -> alt.Chart:
    return alt.Chart({"values": list(rows)})


def _short(value: float) -> str:
    """A number in at most five characters."""
    return (
        f"{value / 1000:.1f}k"
        if value >= 10_000
        else f"{value:,.0f}"
        if value >= 10
        else f"{value:.1f}".removesuffix(".0")
    )


def _svg(chart: alt.Chart | alt.LayerChart, height: int, place: str = "plot") -> str:
    sized = chart.properties(width=WIDTH, height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    return _convert(sized.configure(**_CONFIG), place)


def _convert(chart: Any, place: str) -> str:
    """The drawing alone, which the page names, sizes and describes: no roles, no empty shapes, one decimal."""
    drawn: str = vl_convert.vegalite_to_svg(chart.to_dict(validate=False), allowed_base_urls=[])
    root = ET.fromstring(drawn)  # noqa: S314 - made by our own library a moment ago
    for parent in list(root.iter()):
        for name in [name for name in parent.attrib if name.startswith(_DROPPED)]:
            del parent.attrib[name]
        for child in list(parent):
            if child.get("d") in _EMPTY:
                parent.remove(child)
        for name, value in parent.attrib.items():
            parent.set(name, _DECIMALS.sub(r"\1", value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": place, "aria-hidden": "true"}
    return ET.tostring(root, encoding="unicode")
