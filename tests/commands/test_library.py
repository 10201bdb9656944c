"""`import etl`: exports from a program, with and without a running event loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import etl

CONFIG = """
[[accounts]]
name = "sandbox"

[sandbox]
contacts = 120
state = "{folder}/sandbox.json"

[sinks.duckdb]
path = "{folder}/data/contacts.duckdb"

[sinks.parquet]
path = "{folder}/data/contacts"
"""
PLAIN = """
import os, signal, sys
import etl
umask, handlers = os.umask(0o022), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
os.umask(0o022)
result = etl.run(etl.load_config(sys.argv[1]))
result.raise_for_error()
assert (result.exit_code, result.counts.contacts) == (0, 120)
assert os.umask(0o022) == 0o022
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
"""
IN_A_LOOP = """
import asyncio, sys
import etl

async def main():
    config, seen = etl.load_config(sys.argv[1], {"extract.concurrency": 2}), []
    assert config.extract.concurrency == 2
    (await etl.run_async(config, on_progress=seen.append)).raise_for_error()
    etl.run(config).raise_for_error()
    [forecast] = etl.plan(config)
    assert forecast.mode == "incremental"
    with etl.connect(config) as connection:
        assert connection.sql("select count(*) from contacts").fetchall() == [(120,)]
    assert [account.last_run.seq for account in etl.status(config).accounts] == [3]
    assert all(finding.ok for finding in etl.verify(config, live=1))

asyncio.run(main())
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of the embedded sandbox."""
    path = tmp_path / "job.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


def test_a_program_exports_and_nothing_is_printed(config: Path) -> None:
    """The library prints nothing, sets no signal handler and no umask, and creates private files."""
    for program in (PLAIN, IN_A_LOOP):
        done = subprocess.run([sys.executable, "-c", program, str(config)], capture_output=True, check=False)  # noqa: S603
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for path in (config.parent / "data").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_importing_costs_next_to_nothing() -> None:
    """`import etl` loads no heavy library."""
    program = "import sys, etl; print({'duckdb', 'pyarrow', 'aiohttp', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout == "set()\n"


def test_extras_are_imported_only_when_they_are_used() -> None:
    """Neither the library nor the command line, with every command but the explorer, imports an optional library."""
    modules = "etl.cli.app, etl.cli.render, etl.commands.library, etl.commands.run, etl.commands.report"
    extras = "{'altair', 'vl_convert', 'htpy', 'markupsafe', 'prometheus_client', 'distributed', 'dask'}"
    program = f"import sys, {modules}; print({extras} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout == "set()\n"


def test_a_failure_is_part_of_the_result(config: Path) -> None:
    """A failed run is returned with its exit code, and raises on demand."""
    settings = etl.load_config(config, {"sinks.duckdb.path": "/dev/null/contacts.duckdb"})
    result = etl.run(settings)
    assert (result.exit_code, result.sinks) == (20, {})
    with pytest.raises(etl.SinkError):
        result.raise_for_error()
    with pytest.raises(etl.UsageError):
        etl.load_config(config, {"extract.concurrency": 0})


def test_what_is_offered_exists_and_is_typed() -> None:
    """The package, its stub and `dir()` offer the same names, and each of them exists."""
    stub = (Path(etl.__file__).parent / "__init__.pyi").read_text()
    offered = sorted(line.rpartition(" as ")[2] for line in stub.splitlines() if " as " in line)
    assert offered == sorted(set(etl.__all__) - {"__version__"})
    assert all(getattr(etl, name) is not None for name in etl.__all__)
    assert dir(etl) == sorted(etl.__all__)
    with pytest.raises(AttributeError):
        _ = etl.nothing
