"""The product against a live sandbox: a server in a separate thread, a configuration with targets, the commands."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import anyio
import duckdb
import pyarrow.parquet as pq

from etl.cli.app import main
from etl.commands.result import RunResult
from etl.commands.run import Options, Run
from etl.config import load
from etl.sandbox.server import serve
from etl.sandbox.settings import Settings
from etl.sandbox.world import World

T = TypeVar("T")
Row = dict[str, Any]
TOKEN = Settings().token
DSN = "WAREHOUSE_DSN"
"""The variable with the DSN of a job."""


@dataclass(slots=True)
class Live:
    """A sandbox that serves real HTTP from another thread, with a clock that tests can move."""

    ahead: float = 0.0
    """Seconds by which its clock is ahead of ours."""
    url: str = ""
    world: World | None = None
    loop: asyncio.AbstractEventLoop | None = None

    def clock(self) -> float:
        """The server's time, in seconds since 1970."""
        return time.time() + self.ahead

    def change(self, act: Callable[[World, float], T]) -> T:
        """Apply a change to the account now, between two requests."""
        done: Future[T] = Future()

        def happen() -> None:
            try:
                done.set_result(act(self.world, self.clock()))
            except Exception as error:  # noqa: BLE001 - the test gets it
                done.set_exception(error)

        self.loop.call_soon_threadsafe(happen)
        return done.result(10)

    def churn(self, number: int) -> None:
        """Edits, touches, deletions and new contacts, others for each number up to (contacts - 104) / 4."""
        ids = self.ids()

        def happen(world: World, now: float) -> None:
            for identity in ids[number * 3 : number * 3 + 9]:
                world.edit(identity, now)
                world.touch(identity, now)
            for identity in ids[100 + number * 4 : 104 + number * 4]:
                world.delete(identity, now)
            for _ in range(5):
                world.insert(now)

        self.change(happen)

    def stats(self) -> Row:
        """The server's counters from `GET /_stats`."""
        return json.loads(self._get("/_stats"))

    def truth(self) -> dict[str, bytes]:
        """The existing contacts as raw JSON by id, from `GET /_truth`; those without a usable id are under `#...`."""
        lines = self._get("/_truth").splitlines()
        return dict(_told(line) for line in lines if b'"contact":' in line)

    def ids(self) -> list[str]:
        """The usable ids of existing contacts, in order of creation."""
        return [identity for identity in self.truth() if not identity.startswith("#")]

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310 - loopback
            return answer.read()


def _told(line: bytes) -> tuple[str, bytes]:
    head, _, contact = line.partition(b',"contact":')
    return json.loads(head.removeprefix(b'{"id":')), contact[:-1]


