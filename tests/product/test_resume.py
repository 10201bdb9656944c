"""Runs after a killed run: they resume from the windows it read, keep its T0, and lose nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from etl.errors import SourceUnavailable
from etl.extract.checkpoint_file import NAME, TOO_OLD
from tests.support.campaign import campaign
from tests.support.live import Job, Live, Row, live

CONTACTS = 6_000
CALM = "[extract]\nconcurrency = 4\n"
"""Requests in flight when a process ends are repeated; low concurrency keeps them few."""


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """An account of some hundred requests, slow enough to end a process in the middle."""
    with live(contacts=CONTACTS, nasty_share=0.01, small=True, latency=0.01) as running:
        yield running


def sent(server: Live) -> int:
    """Requests that the server has seen."""
    return int(server.stats()["requests"])


def ended(job: Job, server: Live, after: int, number: signal.Signals) -> int:
    """Start a run, end it with a signal when the server has seen `after` requests; its exit code."""
    before = sent(server)
    with job.start("run", "CONFIG") as process:
        while sent(server) - before < after and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, number)
        process.communicate(timeout=10)
    return process.returncode


def account(job: Job, *words: str) -> tuple[Row, int]:
    """Run to the end: the account's document, and the windows of the killed run that were resumed."""
    found = job.call("run", "CONFIG", "--json", *words)
    assert found.code in (0, 40), found.err
    resumed = job.rows("select (detail->>'resumed')::int from runs order by seq desc limit 1")[0][0]
    return found.document["accounts"][0], resumed


@pytest.fixture(scope="module")
def whole(server: Live, tmp_path_factory: pytest.TempPathFactory) -> Row:
    """A clean run of the same account."""
    found, resumed = account(Job(tmp_path_factory.mktemp("clean"), {"main": server.url}, settings=CALM))
    assert resumed == 0
    return found


