"""Every sink loads synthetic contacts, without a server of the API, beside its bare engine (`tests.bench.engines`).

Both are whole processes, one after the other: a first load of a fifth of the contacts, one of all, then two merges of
one in a hundred, each of them changed: among the newest, and spread evenly.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.bench.compare import spent
from tests.bench.jobs import fresh
from tests.bench.measure import PYTHON, Cost, Failed, measured
from tests.bench.table import Row
from tests.support.live import DSN
from tests.support.object_store import CREDENTIALS
from tests.support.postgres import running

RUNS = {"first": "first load", "newest": "1 % changed, among the newest", "evenly": "1 % changed, evenly"}
"""The runs whose parts `tests.bench.loads` writes, in order, numbered from 1."""
LIMIT = 3600.0
"""Seconds that one step may take: the largest has ten million contacts."""
_COUNT = "SELECT count(*) AS stored, count(DISTINCT contact_id) AS contacts FROM contacts"


def load_rows(folder: Path, loaded: int) -> Iterator[Row]:
    """The rows of all sinks over `loaded` contacts; files are written to `folder`."""
    contacts = [max(200, share // 200 * 200) for share in (loaded // 5, loaded)]  # One in a hundred of each list.
    for number in contacts:
        measured([PYTHON, "-m", "tests.bench.loads", str(folder / str(number)), str(number)], limit=LIMIT)
    for name, sink in _SINKS.items():
        for number, runs in zip(contacts, (1, len(RUNS)), strict=True):
            home = fresh(folder / name)
            home.mkdir()
            with sink(home) as (settings, environment):
                load = _Load(name, folder / str(number), number, home, environment)
                load.config.write_text(_ACCOUNT + settings)
                yield from (load.row(run, seq) for seq, run in enumerate([*RUNS][:runs], start=1))
            fresh(home)


@dataclass(frozen=True, slots=True)
class _Load:
    """One sink and its bare engine, with targets of their own."""

    sink: str
    parts: Path
    contacts: int
    home: Path
    """The folder of both targets."""
    environment: Mapping[str, str]

    @property
    def config(self) -> Path:
        """The configuration with the sink."""
        return self.home / "etl.toml"

    def row(self, run: str, seq: int) -> Row:
        """Load one run into both; raises Failed unless both then hold every contact, and the sink every one once."""
        done = self._measured("publish", self.parts / run, seq, self.config)
        found = json.loads(done.out)
        bare = self._measured(
            "engines", self.sink, self.parts / f"{run}.parquet", self.home / "bare", *(["first"] if seq == 1 else ())
        )
        self._reconcile(run, seq, found["counts"], int(bare.out))
        received = found["counts"]["received"]
        facts = {
            "of contacts": self.contacts,
            "load s": found["seconds"],
            "bare s": bare.seconds,
            "bare MB": bare.peak_mb,
            "seconds / bare": done.seconds / bare.seconds,
            **(_shared(self.home / "target", seq) if self.sink == "parquet" and seq > 1 else {}),
        }
        row = spent("LOAD", f"{self.sink}: {RUNS[run]}", [done], received)
        return replace(row, speed=bare.seconds / done.seconds, work=done.cpu / bare.cpu, facts=facts)

    def _measured(self, module: str, *arguments: object) -> Cost:
        command = [PYTHON, "-m", f"tests.bench.{module}", *map(str, arguments)]
        return measured(command, self.environment, limit=LIMIT)

    def _reconcile(self, run: str, seq: int, counts: Mapping[str, int], in_bare: int) -> None:
        received = self.contacts if seq == 1 else self.contacts // 100
        wanted = {"received": received, "new": 0, "changed": 0, "contacts": self.contacts}
        wanted["new" if seq == 1 else "changed"] = received
        query = [PYTHON, "-m", "etl", "sql", str(self.config), _COUNT, "--json"]
        stored = json.loads(measured(query, self.environment, limit=LIMIT).out)
        whole = [{"stored": self.contacts, "contacts": self.contacts}]
        if {name: counts[name] for name in wanted} != wanted or stored != whole or in_bare != self.contacts:
            raise Failed(f"{self.sink}, {run}: {counts}, {stored} stored, {in_bare} in the bare engine")


def _shared(path: Path, seq: int) -> dict[str, int]:
    """The number of files in a Parquet state that are hard links to the previous state, and of the others."""
    before, now = ({file.stat().st_ino for file in path.glob(f"current/seq={at:08d}/*")} for at in (seq - 1, seq))
    return {"linked": len(now & before), "written": len(now - before)}


_ACCOUNT = """
[[accounts]]
base_url = "http://127.0.0.1:1"
token_env = "NOT_USED"
"""

_Settings = tuple[str, Mapping[str, str]]
"""The configuration of a sink in TOML, and variables of the environment."""


@contextmanager
def _on_disk(kind: str, home: Path) -> Iterator[_Settings]:
    yield f'[sinks.{kind}]\npath = "{home / "target"}"\n', {}


@contextmanager
def _in_postgres(home: Path) -> Iterator[_Settings]:
    """A database for the sink, and one for the bare engine, on a server that syncs as in production."""
    with running(fsync="on", max_wal_size="4GB") as server:
        yield f'[sinks.postgres]\ndsn_env = "{DSN}"\nstage = "{home / "stage"}"\n', {DSN: server.dsn()}


@contextmanager
def _in_store(home: Path) -> Iterator[_Settings]:
    """A store in a process of its own, as it holds all objects in memory."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:  # noqa: S603 - an installed package
        try:
            _create_bucket(endpoint)
            path = f'path = "s3://bucket/etl"\nendpoint = "{endpoint}"\nstage = "{home / "stage"}"\n'
            yield f"[sinks.parquet]\n{path}", {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
        finally:
            process.kill()


def _create_bucket(endpoint: str) -> None:
    request = urllib.request.Request(f"{endpoint}/bucket", method="PUT")  # noqa: S310 - loopback
    for _ in range(300):
        with suppress(OSError):
            urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
            return
        time.sleep(0.1)
    raise Failed("the object store did not start")


_SINKS: dict[str, Callable[[Path], AbstractContextManager[_Settings]]] = {
    "duckdb": partial(_on_disk, "duckdb"),
    "parquet": partial(_on_disk, "parquet"),
    "postgres": _in_postgres,
    "s3": _in_store,
    "delta": partial(_on_disk, "delta"),
}
