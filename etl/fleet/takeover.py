"""Reads an account in the folder of a new attempt, from what earlier attempts have read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time
from typing import NoReturn

import anyio
from anyio import to_thread

from etl.api.sources import Source
from etl.errors import SourceUnavailable
from etl.extract.account import Reader, reading_key
from etl.fleet.attempts import attempts, claim, keep_result, kept_result
from etl.fleet.task import Task
from etl.log import log
from etl.model import AccountYield, Progress, Requests
from etl.sinks import Sink

LOOK_SECONDS = 0.5
"""How often an attempt looks for a newer one."""


@dataclass(slots=True)
class Takeover:
    """An `AccountReader`; an account that an earlier attempt has read completely costs no request."""

    task: Task
    source: Source
    sink: Sink
    _reader: Reader | None = field(default=None, init=False)

    async def read(self) -> AccountYield:
        """See `AccountReader`; raises `SourceUnavailable` if another attempt begins."""
        task = self.task
        key = reading_key(self.source, task.config.extract, task.last, full=task.full)
        found = await to_thread.run_sync(kept_result, task.folder, key, time())
        if found is not None:
            log.info("account.taken_over", account=task.account, run=found.record.run_id)
            return _of_this_run(found, task)
        folder = await to_thread.run_sync(claim, task.folder, task.run_id)
        self._reader = await to_thread.run_sync(
            lambda: task.reader(self.source, self.sink, folder, shared=True),
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_if_replaced, folder)
            brought = await self._reader.read()
            tasks.cancel_scope.cancel()
        await to_thread.run_sync(keep_result, folder, key, brought, time())
        return brought

    def progress(self) -> Progress | None:
        """See `AccountReader`."""
        return self._reader.progress() if self._reader else None

    def spent(self) -> Requests:
        """See `AccountReader`."""
        return self._reader.spent() if self._reader else Requests()

    async def _end_if_replaced(self, folder: Path) -> NoReturn:
        """End the attempt when its folder is not the newest any more, or was removed."""
        while True:
            await anyio.sleep(LOOK_SECONDS)
            if (await to_thread.run_sync(attempts, folder.parent))[-1:] != [folder]:
                break
        raise SourceUnavailable("another attempt reads it now", where=f"account {self.task.account}")


def _of_this_run(found: AccountYield, task: Task) -> AccountYield:
    """A result as this run publishes it: it counts as resumed, because a sink may have it already."""
    record = found.record
    detail = {**record.detail, "resumed": max(1, record.proof.windows)}
    return replace(found, record=replace(record, seq=task.seq, run_id=task.run_id, detail=detail))
