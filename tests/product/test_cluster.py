"""Accounts read on a Dask cluster: a real scheduler and real workers, some of which die, stop, or come back."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from etl.config import load
from etl.errors import SourceUnavailable
from etl.fleet.cluster import cluster as joined
from etl.fleet.task import Task
from tests.support.campaign import campaign
from tests.support.certificates import OPENSSL, Authority
from tests.support.cluster import LocalCluster, continued, local_cluster, stopped
from tests.support.cluster_accounts import CALM, Accounts, content, interrupted, run, told
from tests.support.live import Job, live

# --- the same as one process ------------------------------------------------------------------------------------------

CHURN = {"inserts": 4.0, "touches": 8.0, "edits": 4.0, "deletes": 1.0}
"""Events a second, of every account."""


@pytest.mark.parametrize("count", [6, campaign(30)])
def test_a_cluster_and_one_process_give_the_same(tmp_path: Path, count: int) -> None:
    """Accounts that change are read in full; they are frozen for the incremental run, and its targets are compared."""
    with Accounts.served(count, contacts=120, small=True, **CHURN) as accounts:
        alone, together = accounts.job(tmp_path / "alone"), accounts.job(tmp_path / "together")
        with local_cluster(tmp_path / "cluster", together.environment()) as cluster:
            codes = {run(together, cluster).code, alone.command("run", "CONFIG").code}
            accounts.freeze()
            # Contacts that were deleted meanwhile have a strike each after the first of these, and are gone after two.
            for _ in range(3):
                codes |= {run(together, cluster, "--full").code, alone.command("run", "CONFIG", "--full").code}
            ended = run(together, cluster)
            codes |= {ended.code, alone.command("run", "CONFIG").code}
        assert codes <= {0, 40}
        assert {account["mode"] for account in ended.document["accounts"]} == {"incremental"}
        assert content(together) == content(alone)
        truth = accounts.truth()
    rejected = alone.rows("select count(*) from rejects where contact_id is not null")[0][0]
    missing = truth - {(row["account"], row["contact_id"]) for row in content(together)}
    assert len(missing) <= rejected
    assert not list(together.temporary.glob("*.stage")), "nothing is left"


# --- one lease a token ------------------------------------------------------------------------------------------------


def test_a_token_has_one_client_over_all_workers(tmp_path: Path) -> None:
    """Two configurations and four accounts with one token: the server never sees more requests than one client's."""
    with live(contacts=400, small=True, nasty_share=0, latency=0.02) as server:
        jobs = [
            Job(tmp_path / name, {f"{name}{n}": server.url for n in (1, 2)}, settings=CALM, sinks=("duckdb",))
            for name in ("x", "y")
        ]
        environment = jobs[0].environment() | jobs[1].environment()
        for job in jobs:
            job.folder.mkdir()
        with local_cluster(tmp_path / "cluster", environment, workers=2, threads=2) as cluster:
            words = ("run", "CONFIG", "--cluster", cluster.address, "--json")
            with jobs[0].start(*words) as one, jobs[1].start(*words) as other:
                assert [process.communicate(timeout=60) and process.returncode for process in (one, other)] == [0, 0]
        assert server.stats()["max_in_flight"] <= 4


# --- what dies --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accounts() -> Iterator[Accounts]:
    """Two accounts of some 250 requests, slow enough to kill a worker in the middle."""
    with Accounts.served(2, contacts=4000, small=True, nasty_share=0, latency=0.02) as served:
        yield served


@pytest.fixture
def cluster(accounts: Accounts, tmp_path: Path) -> Iterator[LocalCluster]:
    """Two workers."""
    environment = accounts.job(tmp_path / "job").environment()
    with local_cluster(tmp_path / "cluster", environment) as running:
        yield running


