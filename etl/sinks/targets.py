"""The configured targets: as sinks to publish into, or as published data to read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import duckdb

from etl.config import Config, read_dsn
from etl.config.targets import (
    AnyTarget,
    DeltaTarget,
    DuckDBTarget,
    ParquetTarget,
    PostgresTarget,
    Target,
    default_stage,
)
from etl.errors import UsageError
from etl.extras import importing
from etl.model import RunRecord, SinkState
from etl.sinks import DuckDBSink, ParquetSink, Sink, Unpublished
from etl.sinks.parquet_log import Log
from etl.storage.files import FILE_MODE, Access


def sinks(config: Config) -> tuple[Sink, ...]:
    """Every configured sink, in the order in which they are published."""
    limit = config.extract.memory_limit
    return tuple(_sink(name, target, limit) for name, target in config.sinks.named.items())


def first_path(config: Config) -> Path:
    """`Sink.path` of the first configured sink, also if that cannot be opened."""
    return next(_path(name, target) for name, target in config.sinks.named.items())


def _path(name: str, target: AnyTarget) -> Path:
    """See `Sink.path`."""
    if isinstance(target, DuckDBTarget):
        # A link is resolved: a rename over it would leave the file unchanged. Errors are reported when it is opened.
        linked = os.path.islink(target.path) and os.path.exists(target.path)  # noqa: PTH110, PTH114 - raise nothing
        return target.path.resolve() if linked else target.path
    if isinstance(target, PostgresTarget) or target.url:
        return target.stage or default_stage(name)
    return target.path


def _sink(name: str, target: AnyTarget, limit: int) -> Sink:
    path = _path(name, target)
    if isinstance(target, DuckDBTarget):
        return DuckDBSink(path, limit, target.storage_version, access=access_of(target), name=name)
    if isinstance(target, PostgresTarget):
        from etl.sinks.postgres import PostgresSink  # noqa: PLC0415 - belongs to an extra

        return PostgresSink(partial(read_dsn, target, name), target.schema_name, path, limit, name)
    if isinstance(target, DeltaTarget):
        return ParquetSink(path, limit, 1, name=name, log=_delta_log(target, path), kind="delta")
    if target.url:
        return ParquetSink(path, limit, target.keep, name=name, log=_object_log(target, path))
    return ParquetSink(path, limit, target.keep, access=access_of(target), name=name)


def _object_log(target: ParquetTarget, stage: Path) -> Log:
    with importing("s3", "a target in an object store", target.url):
        from etl.sinks.parquet_commits import NumberedCommits  # noqa: PLC0415 - belongs to an extra
        from etl.sinks.parquet_objects import ObjectLog  # noqa: PLC0415
        from etl.storage.objects import Objects  # noqa: PLC0415
    store = Objects(target.url, target.endpoint)
    return ObjectLog(store, NumberedCommits(store), stage)


def _delta_log(target: DeltaTarget, place: Path) -> Log:
    with importing("delta", "a target of Delta tables", target.url or str(target.path)):
        from etl.sinks.delta_commits import DeltaCommits, options  # noqa: PLC0415 - belongs to an extra
        from etl.sinks.parquet_objects import ObjectLog  # noqa: PLC0415
        from etl.storage.local_objects import LocalObjects  # noqa: PLC0415
        from etl.storage.objects import Objects  # noqa: PLC0415
    store = Objects(target.url, target.endpoint) if target.url else LocalObjects(target.path)
    return ObjectLog(store, DeltaCommits(store, options(target.endpoint), target.retention), place)


def access_of(target: Target) -> Access | None:
    """The access of readers to published files; None: only the owner."""
    if target.mode is None and target.group is None:
        return None
    return Access(FILE_MODE if target.mode is None else target.mode, target.group or "")


def readable(config: Config, name: str | None = None) -> Sink:
    """The sink of this name; without a name, the first one that exists.

    Raises `UsageError` if no sink has the name, `Unpublished` if none exists.
    """
    made = sinks(config)
    if name is None:
        found = next((sink for sink in made if sink.exists()), None)
        if found is None:
            raise Unpublished("nothing was exported yet", where="sinks")
        return found
    return named(made, name)


def named(made: Sequence[Sink], name: str) -> Sink:
    """The sink of this name. Raises `UsageError` that names all of them."""
    for sink in made:
        if sink.name == name:
            return sink
    hint = f"There are: {', '.join(sink.name for sink in made)}."
    raise UsageError(f"no sink is named {name!r}", where="command line", hint=hint)


def reading(config: Config, name: str | None = None) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A read-only connection to the published data. Raises as `readable` and `open_readonly` do."""
    return readable(config, name).reading()


def lagging_sink(sinks: Sequence[Sink], states: Sequence[SinkState], account: str, last: RunRecord | None) -> Sink:
    """The sink whose last run of the account is `last`: data it lacks must be read, even if another sink has it."""
    return next(sink for sink, state in zip(sinks, states, strict=True) if state.runs.get(account) == last)


def unconfigured(config: Config, states: Iterable[SinkState]) -> dict[str, int]:
    """Accounts in a target that are not configured, with their number of contacts, sorted by name."""
    named = {account.name for account in config.read_accounts}
    held = {name: record.counts.contacts for state in states for name, record in state.runs.items()}
    return {name: held[name] for name in sorted(held.keys() - named)}
