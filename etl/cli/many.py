"""Text about hundreds of accounts: totals, and a line only for those that a person should look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import ceil

from etl.commands.result import AccountReport, AccountStatus, Forecast, RunResult
from etl.errors import EtlError

MANY = 16
"""Accounts above which totals replace the lines of each."""
SHOWN = 10
"""Accounts that are shown as examples, with the number of the others."""

Row = tuple[str, str]
"""What a line is about, and its text."""


def run_totals(report: RunResult) -> list[Row]:
    """The counts of all published accounts together, then one line for each that failed or is unproven."""
    published, counts = report.published, report.counts
    retried = sum(record.requests.retried for record in published)
    struck = sum(account.struck for account in report.accounts if account.error is None)
    absent = f", {struck:,} absent for the first time" if struck else ""
    changes = f"{counts.new:,} new, {counts.changed:,} changed, {counts.unchanged:,} unchanged"
    modes = ", ".join(f"{number:,} {mode}" for mode, number in Counter(record.mode for record in published).items())
    return [
        ("accounts", f"{len(published):,} of {len(report.accounts):,} published" + (f" ({modes})" if modes else "")),
        ("contacts", f"{counts.contacts:,} ({changes}, {counts.deleted:,} deleted{absent})"),
        ("received", f"{counts.received:,} ({counts.folded:,} folded, {counts.rejected:,} rejected)"),
        ("requests", f"{report.requests:,} ({retried:,} retried)"),
        *_remarkable(report.accounts),
    ]


def _remarkable(accounts: Sequence[AccountReport]) -> Iterator[Row]:
    # An error that ended the whole run is that of every account: it has one line.
    failed: defaultdict[EtlError, list[str]] = defaultdict(list)
    for account in accounts:
        if account.error is not None:
            failed[account.error].append(account.account)
    for error, names in failed.items():
        who = names[0] if len(names) == 1 else f"{len(names):,} accounts"
        yield "failed", f"{who}: {error.message} (code {error.exit_code})"
    for account in accounts:
        record = account.record
        if account.error is None and record is not None and not record.proof.holds and record.mode != "filtered":
            yield "unproven", f"{account.account}: {record.proof.unproven[0]}"


def run_verdict(report: RunResult) -> str:
    """The verdict on all accounts in one line: how many are complete, and how many are not."""
    published = report.published
    complete = [record for record in published if record.proof.holds and record.mode != "filtered"]
    filtered = sum(record.mode == "filtered" for record in published)
    groups = {
        "filtered": filtered,
        "unproven": len(published) - len(complete) - filtered,
        "not published": len(report.accounts) - len(published),
    }
    contacts = sum(record.counts.contacts for record in complete)
    windows = sum(record.proof.windows for record in complete)
    parts = [f"complete: {contacts:,} contacts of {len(complete):,} accounts, {windows:,} windows read"]
    return "; ".join(parts[: len(complete)] + [f"{what}: {number:,}" for what, number in groups.items() if number])


def forecast_totals(forecasts: Sequence[Forecast]) -> list[str]:
    """The requests of all accounts together, then the accounts that take longest."""
    modes = ", ".join(f"{number:,} {mode}" for mode, number in Counter(f.mode for f in forecasts).items())
    slowest = sorted(forecasts, key=lambda f: f.seconds, reverse=True)[:SHOWN]
    windows, requests = sum(f.windows for f in forecasts), sum(f.requests for f in forecasts)
    return [
        f"{len(forecasts):,} accounts ({modes}): {windows:,} windows, about {requests:,} requests; nothing was written",
        *(f"{f.account}: {f.mode} run, about {f.requests:,} requests, {f.seconds:,.1f} s" for f in slowest),
        f"{len(forecasts) - len(slowest):,} other accounts take less",
        *(line for forecast in forecasts for line in deadline_warning(forecast)),
    ]


def deadline_warning(forecast: Forecast) -> list[str]:
    """One line if the account cannot be read before the deadline."""
    hours = ceil(forecast.seconds * 1.5 / 3600)
    hint = f"set it to {hours}h, or the run ends with code 11 and the next one resumes it"
    return [f"warning: {forecast.account} takes longer than extract.deadline: {hint}"] * forecast.exceeds_deadline


def status_totals(accounts: Sequence[AccountStatus]) -> list[str]:
    """The contacts of all accounts together, and the accounts that the last run did not publish."""
    runs = [account.last_run for account in accounts]
    newest = max(run.seq for run in runs)
    behind = sorted((run for run in runs if run.seq < newest), key=lambda run: run.seq)
    shown = [f"{len(runs):,} accounts with {sum(run.contacts for run in runs):,} contacts"]
    shown += [f"not in the last run: {run.account}, last published by run {run.seq}" for run in behind[:SHOWN]]
    if len(behind) > SHOWN:
        shown.append(f"not in the last run: {len(behind) - SHOWN:,} others")
    return shown
