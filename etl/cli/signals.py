"""SIGINT and SIGTERM: the first shuts down gracefully, forced after a grace period; the second exits at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import anyio
from anyio.abc import TaskStatus

from etl.cli.process import SIGNALS, stopped_by
from etl.errors import EtlError

T = TypeVar("T")

GRACE = 4.0
"""Seconds for a graceful shutdown; a merge in a worker thread takes longer, and may be killed at any point."""


async def until_stopped(work: Callable[[], Awaitable[T]], last_words: Callable[[EtlError], object]) -> T:
    """The result of `work`; raises Interrupted or Terminated if a signal cancelled it.

    If the work cannot be cancelled, the process exits anyway, after `last_words`. Once the work has ended, signals are
    ignored: only its result is still to be reported.
    """
    caught: list[int] = []

    async def watch(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> NoReturn:
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                if caught:
                    os._exit(128 + number)
                caught.append(number)
                scope.cancel()
                tasks.start_soon(_end_anyhow, number, last_words)
        raise AssertionError

    try:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                await tasks.start(watch, scope)
                result = await work()
                tasks.cancel_scope.cancel()
                return result
            tasks.cancel_scope.cancel()
    finally:
        # The loop restores the default handlers: a signal now would make a run that has published exit with -15.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    raise stopped_by(caught[0])


async def _end_anyhow(number: int, last_words: Callable[[EtlError], object]) -> None:
    await anyio.sleep(GRACE)
    error = stopped_by(number, " in the middle of the work")
    last_words(error)
    os._exit(error.exit_code)
