"""The pages of the explorer: contacts, one contact, diff and SQL. All text is escaped; addresses in data are text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, urlencode

import htpy as h

from etl.commands.difference import Difference, State
from etl.commands.result import Explanation
from etl.display import printable
from etl.explore.contacts import PER_PAGE, Found, Row, Search
from etl.pages.document import document
from etl.pages.markup import Cell, many, table

LINKS = [("/", "Report"), ("/contacts", "Contacts"), ("/diff", "Diff"), ("/sql", "SQL")]
SHOWN_ROWS = 200
_STAMPS = {"seq", "observed_at", "op"}
LONGEST = 400
"""Characters of a cell that are shown; CSV has all of them."""


def page(name: str, title: str, said: str, content: h.Node, *, here: str = "") -> str:
    """A page of the explorer; `name` is the configuration's."""
    top = [h.p(".name")["etl explore ", h.strong[printable(name)]], h.h1[title], h.p(".said")[said]]
    foot = h.p[
        "Only this machine sees these pages, while etl explore runs. They contain contacts: close them when done."
    ]
    return document(f"{title} · {name}", top, LINKS, content, foot, here=here, forms=True)


def contacts(name: str, search: Search, found: Found) -> str:
    """The contact browser."""
    run = search.run or found.newest
    first = PER_PAGE * (search.page - 1)
    shown = f"{first + 1:,} to {first + len(found.rows):,} of {many(found.total, 'contact')}" if found.rows else "None"
    said = f"{shown}, as run {run} left them, those seen last first."
    form = h.form(".filters", method="get", action="/contacts")[
        _field(
            "Find",
            h.input(
                type="search", name="find", value=search.find, maxlength="200", placeholder="name, number, mail, id"
            ),
        ),
        _field("Status", _choice("status", search.status, found.statuses)),
        _field("Channel", _choice("channel", search.channel, found.channels)),
        _field(
            f"As of run {run} of {found.newest}",
            h.input(type="range", name="run", min="1", max=str(found.newest), value=str(run)),
        ),
        h.button(type="submit")["Show"],
    ]
    rows: list[list[Cell]] = [
        [
            h.a(href=_contact(row))[_text(row["name"]) or "(no name)"],
            _text(row["platforms"]),
            _text(row["status"]),
            _text(row["country"]),
            _text(row["last_seen_at"]),
            h.code[_text(row["contact_id"])],
            _text(row["account"]),
        ]
        for row in found.rows
    ]
    headings = ("name", "channels", "status", "country", "last seen", "id", "account")
    pages = max(1, -(-found.total // PER_PAGE))
    steps = h.nav(".steps", aria_label="Pages")[
        h.a(href=address(search, page=search.page - 1), rel="prev")["Previous"] if search.page > 1 else None,
        h.span[f"Page {search.page:,} of {pages:,}"],
        h.a(href=address(search, page=search.page + 1), rel="next")["Next"] if search.page < pages else None,
    ]
    listed = table("Contacts", headings, rows, text=range(7)) if rows else h.p["No contact matches."]
    return page(name, "Contacts", said, [form, listed, steps], here="/contacts")


def contact(name: str, account: str, explained: Explanation, versions: Sequence[Row]) -> str:
    """One contact: why it is there or not, and its versions, each with what changed."""
    history = next((one for one in explained.accounts if one.account == account), None)
    said = history.why if history else "no run has ever received it"
    parts = []
    before: Row = {}
    for version in versions:
        stamp = f"Run {version['seq']}, {version['observed_at']}"
        if version["op"] == "delete":
            parts.append(h.div(".card")[h.h3[f"{stamp}: deleted"]])
            before = {}
            continue
        names = [key for key in version if key not in _STAMPS and version[key] != before.get(key)]
        names = [key for key in names if _text(before.get(key)) or _text(version[key])]
        rows = [[column, _text(before.get(column)), _text(version[column])] for column in names]
        title = f"{stamp}: {many(len(names), 'column')}" + (" changed" if before else " filled")
        headings, cells = ("column", "before", "after"), rows
        if not before:
            headings, cells = ("column", "value", ""), [[column, after, ""] for column, _, after in rows]
        parts.append(_values(title, headings, cells))
        before = version
    content = [h.p[h.a(href="/contacts")["All contacts"]], parts[::-1] or h.p["It has no versions."]]
    return page(name, f"Contact {printable(explained.contact_id)}", said, content, here="/contacts")


def diff(name: str, before: str, after: str, found: Difference | None, trouble: str = "") -> str:
    """What changed between two states, and the first contacts of those."""
    form = h.form(".filters", method="get", action="/diff")[
        _field("From", h.input(name="a", value=before, size="22", required=True)),
        _field("To", h.input(name="b", value=after, size="22", required=True)),
        h.button(type="submit")["Compare"],
    ]
    hint = "A state is a run's number (-1: the newest, 0: before the first), or a time such as 2026-11-29T04:09:06Z."
    if found is None:
        return page(name, "Diff", hint, [form, _problem(trouble) if trouble else None], here="/diff")
    between = [f"{found.changed_back:,} changed back in between" if found.changed_back else ""]
    between += [f"{found.came_and_went:,} came and went" if found.came_and_went else ""]
    counts = f"{found.new:,} new, {found.changed:,} changed, {found.deleted:,} deleted"
    counts += f", from {_state(found.before)} to {_state(found.after)}."
    columns: list[list[Cell]] = [[column, count] for column, count in found.columns.items()]
    rows: list[list[Cell]] = []
    for row in found.rows:
        link = h.a(href=_contact({"account": row.account, "contact_id": row.contact_id}))[h.code[row.contact_id]]
        values = row.values or {}
        for place, column in enumerate(row.columns or ("",)):
            old, new = values.get(column, (None, None))
            rows.append([row.change if not place else "", link if not place else "", column, _text(old), _text(new)])
    content = [
        form,
        h.p[", ".join(filter(None, between))] if any(between) else None,
        h.div(".narrow")[table("Columns that changed", ("column", "contacts"), columns)] if columns else None,
        _values(
            f"The first {many(len(found.rows), 'contact')}", ("change", "contact", "column", "before", "after"), rows
        )
        if rows
        else None,
    ]
    return page(name, "Diff", counts, content, here="/diff")


def sql(
    name: str,
    query: str,
    columns: Sequence[str] = (),
    rows: Sequence[Row] | None = None,
    trouble: str = "",
    *,
    cut: bool = False,
) -> str:
    """The SQL page: one reading statement, and its result."""
    said = (
        "One statement that reads: contacts, contact_versions, runs, rejects, contacts_as_of(t). It may take "
        "30 seconds and give 10,000 rows."
    )
    form = h.form(method="post", action="/sql")[
        h.label(".field")[
            h.span["Query"], h.textarea(name="query", rows="6", spellcheck="false", required=True)[query]
        ],
        h.p[
            h.button(type="submit")["Run"],
            " ",
            h.button(".second", type="submit", formaction="/sql.csv")["Download CSV"],
        ],
    ]
    result: h.Node = _problem(trouble) if trouble else None
    if rows is not None:
        told = f"{'The first ' if cut else ''}{many(len(rows), 'row')}"
        told += f", {SHOWN_ROWS} shown; CSV has all" if len(rows) > SHOWN_ROWS else ""
        cells = [[_text(value) for value in row.values()] for row in rows[:SHOWN_ROWS]]
        result = _values(told, columns, cells) if columns else None
    return page(name, "SQL", said, [form, result], here="/sql")


def failure(name: str, title: str, told: str) -> str:
    """A page for a request that could not be answered."""
    return page(name, title, printable(told), None)


def _field(label: str, control: h.Node) -> h.Element:
    return h.label(".field")[h.span[label], control]


def _choice(name: str, chosen: str, offered: Iterable[str]) -> h.Element:
    options = dict.fromkeys([*offered, *([chosen] if chosen else [])])
    return h.select(name=name)[
        h.option(value="")["any"], (h.option(value=one, selected=one == chosen)[printable(one)] for one in options)
    ]


def _values(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> h.Element:
    """A table of values: all of them text, which may be long."""
    return h.div(".values")[table(caption, headings, rows, text=range(len(headings)))]


def _problem(told: str) -> h.Element:
    return h.div(".notice.bad", role="alert")[h.p[printable(told)]]


def _state(state: State) -> str:
    return f"run {state.seq}" if state.seq else "nothing"


def _text(value: object) -> str:
    """A value as one short text; nothing for an empty one."""
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = ", ".join(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)")


def _contact(row: Mapping[str, object]) -> str:
    return f"/contact?{urlencode({'account': str(row['account']), 'id': str(row['contact_id'])}, quote_via=quote)}"


def address(search: Search, **changed: int) -> str:
    """The address of a search, with some of its fields changed."""
    return f"/contacts?{urlencode(search.query(**changed), quote_via=quote)}"
