"""The targets that a configuration names: as sinks to publish into, or as something published to read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import duckdb

from etl.config import Config, DuckDBTarget, Target
from etl.errors import UsageError
from etl.model import RunRecord, SinkState
from etl.sinks import DuckDBSink, ParquetSink, Sink, SinkKind, Unpublished, open_readonly
from etl.storage.disk import FILE_MODE, Access


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
    """Whom published files are for; None: only their owner."""
    if target.mode is None and target.group is None:
        return None
    return Access(FILE_MODE if target.mode is None else target.mode, target.group or "")


def _file(target: DuckDBTarget) -> Path:
    """The file itself where a link to one is named: a rename in place of the link would leave the file as it was."""
    # What is wrong with a path is told by who opens it.
    linked = os.path.islink(target.path) and os.path.exists(target.path)  # noqa: PTH110, PTH114 - these raise nothing
    return target.path.resolve() if linked else target.path


def reading(config: Config) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A read-only connection to what was published. Raises as `open_readonly` does."""
    target = next((target for target in targets(config) if target[1].exists()), None)
    if target is None:
        raise Unpublished("nothing was exported yet", where="sinks")
    return open_readonly(*target)


def lagging_sink(sinks: Sequence[Sink], states: Sequence[SinkState], account: str, last: RunRecord | None) -> Sink:
    """The sink whose last run of the account is `last`: what it lacks is to be read, also where another has it."""
    return next(sink for sink, state in zip(sinks, states, strict=True) if state.runs.get(account) == last)


def refuse_other_filters(sink: Sink, state: SinkState, filters: Mapping[str, object]) -> None:
    """Raise UsageError: a target holds the export of one set of filters, another set would turn it into a mixture."""
    if state.seq and dict(state.filters) != dict(filters):
        raise UsageError(
            f"the target was made with {'other' if state.filters else 'no'} filters",
            where=f"sinks.{sink.name}.path = {sink.path}",
            hint="Name a new target for this export, or restore extract.filters.",
        )


def unconfigured(config: Config, states: Iterable[SinkState]) -> dict[str, int]:
    """Accounts that a target holds and the configuration does not name, with their contacts, in order of name."""
    named = {account.name for account in config.read_accounts}
    held = {name: record.counts.contacts for state in states for name, record in state.runs.items()}
    return {name: held[name] for name in sorted(held.keys() - named)}