@pytest.fixture(scope="module")
def killed(server: Live, whole: Row, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose first run was killed at 80 percent, to be copied."""
    job = Job(tmp_path_factory.mktemp("killed"), {"main": server.url}, settings=CALM, sinks=("duckdb",))
    ended(job, server, int(whole["requests"]["sent"] * 0.8), signal.SIGKILL)
    return job


def test_a_plan_knows_what_a_killed_run_left(
    tmp_path_factory: pytest.TempPathFactory, server: Live, whole: Row
) -> None:
    """P4: a plan counts the windows of a killed run, does not plan them again, and leaves them untouched."""
    job = Job(tmp_path_factory.mktemp("planned"), {"main": server.url}, settings=CALM, sinks=("duckdb",))
    [clean] = job.call("plan", "CONFIG", "--json").document["accounts"]
    assert clean["resumes"] == 0
    ended(job, server, int(whole["requests"]["sent"] * 0.9), signal.SIGKILL)
    left = {path: path.read_bytes() for path in job.temporary.rglob("*") if path.is_file()}
    [planned] = job.call("plan", "CONFIG", "--json").document["accounts"]
    text = job.call("plan", "CONFIG").out
    assert {path: path.read_bytes() for path in job.temporary.rglob("*") if path.is_file()} == left
    [again] = job.call("plan", "CONFIG", "--full", "--json").document["accounts"]
    assert again["resumes"] == 0
    found, resumed = account(job)
    assert (planned["resumes"], planned["mode"]) == (resumed, found["mode"])
    assert f"resumes; {resumed:,} windows already read" in text
    assert planned["windows"] < clean["windows"] / 2
    assert planned["requests"] < clean["requests"] / 2
    assert found["requests"]["sent"] / 3 < planned["requests"] < found["requests"]["sent"] * 3


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), campaign(signal.SIGINT, 130)],
    ids=lambda value: str(int(value)),
)
def test_a_run_killed_at_90_percent_is_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, server: Live, whole: Row, number: signal.Signals, code: int
) -> None:
    """P1, P4: a killed run and its resumption repeat little of a clean run, and have its contacts and the first T0."""
    job = Job(tmp_path_factory.mktemp("killed"), {"main": server.url}, settings=CALM)
    begun, before = server.clock(), sent(server)
    assert ended(job, server, int(whole["requests"]["sent"] * 0.9), number) == code
    assert not job.duckdb.exists()
    later = server.clock()
    found, resumed = account(job)
    assert resumed > 40
    assert sent(server) - before <= 1.1 * whole["requests"]["sent"], (found["requests"], whole["requests"])
    assert begun - 1 <= datetime.fromisoformat(found["t0"]).timestamp() < later
    assert {name: found["counts"][name] for name in ("new", "contacts", "rejected")} == {
        name: whole["counts"][name] for name in ("new", "contacts", "rejected")
    }
    in_duckdb = {row["contact_id"]: row["row_hash"] for row in job.in_duckdb()}
    assert in_duckdb == {row["contact_id"]: row["row_hash"] for row in job.in_parquet(1)}
    left = sorted(path.name for path in job.temporary.iterdir())
    assert left == ["contacts.duckdb.attempts.jsonl", "contacts.duckdb.lock", "contacts.lock"]


def test_a_run_killed_again_and_again_comes_to_its_end(
    tmp_path_factory: pytest.TempPathFactory, server: Live, whole: Row
) -> None:
    """P5: every killed process adds its share, so a run that is killed repeatedly still completes."""
    job = Job(tmp_path_factory.mktemp("again"), {"main": server.url}, settings=CALM, sinks=("duckdb",))
    for share in (0.8, 0.08, 0.06, 0.02):
        ended(job, server, int(whole["requests"]["sent"] * share), signal.SIGKILL)
    found, resumed = account(job)
    assert resumed > 40
    assert found["counts"]["contacts"] == whole["counts"]["contacts"]
    assert found["requests"]["sent"] < 0.35 * whole["requests"]["sent"]


def _begun(job: Job, change: Callable[[Row], Row]) -> None:
    """Change the journal's first line, and recompute all checksums to match."""
    path, chain = next(job.temporary.rglob(NAME)), b""
    first, *rest = [{**json.loads(line)} for line in path.read_bytes().splitlines()]
    text = b""
    for line in (change(first), *rest):
        told = json.dumps({key: value for key, value in line.items() if key != "chain"}).encode()[:-1]
        chain = hashlib.sha256(chain + told).digest()
        text += told + b',"chain":"' + chain.hex().encode() + b'"}\n'
    path.write_bytes(text)


def _aged(job: Job) -> None:
    _begun(job, lambda began: {**began, "at": began["at"] - TOO_OLD.total_seconds() - 60})


def _rebooted(job: Job) -> None:
    _begun(job, lambda began: {**began, "boot": "another"})


def _edited(job: Job) -> None:
    for path in job.temporary.rglob("pages-*.jsonl"):
        path.write_bytes(path.read_bytes().replace(b"@example.", b"@foreign."))


def _without_first_line(job: Job) -> None:
    path = next(job.temporary.rglob(NAME))
    path.write_bytes(path.read_bytes()[100:])


def _without_a_page(job: Job) -> None:
    for path in job.temporary.rglob("pages-*.jsonl"):
        path.unlink()


def _reconfigured(job: Job) -> None:
    job.settings += 'visibility_lag = "3s"\n'


def test_a_lost_file_of_the_cross_check_is_noticed(server: Live, whole: Row, tmp_path: Path) -> None:
    """P27: without the contacts that a page scan saw, everything is read from the beginning."""
    settings = CALM + 'first_run = "windows"\n'
    job = Job(tmp_path, {"main": server.url}, settings=settings, sinks=("duckdb",))
    ended(job, server, int(whole["requests"]["sent"] * 1.4), signal.SIGKILL)
    [*seen] = job.temporary.rglob("cross-check-*.parquet")
    assert seen
    for path in seen:
        path.unlink()
    found, resumed = account(job)
    assert resumed == 0
    assert found["counts"]["contacts"] == whole["counts"]["contacts"]


@pytest.mark.parametrize("spoil", [_aged, _rebooted, _without_first_line, _without_a_page, _reconfigured, _edited])
def test_what_does_not_fit_any_more_is_thrown_away(
    killed: Job, whole: Row, spoil: Callable[[Job], None], tmp_path: Path
) -> None:
    """P27, P25: leftovers that are too old, damaged, or from another boot or configuration are discarded."""
    job = killed.copy(tmp_path)
    spoil(job)
    found, resumed = account(job)
    assert resumed == 0
    assert not job.rows("select 1 from contacts where email like '%@foreign.%'")
    assert found["counts"]["contacts"] == whole["counts"]["contacts"]
    left = sorted(path.name for path in job.temporary.iterdir())
    assert left == ["contacts.duckdb.attempts.jsonl", "contacts.duckdb.lock"]


def test_what_is_only_written_anew_is_gone_on_with(killed: Job, whole: Row, tmp_path: Path) -> None:
    """Control: recomputed checksums alone spoil no journal; those above are refused for their changes."""
    job = killed.copy(tmp_path)
    _begun(job, lambda began: began)
    found, resumed = account(job)
    assert resumed > 40
    assert found["counts"]["contacts"] == whole["counts"]["contacts"]


def test_a_torn_last_line_costs_that_line_alone(server: Live, killed: Job, whole: Row, tmp_path: Path) -> None:
    """P11: a kill in the middle of a write costs only the line that was being written."""
    job = killed.copy(tmp_path)
    journal = next(job.temporary.rglob(NAME))
    journal.write_bytes(journal.read_bytes()[:-7])
    ended(job, server, int(whole["requests"]["sent"] * 0.1), signal.SIGKILL)
    found, resumed = account(job)
    assert resumed > 40
    assert found["requests"]["sent"] <= 0.3 * whole["requests"]["sent"]
    assert found["counts"]["contacts"] == whole["counts"]["contacts"]


def test_an_incremental_run_is_gone_on_with_as_well(tmp_path_factory: pytest.TempPathFactory) -> None:
    """M1, M3: changes between a killed run and the next one are in the sweep of the resumed run."""
    with live(contacts=600, nasty_share=0, small=True, latency=0.05) as server:
        job = Job(tmp_path_factory.mktemp("incremental"), {"main": server.url}, settings=CALM, sinks=("duckdb",))
        account(job)
        touched = server.ids()
        for identity in touched[:200]:
            server.change(lambda w, now, identity=identity: w.touch(identity, now))
        ended(job, server, 25, signal.SIGKILL)
        for identity in touched[200:300]:
            server.change(lambda w, now, identity=identity: w.touch(identity, now))
        fresh = server.change(lambda w, now: w.insert(now))
        found, resumed = account(job)
        assert (found["mode"], resumed > 0) == ("incremental", True)
        truth = {identity: json.loads(raw)["lastSeenAt"] for identity, raw in server.truth().items()}
        seen = job.rows("select contact_id, last_seen_at from contacts")
        assert {key: at.timestamp() for key, at in seen} == {
            key: datetime.fromisoformat(at).timestamp() for key, at in truth.items()
        }
        assert fresh in truth


# --- killed during the page scan --------------------------------------------------------------------------------------

MANY = 16_000
"""Contacts enough for a page scan longer than the chunk of the cross-check log that SIGKILL may cost."""


def witnessed(job: Job) -> int:
    """The requests that the last run spent on its cross-check."""
    return job.rows("select (detail->'requests'->>'witness')::int from runs order by seq desc limit 1")[0][0]


@pytest.mark.parametrize(
    ("number", "left"), [(signal.SIGKILL, 190), campaign(signal.SIGTERM, 100)], ids=lambda value: str(int(value))
)
def test_a_walk_that_was_killed_is_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, number: signal.Signals, left: int
) -> None:
    """P1, P4, M1: contacts without a creation time, one in three, are all read, although many moved up in between."""
    job = Job(tmp_path_factory.mktemp("walk"), {"main": ""}, settings=CALM, sinks=("duckdb",))
    with live(contacts=MANY, nasty_share=0, no_created_at_share=0.33, small=True, latency=0.01) as server:
        job.urls = {"main": server.url}
        ended(job, server, 300, number)
        assert list(job.temporary.rglob("cross-check-*.parquet"))
        gone = server.ids()[-4000::400]
        for identity in gone:
            server.change(lambda w, now, identity=identity: w.delete(identity, now))
        found, resumed = account(job)
        seen = {row["contact_id"] for row in job.in_duckdb()}
        assert set(server.ids()) <= seen <= {*server.ids(), *gone}
        assert (resumed, found["counts"]["rejected"]) == (0, 0)
        # The killed run read at least 250 of 320 pages, and whole chunks of them or all are saved. The second scan
        # reads all pages and finds no further contact.
        assert witnessed(job) <= left + 330


