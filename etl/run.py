"""One run: lock and open the sinks, read the accounts side by side, guard, publish, report.

The only module that knows all the others. Accounts are independent: one that fails does not stop the rest. Publishing
comes last, one atomic step per sink; whatever goes wrong before it leaves every target as it was.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic

import anyio
from anyio import to_thread

from etl import disk, guard
from etl.account import Reader, history_of, last_run
from etl.api.request import checked_filters
from etl.config import Config
from etl.errors import EtlError, UsageError
from etl.model import AccountYield, Merged, Publication, RunRecord, SinkState
from etl.observe import Glance, bound, log, watch
from etl.report import AccountReport, RunReport, SinkReport
from etl.sinks import Sink
from etl.sources import Source, sources
from etl.staging import Lock, stage_folder
from etl.targets import creation_times
from etl.targets import sinks as make_sinks


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides for one run."""

    full: bool = False
    allow_unproven: bool = False
    allow_shrink: bool = False


async def execute(config: Config, options: Options) -> RunReport:
    """Run once and tell what came of it; an EtlError becomes part of the report, nothing else is caught."""
    started = monotonic()
    run = _Run(config, options, run_id=secrets.token_hex(4))
    try:
        with bound(run=run.run_id):
            await run.execute()
    except EtlError as error:
        log.error("run.failed", **error.document())
        return run.report(monotonic() - started, error)
    return run.report(monotonic() - started, None)


class _Run:
    """The state of one run between its steps."""

    def __init__(self, config: Config, options: Options, *, run_id: str) -> None:
        self.run_id = run_id
        self._config = config
        self._options = options
        self._yields: dict[str, AccountYield] = {}
        self._records: dict[str, RunRecord] = {}
        self._errors: dict[str, EtlError] = {}
        self._struck: Mapping[str, int] = {}
        self._published: dict[str, SinkReport] = {}
        self._order = [account.name for account in config.accounts]

    async def execute(self) -> None:
        filters = checked_filters(self._config.extract.filters)
        sinks = make_sinks(self._config)
        with ExitStack() as held:
            async with sources(self._config) as found:
                self._order = [source.account for source in found]
                for sink in sinks:
                    held.enter_context(Lock(sink.path))
                states = [await to_thread.run_sync(sink.open) for sink in sinks]
                _check_same_filters(sinks, states, filters)
                seq = max(state.seq for state in states) + 1
                folder = stage_folder(sinks[0].path, self.run_id)
                held.callback(disk.remove, folder)
                readers = [
                    await to_thread.run_sync(self._reader, source, sinks, states, folder, seq) for source in found
                ]
                await self._read(readers)
            await to_thread.run_sync(partial(self._publish, sinks, seq, filters))

    def report(self, seconds: float, error: EtlError | None) -> RunReport:
        """What is known now."""
        accounts = tuple(
            AccountReport(name, self._records.get(name), self._errors.get(name) or error, self._struck.get(name, 0))
            for name in self._order
        )
        first = next((self._errors[name] for name in self._order if name in self._errors), None)
        return RunReport(seconds, accounts, self._published, error or first)

    def _reader(
        self, source: Source, sinks: Sequence[Sink], states: Sequence[SinkState], folder: Path, seq: int
    ) -> Reader:
        last = last_run(states, source.account)
        return Reader(
            source=source,
            history=history_of(last, creation_times(sinks[0], source.account)),
            folder=folder / source.account,
            extract=self._config.extract,
            http=self._config.http,
            full=self._options.full,
            seq=seq,
            run_id=self.run_id,
            expected=last.counts.contacts if last else None,
        )

    async def _read(self, readers: Sequence[Reader]) -> None:
        def glance() -> list[Glance]:
            return [now for reader in readers if (now := reader.glance())]

        async with anyio.create_task_group() as observer:
            observer.start_soon(watch, glance)
            async with anyio.create_task_group() as tasks:
                for reader in readers:
                    tasks.start_soon(self._read_one, reader)
            observer.cancel_scope.cancel()

    async def _read_one(self, reader: Reader) -> None:
        name = reader.source.account
        try:
            brought = await reader.read()
            self._records[name] = brought.record
            guard.check_rejects(brought.record, self._config.guard.max_reject_share)
            guard.check_proof(brought.record, allow_unproven=self._options.allow_unproven)
        except* EtlError as group:
            self._fail(name, _first(group))
        else:
            self._yields[name] = brought

    def _fail(self, name: str, error: EtlError) -> None:
        self._errors[name] = error
        self._yields.pop(name, None)
        log.error("account.failed", account=name, **error.document())

    def _publish(self, sinks: Sequence[Sink], seq: int, filters: Mapping[str, object]) -> None:
        """Merge beside every target, guard, then publish to each; on any error nothing prepared is left."""
        try:
            prepared = self._prepare(sinks, seq, filters)
            if prepared is None:
                return
            publication, merged = prepared
            self._struck = merged.struck
            for name, counts in merged.counts.items():
                self._records[name] = replace(self._records[name], counts=counts)
            for sink in sinks:
                sink.publish(publication)
                self._published[sink.name] = SinkReport(sink.path, seq)
                log.info("sink.published", sink=sink.name, seq=seq)
        finally:
            for sink in sinks:
                sink.discard()

    def _prepare(
        self, sinks: Sequence[Sink], seq: int, filters: Mapping[str, object]
    ) -> tuple[Publication, Merged] | None:
        """The merge of the accounts that pass the guards, as the first sink counts it; None when none is left."""
        while self._yields:
            brought = tuple(self._yields[name] for name in self._order if name in self._yields)
            publication = Publication(seq, self.run_id, brought, filters)
            merged = [sink.prepare(publication) for sink in sinks]
            refused = self._refused(merged)
            if not refused:
                return publication, merged[0]
            for name, error in refused.items():
                self._fail(name, error)
            for sink in sinks:
                sink.discard()
        return None

    def _refused(self, merged: Sequence[Merged]) -> dict[str, EtlError]:
        if self._options.allow_shrink:
            return {}
        modes = {name: brought.record.mode for name, brought in self._yields.items()}
        share = self._config.guard.max_shrink_share
        return {name: error for one in merged for name, error in guard.check_shrink(modes, one, share).items()}


def _check_same_filters(sinks: Sequence[Sink], states: Sequence[SinkState], filters: Mapping[str, object]) -> None:
    """A target holds the export of one set of filters; another set would turn it into a mixture."""
    for sink, state in zip(sinks, states, strict=True):
        if state.seq and dict(state.filters) != dict(filters):
            raise UsageError(
                f"the target was made with {'other' if state.filters else 'no'} filters",
                where=f"sinks.{sink.name}.path = {sink.path}",
                mend="Name a new target for this export, or restore extract.filters.",
            )


def _first(group: BaseExceptionGroup[EtlError]) -> EtlError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, EtlError):
        raise error
    return error
