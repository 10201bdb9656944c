"""What is needed to read one account, wherever it is read."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from etl import __version__
from etl.api.sources import Source
from etl.config import Config
from etl.extract.account import Reader
from etl.model import AccountYield, Progress, Requests, RunRecord
from etl.sinks import Sink
from etl.sinks.snapshot import Published


@dataclass(frozen=True, slots=True)
class Task:
    """One account to read: a few KiB, without its token."""

    account: str
    config: Config
    sink: str
    """The name of the sink whose last run of the account is `last`."""
    folder: Path
    """The account's stage."""
    full: bool
    seq: int
    run_id: str
    last: RunRecord | None = None
    """The account's last published run."""
    version: str = __version__
    """The version of the coordinator; a worker of another one refuses the task."""

    @property
    def contacts(self) -> int:
        """The contacts after the last run; 0 before the first."""
        return self.last.counts.contacts if self.last else 0

    def reader(self, source: Source, sink: Sink, folder: Path, *, shared: bool = False) -> Reader:
        """The reader of the account in `folder`; `shared`: see `Reader`."""
        return Reader(
            source=source,
            published=Published(sink, self.account),
            folder=folder,
            config=self.config,
            full=self.full,
            seq=self.seq,
            run_id=self.run_id,
            last=self.last,
            shared=shared,
        )


class AccountReader(Protocol):
    """Reads one account, once."""

    async def read(self) -> AccountYield:
        """Read the whole account. Raises `EtlError`, also in an exception group."""
        ...

    def progress(self) -> Progress | None:
        """The current progress; None before the first request."""
        ...

    def spent(self) -> Requests:
        """The requests sent so far, also if reading failed."""
        ...


class Fleet(Protocol):
    """Reads accounts concurrently."""

    def place(self, task: Task) -> AbstractAsyncContextManager[object]:
        """Wait until the account may be read; the place is free again when the block ends."""
        ...

    def reader(self, task: Task) -> AccountReader:
        """A reader of the account. It may look at files: not called by the event loop."""
        ...