@pytest.mark.campaign
def test_a_server_that_fails_in_three_of_ten_is_read_run_by_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """N5, N17, P5: no retry budget suffices for that rate, but every run adds its share until one completes."""
    settings = {"contacts": 4_000, "nasty_share": 0.01, "no_created_at_share": 0.01, "small": True}
    with live(**settings) as server:
        job = Job(tmp_path_factory.mktemp("clean"), {"main": server.url}, settings=CALM, sinks=("duckdb",))
        clean = account(job)[0]
    with live(**settings, faults=({"kind": "status", "status": 500, "rate": 0.3},)) as server:
        job = Job(tmp_path_factory.mktemp("failing"), {"main": server.url}, settings=CALM, sinks=("duckdb",))
        for _ in range(25):
            report = job.run()
            spent = report.accounts[0].record or report.accounts[0]
            assert spent.requests.retried <= 10 + 0.1 * spent.requests.sent
            if report.error is None:
                break
            assert isinstance(report.error, SourceUnavailable), report.error
        assert report.exit_code in (0, 40)
        assert report.accounts[0].record.counts.contacts == clean["counts"]["contacts"]
        assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids())
        # Measured: 1.05 to 1.22. Starting over in each of some ten runs would cost several times as much.
        assert server.stats()["by_status"]["200"] <= 1.5 * clean["requests"]["sent"]
