"""Results as text for people: every layout, and nothing else. Pure; each text that came from outside stays one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice
from math import ceil
from pathlib import Path
from textwrap import wrap

import pyarrow as pa

from etl.cli.many import MANY, SHOWN, deadline_warning, forecast_totals, run_totals, run_verdict, status_totals
from etl.commands.checks import Finding
from etl.commands.copy import CopyResult
from etl.commands.difference import Difference
from etl.commands.result import (
    AccountReport,
    ChangeResult,
    Explanation,
    Forecast,
    RunResult,
    SinkReport,
    Status,
    WrittenReport,
    instant,
    unconfigured_hint,
    unconfigured_line,
)
from etl.display import lines
from etl.errors import OK, PUBLISHED_WITH_REJECTS
from etl.extract.history import CLOCKS_DIFFER

WIDTH = 80
"""Columns of the terminal that a table needs at most."""
SHOWN_ROWS = 100
"""Rows shown of a longer result, from its beginning and its end."""
SHOWN_ATTEMPTS = 5
QUESTIONS = {
    OK: "select status, count(*) as contacts from contacts group by 1 order by 2 desc",
    PUBLISHED_WITH_REJECTS: "select account, contact_id, reason, path, seq from rejects order by seq desc",
}
"""SQL to try after a run that published; it shows the rejects if there are any."""


def render_run(report: RunResult, config: Path | None = None) -> str:
    """The summary at the end of a run; `config` is the configuration as it was named on the command line."""
    many, several = len(report.accounts) > MANY, len(report.accounts) > 1
    if many:
        shown = [f"{name:<9} {text}" for name, text in run_totals(report)]
    else:
        shown = [line for account in report.accounts for line in _account_lines(account)]
    shown += [_sink_line(name, sink) for name, sink in report.sinks.items()]
    shown += [f"{head:<9} {text}" for head, text in _notices("notice", report.unconfigured)]
    shown.append(f"{'seconds':<9} {report.seconds:.1f}")
    if many:
        shown.append(run_verdict(report))
    else:
        shown += [f"{account.account}: " * several + _verdict(account) for account in report.accounts]
    if question := QUESTIONS.get(report.exit_code):
        shown.append(f'{"try":<9} etl sql {f"{config} " if config else ""}"{question}"')
    return lines(shown)


def _notices(head: str, unconfigured: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Two lines for each account that is not configured, and one for the number of those beyond `SHOWN`."""
    for name, contacts in islice(unconfigured.items(), SHOWN):
        yield head, unconfigured_line(name, contacts)
        yield "", unconfigured_hint(name)
    if len(unconfigured) > SHOWN:
        yield head, f"{len(unconfigured) - SHOWN:,} other accounts are not configured either"


def _sink_line(name: str, sink: SinkReport) -> str:
    state = f"state {sink.seq}" if sink.error is None else f"not published: {sink.error.message}"
    return f"{name:<9} {sink.path} ({state})"


