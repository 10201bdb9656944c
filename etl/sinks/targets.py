"""The configured targets: as sinks to publish into, or as published data to read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import duckdb

from etl.config import Config, DuckDBTarget, Target
from etl.model import RunRecord, SinkState
from etl.sinks import DuckDBSink, ParquetSink, Sink, SinkKind, Unpublished, open_readonly
from etl.storage.files import FILE_MODE, Access


def sinks(config: Config) -> tuple[Sink, ...]:
    """Every configured sink, in the order in which they are published."""
    limit = config.extract.memory_limit
    made: list[Sink] = []
    if config.sinks.duckdb is not None:
        file = config.sinks.duckdb
        made.append(DuckDBSink(_file(file), limit, file.storage_version, access=access_of(file)))
    if config.sinks.parquet is not None:
        parquet = config.sinks.parquet
        made.append(ParquetSink(parquet.path, limit, parquet.keep, access=access_of(parquet)))
    return tuple(made)


def targets(config: Config) -> list[tuple[SinkKind, Path]]:
    """Kind and path of every configured target."""
    paths: list[tuple[SinkKind, Path]] = []
    if config.sinks.duckdb is not None:
        paths.append(("duckdb", _file(config.sinks.duckdb)))
    if config.sinks.parquet is not None:
        paths.append(("parquet", config.sinks.parquet.path))
    return paths


def access_of(target: Target) -> Access | None:
    """The access of readers to published files; None: only the owner."""
    if target.mode is None and target.group is None:
        return None
    return Access(FILE_MODE if target.mode is None else target.mode, target.group or "")


def _file(target: DuckDBTarget) -> Path:
    """The file, with a symbolic link resolved: a rename over the link would leave the file unchanged."""
    # Errors in the path are reported when it is opened.
    linked = os.path.islink(target.path) and os.path.exists(target.path)  # noqa: PTH110, PTH114 - these raise nothing
    return target.path.resolve() if linked else target.path


def reading(config: Config) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A read-only connection to the published data. Raises as `open_readonly` does."""
    target = next((target for target in targets(config) if target[1].exists()), None)
    if target is None:
        raise Unpublished("nothing was exported yet", where="sinks")
    return open_readonly(*target)


def lagging_sink(sinks: Sequence[Sink], states: Sequence[SinkState], account: str, last: RunRecord | None) -> Sink:
    """The sink whose last run of the account is `last`: data it lacks must be read, even if another sink has it."""
    return next(sink for sink, state in zip(sinks, states, strict=True) if state.runs.get(account) == last)


def unconfigured(config: Config, states: Iterable[SinkState]) -> dict[str, int]:
    """Accounts in a target that are not configured, with their number of contacts, sorted by name."""
    named = {account.name for account in config.read_accounts}
    held = {name: record.counts.contacts for state in states for name, record in state.runs.items()}
    return {name: held[name] for name in sorted(held.keys() - named)}
