"""One run: lock and open the sinks, read the accounts concurrently, guard, publish, report.

The only module that uses all the others. Accounts are independent: one that fails does not stop the rest. Publishing is
last, one atomic step per sink; a failure before it leaves every target unchanged.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
from anyio import from_thread, to_thread
from structlog.contextvars import bound_contextvars

from etl.api.request import checked_filters
from etl.api.sources import Source, sources
from etl.commands import guard
from etl.commands.publish import publish
from etl.commands.result import AccountReport, RunResult, SinkReport
from etl.config import Config
from etl.errors import AuthError, EtlError, SourceUnavailable
from etl.extract.account import Reader, last_run
from etl.log import log
from etl.model import AccountYield, Progress, Publication, SinkState
from etl.sinks import Sink
from etl.sinks.snapshot import Published
from etl.sinks.targets import lagging_sink, refuse_other_filters, unconfigured
from etl.sinks.targets import sinks as sinks_of
from etl.storage import disk
from etl.storage.staging import Lock, stage_folder

RESUMABLE = (SourceUnavailable, AuthError)
"""Errors after which the next run resumes: the data already read is valid."""


@dataclass(frozen=True, slots=True)
class Options:
    """Command-line options of one run."""

    full: bool = False
    allow_unproven: bool = False
    allow_shrink: bool = False


Watch = Callable[[Callable[[], list[Progress]]], Coroutine[Any, Any, None]]
"""Shows progress until cancelled."""


async def execute(config: Config, options: Options) -> RunResult:
    """Run once and return the result."""
    return await Run(config, options).execute()


async def _unwatched(_: Callable[[], list[Progress]]) -> None:
    """Show no progress."""


class Run:
    """One run, and its state between steps."""

    def __init__(self, config: Config, options: Options, watch: Watch = _unwatched) -> None:
        """`watch` gets a function that returns the progress of the accounts being read; it is cancelled after them."""
        self.run_id = secrets.token_hex(4)
        self._config = config
        self._options = options
        self._watch = watch
        self._started = monotonic()
        self._accounts = {account.name: AccountReport(account.name) for account in config.accounts}
        self._reading: dict[str, Reader] = {}
        """The accounts being read now; each frees its resources before the next takes its place."""
        self._yields: dict[str, AccountYield] = {}
        self._published: dict[str, SinkReport] = {}
        self._unconfigured: dict[str, int] = {}

    async def execute(self) -> RunResult:
        """Run and return the result; an EtlError becomes part of it, nothing else is caught."""
        try:
            with bound_contextvars(run=self.run_id):
                await self._execute()
        except EtlError as error:
            log.error("run.failed", **error.document())
            return self.report(error)
        return self.report(None)

    def report(self, error: EtlError | None) -> RunResult:
        """The result so far, even before the run has ended; `error` is the error that ended the whole run."""
        spent = {name: reader.spent() for name, reader in self._reading.items()}
        accounts = [
            replace(account, error=account.error or error, requests=spent.get(name, account.requests))
            for name, account in self._accounts.items()
        ]
        first = next((account.error for account in accounts if account.error), None)
        seconds, published = monotonic() - self._started, dict(self._published)
        return RunResult(seconds, tuple(accounts), published, error or first, self._unconfigured)

    async def _execute(self) -> None:
        """Lock, open, read, publish."""
        for hint in self._config.deprecated:
            log.warning("config.deprecated", hint=hint)
        filters = checked_filters(self._config.extract.filters)
        sinks = sinks_of(self._config)
        with ExitStack() as held:
            async with sources(self._config) as found:
                self._accounts = {source.account: AccountReport(source.account) for source in found}
                for sink in sinks:
                    held.enter_context(Lock(sink.path))
                states = [await to_thread.run_sync(sink.open) for sink in sinks]
                for sink, state in zip(sinks, states, strict=True):
                    refuse_other_filters(sink, state, filters)
                self._unconfigured = unconfigured(self._config, states)
                for name, contacts in self._unconfigured.items():
                    log.warning("account.not_configured", account=name, contacts=contacts)
                folder = held.enter_context(self._staged(sinks))
                seq = max(state.seq for state in states) + 1
                await self._read(found, partial(self._reader, sinks, states, folder, seq))
            brought = tuple(self._yields[name] for name in self._accounts if name in self._yields)
            await self._publish(sinks, Publication(seq, self.run_id, brought, filters))

    @contextmanager
    def _staged(self, sinks: Sequence[Sink]) -> Iterator[Path]:
        """The staging folder; afterwards, it holds only data from which the next run can resume.

        That is everything if the run is cancelled, and the data of accounts that failed with a resumable error.
        """
        for sink in sinks[1:]:
            disk.remove(stage_folder(sink.path))
        folder = stage_folder(sinks[0].path)
        for left in disk.entries(folder):
            if left.name not in self._accounts:
                disk.remove(left)
        try:
            yield folder
        except Exception:
            disk.remove_quietly(folder)
            raise
        for name, report in self._accounts.items():
            if not isinstance(report.error, RESUMABLE):
                disk.remove_quietly(folder / name)
        disk.remove_if_empty(folder)

    def _reader(
        self, sinks: Sequence[Sink], states: Sequence[SinkState], folder: Path, seq: int, source: Source
    ) -> Reader:
        last = last_run(states, source.account)
        sink = lagging_sink(sinks, states, source.account, last)
        return Reader(
            source=source,
            published=Published(sink, source.account),
            folder=folder / source.account,
            config=self._config,
            full=self._options.full,
            seq=seq,
            run_id=self.run_id,
            last=last,
        )

    async def _read(self, found: Sequence[Source], prepared: Callable[[Source], Reader]) -> None:
        """Read the accounts in the order of the file, `extract.accounts_at_once` concurrently."""

        def progress() -> list[Progress]:
            return [now for reader in self._reading.values() if (now := reader.progress())]

        places = anyio.CapacityLimiter(self._config.extract.accounts_at_once)
        async with anyio.create_task_group() as observer:
            observer.start_soon(self._watch, progress)
            async with anyio.create_task_group() as tasks:
                for source in found:
                    tasks.start_soon(self._read_one, places, source.account, partial(prepared, source))
            observer.cancel_scope.cancel()

    async def _read_one(self, places: anyio.CapacityLimiter, name: str, prepared: Callable[[], Reader]) -> None:
        async with places:
            try:
                reader = self._reading[name] = await to_thread.run_sync(prepared)
                brought = await reader.read()
                self._note(name, record=brought.record)
                previous = reader.last.counts.contacts if reader.last else 0
                guard.check_rejects(brought.record, previous, self._config.guard.max_reject_share)
                guard.check_identity(brought.record, reader.last)
                guard.check_proof(brought.record, allow_unproven=self._options.allow_unproven)
                if not self._options.allow_shrink:
                    guard.check_not_empty(brought.record, previous)
            except* EtlError as group:
                self._note(name, error=_first(group))
            else:
                self._yields[name] = brought
            finally:
                if name in self._reading:
                    self._note(name, requests=self._reading.pop(name).spent())

    async def _publish(self, sinks: Sequence[Sink], publication: Publication) -> None:
        def published(sink: Sink) -> None:
            self._published[sink.name] = SinkReport(sink.path, publication.seq)
            log.info("sink.published", sink=sink.name, seq=publication.seq)

        share = None if self._options.allow_shrink else self._config.guard.max_shrink_share
        # The thread is awaited: a signal stops it until the first sink has published, and is ignored afterwards, so the
        # exit code reflects the published state.
        go_on = from_thread.check_cancelled
        work = partial(publish, sinks, publication, shrink_share=share, published=published, go_on=go_on)
        outcome = await to_thread.run_sync(work)
        for name, error in outcome.refused.items():
            self._note(name, error=error)
        if outcome.merged is not None:
            for name, counts in outcome.merged.counts.items():
                record = replace(self._yields[name].record, counts=counts)
                self._note(name, record=record, struck=outcome.merged.struck.get(name, 0))

    def _note(self, name: str, **known: Any) -> None:
        report = self._accounts[name] = replace(self._accounts[name], **known)
        if "error" in known and report.error is not None:
            log.error("account.failed", account=name, **report.error.document())


def _first(group: BaseExceptionGroup[EtlError]) -> EtlError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, EtlError):
        raise error
    return error
