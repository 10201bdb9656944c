"""Runs next to other processes: the bound on requests, readers, a second run, signals, a closed pipe."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from tests.support.live import Job, Live, live

SLOW = {"contacts": 600, "nasty_share": 0.0, "small": True, "latency": 0.1}


@pytest.fixture
def slow() -> Iterator[Live]:
    """A slow server, so that tests can act during a run."""
    with live(**SLOW) as server:
        yield server


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@pytest.mark.parametrize("concurrency", [1, 5, 16])
def test_requests_in_flight_never_exceed_the_bound(concurrency: int, tmp_path: Path) -> None:
    """The server never counts more requests in flight than the bound, and the bound is used."""
    with live(contacts=1500, nasty_share=0, small=True, latency=0.02, page_size=20) as server:
        job = Job(
            tmp_path, {"main": server.url}, settings=f"[extract]\nconcurrency = {concurrency}\n", sinks=("duckdb",)
        )
        assert job.run().exit_code == 0
        assert concurrency * 0.6 < server.stats()["max_in_flight"] <= concurrency


def test_the_bound_is_per_account(tmp_path: Path) -> None:
    """Two accounts that run in parallel on one server use at most twice the bound."""
    with live(contacts=1500, nasty_share=0, small=True, latency=0.02, page_size=20) as server:
        job = Job(
            tmp_path, {"a": server.url, "b": server.url}, settings="[extract]\nconcurrency = 4\n", sinks=("duckdb",)
        )
        assert job.run().exit_code == 0
        assert 4 < server.stats()["max_in_flight"] <= 8


READER = """
import sys, time
import duckdb
with duckdb.connect(sys.argv[1], read_only=True) as connection:
    count = lambda: connection.sql("select count(*), max(seq), (select max(seq) from runs) from contacts").fetchall()[0]
    print(*count(), flush=True)
    sys.stdin.readline()
    print(*count(), flush=True)
