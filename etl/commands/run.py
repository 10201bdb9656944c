"""One run: lock and open the sinks, read the accounts concurrently, guard, publish, report.

The only module that uses all the others. Accounts are independent: one that fails does not stop the rest. Publishing is
last, one atomic step per sink; a failure before it leaves every target unchanged.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import Any

import anyio
from anyio import from_thread, to_thread
from structlog.contextvars import bound_contextvars

from etl import __version__
from etl.api.request import checked_filters
from etl.commands import guard, outputs
from etl.commands.coverage import proven_since
from etl.commands.publish import Outcome, publish
from etl.commands.result import AccountReport, RunResult, SinkReport
from etl.config import Config, absolute
from etl.config.accounts import Account
from etl.errors import AuthError, EtlError, SourceUnavailable, Unreachable, first_of
from etl.extract.account import last_run
from etl.extras import importing
from etl.fleet.in_process import in_process
from etl.fleet.task import AccountReader, Fleet, Task
from etl.log import log
from etl.model import AccountYield, Phase, Progress, Publication, SinkState
from etl.sinks import Sink
from etl.sinks.checks import refuse_other_filters
from etl.sinks.targets import first_path, lagging_sink, unconfigured
from etl.sinks.targets import sinks as sinks_of
from etl.storage import files
from etl.storage.attempts import Attempt, record_attempt
from etl.storage.lock import Lock
from etl.storage.staging import release, stage_folder

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

    def __init__(self, config: Config, options: Options, watch: Watch | None = None, cluster: str = "") -> None:
        """`watch` gets `progress`; it is cancelled when everything is published.

        `cluster` is the address of a Dask scheduler whose workers read the accounts; empty: this process does.
        """
        self.run_id = secrets.token_hex(4)
        self._config = absolute(config) if cluster else config
        self._cluster = cluster
        self._options = options
        self._watch = watch
        self._started, self._began_at = monotonic(), time()
        self._accounts = {account.name: AccountReport(account.name) for account in config.read_accounts}
        self._reading: dict[str, AccountReader] = {}
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
        failures = (*(account.error for account in accounts), *(sink.error for sink in self._published.values()))
        first = next((failure for failure in failures if failure), None)
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
        record_attempt(first_path(self._config), attempt)
        outputs.write(self._config, attempt, result.error)
        return result

    def progress(self) -> list[Progress]:
        """One value per account, in the order of the configuration."""
        shown = []
        for name, report in self._accounts.items():
            reader, last = self._reading.get(name), self._progress.get(name)
            if reader is not None and (now := reader.progress()):
                # An incremental run reads a part of the last snapshot, and how large a part is not known.
                shown.append(now if self._options.full else replace(now, expected=None))
            elif last is None or report.error is not None:
                waits = Progress(name, 0, 0, 0, None, "waiting")
                shown.append(replace(last or waits, failed=report.error is not None))
            else:
                shown.append(replace(last, phase=self._phase or "read"))
        return shown

    async def _execute(self) -> None:
        """Lock, open, read, publish."""
        for hint in self._config.deprecated:
            log.warning("config.deprecated", hint=hint)
        outputs.check(self._config)
        filters = checked_filters(self._config.extract.filters)
        sinks = sinks_of(self._config)
        with ExitStack() as held:
            async with self._fleet(sinks) as fleet:
                for sink in sinks:
                    held.enter_context(Lock(sink.path))
                sinks, states = await self._open(sinks)
                for sink, state in zip(sinks, states, strict=True):
                    refuse_other_filters(sink, state, filters)
                self._unconfigured = unconfigured(self._config, states)
                for name, contacts in self._unconfigured.items():
                    log.warning("account.not_configured", account=name, contacts=contacts)
                folder = held.enter_context(self._staged(sinks))
                seq = max(state.seq for state in states) + 1
                async with anyio.create_task_group() as tasks:
                    for account in self._config.read_accounts:  # In the order of the file.
                        tasks.start_soon(self._read, fleet, self._task(sinks, states, folder, seq, account))
            brought = tuple(self._yields[name] for name in self._accounts if name in self._yields)
            await to_thread.run_sync(release)
            await self._publish(sinks, Publication(seq, self.run_id, brought, filters))

    def _fleet(self, sinks: Sequence[Sink]) -> AbstractAsyncContextManager[Fleet]:
        """Where the accounts are read."""
        if not self._cluster:
            return in_process(self._config, sinks)
        with importing("scale", "--cluster", "command line"):
            from etl.fleet.cluster import cluster  # noqa: PLC0415 - belongs to an extra
        return cluster(self._cluster, self._config, self.run_id)

    async def _open(self, sinks: Sequence[Sink]) -> tuple[tuple[Sink, ...], list[SinkState]]:
        """Open the sinks; those that cannot be reached are left out, unless that is all of them."""
        opened: dict[Sink, SinkState] = {}
        failed: dict[Sink, Unreachable] = {}
        for sink in sinks:
            try:
                opened[sink] = await to_thread.run_sync(sink.open)
            except Unreachable as error:
                failed[sink] = error
        if not opened:
            raise next(iter(failed.values()))
        for sink, failure in failed.items():
            self._leave_out(sink, failure)
        return tuple(opened), list(opened.values())

    def _leave_out(self, sink: Sink, error: EtlError) -> None:
        self._published[sink.name] = SinkReport(sink.location, None, error)
        log.error("sink.failed", sink=sink.name, **error.document())

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

    def _task(
        self, sinks: Sequence[Sink], states: Sequence[SinkState], folder: Path, seq: int, account: Account
    ) -> Task:
        last = last_run(states, account.name)
        return Task(
            account=account.name,
            config=self._config.model_copy(update={"accounts": (account,)}),
            sink=lagging_sink(sinks, states, account.name, last).name,
            folder=folder / account.name,
            full=self._options.full,
            seq=seq,
            run_id=self.run_id,
            last=last,
        )

    async def _read(self, fleet: Fleet, task: Task) -> None:
        """Read one account as soon as there is a place for it, and check the result with the guards."""
        name = task.account
        async with fleet.place(task):
            try:
                reader = self._reading[name] = await to_thread.run_sync(fleet.reader, task)
                brought = await reader.read()
                self._note(name, record=brought.record)
                guard.check_rejects(brought.record, task.contacts, self._config.guard.max_reject_share)
                guard.check_identity(brought.record, task.last)
                guard.check_proof(brought.record, allow_unproven=self._options.allow_unproven)
                if not self._options.allow_shrink:
                    guard.check_not_empty(brought.record, task.contacts)
            except* EtlError as group:
                self._note(name, error=first_of(group))
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
            self._published[sink.name] = SinkReport(sink.location, publication.seq)
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
        for sink, failure in outcome.failed.items():
            self._leave_out(sink, failure)
        if outcome.merged is not None:
            for name, counts in outcome.merged.counts.items():
                record = replace(self._yields[name].record, counts=counts)
                self._note(name, record=record, struck=outcome.merged.struck.get(name, 0))

    def _note(self, name: str, **known: Any) -> None:
        report = self._accounts[name] = replace(self._accounts[name], **known)
        if "error" in known and report.error is not None:
            log.error("account.failed", account=name, **report.error.document())
