"""A Dask cluster on loopback: a scheduler and workers, each a process of its own, that tests stop and kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 4
"""After which a dead worker is noticed, and its lease is free."""
SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{SECONDS}s",
    "DASK_DISTRIBUTED__SCHEDULER__LOCKS__LEASE_TIMEOUT": f"{SECONDS}s",
    "DASK_DISTRIBUTED__SCHEDULER__LOCKS__LEASE_VALIDATION_INTERVAL": "0.5s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "100ms",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
}


@dataclass(slots=True)
class LocalCluster:
    """The processes of a cluster, and the address of its scheduler."""

    folder: Path
    environment: Mapping[str, str]
    """With the tokens of the accounts."""
    threads: int = 1
    """Accounts that a worker reads at the same time."""
    words: Sequence[str] = ()
    """More options of both programs."""
    address: str = ""
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_scheduler(self) -> None:
        """Start the scheduler on a free port, and wait until it has one."""
        file = self.folder / "scheduler.json"
        options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        self.scheduler = self._start("scheduler", *options)
        deadline = time.monotonic() + 30
        while not self.address:
            assert time.monotonic() < deadline, "the scheduler does not start"
            with suppress(OSError, ValueError):
                self.address = json.loads(file.read_text())["address"]
            time.sleep(0.05)

    def start_worker(self, address: str = "") -> subprocess.Popen[bytes]:
        """Start one more worker, in a working directory of its own; `address` is another one of the scheduler."""
        options = ("--no-nanny", "--nthreads", str(self.threads), "--no-dashboard", "--host", "127.0.0.1")
        # Imported before it joins: for some seconds, an import leaves the heartbeat no time.
        options += ("--preload", "etl.fleet.cluster")
        worker = self._start("worker", address or self.address, *options)
        self.workers.append(worker)
        return worker

    def wait_for_workers(self) -> None:
        """Wait until all workers have joined: with fewer, one worker would be given all accounts."""
        log, deadline = self.folder / "worker.log", time.monotonic() + 30
        while log.exists() and log.read_text().count("Registered to:") < len(self.workers):
            assert time.monotonic() < deadline, "the workers do not join"
            time.sleep(0.05)

    def end(self) -> None:
        """Kill all processes, stopped ones too."""
        for process in (*self.workers, self.scheduler):
            if process is not None:
                process.kill()
                process.wait(10)

    def _start(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        home = self.folder / f"{program}-{time.monotonic_ns()}"
        home.mkdir()
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - the programs of Dask
                [sys.executable, "-m", f"distributed.cli.dask_{program}", *options, *self.words],
                cwd=home,
                env={**os.environ, **SETTINGS, **self.environment, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
                stdout=log,
                stderr=log,
            )


@contextmanager
def local_cluster(
    folder: Path, environment: Mapping[str, str], workers: int = 2, threads: int = 1, words: Sequence[str] = ()
) -> Iterator[LocalCluster]:
    """A scheduler and workers while the block lasts; their logs are in `folder`."""
    folder.mkdir(exist_ok=True)
    cluster = LocalCluster(folder, environment, threads, words)
    try:
        cluster.start_scheduler()
        for _ in range(workers):
            cluster.start_worker()
        cluster.wait_for_workers()
        yield cluster
    finally:
        cluster.end()


def stopped(process: subprocess.Popen[bytes]) -> None:
    """Stop a process where it stands."""
    os.kill(process.pid, signal.SIGSTOP)


def continued(process: subprocess.Popen[bytes]) -> None:
    """Let a stopped process go on."""
    os.kill(process.pid, signal.SIGCONT)