"""


def test_a_reader_neither_blocks_a_run_nor_sees_half_of_it(tmp_path: Path) -> None:
    """S1: an open reader keeps the old state; a reader that opens the file later sees the complete new state."""
    with live(contacts=300, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        assert job.run().exit_code == 0
        reading = [sys.executable, "-c", READER, str(job.duckdb)]
        with subprocess.Popen(  # noqa: S603
            reading, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout.readline().split() == ["300", "1", "1"]
            server.change(lambda w, now: [w.insert(now) for _ in range(50)])
            assert job.run().exit_code == 0
            out, _ = reader.communicate("\n", timeout=20)
        assert out.split() == ["300", "1", "1"]
    assert job.rows("select count(*), max(seq), (select max(seq) from runs) from contacts") == [(350, 2, 2)]


def test_everyone_who_looks_during_a_run_sees_the_old_or_the_new_state(tmp_path: Path) -> None:
    """S12: contacts, history and runs always show the same state."""
    with live(contacts=300, nasty_share=0, small=True, inserts=30.0, latency=0.005) as server:
        job = Job(tmp_path, {"main": server.url})
        assert job.run().exit_code == 0
        with job.start("run", "CONFIG") as running:
            looks = set()
            while running.poll() is None:
                looks |= set(job.rows(
                    "select (select count(*) from contacts) = (select contacts from runs order by seq desc limit 1),"
                    "(select max(seq) from contact_versions) <= (select max(seq) from runs), max(seq) from runs"
                ))  # fmt: skip
                newest = max(int(path.stem) for path in (job.parquet / "manifests").glob("*.json"))
                assert list((job.parquet / "current" / f"seq={newest:08d}").glob("*.parquet"))
            running.communicate()
        assert running.returncode == 0
        assert {(True, True)} == {(same, ordered) for same, ordered, _ in looks}


def test_a_second_run_on_the_same_target_exits_30_at_once(slow: Live, tmp_path: Path) -> None:
    """P16: the second run exits in less than a second, sends no request and does not disturb the first."""
    job = Job(tmp_path, {"main": slow.url}, settings="[extract]\nconcurrency = 2\n", sinks=("duckdb",))
    with job.start("run", "CONFIG", "--json") as first:
        eventually(lambda: slow.stats()["requests"] > 10)
        second = job.run().document()
        assert (second["exit"], second["error"]["code"]) == (30, 30)
        assert second["seconds"] < 1
        out, _ = first.communicate(timeout=60)
    assert first.returncode == 0
    assert json.loads(out)["accounts"][0]["requests"]["sent"] == slow.stats()["requests"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_in_order(number: int, code: int, slow: Live, tmp_path: Path) -> None:
    """P1: a signal ends a run within 5 s with an unchanged target and no traceback, and the next run recovers."""
    job = Job(tmp_path, {"main": slow.url}, settings="[extract]\nconcurrency = 2\n")
    with job.start("run", "CONFIG", "--json") as running:
        eventually(lambda: slow.stats()["requests"] > 25)
        running.send_signal(number)
        started = time.monotonic()
        out, err = running.communicate(timeout=10)
    assert time.monotonic() - started < 5
    assert running.returncode == code, err.decode()
    assert b"Traceback" not in err
    assert json.loads(out)["exit"] == code
    assert not job.duckdb.exists()
    assert not job.parquet.exists()
    job.settings = ""
    assert job.run().exit_code == 0
    assert {row["contact_id"] for row in job.in_duckdb()} == set(slow.ids())
    assert {path.suffix for path in job.temporary.iterdir()} == {".lock", ".jsonl"}


@pytest.mark.parametrize("after", [0.1, 0.3, 0.5])
def test_a_kill_leaves_the_old_state_or_the_new(after: float, tmp_path: Path) -> None:
    """P4: after SIGKILL at any moment, the next run needs no manual repair and exports the correct data."""
    with live(contacts=300, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url})
        assert job.run().exit_code == 0
        before = job.fingerprint()
        server.change(lambda w, now: [w.insert(now) for _ in range(20)])
        with job.start("run", "CONFIG") as running:
            requests = server.stats()["requests"]
            eventually(lambda: server.stats()["requests"] > requests)
            time.sleep(after)
            running.kill()
            running.communicate()
        published = job.rows("select max(seq), (select count(*) from contacts) from runs")
        assert published in ([(1, 300)], [(2, 320)])
        if published == [(1, 300)]:
            assert job.fingerprint()[str(job.duckdb)] == before[str(job.duckdb)]
        assert job.run().exit_code == 0
        assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids())
        newest = max(int(path.stem) for path in (job.parquet / "manifests").glob("*.json"))
        assert {row["contact_id"] for row in job.in_parquet(newest)} == set(server.ids())


def test_a_closed_pipe_does_not_harm_the_run(tmp_path: Path) -> None:
    """P21: if the reader of our output is gone, the data are published and the exit code is right."""
    with live(contacts=100, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        with job.start("run", "CONFIG", "--json") as running:
            running.stdout.close()
            err = running.stderr.read()
        assert running.returncode == 0, err
    assert job.rows("select count(*) from contacts") == [(100,)]


def test_leftovers_of_killed_runs_are_collected(tmp_path: Path) -> None:
    """P27: the next run removes leftovers of killed runs and nothing else."""
    with live(contacts=50, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url})
        job.temporary.mkdir(parents=True)
        for number in range(20):
            (job.temporary / f"contacts.duckdb.next-{number:08x}" / "spill").mkdir(parents=True)
            (job.temporary / f"contacts.duckdb.next-{number:08x}" / "contacts.duckdb").write_bytes(b"cut")
        for account in ("main", "gone"):
            (job.temporary / "contacts.duckdb.stage" / account).mkdir(parents=True)
            (job.temporary / "contacts.duckdb.stage" / account / "part-000001.parquet").write_bytes(b"cut")
        (job.temporary / "notes.txt").write_text("mine")
        assert job.run().exit_code == 0
    assert {path.name for path in job.temporary.iterdir()} == {
        *("contacts.duckdb.lock", "contacts.lock", "contacts.duckdb.attempts.jsonl", "notes.txt")
    }


def test_the_database_can_be_attached_while_its_reader_holds_it(tmp_path: Path) -> None:
    """S1: a reader in the same process neither blocks a run nor is disturbed by it."""
    with live(contacts=100, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        assert job.run().exit_code == 0
        with duckdb.connect(str(job.duckdb), read_only=True) as held:
            assert job.run().exit_code == 0
            assert held.sql("select max(seq) from runs").fetchall() == [(1,)]


def test_hash_seeds_zones_and_locales_do_not_matter(tmp_path: Path) -> None:
    """P20, P29: the rows are the same under another hash seed, time zone and locale."""
    with live(contacts=120, nasty_share=0.3, seed=4, small=True) as server:
        odd = {"PYTHONHASHSEED": "1", "TZ": "Asia/Kolkata", "LC_ALL": "C", "LANG": "tr_TR.UTF-8", "PYTHONUTF8": "0"}
        jobs = [
            Job(tmp_path / name, {"main": server.url}, settings="[guard]\nmax_reject_share = 1\n", sinks=("duckdb",))
            for name in "ab"
        ]
        for job, environment in zip(jobs, ({}, odd), strict=True):
            job.folder.mkdir()
            assert job.command("run", "CONFIG", **environment).code == 40
    one, other = ({row.pop("contact_id"): {**row, "observed_at": None} for row in job.in_duckdb()} for job in jobs)
    assert one == other


def test_the_process_needs_no_home_and_no_terminal(tmp_path: Path) -> None:
    """A run without home and terminal, as in a cron job, succeeds and writes only the target."""
    with live(contacts=20, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        before = set(tmp_path.iterdir())
        ended = job.command("run", "CONFIG", HOME="/nonexistent", TERM="dumb")
        assert ended.code == 0, ended.err
        assert set(tmp_path.iterdir()) - before == {tmp_path / "data", tmp_path / "job.toml"}
