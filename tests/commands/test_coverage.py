"""The time since which every contact is proven, from the published windows, and the attempts that `status` shows."""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from etl.commands.coverage import uncovered
from etl.storage.attempts import attempts_file, read_attempts
from etl.storage.lock import Lock
from tests.support.campaign import campaign
from tests.support.live import TOKEN, Account, Job, Live, live

BEGIN = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """An account of 400 contacts."""
    return Account(tmp_path_factory.mktemp("account"), {"contacts": 400, "nasty_share": 0, "small": True})


def span(start: int, end: int) -> tuple[datetime, datetime]:
    """The range between two hours."""
    return BEGIN + timedelta(hours=start), BEGIN + timedelta(hours=end)


@pytest.mark.parametrize(
    ("read", "left"),
    [
        ([], [(0, 10), (20, 30)]),
        ([(0, 30)], []),
        ([(-5, 5)], [(5, 10), (20, 30)]),
        ([(2, 4), (6, 22)], [(0, 2), (4, 6), (22, 30)]),
        ([(10, 20)], [(0, 10), (20, 30)]),
        ([(9, 40)], [(0, 9)]),
    ],
)
def test_what_is_left_uncovered(read: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    """The ranges that were read are subtracted from two gaps."""
    gaps = [span(0, 10), span(20, 30)]
    assert uncovered(gaps, [span(*one) for one in read]) == [span(*one) for one in left]


@pytest.mark.parametrize("sinks", [("duckdb",), ("parquet",), campaign(("duckdb", "parquet"))])
def test_the_oldest_run_that_is_needed_says_since_when(sinks: tuple[str, ...], server: Live, tmp_path: Path) -> None:
    """`proven_since` is the start of the full run until a scrub round is complete, then the first run of that round."""
    job = Job(tmp_path, {"main": server.url}, settings='[extract]\nscrub_every = "3d"\n', sinks=sinks)
    accounts = []
    for _ in range(6):
        [account] = job.run().accounts
        accounts.append(account)
        server.ahead += 86_400
    began = [account.record.t0 for account in accounts]
    assert accounts[0].proven_since is None
    since = [began.index(account.proven_since) for account in accounts[1:]]
    assert since == sorted(since)
    assert since[:2] == [0, 0]
    assert 1 <= since[-1] <= 3
    for number, first in enumerate(since, 1):
        assert began[number] - began[first] <= timedelta(days=3)


def test_a_new_name_does_not_hide_since_when(server: Live, tmp_path: Path) -> None:
    """The windows of the old name count after a rename."""
    job = Job(tmp_path, {"main": server.url})
    began = job.run().accounts[0].record.t0
    assert job.call("account", "rename", "CONFIG", "main", "other").code == 0
    job.urls = {"other": server.url}
    [account] = job.run().accounts
    assert account.proven_since == began


def test_without_the_windows_of_before_it_is_not_known(job: Job) -> None:
    """If the windows of earlier runs were deleted by hand, `proven_since` is unknown and the run still succeeds."""
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute("delete from etl.windows")
    result = job.run()
    assert (result.exit_code, result.accounts[0].proven_since) == (0, None)


def test_a_failed_run_is_remembered(job: Job) -> None:
    """A failed attempt is recorded with error, options and requests, and without the token or a server message."""
    job.tokens["main"] = "0" * 24
    assert job.call("run", "CONFIG", "--full").code == 10
    ended = job.call("status", "CONFIG", "--json")
    failed, first = ended.document["attempts"]
    assert (first["exit"], first["error"], failed["exit"], failed["error"]["code"]) == (0, None, 10, 10)
    assert failed["options"] == {"full": True, "allow_unproven": False, "allow_shrink": False}
    assert failed["requests"] >= 1
    assert first["requests"] == ended.document["runs"][0]["requests_sent"]
    assert failed["version"]
    text = job.call("status", "CONFIG").out.splitlines()
    assert text[0].startswith("last run: ")
    assert "exit 10" in text[0]
    assert any(line.startswith("hint: ") for line in text)
    written = attempts_file(job.duckdb).read_text()
    assert TOKEN not in written
    assert "0" * 24 not in written


def test_attempts_belong_to_the_first_sink(account: Account, server: Live, tmp_path: Path) -> None:
    """Attempts are recorded next to the first sink only."""
    job = account.job(server, tmp_path, "duckdb", "parquet")
    assert (len(read_attempts(job.duckdb)), read_attempts(job.parquet)) == (1, [])


def test_a_locked_target_is_an_attempt(job: Job) -> None:
    """A run that finds its target locked is recorded as an attempt with exit 30."""
    with Lock(job.duckdb):
        assert job.run().exit_code == 30
    assert [attempt.exit_code for attempt in read_attempts(job.duckdb)] == [0, 30]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_a_signal_stopped_is_an_attempt(number: int, tmp_path: Path) -> None:
    """A run stopped by a signal is recorded with the exit code of the process and its requests."""
    with live(contacts=600, nasty_share=0, small=True, latency=0.1) as server:
        job = Job(tmp_path, {"main": server.url}, settings="[extract]\nconcurrency = 2\n")
        with job.start("run", "CONFIG") as running:
            deadline = time.monotonic() + 30
            while server.stats()["requests"] <= 10 and time.monotonic() < deadline:
                time.sleep(0.01)
            running.send_signal(number)
            running.communicate(timeout=20)
    [attempt] = read_attempts(job.duckdb)
    assert attempt.exit_code == running.returncode == 128 + number
    assert attempt.requests >= 10
    assert attempt.error["code"] == 128 + number


def test_an_attempt_that_cannot_be_recorded_does_not_fail_the_run(job: Job) -> None:
    """A run succeeds if its attempt cannot be recorded."""
    attempts_file(job.duckdb).unlink()
    os.mkfifo(attempts_file(job.duckdb))
    assert job.call("run", "CONFIG").code == 0
    assert job.call("status", "CONFIG").out.startswith("last published run: ")