@pytest.fixture(scope="module")
def needed(accounts: Accounts, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The requests of an undisturbed run."""
    before = accounts.sent()
    assert accounts.job(tmp_path_factory.mktemp("whole")).command("run", "CONFIG").code == 0
    return accounts.sent() - before


FIXED = 30
"""Requests that every attempt repeats, whatever has been read: its probe, and those in flight."""


@pytest.mark.parametrize("what", ["killed", *map(campaign, ("stopped", "back"))])
def test_a_worker_that_dies_costs_little(
    accounts: Accounts, cluster: LocalCluster, needed: int, tmp_path: Path, what: str
) -> None:
    """P1: killed, stopped, or stopped and back when another one has taken its place: nothing lost, little repeated."""
    job, before = accounts.job(tmp_path / "job"), accounts.sent()
    victim = cluster.workers[0]

    def happen(_: subprocess.Popen[bytes]) -> None:
        if what == "killed":
            victim.kill()
        else:
            stopped(victim)
        if what == "back":
            threading.Timer(10, continued, [victim]).start()

    ended = interrupted(job, cluster, accounts, needed // 2, happen)
    assert ended.code == 0, ended.err
    if what == "back":
        victim.wait(30)
    assert {(row["account"], row["contact_id"]) for row in job.in_duckdb()} == accounts.truth()
    assert accounts.sent() - before <= 1.05 * needed + FIXED
    assert not list(job.temporary.glob("*.stage"))


def test_an_account_whose_workers_die_fails_alone(accounts: Accounts, tmp_path: Path) -> None:
    """It may be what kills them: the others are published, and the next run resumes it."""
    job = accounts.job(tmp_path / "job")
    environment = job.environment() | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with local_cluster(tmp_path / "cluster", environment) as cluster:
        ended = interrupted(job, cluster, accounts, 100, lambda _: cluster.workers[0].kill())
        assert ended.code == 11
        assert "1 workers died while they read it" in ended.err
        assert sorted(account["seq"] or 0 for account in ended.document["accounts"]) == [0, 1]
        assert run(job, cluster).code == 0
    assert {(row["account"], row["contact_id"]) for row in job.in_duckdb()} == accounts.truth()


@pytest.mark.parametrize("number", [signal.SIGKILL, campaign(signal.SIGTERM)])
def test_what_workers_finish_without_a_coordinator_is_taken_over(
    accounts: Accounts, cluster: LocalCluster, needed: int, tmp_path: Path, number: signal.Signals
) -> None:
    """P4: the next run sends no request for an account that was read completely, although nobody received it."""
    job, before = accounts.job(tmp_path / "job"), accounts.sent()
    began = time.monotonic()
    ended = interrupted(job, cluster, accounts, needed // 2, lambda process: process.send_signal(number))
    assert ended.code == (143 if number == signal.SIGTERM else -number)
    assert time.monotonic() - began < 30
    deadline = time.monotonic() + 30
    while len(list(job.temporary.glob("*.stage/*/attempt-*/result"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    read = accounts.sent()
    # The samples of the order differ from run to run.
    assert read - before <= 1.05 * needed
    ended = run(job, cluster)
    assert (ended.code, accounts.sent() - read) == (0, 0)
    assert {(row["account"], row["contact_id"]) for row in job.in_duckdb()} == accounts.truth()


def test_one_process_takes_over_what_a_cluster_has_read(
    accounts: Accounts, cluster: LocalCluster, needed: int, tmp_path: Path
) -> None:
    """P4: after a lost scheduler (exit 11), a run without it resumes, and a plan knows that it will."""
    job = accounts.job(tmp_path / "job")
    ended = interrupted(
        job, cluster, accounts, needed * 3 // 4, lambda _: cluster.scheduler and cluster.scheduler.kill()
    )
    assert ended.code == 11
    assert ended.document["error"]["message"] == "the scheduler was lost"
    assert len(told(ended.err)) == 1, "no traceback of the library"
    # One of the two may have been published before, if its worker was that much faster.
    published = {account["account"] for account in ended.document["accounts"] if account["seq"]}
    planned = job.call("plan", "CONFIG", "--json").document["accounts"]
    assert {account["account"] for account in planned if account["resumes"]} == accounts.servers.keys() - published
    assert len(published) < 2
    assert job.command("run", "CONFIG").code == 0
    assert {(row["account"], row["contact_id"]) for row in job.in_duckdb()} == accounts.truth()


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_cluster_without_workers_is_an_error(
    accounts: Accounts, needed: int, tmp_path: Path, workers: int
) -> None:
    """A run does not wait for ever: 11 for every account, with a hint. It does wait for a worker that works."""
    job = accounts.job(tmp_path / "job")
    config = load(job.config())
    one = config.model_copy(update={"accounts": config.accounts[:1]})
    task = Task("a00", one, "duckdb", tmp_path / "stage" / "a00", False, 1, "0123abcd")
    with local_cluster(tmp_path / "cluster", job.environment(), workers=workers) as cluster:
        async with joined(cluster.address, config, "0123abcd", patience=2 - 1.9 * workers) as fleet:
            if workers:
                await fleet.client.wait_for_workers(1)
                await anyio.sleep(3)
                assert (await fleet.reader(task).read()).record.requests.sent > needed / 4
            else:
                with pytest.raises(SourceUnavailable, match=r"no worker \(account a00\)\. Start workers"):
                    await fleet.reader(task).read()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_those_of_one_process(accounts: Accounts, cluster: LocalCluster, tmp_path: Path) -> None:
    """A token that is refused, and one that is missing: the others are published, and code and text are the same."""
    job = accounts.job(tmp_path / "job")
    name = next(iter(accounts.servers))
    job.urls = {**job.urls, "bad": accounts.servers[name].url}
    job.tokens = {**job.tokens, "bad": "f" * 24}
    with local_cluster(tmp_path / "other", job.environment()) as other:
        far = run(job, other)
    near = job.command("run", "CONFIG", "--json")
    assert (far.code, near.code) == (10, 10)
    assert far.document["error"] == near.document["error"]
    unset = run(job, cluster)
    assert unset.document["error"]["code"] == 2, "the workers of this cluster do not have the variable"
    assert "TOKEN_BAD" in unset.document["error"]["message"]
    assert [account["mode"] for account in unset.document["accounts"]] == ["incremental", "incremental", None]


def test_a_worker_that_does_not_share_the_storage_is_an_error(
    accounts: Accounts, cluster: LocalCluster, tmp_path: Path
) -> None:
    """It reads nothing: what it read could not be published."""
    job, before = accounts.job(tmp_path / "job"), accounts.sent()
    program = f"""
import etl
from etl.fleet import cluster
cluster.RUN = "elsewhere"
print(etl.run(etl.load_config({str(job.config())!r}), cluster={cluster.address!r}).error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert "a worker does not see the stage of this run" in found.stdout
    assert "Mount the folder" in found.stdout
    assert accounts.sent() == before


REFUSED = {
    "nobody there": (("--cluster", "tcp://127.0.0.1:9"), 11, "the scheduler does not answer (--cluster tcp://127"),
    "no address": (("--cluster", "udp://x"), 2, "--cluster udp://x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_cluster_that_cannot_be_joined_is_one_line(accounts: Accounts, tmp_path: Path, case: str) -> None:
    """Within seconds, and nothing is created."""
    words, code, said = REFUSED[case]
    job, began = accounts.job(tmp_path / "job"), time.monotonic()
    ended = job.command("run", "CONFIG", *words)
    assert (ended.code, len(told(ended.err))) == (code, 1), ended.err
    assert said in ended.err
    assert time.monotonic() - began < 20
    assert not (job.folder / "data").exists()


def test_the_embedded_sandbox_is_not_on_a_cluster(tmp_path: Path) -> None:
    """No worker could reach it (2)."""
    job = Job(tmp_path, {}, settings="[sandbox]\ncontacts = 5\n", sinks=("duckdb",))
    ended = job.command("run", "CONFIG", "--cluster", "tcp://127.0.0.1:9")
    assert (ended.code, len(told(ended.err))) == (2, 1)
    assert "a cluster cannot read the embedded sandbox (account sandbox)" in ended.err


WITHOUT = """
import sys
sys.modules["distributed"] = None
from etl.cli.app import main
main()
"""


def test_the_missing_extra_is_one_line(accounts: Accounts, tmp_path: Path) -> None:
    """It names the extra (2); without the flag, a run does not need it."""
    job = accounts.job(tmp_path / "job")
    command = [sys.executable, "-c", WITHOUT, "run", str(job.config())]
    found = subprocess.run(  # noqa: S603 - our own program
        [*command, "--cluster", "tcp://127.0.0.1:9"], capture_output=True, text=True, check=False, env=job.environment()
    )
    assert (found.returncode, len(told(found.stderr))) == (2, 1), found.stderr
    assert "pip install 'etl[scale]'" in found.stderr
    assert subprocess.run(command, capture_output=True, check=False, env=job.environment()).returncode == 0  # noqa: S603


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(OPENSSL is None, reason="no openssl command")
def test_all_parts_speak_tls(accounts: Accounts, tmp_path: Path) -> None:
    """The certificates are in Dask's own configuration; a client without one is refused."""
    authority = Authority.found(tmp_path)
    made = authority.issue("node", "IP:127.0.0.1")
    settings = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(authority.bundle)}
    settings["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] = "true"
    for part in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{part}__CERT"] = str(made.certificate)
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{part}__KEY"] = str(made.key)
    job = accounts.job(tmp_path / "job")
    words = ("--protocol", "tls")
    with local_cluster(tmp_path / "cluster", job.environment() | settings, words=words) as cluster:
        assert cluster.address.startswith("tls://")
        words = ("run", "CONFIG", "--cluster", cluster.address)
        assert job.command(*words, **settings).code == 0
        ended = job.command(*words)
    assert ended.code in {2, 11}
    assert len(told(ended.err)) == 1, ended.err
    assert job.rows("select count(distinct account) from contacts") == [(2,)]
