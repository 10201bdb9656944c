"""Reads the accounts in this process, a fixed number of them at the same time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from etl.api.sources import Source, sources
from etl.config import Config
from etl.fleet.attempts import attempts
from etl.fleet.takeover import Takeover
from etl.fleet.task import AccountReader, Task
from etl.sinks import Sink
from etl.sinks.targets import named


@dataclass(frozen=True, slots=True)
class InProcess:
    """A `Fleet` of one process."""

    sources: dict[str, Source]
    sinks: Sequence[Sink]
    places: anyio.CapacityLimiter

    def place(self, task: Task) -> anyio.CapacityLimiter:  # noqa: ARG002 - see `Fleet`
        """See `Fleet`."""
        return self.places

    def reader(self, task: Task) -> AccountReader:
        """See `Fleet`; it takes over what workers of a cluster have read in a run before."""
        source, sink = self.sources[task.account], named(self.sinks, task.sink)
        return Takeover(task, source, sink) if attempts(task.folder) else task.reader(source, sink, task.folder)


@asynccontextmanager
async def in_process(config: Config, sinks: Sequence[Sink]) -> AsyncIterator[InProcess]:
    """`extract.accounts_at_once` accounts at the same time, until the block ends. Raises as `sources` does."""
    async with sources(config) as found:
        places = anyio.CapacityLimiter(config.extract.accounts_at_once)
        yield InProcess({source.account: source for source in found}, sinks, places)
