"""The targets that a configuration names: as sinks to publish into, or as something published to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

from etl.config import Config, DuckDBTarget
from etl.errors import UsageError
from etl.model import RunRecord, SinkState
from etl.sinks import DuckDBSink, ParquetSink, Sink, SinkKind, Unpublished, open_readonly


def sinks(config: Config) -> tuple[Sink, ...]:
    """Every configured sink, in the order in which they are published."""
    limit = config.extract.memory_limit
    made: list[Sink] = []
    if config.sinks.duckdb is not None:
        made.append(DuckDBSink(_file(config.sinks.duckdb), limit))
    if config.sinks.parquet is not None:
        made.append(ParquetSink(config.sinks.parquet.path, limit, config.sinks.parquet.keep))
    return tuple(made)


def targets(config: Config) -> list[tuple[SinkKind, Path]]:
    """Kind and path of every configured target."""
    paths: list[tuple[SinkKind, Path]] = []
    if config.sinks.duckdb is not None:
        paths.append(("duckdb", _file(config.sinks.duckdb)))
    if config.sinks.parquet is not None:
        paths.append(("parquet", config.sinks.parquet.path))
    return paths


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


def furthest_behind(sinks: Sequence[Sink], states: Sequence[SinkState], account: str, last: RunRecord | None) -> Sink:
    """The sink whose last run of the account is `last`: what it lacks is to be read, also where another has it."""
    return next(sink for sink, state in zip(sinks, states, strict=True) if state.runs.get(account) == last)


def refuse_other_filters(sink: Sink, state: SinkState, filters: Mapping[str, object]) -> None:
    """Raise UsageError: a target holds the export of one set of filters, another set would turn it into a mixture."""
    if state.seq and dict(state.filters) != dict(filters):
        raise UsageError(
            f"the target was made with {'other' if state.filters else 'no'} filters",
            where=f"sinks.{sink.name}.path = {sink.path}",
            mend="Name a new target for this export, or restore extract.filters.",
        )


def creation_times(sink: Sink, account: str) -> Callable[[bool | None], Sequence[int]]:
    """The sorted creation times (ms) of an account's last snapshot, by list; read once, some 8 bytes a contact.

    A contact that does not say in which list it stands counts in both, because windows that are planned too narrow are
    safe and too wide ones cost a request.
    """

    @cache
    def held() -> pa.Table:
        return sink.created_at(account)

    @cache
    def created(is_contact: bool | None) -> Sequence[int]:
        # Takes 0.1 s to import, which a first run need not wait for.
        import pyarrow.compute as pc  # noqa: PLC0415

        found = held()
        if is_contact is not None:
            found = found.filter(pc.fill_null(pc.equal(found["is_contact"], is_contact), fill_value=True))
        if not found.num_rows:
            return ()
        whole = found["created_at"].cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64()).combine_chunks()
        return memoryview(whole.buffers()[1]).cast("q")[: len(whole)]

    return created
