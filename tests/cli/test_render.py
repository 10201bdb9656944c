"""Text output: the verdict says which contacts are proven and since when, and `status` fits a terminal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from etl.cli.render import render_findings, render_forecasts, render_run, render_status
from etl.commands.checks import Finding
from etl.commands.result import AccountReport, AccountStatus, Forecast, PublishedRun, RunResult, Status
from etl.errors import SourceUnavailable
from etl.model import Counts, Proof, Requests, RunRecord
from etl.storage.attempts import Attempt

T0 = datetime(2026, 11, 28, 2, 0, tzinfo=UTC)
RECORD = RunRecord(
    seq=9,
    run_id="r",
    account="main",
    mode="incremental",
    t0=T0,
    watermark=T0,
    proof=Proof("windows", 12),
    requests=Requests(30, 0),
    seconds=1.5,
    counts=Counts(received=45, folded=2, contacts=2000),
)
RUN = PublishedRun(
    seq=9,
    run_id="r",
    account="main",
    mode="incremental",
    observed_at=T0,
    watermark=T0,
    seconds=12.0,
    proof_level="windows",
    windows=12,
    unproven=[],
    received=45,
    new=5,
    changed=3,
    unchanged=37,
    deleted=1,
    folded=0,
    rejected=0,
    contacts=2000,
    requests_sent=131,
    requests_retried=0,
    by_windows=1.0,
)
ATTEMPT = Attempt(T0, T0 + timedelta(seconds=12), 0, 131)
ERROR = SourceUnavailable("the server cannot be reached " * 5, where="account main").document()


def verdict(report: AccountReport) -> str:
    """The last line but one of the summary; the last line is the SQL to try."""
    return render_run(RunResult(1.5, (report,))).splitlines()[-2]


def test_an_incremental_run_says_what_it_read_and_since_when_the_rest_is_proven() -> None:
    """Contacts are counted once, and the age of the proof is rounded up."""
    since = T0 - timedelta(days=6, hours=1)
    assert verdict(AccountReport("main", RECORD, proven_since=since)) == (
        "complete: 2,000 contacts; this run read 43 in 12 windows, every other contact was proven within 7 days"
        " (since 2026-11-22T01:00:00Z)"
    )


def test_what_is_not_recorded_is_not_claimed() -> None:
    """Without a known time, the verdict names none."""
    line = verdict(AccountReport("main", RECORD))
    assert line.startswith("complete: 2,000 contacts; this run read 43 in 12 windows")
    assert line.endswith("every other contact was proven by earlier runs")


@pytest.mark.parametrize("record", [replace(RECORD, mode="full"), RECORD])
def test_a_run_that_read_everything_says_so(record: RunRecord) -> None:
    """A run that read everything, full or with a complete scrub, reports all contacts as proven."""
    assert verdict(AccountReport("main", record, proven_since=T0)) == (
        "complete: 2,000 contacts in 12 windows, all proven"
    )


@pytest.mark.parametrize(
    ("ago", "text"),
    [(3, "3.0 s"), (70, "70 s"), (400, "6 min"), (5 * 3600 + 5, "5 h"), (3 * 86_400, "3 days"), (-9, "0.0 s")],
)
def test_the_first_line_of_status_says_whether_the_last_run_worked(ago: float, text: str) -> None:
    """The first line of `status` shows age, exit code, duration and requests of the last run."""
    status = Status(ATTEMPT.finished + timedelta(seconds=ago), runs=(RUN,), attempts=(ATTEMPT,))
    assert render_status(status).splitlines()[0] == f"last run: {text} ago, exit 0, 12 s, 131 requests"


def test_status_shows_a_failure_with_its_hint() -> None:
    """`status` shows the error of the last attempt with its hint, also if nothing was ever published."""
    failed = replace(ATTEMPT, exit_code=11, error=ERROR)
    for runs in ((), (RUN,)):
        text = render_status(Status(T0 + timedelta(hours=5), runs=runs, attempts=(failed, ATTEMPT)))
        assert text.startswith("last run: 4 h ago, exit 11, 12 s, 131 requests\nerror: the server cannot be reached")
        assert "\nhint: Nothing was published; run again" in text
        assert max(map(len, text.splitlines())) <= 80
    assert render_status(Status(T0)) == "no run has published yet"


def test_status_without_attempts_shows_the_last_published_run() -> None:
    """A target written by an earlier version has no attempts, so `status` shows its last published run."""
    text = render_status(Status(T0 + timedelta(hours=5), runs=(RUN,)))
    assert text.startswith("last published run: 5 h ago, 12 s, 131 requests\n")


@pytest.mark.parametrize("account", ["a", "main", "an-account-with-a-very-long-name-indeed-and-even-more-than-that"])
@pytest.mark.parametrize("scale", [1, 1000])
def test_status_fits_80_columns(account: str, scale: int) -> None:
    """Numbers have separators and are right-aligned, and a long name is truncated."""
    run = replace(RUN, account=account, contacts=2000 * scale, new=2000 * scale, proof_level="sequential")
    status = Status(T0, (AccountStatus(run, configured=True),), (run, replace(run, seq=8, new=1)), (ATTEMPT,) * 9)
    lines = render_status(status).splitlines()
    assert max(map(len, lines)) <= 80
    _, _, headings, first, second, *_ = lines
    assert f" {run.new:,} " in first
    assert first.index(f"{run.new:,} ", first.index(f"{run.contacts:,}") + 1) + len(f"{run.new:,}") == (
        second.index(" 1 ") + 2
    )
    assert headings.split() == ["seq", "account", "mode", "age", "contacts", "new", "changed", "deleted", "proof"]


def test_a_plan_that_resumes_says_so() -> None:
    """`plan` reports how many windows an interrupted run has already read."""
    text = render_forecasts([Forecast("main", "full", 40, 60, 3.0, resumes=12)])
    assert text == (
        "main: full run, 40 windows, about 60 requests, 3.0 s; resumes; 12 windows already read; nothing was written"
    )


def test_a_plan_that_exceeds_the_deadline_says_so() -> None:
    """`plan` warns before a run that its deadline is too short, and says how long it should be."""
    slow = Forecast("main", "full", 40, 60, 30_000.0, exceeds_deadline=True)
    _, warning = render_forecasts([slow]).splitlines()
    assert warning.startswith("warning: main takes longer than extract.deadline: set it to 13h")
    assert render_forecasts([slow] * 500).count("warning") == 500


FLEET = tuple(AccountReport(f"a{number:03}", replace(RECORD, account=f"a{number:03}")) for number in range(500))


def test_many_accounts_have_one_summary() -> None:
    """Of 500 accounts, there are the totals, and a line for each that failed or is unproven."""
    unproven = replace(RECORD, proof=Proof("windows", 12, ("a list moved",)))
    failed = AccountReport("a007", error=SourceUnavailable("the server hangs"), requests=Requests(3, 0))
    accounts = (*FLEET[:7], failed, AccountReport("a008", unproven), *FLEET[9:])
    result = RunResult(1.5, accounts, error=failed.error, unconfigured={f"old{n}": n for n in range(300)})
    text = render_run(result)
    assert len(text.splitlines()) < 40
    assert "accounts  499 of 500 published (499 incremental)" in text
    assert "requests  14,973 (0 retried)" in text
    assert "failed    a007: the server hangs (code 11)" in text
    assert "unproven  a008: a list moved" in text
    assert "notice    290 other accounts are not configured either" in text
    assert text.splitlines()[-1] == (
        "complete: 996,000 contacts of 498 accounts, 5,976 windows read; unproven: 1; not published: 1"
    )
    assert len(result.document()["accounts"]) == 500  # type: ignore[arg-type]


def test_an_error_of_all_accounts_has_one_line() -> None:
    """An error that ended the whole run is not repeated for each of 500 accounts, and nothing is called complete."""
    error = SourceUnavailable("the scheduler is lost")
    text = render_run(RunResult(1.5, tuple(replace(account, error=error) for account in FLEET), error=error))
    assert text.count("the scheduler is lost") == 1
    assert "failed    500 accounts: the scheduler is lost (code 11)" in text
    assert text.splitlines()[-1] == "not published: 500"


def test_many_accounts_have_one_forecast_and_one_status() -> None:
    """`plan` shows the totals and the slowest accounts, `status` the totals and the accounts that fell behind."""
    forecasts = [Forecast(f"a{number:03}", "full", 10, 20, float(number)) for number in range(500)]
    first, slowest, *_, last = render_forecasts(forecasts).splitlines()
    assert first == "500 accounts (500 full): 5,000 windows, about 10,000 requests; nothing was written"
    assert (slowest, last) == ("a499: full run, about 20 requests, 499.0 s", "490 other accounts take less")
    runs = [replace(RUN, account=f"a{number:03}", seq=8 if number < 30 else 9) for number in range(500)]
    status = Status(T0, tuple(AccountStatus(run, configured=True) for run in runs), tuple(runs[-20:]))
    shown = render_status(status).splitlines()
    assert len(shown) < 50
    assert "500 accounts with 1,000,000 contacts" in shown
    assert shown[-2:] == ["not in the last run: a009, last published by run 8", "not in the last run: 20 others"]


def test_many_findings_that_are_alike_are_counted() -> None:
    """`doctor` shows every failure, and of the checks in order a few of each kind."""
    findings = [Finding("server", f"https://{number}", "answers") for number in range(500)]
    findings[400] = Finding("server", "https://400", "hangs", "Wait.", 11)
    shown = render_findings(findings).splitlines()
    assert shown[-3:] == ["FAIL server   https://400: hangs", "     hint: Wait.", "ok   server   483 others"]
    assert len(shown) == 19


def test_the_sql_to_try_names_the_configuration() -> None:
    """The suggested SQL command names the configuration as the command line did."""
    report = AccountReport("main", RECORD)
    assert 'etl sql etl.toml "select' in render_run(RunResult(1.5, (report,)), Path("etl.toml"))
    assert 'etl sql "select' in render_run(RunResult(1.5, (report,)))
