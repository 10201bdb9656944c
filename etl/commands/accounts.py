"""Rename an account in every target, or drop it: a publication like that of a run, but nothing is read.

Each is one atomic step per target. History is only appended to: the old name's contacts get tombstones, the new name's
their first versions. The state continues under the new name, so that its next run is incremental. A command killed
between two targets is completed by running it again: targets in which it is done are skipped.
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time

from anyio import from_thread, to_thread
from structlog.contextvars import bound_contextvars

from etl import schema
from etl.api.request import checked_filters
from etl.commands.publish import publish
from etl.commands.result import ChangeResult, SinkReport
from etl.config import Config
from etl.config.accounts import ACCOUNT_NAME
from etl.errors import EtlError, UsageError
from etl.log import log
from etl.model import AccountYield, Counts, Proof, Publication, Requests, RunRecord, SinkState
from etl.sinks import Sink, Unpublished
from etl.sinks.checks import refuse_other_filters
from etl.sinks.targets import sinks as sinks_of
from etl.storage import files
from etl.storage.lock import Lock
from etl.storage.staging import next_folder, stage_folder

States = Mapping[Sink, SinkState]
Records = Mapping[Sink, RunRecord]


class Change:
    """A rename or, without a new name, a drop; and its state between steps."""

    def __init__(self, config: Config, account: str, renamed_to: str | None = None) -> None:
        self._config = config
        self._run_id = secrets.token_hex(4)
        self._report = ChangeResult(account, renamed_to)

    async def execute(self) -> ChangeResult:
        """Make the change and return the result; an EtlError becomes part of it, nothing else is caught."""
        try:
            with bound_contextvars(run=self._run_id):
                # The thread is awaited: a signal stops it until the first target has published, as in a run.
                await to_thread.run_sync(self._execute)
        except EtlError as error:
            log.error("account.failed", **error.document())
            return self.end(error)
        return self.end(None)

    def end(self, error: EtlError | None) -> ChangeResult:
        """The result so far, even before the work has ended; `error` is the error that ended it."""
        return replace(self._report, error=error)

    def _execute(self) -> None:
        """Lock and open the targets, find those in which the change is not done yet, publish there."""

        def published(sink: Sink) -> None:
            self._note(sink, publication.seq)
            log.info("sink.published", sink=sink.name, seq=publication.seq)

        account, new = self._report.account, self._report.renamed_to
        if new is not None and (new == account or not re.fullmatch(ACCOUNT_NAME.removesuffix("$"), new)):
            hint = "Choose another one: letters, digits, '.', '_' and '-', at most 64."
            raise UsageError(f"account {account} cannot be renamed to {new!r}", where="command line", hint=hint)
        filters = checked_filters(self._config.extract.filters)
        sinks = sinks_of(self._config)
        if not any(sink.exists() for sink in sinks):
            raise Unpublished("nothing was exported yet", where="sinks")
        with ExitStack() as held:
            for sink in sinks:
                held.enter_context(Lock(sink.path))
            states = {sink: sink.open() for sink in sinks}
            for sink, state in states.items():
                refuse_other_filters(sink, state, filters)
            from_thread.check_cancelled()
            done, undone = _divided(states, account, new)
            for sink, record in done.items():
                self._note(sink, record.seq)
                self._report = replace(self._report, contacts=record.counts.contacts)
            if undone:
                folder = next_folder(sinks[0].path)
                try:
                    publication = self._publication(folder, filters, states, done, undone)
                    from_thread.check_cancelled()
                    outcome = publish(
                        tuple(undone),
                        publication,
                        shrink_share=None,
                        published=published,
                        check_cancelled=from_thread.check_cancelled,
                    )
                    if outcome.merged is not None:
                        self._report = replace(self._report, contacts=outcome.merged.counts[account].deleted)
                    outcome.raise_for_failure()
                finally:
                    files.remove_quietly(folder)
            # Killed runs of either name can no longer be resumed.
            for name in filter(None, (account, new)):
                files.remove_quietly(stage_folder(sinks[0].path) / name)

    def _publication(
        self, folder: Path, filters: Mapping[str, object], states: States, done: Records, undone: Records
    ) -> Publication:
        """The end of the old name and, for a rename, the start of the new one, with the old one's state.

        If the change is done in another target, it has the same number, id and time as there.
        """
        account, new = self._report.account, self._report.renamed_to
        sink, last = max(undone.items(), key=lambda item: item[1].t0)
        # By the server's clock, like every T0; `contacts_as_of` needs them in order.
        ahead = last.detail.get("clock_ahead")
        now = datetime.fromtimestamp(int(time()), UTC) + timedelta(seconds=ahead if isinstance(ahead, int) else 0)
        ended = replace(
            last,
            seq=max(state.seq for state in states.values()) + 1,
            run_id=self._run_id,
            mode="dropped",
            t0=max(now, last.t0),
            proof=Proof(last.proof.level, 0),
            requests=Requests(),
            seconds=0.0,
            counts=Counts(),
            detail={"renamed_to": new} if new else {},
        )
        first = next(iter(done.values()), None)
        if first is not None and first.seq > max(states[behind].seq for behind in undone):
            ended = replace(ended, seq=first.seq, run_id=first.run_id, t0=first.t0)
        windows = schema.WINDOWS_SCHEMA.empty_table()
        yields = [AccountYield(ended, (), (), (), windows)]
        if new is not None:
            part = folder / "part.parquet"
            begun = replace(
                ended,
                account=new,
                mode="filtered" if last.mode == "filtered" else "renamed",
                proof=replace(last.proof, windows=0),
                counts=Counts(received=sink.copy_contacts(account, new, part)),
                detail={**last.detail, "renamed_from": account},
            )
            yields.append(AccountYield(begun, (part,), (), (), windows))
        return Publication(ended.seq, ended.run_id, tuple(yields), filters)

    def _note(self, sink: Sink, seq: int) -> None:
        """Record one more target in which the change is done."""
        sinks = {**self._report.sinks, sink.name: SinkReport(sink.location, seq)}
        self._report = replace(self._report, seq=seq, sinks=sinks)


def _divided(states: States, account: str, new: str | None) -> tuple[Records, Records]:
    """The targets in which the change is done and those in which it is not, with the account's last run in each.

    A target without any state is in neither. Raises UsageError if the change is impossible.
    """
    undone = {sink: state.runs[account] for sink, state in states.items() if account in state.runs}
    renamed = {sink: state.runs[new] for sink, state in states.items() if new is not None and new in state.runs}
    done = {
        sink: record
        for sink, record in renamed.items()
        if sink not in undone and record.detail.get("renamed_from") == account
    }
    where = ", ".join(sink.location for sink in states)
    if not undone and not done:
        held = sorted({name for state in states.values() for name in state.runs})
        nearest = difflib.get_close_matches(account, held, n=1, cutoff=0.0)
        hint = f"Did you mean {nearest[0]}? There are: {', '.join(held)}." if nearest else "There is none."
        raise UsageError(f"no target holds an account {account}", where=where, hint=hint)
    if taken := [record for sink, record in renamed.items() if sink not in done]:
        raise UsageError(
            f"a target already holds an account {new}, with {taken[0].counts.contacts:,} contacts",
            where=where,
            hint=f"Drop one of the two (etl account drop {account}), or choose another name.",
        )
    known = [*undone.values(), *done.values()]
    stale = [sink for sink, state in states.items() if state.seq and sink not in undone and sink not in done]
    if new is not None and (stale or len({(record.watermark, record.counts.contacts) for record in known}) > 1):
        raise UsageError(
            f"the targets do not hold the same state of account {account}",
            where=where,
            hint=f"Run `etl run` until it ends with 0, with account {account} in the configuration; then rename it.",
        )
    return done, undone
