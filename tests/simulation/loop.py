"""An event loop in virtual time: when nothing is ready it jumps to the next timer, so an hour costs nothing.

It has no sockets and no threads; a task that waits for anything other than a timer or another task is a deadlock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set, but a task is waiting."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Starts at 0 seconds; with `shuffle`, callbacks that are ready at the same time run in an order drawn from it."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    """The timers, a heap of the base class."""

    def __init__(self, shuffle: Random | None = None) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self
        self._shuffle = shuffle
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds since the loop began."""
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        """Called by the base class before every round, instead of waiting on sockets."""
        if timeout is None:
            raise Deadlock("nothing is ready and no timer is set")
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0].when())
        elif self._shuffle is not None and len(self._ready) > 1:
            self._shuffle.shuffle(self._ready)
        return []

    def _process_events(self, events: list[object]) -> None:
        """There are no events."""

    def _write_to_self(self) -> None:
        """The loop never sleeps in a selector, so there is nothing to wake."""


def run(main: Coroutine[Any, Any, T], *, shuffle: Random | None = None) -> T:
    """Run `main` in a new virtual loop to its end."""
    loop = VirtualLoop(shuffle)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
