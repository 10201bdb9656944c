"""A list of work that grows while it is worked off: each finished item may leave further ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Worklist(Generic[T]):
    """Applies `work` to every item, and to every item that `work` returns, with a fixed number of workers.

    `items` is drawn lazily; items left by earlier ones go first, so that the list stays short.
    """

    def __init__(self, work: Callable[[T], Awaitable[Sequence[T]]], items: Iterable[T]) -> None:
        self._work = work
        self._items = iter(items)
        self._left: list[T] = []
        self._busy = 0
        self._changed = anyio.Condition()

    async def run(self, workers: int) -> None:
        """Return when nothing is left; the first error of any worker ends all."""
        async with anyio.create_task_group() as tasks:
            for _ in range(workers):
                tasks.start_soon(self._worker)

    async def _worker(self) -> None:
        while (item := await self._next()) is not None:
            further = await self._work(item)
            async with self._changed:
                self._busy -= 1
                self._left.extend(further)
                self._changed.notify_all()

    async def _next(self) -> T | None:
        async with self._changed:
            while True:
                item = self._left.pop() if self._left else next(self._items, None)
                if item is not None:
                    self._busy += 1
                    return item
                if not self._busy:
                    return None
                await self._changed.wait()