def _account_lines(account: AccountReport) -> Sequence[str]:
    """The counts and remarks of one account; nothing if it was not published."""
    record, remarks = account.record, account.remarks
    if record is None or account.error is not None:
        return ()
    counts, pace, ahead = record.counts, remarks.pace, remarks.clock_ahead
    absent = f", {account.struck:,} absent for the first time" if account.struck else ""
    changes = f"{counts.new:,} new, {counts.changed:,} changed, {counts.unchanged:,} unchanged"
    purposes = ", ".join(f"{name} {count}" for name, count in remarks.requests.items())
    rows = [
        ("account", f"{account.account}: {record.mode} export as of {instant(record.t0)}"),
        ("contacts", f"{counts.contacts:,} ({changes}, {counts.deleted:,} deleted{absent})"),
        ("received", f"{counts.received:,} ({counts.folded:,} folded, {counts.rejected:,} rejected)"),
        ("requests", f"{record.requests.sent:,} ({record.requests.retried:,} retried; {purposes})"),
    ]
    if pace.throttled:
        rate = f"{pace.per_second} requests a second" if pace.per_second else f"{pace.at_once} requests at once"
        rows.append(("pace", f"slowed down {pace.throttled} times by the server, to {rate}; waited {pace.waited} s"))
    if abs(ahead) > CLOCKS_DIFFER:
        side = "ahead of" if ahead > 0 else "behind"
        rows.append(
            ("clock", f"the server's is {abs(ahead):,} s {side} ours; nothing is lost, and observed_at goes by it")
        )
    if remarks.clock_back:
        back = f"T0 is {remarks.clock_back:,} s before that of the last run"
        rows.append(("clock", f"the server's has gone back: {back}; nothing is lost"))
    if remarks.resumed:
        rows.append(("resumed", f"{remarks.resumed:,} windows that a killed run had read"))
    if remarks.order_doubt:
        rows.append(("order", f"not relied on, so everything was read twice: {remarks.order_doubt}"))
    return [f"{name:<9} {text}" for name, text in rows]


def _verdict(account: AccountReport) -> str:
    """The one-line verdict on an account: proven or not, by this run or since when."""
    record = account.record
    if account.error is not None or record is None:
        return f"not published: account {account.account}"
    contacts, windows = f"{record.counts.contacts:,} contacts", f"{record.proof.windows:,} windows"
    if record.mode == "filtered":
        return f"filtered export: {contacts} matched (a filtered export has no proof)"
    if not record.proof.holds:
        return f"unproven: {contacts}; {record.proof.unproven[0]}"
    since = account.proven_since
    if record.mode == "full" or since == record.t0:
        checks = account.remarks.order_checks
        in_order = "read in order: {segments:,} segments counted, {ranges:,} ranges read again"
        return f"complete: {contacts} in {windows}, " + (
            in_order.format(**checks) if any(checks.values()) else "all proven"
        )
    read = f"complete: {contacts}; this run read {record.counts.received - record.counts.folded:,} in {windows}"
    if account.remarks.by_windows < 1:
        share = int(100 * account.remarks.by_windows)
        others = f"{share} % of all contacts are proven by windows so far, the others were read in order"
    elif since is None:
        others = "every other contact was proven by earlier runs"
    else:
        span = _span((record.t0 - since).total_seconds(), up=True)
        others = f"every other contact was proven within {span} (since {instant(since)})"
    return f"{read}, {others}"


def render_change(report: ChangeResult) -> str:
    """The result of renaming or dropping an account."""
    shown = [_sink_line(name, sink) for name, sink in report.sinks.items()]
    if report.error is None:
        change = f"renamed to {report.renamed_to}" if report.renamed_to else "dropped"
        shown.append(f"{change}: account {report.account} with {report.contacts:,} contacts")
    return lines(shown)


def render_copy(copied: CopyResult) -> str:
    """What was copied."""
    counts = f"{copied.contacts:,} contacts, {copied.versions:,} versions, {copied.runs:,} runs"
    return lines([_sink_line(copied.target, copied.report), f"{'copied':<9} {counts} from {copied.source}"])


def render_forecasts(forecasts: Sequence[Forecast]) -> str:
    """One line per account, and a warning if it cannot be done in time; of many, the totals and the slowest."""
    if len(forecasts) > MANY:
        return lines(forecast_totals(forecasts))
    shown = []
    for f in forecasts:
        shown.append(
            f"{f.account}: {f.mode} run, {f.windows:,} windows, about {f.requests:,} requests, {f.seconds:,.1f} s"
            + (f" at {f.per_second:g} requests a second" if f.per_second else "")
            + (f", which {f.sharing} accounts share" if f.sharing > 1 else "")
            + "; "
            + (f"resumes; {f.resumes:,} windows already read; " if f.resumes else "")
            + "nothing was written"
        )
        shown += deadline_warning(f)
    return lines(shown)


