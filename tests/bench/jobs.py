"""The two sides of a comparison as jobs against one server, each checked against the contacts on the server."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.bench.measure import PYTHON, Cost, Failed, measured

PAGE = 50
"""Contacts on a full page."""
CONCURRENCY = 16
PUBLISHED = (0, 40)
"""Exit codes of a run that published: with every contact, or with some of them in `rejects`."""
NAMES = {"parquet": "contacts", "duckdb": "contacts.duckdb"}
"""The target of each sink."""
_COUNT = "import duckdb, sys; print(*duckdb.connect().execute(sys.argv[1]).fetchone())"
_STORED = {
    "parquet": "SELECT count(*), count(DISTINCT contact_id) FROM '{path}/current/seq={seq:08d}/*.parquet'",
    "duckdb": "ATTACH '{path}' (READ_ONLY); SELECT count(*), count(DISTINCT contact_id) FROM {path.stem}.contacts",
}


@dataclass(frozen=True, slots=True)
class Log:
    """The requests that the server received during one job."""

    requests: Sequence[tuple[float, str]]
    """Time of each, seconds since 1970, and the field it restricts: `createdAt`, `lastSeenAt` or `page`."""
    cpu: float
    """CPU seconds of the server."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running `tests.bench.server`."""

    url: str
    token: str
    contacts: int
    latency: float
    unknown: bool
    """Whether every contact has fields that have no column."""

    def log(self) -> Log:
        """The requests since the last call."""
        told = json.loads(self._ask("/_log"))
        return Log([(at, kind) for at, kind in told["requests"]], told["cpu"])

    def touch(self, every: int) -> int:
        """Change every `every`-th contact; return the number of changed contacts."""
        return int(json.loads(self._ask("/_touch", json.dumps({"every": every}).encode()))["touched"])

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(self.url + path, body, timeout=300) as answer:  # noqa: S310 - loopback
            return bytes(answer.read())


@contextmanager
def serving(contacts: int, *, latency: float = 0.0, odd: float = 0.0, unknown: bool = False) -> Iterator[Server]:
    """A server with this number of contacts, of which the share `odd` is odd, while the block lasts."""
    flags = _flags(contacts=contacts, latency=latency, odd=odd, unknown=int(unknown))
    command = [PYTHON, "-m", "tests.bench.server", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own program
        try:
            ready = json.loads((process.stdout.readline() if process.stdout else b"") or b"{}")
            if not ready:
                raise Failed("the server did not start")
            yield Server(ready["url"], ready["token"], contacts, latency, unknown)
        finally:
            process.kill()


def _flags(**values: float) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True, slots=True)
class Ran:
    """One finished job with verified counts."""

    cost: Cost
    log: Log
    purposes: Mapping[str, int]
    """Requests by purpose, as counted by the run; empty for the bare pipeline."""
    phases: Mapping[str, float]
    """Seconds by the same purposes."""
    counts: Mapping[str, int]
    """The counts that the job reports."""
    read_seconds: float = 0.0
    """From the start to the last page read."""


def bare(server: Server, sink: str, folder: Path) -> Ran:
    """The bare pipeline into a new file in `folder`."""
    path = fresh(folder / f"bare.{sink}")
    unknown = "infer" if server.unknown else "ignore"
    cost = measured([PYTHON, "-m", "tests.bench.bare", server.url, server.token, sink, str(path), unknown])
    counted = json.loads(cost.out)
    _reconcile("bare", server, counted["received"], counted["stored"])
    return Ran(cost, server.log(), {}, {}, counted)


@dataclass(frozen=True, slots=True)
class Etl:
    """`etl run` into one sink."""

    server: Server
    sink: str
    folder: Path

    def first(self) -> Ran:
        """A first run: with a page scan as cross-check, from which its windows are planned."""
        fresh(self.path)
        return self.run()

    def run(self, *flags: str) -> Ran:
        """One run; raises Failed unless the target then holds every contact of the server once."""
        self.server.log()
        command = [PYTHON, "-m", "etl", "run", str(self._config()), "--json", *flags]
        cost = measured(command, self._environment, well=PUBLISHED)
        log = self.server.log()
        [account] = json.loads(cost.out)["accounts"]
        rejected = account["counts"]["rejected"]
        rows, distinct = stored(self.sink, self.path, account["seq"])
        _reconcile(f"etl into {self.sink}", self.server, rows + rejected, distinct + rejected)
        told = self._told()
        return Ran(cost, log, told["requests"], told["seconds"], account["counts"], _read_seconds(cost))

    @property
    def path(self) -> Path:
        """The target."""
        return self.folder / NAMES[self.sink]

    @property
    def _environment(self) -> Mapping[str, str]:
        return {"BENCH_TOKEN": self.server.token}

    def _config(self) -> Path:
        config = self.folder / "etl.toml"
        config.write_text(
            f'[[accounts]]\nbase_url = "{self.server.url}"\ntoken_env = "BENCH_TOKEN"\n'
            f"[extract]\nconcurrency = {CONCURRENCY}\n[guard]\nmax_reject_share = 1.0\n"
            f'[sinks.{self.sink}]\npath = "{self.path}"\n'
        )
        return config

    def _told(self) -> Mapping[str, Any]:
        query = "SELECT detail FROM runs ORDER BY seq DESC LIMIT 1"
        command = [PYTHON, "-m", "etl", "sql", str(self._config()), query, "--json"]
        [row] = json.loads(measured(command, self._environment).out)
        told = row["detail"]
        return dict(json.loads(told) if isinstance(told, str) else told)


def stored(sink: str, path: Path, seq: int) -> tuple[int, int]:
    """Rows in the target after run `seq`, and the number of distinct contacts."""
    rows, distinct = measured([PYTHON, "-c", _COUNT, _STORED[sink].format(path=path, seq=seq)]).out.split()
    return int(rows), int(distinct)


def _read_seconds(cost: Cost) -> float:
    """Seconds until the account was read, according to the log events of the run."""
    events = [json.loads(line) for line in cost.err.splitlines() if line.startswith("{")]
    read = [event["timestamp"] for event in events if event.get("event") == "account.read"]
    return datetime.fromisoformat(read[-1]).timestamp() - cost.started if read else 0.0


def _reconcile(who: str, server: Server, rows: int, distinct: int) -> None:
    if not rows == distinct == server.contacts:
        raise Failed(f"{who}: {rows} rows of {distinct} contacts, but the server holds {server.contacts}")


def fresh(path: Path) -> Path:
    """Remove everything at `path`; return `path`."""
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    shutil.rmtree(path.parent / ".etl", ignore_errors=True)
    return path
