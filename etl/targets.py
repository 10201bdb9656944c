"""The targets that a configuration names: as sinks to publish into, or as something published to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

from etl.config import Config
from etl.sinks import DuckDBSink, ParquetSink, Sink, SinkKind, Unpublished, open_readonly


def sinks(config: Config) -> tuple[Sink, ...]:
    """Every configured sink, in the order in which they are published."""
    limit = config.extract.memory_limit
    made: list[Sink] = []
    if config.sinks.duckdb is not None:
        made.append(DuckDBSink(config.sinks.duckdb.path, limit))
    if config.sinks.parquet is not None:
        made.append(ParquetSink(config.sinks.parquet.path, limit, config.sinks.parquet.keep))
    return tuple(made)


def targets(config: Config) -> list[tuple[SinkKind, Path]]:
    """Kind and path of every configured target."""
    paths: list[tuple[SinkKind, Path]] = []
    if config.sinks.duckdb is not None:
        paths.append(("duckdb", config.sinks.duckdb.path))
    if config.sinks.parquet is not None:
        paths.append(("parquet", config.sinks.parquet.path))
    return paths


def reading(config: Config) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A read-only connection to what was published. Raises as `open_readonly` does."""
    target = next((target for target in targets(config) if target[1].exists()), None)
    if target is None:
        raise Unpublished("nothing was exported yet", where="sinks")
    return open_readonly(*target)


def creation_times(sink: Sink, account: str) -> Callable[[bool | None], Sequence[int]]:
    """The sorted creation times (ms) of an account's last snapshot, by list; read once, 8 bytes a contact."""

    @cache
    def created(is_contact: bool | None) -> Sequence[int]:
        times = sink.created_at(account, is_contact)
        if not len(times):
            return ()
        whole = times.cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64()).combine_chunks()
        return memoryview(whole.buffers()[1]).cast("q")[: len(whole)]

    return created
