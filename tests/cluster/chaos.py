"""Rounds of a full run of some accounts on a cluster that is disturbed, compared with the truth."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import LocalCluster, continued, local_cluster, stopped
from tests.support.cluster_accounts import Accounts, run
from tests.support.live import Job
from tests.support.proxy import Proxy, proxied

ACCOUNTS, CONTACTS, WORKERS = 4, 4000, 3
IN_FLIGHT = 4
"""The bound of one client, `extract.concurrency`."""
EVENTS = ("killed", "stopped", "cut off")


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did, and what came of it."""

    number: int
    event: str
    coordinator_killed: bool
    requests: int
    runs: int
    missing: int
    """Contacts that the target does not have, or that do not exist."""
    in_flight: int
    """The most requests that a server has seen at the same time, over all rounds so far."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Played:
    """The rounds of a campaign."""

    undisturbed: int
    """Requests of a round in which nothing dies."""
    rounds: tuple[Round, ...]

    @property
    def repeated(self) -> float:
        """Requests that the disturbances cost, as a share."""
        return sum(played.requests for played in self.rounds) / (self.undisturbed * len(self.rounds)) - 1

    @property
    def missing(self) -> int:
        """Differences from the truth, over all rounds."""
        return sum(played.missing for played in self.rounds)


def play(folder: Path, rounds: int, seed: int) -> Iterator[Played]:
    """Play rounds; yields all that were played so far after each one."""
    dice = random.Random(seed)
    with ExitStack() as held:
        accounts = held.enter_context(
            Accounts.served(ACCOUNTS, contacts=CONTACTS, small=True, nasty_share=0, latency=0.02)
        )
        environment = accounts.job(folder / "environment").environment()
        cluster = held.enter_context(local_cluster(folder / "cluster", environment, workers=0))
        proxy = held.enter_context(proxied(int(cluster.address.rpartition(":")[2])))
        _staff(cluster, proxy)
        before = accounts.sent()
        assert run(accounts.job(folder / "undisturbed"), cluster).code == 0
        undisturbed, played = accounts.sent() - before, list[Round]()
        for number in range(1, rounds + 1):
            job = accounts.job(folder / f"round-{number}")
            played.append(_round(accounts, job, cluster, proxy, undisturbed, number, dice))
            _staff(cluster, proxy)
            yield Played(undisturbed, tuple(played))


def _staff(cluster: LocalCluster, proxy: Proxy) -> None:
    """Replace workers that have died; the first one reaches the scheduler through the proxy."""
    proxy.silent = False
    for place in range(WORKERS):
        address = f"tcp://127.0.0.1:{proxy.port}" if place == 0 else ""
        if place == len(cluster.workers):
            cluster.start_worker(address)
        elif cluster.workers[place].poll() is not None:
            cluster.start_worker(address)
            cluster.workers[place] = cluster.workers.pop()


def _round(
    accounts: Accounts,
    job: Job,
    cluster: LocalCluster,
    proxy: Proxy,
    undisturbed: int,
    number: int,
    dice: random.Random,
) -> Round:
    began, before, event, kill = time.monotonic(), accounts.sent(), dice.choice(EVENTS), number % 3 == 0
    moment, runs, later = dice.uniform(0.05, 0.85) * undisturbed, 1, dice.uniform(0, 1)
    words = ("run", "CONFIG", "--cluster", cluster.address)
    with job.start(*words) as process:
        _wait(accounts, process, before + moment)
        _disturb(event, cluster, proxy, dice)
        if kill:
            time.sleep(later)
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
    killed, code = process.returncode == -signal.SIGKILL, process.returncode
    while code and runs < 4:
        code, runs = job.command(*words).code, runs + 1
    held = {(row["account"], row["contact_id"]) for row in job.in_duckdb()} if code == 0 else set()
    return Round(
        number,
        event,
        killed,
        accounts.sent() - before,
        runs,
        len(held ^ accounts.truth()),
        max(server.stats()["max_in_flight"] for server in accounts.servers.values()),
        round(time.monotonic() - began, 1),
    )


def _wait(accounts: Accounts, process: subprocess.Popen[bytes], requests: float) -> None:
    deadline = time.monotonic() + 60
    while accounts.sent() < requests and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def _disturb(event: str, cluster: LocalCluster, proxy: Proxy, dice: random.Random) -> None:
    """Do it to one worker; one that is stopped or cut off comes back some seconds later, or never."""
    back = dice.choice([1, 3, 10, None])
    if event == "cut off":
        proxy.silent = True
        if back:
            threading.Timer(back, setattr, [proxy, "silent", False]).start()
        return
    victim = dice.choice(cluster.workers)
    if event == "killed":
        victim.kill()
        return
    stopped(victim)
    # A worker that never comes back is killed later: it must not stay for the next rounds.
    threading.Timer(back or 15, continued if back else victim.kill, [victim] if back else []).start()
