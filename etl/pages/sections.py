"""The sections of a report, and the page: figures in, HTML out. Each begins with a sentence on what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

import htpy as h

from etl.display import printable
from etl.errors import OK, PUBLISHED_WITH_REJECTS
from etl.pages import plots
from etl.pages.document import document
from etl.pages.figures import MISSING, AccountFigures, ColumnFigures, Figures, RunFigures
from etl.pages.markup import Cell, bar, breakable, clock, counted, many, pairs, plot, section, signed, span, table

SHOWN_IN_TABLE = 12
SHOWN_FAILURES = 5
VISIBLE_DRIFT = 0.0005
"""A smaller change of a share is not shown."""
LARGE_DRIFT = 0.01
PUBLISHED = {OK, PUBLISHED_WITH_REJECTS}
_GRADES = {OK: "good", PUBLISHED_WITH_REJECTS: "warn"}
"""The class of an attempt by its exit code; all others failed."""
PURPOSES = ("probe", "windows", "scrub", "sweep", "witness", "walk")
LINKS = [(f"#{name.lower()}", name) for name in ("Runs", "Contacts", "Proof", "Data", "Server")]


def report(figures: Figures) -> str:
    """The whole page."""
    shown = [runs(figures), contacts(figures), proof(figures), data(figures), server(figures)] if figures.runs else []
    privacy = "No value of a contact is on this page; groups of fewer than five are part of “other”."
    foot = [h.p[f"Made by etl {figures.version}, ", clock(figures.made), ". ", privacy]]
    return document(
        f"{printable(figures.name)} · etl", verdict(figures), [*(LINKS if shown else []), *figures.links], shown, foot
    )


def verdict(figures: Figures) -> h.Node:
    """Whether everything is there, since when, and what happened last."""
    name = h.p(".name")["etl report of ", h.strong[printable(figures.name)]]
    kind, mark, title = _judged(figures)
    head = h.div(".verdict")[h.div(class_=f"mark {kind}", aria_hidden="true")[mark], h.h1[title]]
    if not figures.runs:
        return [name, head, _trouble(figures), _attempts(figures)]
    last = figures.runs[-1]
    changes = f"{last.new:,} new, {last.changed:,} changed, {last.deleted:,} deleted"
    newest = "The newest published state is" if kind == "bad" else "This is"
    run = f"{newest} run {last.seq} ({', '.join(last.modes)}), as of "
    said = h.p(".said")[run, clock(last.at), f": {changes}."]
    return [name, head, said, _trouble(figures), _facts(figures), _accounts(figures), _attempts(figures)]


def _judged(figures: Figures) -> tuple[str, str, str]:
    """The class, mark and words of the verdict."""
    total = many(figures.contacts.total, "contact")
    failed = bool(figures.attempts) and figures.attempts[0].exit_code not in PUBLISHED
    if not figures.runs:
        return ("bad", "✗", "The first run failed") if failed else ("warn", "–", "Nothing has been published yet")
    if failed:
        return "bad", "✗", "The last run failed"
    if any(account.unproven for account in figures.accounts):
        return "warn", "!", f"{total}, published without proof"
    if all(account.mode == "filtered" for account in figures.accounts):
        return "warn", "–", f"{total} match the filters"
    if figures.runs[-1].rejected:
        return "warn", "!", f"{total}, none missing; {figures.runs[-1].rejected:,} rejected"
    return "good", "✓", f"{total}, none missing"


def _trouble(figures: Figures) -> h.Node:
    """The error of the last attempt, or why a state is unproven."""
    notes: list[tuple[str, h.Node]] = []
    last = figures.attempts[0] if figures.attempts else None
    if last and last.message:
        where = f" ({last.where})" if last.where else ""
        told = h.strong[f"Exit code {last.exit_code}: "], printable(f"{last.message}{where}")
        notes.append(("bad", [h.p[told], h.p[printable(last.hint)]]))
    notes += [
        ("warn", h.p[h.strong[f"{account.account}: "], printable("; ".join(account.unproven))])
        for account in figures.accounts
        if account.unproven
    ]
    return [h.div(class_=f"notice {kind}")[note] for kind, note in notes[:SHOWN_FAILURES]]


def _facts(figures: Figures) -> h.Node:
    """The four numbers that are looked for first."""
    last, accounts = figures.runs[-1], figures.accounts
    gained = last.new - last.deleted
    facts: list[tuple[str, h.Node, str]] = [
        ("Contacts", f"{figures.contacts.total:,}", f"{signed(gained)} by the last run")
    ]
    oldest = min((account.at for account in accounts), default=last.at)
    age = f"{span((figures.made - oldest).total_seconds())} old when this page was made"
    facts.append(("Data as of", clock(oldest), age))
    facts.append(_proven(accounts))
    if figures.attempts:
        newest = figures.attempts[0]
        told = f"took {span(newest.seconds)}, {many(newest.requests, 'request')}"
        facts.append(("Last attempt", f"exit code {newest.exit_code}", told))
    else:
        facts.append(("Last run", f"run {last.seq}", f"took {span(last.seconds)}"))
    return h.dl(".facts")[(h.div[h.dt[name], h.dd[value, h.span(".more")[more]]] for name, value, more in facts)]


def _proven(accounts: Sequence[AccountFigures]) -> tuple[str, h.Node, str]:
    """Since when every contact has been proven, over all accounts."""
    if any(account.unproven for account in accounts):
        return "Proof", "not complete", "see the notice above"
    if any(account.mode == "filtered" for account in accounts):
        return "Proof", "none", "a filtered export has no proof"
    share = min((account.by_windows for account in accounts), default=1.0)
    if share < 1:
        return "Proof", f"{int(100 * share)} % by windows", "the others were read in a checked order"
    since = [account.proven_since for account in accounts]
    known = [moment for moment in since if moment is not None]
    if len(known) < len(since) or not known:
        return "Proof", "by windows", "every contact, by earlier runs"
    return "Proven since", clock(min(known)), "every contact, window by window"


def _accounts(figures: Figures) -> h.Node:
    if len(figures.accounts) < 2:
        return None
    rows: list[list[Cell]] = [
        [
            a.account,
            a.mode,
            a.contacts,
            clock(a.at),
            a.proof,
            clock(a.proven_since) if a.proven_since and a.by_windows == 1 else "–",
        ]
        for a in figures.accounts
    ]
    headings = ("account", "mode", "contacts", "as of", "proof", "proven since")
    return table("Accounts", headings, rows, text=(0, 1, 3, 4, 5))


def _attempts(figures: Figures) -> h.Node:
    """The last attempts as a strip of marks, and the errors of those that failed."""
    if not figures.attempts:
        return None
    marks = [
        h.li(class_=_GRADES.get(one.exit_code, "bad"))[
            h.span(aria_hidden="true")["✓" if one.exit_code == OK else f"{one.exit_code}"],
            h.span(".hidden")[f"exit code {one.exit_code}, {one.ended:%Y-%m-%d %H:%M}"],
        ]
        for one in reversed(figures.attempts)
    ]
    rows: list[list[Cell]] = [
        [clock(one.ended), one.exit_code, span(one.seconds), one.requests, one.message]
        for one in [one for one in figures.attempts if one.message][:SHOWN_FAILURES]
    ]
    said = "The last attempts, the newest at the right; a number is an exit code other than 0."
    errors = table("Attempts that failed", ("ended", "exit", "took", "requests", "error"), rows, text=(0, 4), wide=4)
    return h.section(aria_labelledby="attempts-title")[
        h.h2("#attempts-title")["Attempts"],
        h.p(".lead")[said],
        h.ol(".attempts")[marks],
        h.br,
        errors if rows else None,
    ]


def runs(figures: Figures) -> h.Element:
    """What the runs brought, and what they cost."""
    shown = figures.runs
    last, later = shown[-1], [run for run in shown if not run.is_first]
    said = f"The last {many(len(shown), 'published run')}. The newest took {span(last.seconds)}."
    cards = [
        plot("Contacts", *_contacts_after(shown)),
        plot(
            "New and deleted",
            f"Upwards: new, {sum(r.new for r in later):,} in these runs. Downwards: deleted, "
            f"{sum(r.deleted for r in later):,}." + _without_first(shown),
            partial(plots.up_and_down, [(run.seq, run.new, run.deleted) for run in later])
            if any(run.new or run.deleted for run in later)
            else None,
        ),
        plot(
            "Changed",
            f"Contacts whose content changed: {sum(run.changed for run in later):,} in these runs.",
            partial(plots.per_run, [(run.seq, run.changed) for run in later])
            if any(run.changed for run in later)
            else None,
        ),
        _strips("Requests", "The newest run sent {}, by purpose:", {r.seq: r.requests for r in shown}, "request"),
        _strips("Seconds", "The newest run read for {}, by phase:", {r.seq: r.seconds_by for r in shown}, "second"),
    ]
    return section("runs", "Runs", said, h.div(".cards")[cards], _runs_table(shown))


def _contacts_after(shown: Sequence[RunFigures]) -> tuple[str, partial[str] | None]:
    if len(shown) < 2:
        return "The number of contacts after each run: from the second run on.", None
    gained = shown[-1].contacts - shown[0].contacts
    drawn = partial(plots.trend, [(run.seq, run.contacts) for run in shown])
    return f"After each run; {signed(gained)} since run {shown[0].seq}. The scale does not begin at 0.", drawn


def _without_first(shown: Sequence[RunFigures]) -> str:
    first = next((run for run in shown if run.is_first), None)
    return f" Run {first.seq}, which brought all {first.new:,}, is left out." if first else ""


def _strips(title: str, said: str, by_run: Mapping[int, Mapping[str, float]], noun: str) -> h.Element:
    """One strip a purpose; each has its own scale, so that rare purposes stay visible."""
    used = set(chain.from_iterable(by_run.values()))
    names = [name for name in PURPOSES if name in used] + sorted(used - {*PURPOSES})
    newest = by_run[max(by_run)]
    total = sum(newest.values())
    amount = many(int(total), noun) if noun == "request" else f"{total:,.1f} seconds"
    digits = 0 if noun == "request" else 1
    parts = ", ".join(f"{name} {newest[name]:,.{digits}f}" for name in names if newest.get(name))
    rows = [(seq, name, values.get(name, 0)) for seq, values in by_run.items() for name in names]
    told = f"{said.format(amount)} {parts}. Each strip has its own scale; its largest bar has a number."
    return plot(title, told, partial(plots.strips, names, rows) if names else None)


def _runs_table(shown: Sequence[RunFigures]) -> h.Element:
    rows: list[list[Cell]] = [
        [
            *(str(run.seq), clock(run.at), ", ".join(run.modes), run.contacts, run.new, run.changed, run.deleted),
            *(run.rejected, int(sum(run.requests.values())), span(run.seconds), run.proof),
        ]
        for run in shown[: -SHOWN_IN_TABLE - 1 : -1]
    ]
    changes = ("contacts", "new", "changed", "deleted", "rejected")
    return table(
        "The newest runs", ("run", "as of", "mode", *changes, "requests", "took", "proof"), rows, text=(0, 1, 2, 10)
    )


def contacts(figures: Figures) -> h.Element:
    """The contacts in groups."""
    found = figures.contacts
    aside = [f"{found.without_time:,} have no creation time" if found.without_time else ""]
    aside += [f"{found.earlier:,} are older" if found.earlier else ""]
    aside += [f"{found.later:,} are dated after the run began" if found.later else ""]
    besides = "; ".join(filter(None, aside))
    months = (
        f"Of the last {many(len(found.months), 'month')}, the newest not yet complete." if found.months else "None."
    )
    seen = sum(count for _, _, count in found.week)
    cards = [
        _groups("Channel", "A contact may have several channels.", found.channels),
        _groups("Status", "As the account names them.", found.statuses),
        _groups("Country", "As the contacts give it.", found.countries),
        plot(
            "Created",
            f"Contacts by month of creation. {months}" + (f" Not shown: {besides}." if besides else ""),
            partial(plots.months, found.months) if found.months else None,
        ),
        plot(
            "Last seen",
            f"{many(seen, 'contact')} by weekday and hour (UTC); the stronger the colour, the more, by rank."
            + _busiest(figures),
            partial(plots.week, found.week) if found.week else None,
        ),
    ]
    return section("contacts", "Contacts", f"{many(found.total, 'contact')} in the target.", h.div(".cards")[cards])


def _groups(title: str, said: str, groups: Sequence[tuple[str, int]]) -> h.Element:
    """The groups as bars; those without a value would dwarf the others, so their number is only said."""
    drawn, without = [group for group in groups if group[0] != MISSING], dict(groups).get(MISSING, 0)
    told = " ".join(filter(None, [said if drawn else "", f"{without:,} have none." if without else ""]))
    return plot(title, told or "None.", partial(plots.ranked, drawn) if drawn else None)


def _busiest(figures: Figures) -> str:
    if not figures.contacts.week:
        return ""
    day, hour, count = max(figures.contacts.week, key=lambda cell: (cell[2], -cell[0], -cell[1]))
    names = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    return f" The most are on {names[day - 1]} from {hour}:00, {count:,}."


def proof(figures: Figures) -> h.Element:
    """The evidence that no contact is missing."""
    found = figures.proof
    said = (
        "A window is a range of creation times that one response answers: with fewer rows than a page, nothing of that "
        "range can be missing, whatever changes meanwhile."
    )
    most = max((rows for rows, count in found.window_rows if count), default=0)
    recent = [(seq, count) for seq, count in found.looked_at if seq]
    checked = [account.cross_checked for account in figures.accounts if account.cross_checked]
    facts: list[tuple[str, h.Node]] = [
        ("level", ", ".join(dict.fromkeys(account.proof for account in figures.accounts))),
        ("last cross-check", clock(min(checked)) if checked else "none yet"),
        ("watermark", clock(min(account.watermark for account in figures.accounts)) if figures.accounts else "–"),
        ("manifest", h.code[found.manifest or "not recorded"]),
    ]
    cards = [
        plot(
            "When each contact was last looked at",
            _looked(recent),
            partial(plots.per_run, recent) if len(recent) > 1 else None,
        ),
        plot(
            "Rows in a window",
            f"{many(found.windows, 'accepted window')}; the fullest has {most} rows of a page of {found.page_size}.",
            partial(plots.window_rows, found.window_rows, found.page_size)
            if found.window_rows and found.page_size
            else None,
        ),
        h.div(".card")[h.h3["Evidence"], h.p["Stored with the data; etl verify checks it again."], pairs(facts)],
    ]
    return section("proof", "Proof", said, h.div(".cards")[cards])


def _looked(recent: Sequence[tuple[int, int]]) -> str:
    if not recent:
        return "Not recorded."
    (oldest, count), *others = recent
    return (
        f"{many(count, 'contact')} by run {oldest}, all others later." if others else f"All {count:,} by run {oldest}."
    )


def data(figures: Figures) -> h.Element:
    """How much of the data is there, and what could not be kept in columns."""
    found = figures.data
    always = [column.name for column in found.columns if column.share == 1]
    never = [column.name for column in found.columns if column.share == 0]
    some = [column for column in found.columns if 0 < column.share < 1]
    large = sum(abs(column.change or 0) >= LARGE_DRIFT for column in found.columns)
    drift = (
        f"{many(large, 'column')} moved by a percentage point or more since the run before."
        if large
        else ("No column moved by a percentage point or more since the run before.")
    )
    names = [("always filled", always), ("never filled", never)]
    filled = h.div(".card")[
        h.h3["Columns that are filled in part"],
        h.p["The share of contacts with a value, and its change since the run before, in percentage points."],
        h.div(".columns")[(_filled(column) for column in some)],
        pairs((title, ", ".join(group)) for title, group in names if group),
    ]
    rejected = "These contacts could not be kept, by reason." if found.rejects else "None: every contact could be kept."
    extra = "Fields of the API without a column, by path, with the number of contacts that have them."
    cards = [
        h.div(".card")[h.h3["Rejects"], h.p[rejected], counted(found.rejects) if found.rejects else None],
        h.div(".card")[h.h3["Keys in extra"], h.p[extra if found.extra_keys else "None."], counted(found.extra_keys)],
    ]
    return section("data", "Data", f"How complete the columns are. {drift}", filled, h.div(".cards.lists")[cards])


def _filled(column: ColumnFigures) -> h.Element:
    change = column.change or 0.0
    large = abs(change) >= LARGE_DRIFT
    text = f"{'▲' if change > 0 else '▼'} {abs(100 * change):.1f}" if abs(change) >= VISIBLE_DRIFT else "–"
    share = (
        f"{100 * column.share:.1f}" if 0.0005 <= column.share < 0.9995 else "<0.1" if column.share < 0.5 else ">99.9"
    )
    return h.div(".fill")[
        h.span(".of")[breakable(column.name)],
        bar(column.share),
        h.span[f"{share} %"],
        h.span(class_="drift" if large else "quiet")[text],
    ]


def server(figures: Figures) -> h.Element:
    """What the runs learned of the server."""
    slowed = sum(run.throttled for run in figures.runs)
    told = (
        f"It asked to slow down {slowed:,} times in these runs."
        if slowed
        else "It never asked to slow down in these runs."
    )
    cards = [
        h.div(".card")[h.h3[account.account], h.p[f"As run {account.seq} found it."], pairs(account.server.items())]
        for account in figures.accounts[:SHOWN_IN_TABLE]
    ]
    return section(
        "server", "Server", f"What the probe found and the pace that was learned. {told}", h.div(".cards")[cards]
    )