def render_status(status: Status) -> str:
    """Whether the last run worked, then the published runs and the last attempts, in at most 80 columns."""
    shown = []
    newest = [run for run in status.runs if run.seq == status.runs[0].seq]
    if status.attempts:
        last = status.attempts[0]
        ago, took = _span((status.at - last.finished).total_seconds()), _span(last.seconds)
        shown.append(f"last run: {ago} ago, exit {last.exit_code}, {took}, {_requests(last.requests)}")
        if error := last.error:
            where = f" ({error['where']})" if error["where"] else ""
            for text in (f"error: {error['message']}{where}", f"hint: {error['hint']}"):
                shown += wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    elif newest:
        ago = _span((status.at - newest[0].observed_at).total_seconds())
        sent, took = sum(run.requests_sent for run in newest), _span(max(run.seconds for run in newest))
        shown.append(f"last published run: {ago} ago, {took}, {_requests(sent)}")
    if not newest:
        return lines([*shown, "no run has published yet"])
    runs = [
        (
            *(f"{run.seq}", _cut(run.account, 12), run.mode, _span((status.at - run.observed_at).total_seconds())),
            *(f"{number:,}" for number in (run.contacts, run.new, run.changed, run.deleted)),
            ("unproven" if run.unproven else _level(run.proof_level, run.by_windows))
            + f", {run.rejected:,} rejected" * (run.rejected > 0),
        )
        for run in status.runs
    ]
    headings = ("seq", "account", "mode", "age", "contacts", "new", "changed", "deleted", "proof")
    shown += ["", *_table(headings, runs, left={"account", "mode", "proof"}, flexible="proof")]
    if status.attempts:
        tries = [
            (
                *(_span((status.at - one.finished).total_seconds()), f"{one.exit_code}", _span(one.seconds)),
                *(f"{one.requests:,}", str(one.error["message"]) if one.error else ""),
            )
            for one in status.attempts[:SHOWN_ATTEMPTS]
        ]
        shown += ["", *_table(("attempt", "exit", "time", "requests", "error"), tries, {"error"}, flexible="error")]
    if len(status.accounts) > MANY:
        shown += ["", *status_totals(status.accounts)]
    unconfigured = {a.last_run.account: a.last_run.contacts for a in status.accounts if not a.configured}
    shown += [f"{head:<7} {text}" for head, text in _notices("notice:", unconfigured)]
    return lines(shown)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: set[str], flexible: str) -> list[str]:
    """A table in at most `WIDTH` columns: numbers to the right, and one `flexible` column that is cut if it must be."""
    cells = [headings, *rows]
    widths = {name: max(map(len, column)) for name, column in zip(headings, zip(*cells, strict=True), strict=True)}
    gap = "  " if sum(widths.values()) + 2 * (len(widths) - 1) <= WIDTH else " "
    room = WIDTH - sum(widths.values()) - len(gap) * (len(widths) - 1) + widths[flexible]
    widths[flexible] = max(4, min(widths[flexible], room))
    shown = []
    for row in cells:
        line = []
        for (name, width), cell in zip(widths.items(), row, strict=True):
            text = _cut(cell, width)
            line.append(text.ljust(width) if name in left else text.rjust(width))
        shown.append(gap.join(line).rstrip())
    return shown


def _level(level: str, by_windows: float) -> str:
    """A level of proof, or the share of the account that is proven by windows if that is not all."""
    return f"{int(100 * by_windows)} % windows" if 0 < by_windows < 1 else level


def _requests(count: int) -> str:
    return f"{count:,} request{'s' * (count != 1)}"


