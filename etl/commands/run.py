"""One run: lock and open the sinks, read the accounts concurrently, guard, publish, report.

The only module that uses all the others. Accounts are independent: one that fails does not stop the rest. Publishing is
last, one atomic step per sink; a failure before it leaves every target unchanged.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import Any

import anyio
from anyio import from_thread, to_thread
from structlog.contextvars import bound_contextvars

from etl import __version__
from etl.api.request import checked_filters
from etl.api.sources import Source, sources
from etl.commands import guard
from etl.commands.coverage import proven_since
from etl.commands.publish import Outcome, publish
from etl.commands.result import AccountReport, RunResult, SinkReport
from etl.config import Config
from etl.errors import AuthError, EtlError, SourceUnavailable
from etl.extract.account import Reader, last_run
from etl.log import log
from etl.model import AccountYield, Phase, Progress, Publication, SinkState
from etl.sinks import Sink
from etl.sinks.checks import refuse_other_filters
from etl.sinks.snapshot import Published
from etl.sinks.targets import lagging_sink, targets, unconfigured
from etl.sinks.targets import sinks as sinks_of
from etl.storage import files
from etl.storage.attempts import Attempt, record_attempt
from etl.storage.lock import Lock
from etl.storage.staging import stage_folder

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


class Run:
    """One run, and its state between steps."""

    def __init__(self, config: Config, options: Options, watch: Watch | None = None) -> None:
        """`watch` gets `progress`; it is cancelled when everything is published."""
        self.run_id = secrets.token_hex(4)
        self._config = config
        self._options = options
        self._watch = watch
        self._started, self._began_at = monotonic(), time()
        self._accounts = {account.name: AccountReport(account.name) for account in config.accounts}
        self._reading: dict[str, Reader] = {}
        """The accounts being read now; each frees its resources before the next takes its place."""
        self._progress: dict[str, Progress] = {}
        """The last progress of the accounts that have been read."""
        self._phase: Phase | None = None
        """The phase of all accounts that have been read; None while others are still being read."""
        self._yields: dict[str, AccountYield] = {}
        self._published: dict[str, SinkReport] = {}
        self._unconfigured: dict[str, int] = {}

    async def execute(self) -> RunResult:
        """Run and return the result; an EtlError becomes part of it, nothing else is caught."""
        failed: EtlError | None = None
        with bound_contextvars(run=self.run_id):
            async with anyio.create_task_group() as observer:
                if self._watch is not None:
                    observer.start_soon(self._watch, self.progress)
                try:
                    await self._execute()
                except EtlError as error:
                    log.error("run.failed", **error.document())
                    failed = error
                observer.cancel_scope.cancel()
        return self.end(failed)

    def end(self, error: EtlError | None) -> RunResult:
        """The result so far, recorded as an attempt; `error` is the error that ended the whole run.

        It may be called before the run has ended, if that cannot be awaited.
        """
        spent = {name: reader.spent() for name, reader in self._reading.items()}
        accounts = [
            replace(account, error=account.error or error, requests=spent.get(name, account.requests))
            for name, account in self._accounts.items()
        ]
        first = next((account.error for account in accounts if account.error), None)
        seconds, published = monotonic() - self._started, dict(self._published)
        result = RunResult(seconds, tuple(accounts), published, error or first, self._unconfigured)
        attempt = Attempt(
            started=datetime.fromtimestamp(self._began_at, UTC),
            finished=datetime.fromtimestamp(self._began_at + seconds, UTC),
            exit_code=result.exit_code,
            requests=result.requests,
            error=result.error.document() if result.error else None,
            options=asdict(self._options),
            version=__version__,
        )
        _, target = targets(self._config)[0]
        record_attempt(target, attempt)
        return result

    def progress(self) -> list[Progress]:
        """One value per account that is being read or has failed; from the merge on, one per account."""
        shown = []
        for name, report in self._accounts.items():
            reader, last = self._reading.get(name), self._progress.get(name)
            if reader is not None and (now := reader.progress()):
                # An incremental run reads a part of the last snapshot, and how large a part is not known.
                shown.append(now if self._options.full else replace(now, expected=None))
            elif last is not None and report.error is not None:
                shown.append(replace(last, failed=True))
            elif last is not None and self._phase is not None:
                shown.append(replace(last, phase=self._phase))
        return shown

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
                # In the order of the file, `extract.accounts_at_once` concurrently.
                places = anyio.CapacityLimiter(self._config.extract.accounts_at_once)
                async with anyio.create_task_group() as tasks:
                    for source in found:
                        prepared = partial(self._reader, sinks, states, folder, seq, source)
                        tasks.start_soon(self._read, places, source.account, prepared)
            brought = tuple(self._yields[name] for name in self._accounts if name in self._yields)
            await self._publish(sinks, Publication(seq, self.run_id, brought, filters))

    @contextmanager
    def _staged(self, sinks: Sequence[Sink]) -> Iterator[Path]:
        """The staging folder; afterwards, it holds only data from which the next run can resume.

        That is everything if the run is cancelled, and the data of accounts that failed with a resumable error.
        """
        for sink in sinks[1:]:
            files.remove(stage_folder(sink.path))
        folder = stage_folder(sinks[0].path)
        for left in files.entries(folder):
            if left.name not in self._accounts:
                files.remove(left)
        try:
            yield folder
        except Exception:
            files.remove_quietly(folder)
            raise
        for name, report in self._accounts.items():
            if not isinstance(report.error, RESUMABLE):
                files.remove_quietly(folder / name)
        files.remove_if_empty(folder)

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

    async def _read(self, places: anyio.CapacityLimiter, name: str, prepared: Callable[[], Reader]) -> None:
        """Read one account as soon as there is a place for it, and check the result with the guards."""
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
                error: BaseException = group
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                self._note(name, error=error)
            else:
                self._yields[name] = brought
            finally:
                if name in self._reading:
                    reader = self._reading.pop(name)
                    self._progress[name] = reader.progress() or Progress(name, 0, 0, 0, None)
                    self._note(name, requests=reader.spent())

    async def _publish(self, sinks: Sequence[Sink], publication: Publication) -> None:
        """Publish in a worker thread, which is awaited.

        A signal stops it until the first sink has published, and is ignored afterwards, so the exit code reflects the
        published state.
        """

        def published(sink: Sink) -> None:
            self._published[sink.name] = SinkReport(sink.path, publication.seq)
            log.info("sink.published", sink=sink.name, seq=publication.seq)

        def entered(phase: Phase) -> None:
            self._phase = phase

        def work() -> Outcome:
            # Asked before the merge: once something is published, nothing may fail any more.
            for name, since in proven_since(sinks[0], publication.accounts).items():
                self._note(name, proven_since=since)
            share = None if self._options.allow_shrink else self._config.guard.max_shrink_share
            return publish(
                sinks,
                publication,
                shrink_share=share,
                published=published,
                check_cancelled=from_thread.check_cancelled,
                entered=entered,
            )

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
