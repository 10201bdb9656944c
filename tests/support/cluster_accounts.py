"""Accounts for the tests of a cluster: a server and a token each; and runs of a job that exports all of them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import LocalCluster
from tests.support.live import Ended, Job, Live, Row, live

CALM = "[extract]\nconcurrency = 4\n"
"""Requests in flight when a worker dies are repeated; low concurrency keeps them few."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """Accounts with a server and a token each."""

    servers: dict[str, Live]

    @classmethod
    @contextmanager
    def served(cls, count: int, **settings: object) -> Iterator[Accounts]:
        """So many accounts, while the block lasts."""
        with ExitStack() as held:
            named = {f"a{number:02}": f"{number:024x}" for number in range(count)}
            yield cls(
                {
                    name: held.enter_context(live(token=token, seed=number, **settings))
                    for number, (name, token) in enumerate(named.items())
                }
            )

    def job(self, folder: Path) -> Job:
        """A job that exports all of them to a DuckDB file."""
        folder.mkdir(exist_ok=True)
        urls = {name: server.url for name, server in self.servers.items()}
        tokens = {name: f"{number:024x}" for number, name in enumerate(self.servers)}
        return Job(folder, urls, tokens, settings=CALM, sinks=("duckdb",))

    def sent(self) -> int:
        """Requests that the servers have seen."""
        return sum(int(server.stats()["requests"]) for server in self.servers.values())

    def freeze(self) -> None:
        """Let nothing change any more."""
        for server in self.servers.values():
            server.change(lambda world, _: setattr(world, "_due", None))

    def truth(self) -> set[tuple[str, str]]:
        """Account and id of every contact that exists."""
        return {(name, identity) for name, server in self.servers.items() for identity in server.ids()}


def run(job: Job, cluster: LocalCluster, *words: str) -> Ended:
    """One run on the cluster."""
    return job.command("run", "CONFIG", "--cluster", cluster.address, "--json", *words)


def interrupted(
    job: Job, cluster: LocalCluster, accounts: Accounts, after: int, event: Callable[[subprocess.Popen[bytes]], object]
) -> Ended:
    """A run on the cluster, with an event as soon as the servers have seen so many requests."""
    before, deadline = accounts.sent(), time.monotonic() + 30
    with job.start("run", "CONFIG", "--cluster", cluster.address, "--json") as process:
        while accounts.sent() - before < after and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        event(process)
        out, err = process.communicate(timeout=90)
    return Ended(process.returncode, out.decode(), err.decode())


def told(err: str) -> list[str]:
    """The lines on stderr that are no events: that of the error."""
    return [line for line in err.splitlines() if '"event"' not in line]


def content(job: Job) -> list[Row]:
    """Every contact, without what depends on the moment of the run."""
    columns = ("observed_at", "seq", "first_seq", "last_seq")
    rows = [{name: cell for name, cell in row.items() if name not in columns} for row in job.in_duckdb()]
    return sorted(rows, key=lambda row: (row["account"], row["contact_id"]))