@contextmanager
def live(**settings: Any) -> Iterator[Live]:
    """A sandbox with these settings while the block lasts."""
    ready: Future[asyncio.Event] = Future()
    server = Live()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(server, Settings(**settings), ready)))
    thread.start()
    stop = ready.result(30)
    try:
        yield server
    finally:
        server.loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def _serve(server: Live, settings: Settings, ready: Future[asyncio.Event]) -> None:
    stop = asyncio.Event()
    async with serve(settings, clock=server.clock) as sandbox:
        server.url, server.world, server.loop = sandbox.url, sandbox.world, asyncio.get_running_loop()
        ready.set_result(stop)
        await stop.wait()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; any other output there is an error."""
        return json.loads(self.out)


@dataclass(slots=True)
class Job:
    """A configuration with its targets in a separate folder, run in this process or by the command line."""

    folder: Path
    urls: Mapping[str, str]
    """Address by account."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Token by account, if it is not the valid one."""
    settings: str = ""
    """More TOML."""
    sinks: tuple[str, ...] = ("duckdb", "parquet")
    dsn: str = ""
    """Of the database for the sink `postgres`."""

    @property
    def duckdb(self) -> Path:
        """The DuckDB file."""
        return self.folder / "data" / "contacts.duckdb"

    @property
    def parquet(self) -> Path:
        """The Parquet folder."""
        return self.folder / "data" / "contacts"

    @property
    def temporary(self) -> Path:
        """The folder of all temporary files of both targets."""
        return self.folder / "data" / ".etl"

    def copy(self, folder: Path) -> Job:
        """The same job in another folder, with a copy of its targets."""
        shutil.copytree(self.folder / "data", folder / "data", dirs_exist_ok=True)
        return replace(self, folder=folder, urls=dict(self.urls), tokens=dict(self.tokens))

    def config(self) -> Path:
        """Write the configuration file and return its path."""
        accounts = "".join(
            f'[[accounts]]\nname = "{name}"\nbase_url = "{url}"\ntoken_env = "{_variable(name)}"\n'
            for name, url in self.urls.items()
        )
        keys = {
            "duckdb": f'path = "{self.duckdb}"',
            "parquet": f'path = "{self.parquet}"',
            "postgres": f'dsn_env = "{DSN}"\nstage = "{self.folder / "data" / "postgres"}"',
        }
        sinks = "".join(f"[sinks.{name}]\n{keys[name]}\n" for name in self.sinks)
        path = self.folder / "job.toml"
        text = accounts + sinks + self.settings
        # Written once: a command that starts at the same moment may be reading it.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return path

    def environment(self) -> dict[str, str]:
        """The environment of a command: ours, and the tokens."""
        tokens = {_variable(name): self.tokens.get(name, TOKEN) for name in self.urls}
        return {**os.environ, **tokens, **({DSN: self.dsn} if self.dsn else {})}

    def run(self, *assignments: str, **options: bool) -> RunResult:
        """One run in this process."""
        config = load(self.config(), assignments)
        os.environ.update(self.environment())
        return anyio.run(Run(config, Options(**options)).execute)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """A command in a separate process; `CONFIG` among the words is replaced by the configuration's path."""
        config = str(self.config())
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "etl", *(config if word == "CONFIG" else word for word in words)],
            cwd=self.folder,
            env={**self.environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def command(self, *words: str, **environment: str) -> Ended:
        """The same, run to its end."""
        with self.start(*words, **environment) as process:
            out, err = process.communicate(timeout=60)
        return Ended(process.returncode, out.decode(), err.decode())

    def call(self, *words: str, **environment: str) -> Ended:
        """The same in this process, which saves a second; for commands that need no separate process."""
        config, kept = str(self.config()), (sys.argv, os.environ.copy(), Path.cwd())
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        sys.argv = ["etl", *(config if word == "CONFIG" else word for word in words)]
        os.environ.update(self.environment() | environment)
        os.chdir(self.folder)
        code: object = None
        try:
            with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
                main()
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.argv, _, _ = kept
            os.environ.clear()
            os.environ.update(kept[1])
            os.chdir(kept[2])
            for number, handler in handlers.items():
                signal.signal(number, handler)
        assert isinstance(code, int)
        return Ended(code, out.getvalue(), err.getvalue())

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a query on the DuckDB file, run by the engine directly."""
        with duckdb.connect(str(self.duckdb), read_only=True) as connection:
            table = connection.sql(query, params=parameters).to_arrow_table()
        return list(zip(*table.to_pydict().values(), strict=True))

    def in_duckdb(self) -> list[Row]:
        """`contacts` as the DuckDB file has it."""
        with duckdb.connect(str(self.duckdb), read_only=True) as connection:
            return connection.sql("select * from contacts").to_arrow_table().to_pylist()

    def in_parquet(self, seq: int) -> list[Row]:
        """`contacts` as the Parquet files of a manifest have it, read by pyarrow alone."""
        files = sorted((self.parquet / "current" / f"seq={seq:08d}").glob("*.parquet"))
        return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the DuckDB file and of every file of the Parquet folder, by path."""
        files = [self.duckdb, *self.parquet.rglob("*")]
        return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


@dataclass(frozen=True, slots=True)
class Account:
    """An account and the targets of its first run: each test gets a server and a job of its own in that state."""

    folder: Path
    """Empty at first."""
    settings: Mapping[str, Any]
    """Of the server."""

    @contextmanager
    def served(self) -> Iterator[Live]:
        """The account as it was at the first run, on a new server."""
        with live(**self.settings, state=str(self.folder / "account.json")) as server:
            yield server

    def job(self, server: Live, folder: Path, *sinks: str, names: tuple[str, ...] = ("main",)) -> Job:
        """A job after its first run, which exported the account under each of these names.

        That run is made once for each choice of sinks and names.
        """
        first = Job(self.folder / "-".join(names + sinks), dict.fromkeys(names, server.url), sinks=sinks)
        if not first.folder.exists():
            first.folder.mkdir()
            assert first.run().exit_code == 0
        return first.copy(folder)


def _variable(account: str) -> str:
    return f"TOKEN_{account.upper()}"