def _cut(text: str, width: int) -> str:
    """The text in at most `width` columns."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _span(seconds: float, *, up: bool = False) -> str:
    """A length of time in its largest fitting unit, rounded down, or `up`."""
    seconds = max(0.0, seconds)
    if seconds < 10 and not up:
        return f"{seconds:.1f} s"
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{ceil(seconds / size) if up else int(seconds / size)} {unit}"
    return f"{ceil(seconds / 86_400) if up else int(seconds / 86_400)} days"


def render_explanation(explanation: Explanation) -> str:
    """Per account: why the contact is or is not there, the window that last contained it, and its versions."""
    if not explanation.accounts:
        return lines([f"{explanation.contact_id}: no run has ever received it"])
    shown = []
    for entry in explanation.accounts:
        shown.append(f"{explanation.contact_id} in account {entry.account}: {entry.why}")
        if window := entry.last_read_by:
            span = f"{window.start or '...'} to {window.end or '...'}, {window.rows} rows, {window.level}"
            shown.append(f"  last read by run {window.seq}, request {window.request}: {window.field} {span}")
        shown += [f"  run {v.seq:<4} {v.observed_at}  {v.op}  {v.row_hash}" for v in entry.versions]
    return lines(shown)


def render_difference(difference: Difference) -> str:
    """One line of counts, the columns that changed, and the contacts that were asked for."""
    states = [
        f"run {state.seq} ({instant(state.observed_at)})" if state.observed_at else "nothing"
        for state in (difference.before, difference.after)
    ]
    shown = [f"+{difference.new:,} ~{difference.changed:,} -{difference.deleted:,} contacts from {' to '.join(states)}"]
    between = {"changed back": difference.changed_back, "came and went": difference.came_and_went}
    shown += [f"in between, {count:,} {what}" for what, count in between.items() if count]
    if difference.columns:
        counts = [(name, f"{count:,}") for name, count in difference.columns.items()]
        shown += ["", *_table(("column", "changed"), counts, {"column"}, flexible="column")]
    if difference.rows:
        shown.append("")
    for row in difference.rows:
        sign = {"new": "+", "changed": "~", "deleted": "-"}[row.change]
        shown.append(f"{sign} {row.account} {row.contact_id}  {', '.join(row.columns)}".rstrip())
        for name, (before, after) in (row.values or {}).items():
            shown.append(
                f"    {name}: {json.dumps(before, ensure_ascii=False)} -> {json.dumps(after, ensure_ascii=False)}"
            )
    return lines(shown)


def render_report(written: WrittenReport) -> str:
    """The file, and what is on it."""
    state = f"run {written.seq}, {written.contacts:,} contacts" if written.seq else "no run has published yet"
    return lines([f"{written.path}: {state}; {ceil(written.size / 1000):,} kB"])


def render_findings(findings: Sequence[Finding]) -> str:
    """One line per check, and one for its hint; of many that are alike and in order, a few."""
    shown, alike = [], Counter[str]()
    for finding in findings:
        if finding.ok:
            alike[finding.check] += 1
            if alike[finding.check] > MANY:
                continue
        shown.append(f"{'ok  ' if finding.ok else 'FAIL'} {finding.check:<8} {finding.where}: {finding.detail}")
        if finding.hint:
            shown.append(f"     hint: {finding.hint}")
    shown += [f"ok   {check:<8} {count - MANY:,} others" for check, count in alike.items() if count > MANY]
    return lines(shown)


def render_columns(rows: Sequence[dict[str, str]]) -> str:
    """One line per column of `contacts`."""
    return lines(f"{r['name']:<22}{r['type']:<22}{r['privacy']:<11}{r['meaning']}" for r in rows)


def render_table(table: pa.Table) -> str:
    """A table as DuckDB draws it, with the number of rows."""
    from etl.commands.sql import in_order  # noqa: PLC0415 - the engine takes long to import

    with in_order() as connection, redirect_stdout(StringIO()) as drawn:
        connection.from_arrow(table).show(max_rows=SHOWN_ROWS)
    # DuckDB escapes line ends and other control characters in a cell, but not everything that `lines` does.
    return lines(drawn.getvalue().rstrip().split("\n"))
