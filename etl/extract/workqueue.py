"""A work queue that grows while it is processed: each finished item may add further ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class WorkQueue(Generic[T]):
    """Applies `work` to every item, and to every item that `work` returns, with a fixed number of workers.

    `items` is consumed lazily, in order; items returned by `work` go first, so that the queue stays short. `ready`
    decides whether an item may start while others are unfinished; if not, it waits, and so do all items after it.
    """

    def __init__(
        self,
        work: Callable[[T], Awaitable[Sequence[T]]],
        items: Iterable[T],
        ready: Callable[[T, Collection[T]], bool] = lambda *_: True,
    ) -> None:
        self._work = work
        self._items = iter(items)
        self._ready = ready
        self._left: list[T] = []
        self._held: T | None = None
        """Drawn from `items`, but not ready yet."""
        self._unfinished: list[T] = []
        self._changed: anyio.Event | None = None
        """The event that idle workers wait for; None if no worker waits."""
        self._idle = 0
        """Workers that wait for an item."""

    @property
    def lacks_items(self) -> bool:
        """Whether a worker waits, and no item is left for it."""
        return self._idle > len(self._left)

    async def run(self, workers: int) -> None:
        """Process all items; the first error of any worker cancels the others."""
        async with anyio.create_task_group() as tasks:
            for _ in range(workers):
                tasks.start_soon(self._worker)

    async def _worker(self) -> None:
        while True:
            item = self._left.pop() if self._left else self._draw()
            if item is not None:
                self._unfinished.append(item)
                self._left.extend(await self._work(item))
                self._unfinished.remove(item)
                if self._changed is not None:
                    self._changed.set()
                    self._changed = None
            elif self._unfinished:
                self._changed = self._changed or anyio.Event()
                self._idle += 1
                await self._changed.wait()
                self._idle -= 1
            else:
                return

    def _draw(self) -> T | None:
        """The next of `items`, if there is one and it is ready."""
        item = self._held if self._held is not None else next(self._items, None)
        ready = item is None or self._ready(item, self._unfinished)
        self._held = None if ready else item
        return item if ready else None
