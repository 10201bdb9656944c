"""The public functions of `import etl`.

Nothing is printed, no umask, signal handler or other process-wide setting is changed, and files are still 0600. Events
go to the standard library's logger `etl`. Every function may also be called while an event loop is running: it then
works in a separate thread and blocks its caller, like any other function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TypeVar

import anyio
import duckdb
from anyio.from_thread import start_blocking_portal

from etl.commands.checks import Finding
from etl.commands.diff import diff_states
from etl.commands.difference import Difference
from etl.commands.plan import forecast
from etl.commands.report import write_report
from etl.commands.result import Forecast, RunResult, Status, WrittenReport
from etl.commands.run import Options, Run
from etl.commands.status import read_status
from etl.commands.unexpected import as_error
from etl.commands.verify import verify_live, verify_targets
from etl.config import Config, load_named
from etl.model import Progress
from etl.sinks.targets import reading
from etl.storage.preflight import check_handles

T = TypeVar("T")

OnProgress = Callable[[Sequence[Progress]], object]
"""Called about once a second until everything is published, with one value per account."""
PROGRESS_SECONDS = 1.0


def load_config(path: str | PathLike[str] | None = None, overrides: Mapping[str, object] | None = None) -> Config:
    """The configuration in the file `path`; by default, in `$ETL_CONFIG` or `etl.toml`.

    `overrides` sets single keys, as `--set` does: `{"extract.concurrency": 8}`. Raises `UsageError`, which reports all
    errors together.
    """
    assignments = [f"{key}={value}" for key, value in (overrides or {}).items()]
    return load_named(None if path is None else Path(path), assignments)


async def run_async(
    config: Config,
    *,
    full: bool = False,
    allow_unproven: bool = False,
    allow_shrink: bool = False,
    on_progress: OnProgress | None = None,
    cluster: str = "",
) -> RunResult:
    """Export every account, inside a running event loop; see `run`."""
    check_handles()
    options = Options(full, allow_unproven, allow_shrink)
    work = Run(config, options, partial(_report, on_progress) if on_progress else None, cluster)
    try:
        return await work.execute()
    except BaseException as error:
        work.end(as_error(error))
        raise


def run(
    config: Config,
    *,
    full: bool = False,
    allow_unproven: bool = False,
    allow_shrink: bool = False,
    on_progress: OnProgress | None = None,
    cluster: str = "",
) -> RunResult:
    """Export every account; incremental after the first time, everything with `full`.

    `cluster` is the address of a Dask scheduler (`tcp://host:8786`) whose workers read the accounts; it needs the extra
    `scale`.

    A failure is part of the result, like the exit code of `etl run`: `result.raise_for_error()` raises it. If it is
    cancelled (Ctrl-C), nothing is published, and the next run resumes from the data already read.
    """
    work = partial(
        run_async,
        config,
        full=full,
        allow_unproven=allow_unproven,
        allow_shrink=allow_shrink,
        on_progress=on_progress,
        cluster=cluster,
    )
    return _wait_for(work)


def plan(config: Config, *, full: bool = False) -> Sequence[Forecast]:
    """How many requests the next run needs and how long it takes, one value per account; nothing is written.

    Raises the errors that a run would raise before its first window.
    """
    return _wait_for(partial(forecast, config, full=full))


def status(config: Config, *, sink: str | None = None) -> Status:
    """The last runs and attempts to run, by this sink or the first one that exists.

    Raises `UsageError` if no sink has the name, `SinkError`, `TargetCorrupt`.
    """
    return read_status(config, sink)


def verify(config: Config, *, live: int = 0) -> Sequence[Finding]:
    """Check the targets; with `live`, also read that many windows of every account again.

    Everything is in order if each finding is `ok`; errors become findings and are not raised.
    """
    return [*verify_targets(config), *(_wait_for(partial(verify_live, config, live)) if live else ())]


def diff(
    config: Config,
    before: str | int,
    after: str | int,
    *,
    rows: int = 0,
    values: bool = False,
    sink: str | None = None,
) -> Difference:
    """What changed between two published states, with the first `rows` contacts, and their `values` if asked for.

    A state is a run's number (-1: the newest, 0: before the first) or a time, as text. Raises `UsageError` if there is
    no such state, `SinkError`, `TargetCorrupt`.
    """
    return diff_states(config, before, after, rows=rows, values=values, sink=sink)


def report(config: Config, path: str | PathLike[str] | None = None) -> WrittenReport:
    """Write the report of the newest published state to `path`, by default `report.path`, else `report.html`.

    Raises `UsageError` without the extra `report`, `SinkError`, `TargetCorrupt`.
    """
    return write_report(config, None if path is None else Path(path))


def connect(config: Config, *, sink: str | None = None) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A read-only DuckDB connection to the published tables: `contacts`, `contact_versions`, `runs`, `rejects`.

    They are those of this sink or of the first one that exists; those on a server are streamed. Raises `UsageError`
    before the first run or if no sink has the name, `SinkError`, `TargetCorrupt`.
    """
    return reading(config, sink)


async def _report(on_progress: OnProgress, progress: Callable[[], list[Progress]]) -> None:
    while True:
        await anyio.sleep(PROGRESS_SECONDS)
        on_progress(progress())


def _wait_for(work: Callable[[], Awaitable[T]]) -> T:
    check_handles()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.run(work)
    with start_blocking_portal() as portal:
        return portal.call(work)
