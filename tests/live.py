"""The product against a live sandbox: a server in a thread of its own, targets in a folder, the command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import duckdb

from etl.config import load
from etl.report import RunReport
from etl.run import Options, execute
from etl.sandbox.server import Sandbox, serve
from etl.sandbox.settings import Settings
from etl.sandbox.world import World

T = TypeVar("T")
TOKEN = Settings().token


@dataclass(frozen=True, slots=True)
class Live:
    """A sandbox that answers real HTTP from another thread."""

    sandbox: Sandbox
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.sandbox.url

    def change(self, act: Callable[[World, float], T]) -> T:
        """Let something happen in the account now, between two requests."""
        done: Future[T] = Future()
        clock = self.sandbox.world

        def happen() -> None:
            try:
                done.set_result(act(clock, max(clock.now, _now())))
            except BaseException as error:  # noqa: BLE001 - handed on to the test
                done.set_exception(error)

        self.loop.call_soon_threadsafe(happen)
        return done.result(10)

    def stats(self) -> dict[str, Any]:
        """`GET /_stats`."""
        return json.loads(self._get("/_stats"))  # type: ignore[no-any-return]

    def truth(self) -> dict[str, bytes]:
        """The living contacts as raw JSON by id, from `GET /_truth`; who has no usable id is under `#...`."""
        lines = self._get("/_truth").splitlines()
        return dict(_told(line) for line in lines if b'"contact":' in line)

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310 - loopback
            return answer.read()  # type: ignore[no-any-return]


def _told(line: bytes) -> tuple[str, bytes]:
    head, _, contact = line.partition(b',"contact":')
    return json.loads(head.removeprefix(b'{"id":')), contact[:-1]


def _now() -> float:
    import time  # noqa: PLC0415

    return time.time()


@contextmanager
def live(settings: Settings | None = None, **values: Any) -> Iterator[Live]:
    """A sandbox with these settings while the block lasts."""
    ready: Future[Live] = Future()
    stop = threading.Event()

    async def main() -> None:
        try:
            async with serve(settings or Settings(**values)) as sandbox:
                ready.set_result(Live(sandbox, asyncio.get_running_loop()))
                while not stop.is_set():
                    await asyncio.sleep(0.01)
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    try:
        yield ready.result(30)
    finally:
        stop.set()
        thread.join(10)


@dataclass(slots=True)
class Job:
    """A configuration in a folder of its own, run in this process or by the command line."""

    folder: Path
    urls: Mapping[str, str]
    """Address by account."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Token by account, where it is not the good one."""
    settings: str = ""
    """More TOML."""
    sinks: tuple[str, ...] = ("duckdb", "parquet")

    @property
    def config(self) -> Path:
        """The configuration file, as it stands now."""
        accounts = "".join(
            f'[[accounts]]\nname = "{name}"\nbase_url = "{url}"\ntoken_env = "TOKEN_{name.upper()}"\n'
            for name, url in self.urls.items()
        )
        paths = {"duckdb": self.duckdb, "parquet": self.parquet}
        sinks = "".join(f'[sinks.{name}]\npath = "{paths[name]}"\n' for name in self.sinks)
        path = self.folder / "etl.toml"
        path.write_text(accounts + sinks + self.settings)
        return path

    @property
    def duckdb(self) -> Path:
        """The DuckDB file."""
        return self.folder / "data" / "contacts.duckdb"

    @property
    def parquet(self) -> Path:
        """The Parquet folder."""
        return self.folder / "data" / "contacts"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the command line, with the tokens."""
        own = {f"TOKEN_{name.upper()}": self.tokens.get(name, TOKEN) for name in self.urls}
        return {**os.environ, **own, "PYTHONWARNINGS": "error"}

    def run(self, *assignments: str, **options: bool) -> RunReport:
        """One run in this process."""
        os.environ.update(self.environment)
        config = load(self.config, assignments)
        return anyio.run(execute, config, Options(**options))

    def cli(self, *arguments: str, timeout: float = 60, **environment: str) -> Ended:
        """One command in a process of its own; `{config}` stands for the configuration's path."""
        config = str(self.config)
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "etl", *(word.replace("{config}", config) for word in arguments)],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query to the DuckDB file, asked of the engine itself."""
        with duckdb.connect(str(self.duckdb), read_only=True) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            return [tuple(row.values()) for row in connection.sql(query).to_arrow_table().to_pylist()]

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the DuckDB file and of every file of the Parquet folder, by path."""
        files = [self.duckdb, *self.parquet.rglob("*")]
        return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


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
