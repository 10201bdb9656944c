"""Work on every account, several at a time: what `plan` and `doctor` do with hundreds of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from etl.api.sources import Source
from etl.errors import EtlError

T = TypeVar("T")


async def each_account(
    sources: Sequence[Source], at_once: int, work: Callable[[Source], Awaitable[T]]
) -> list[T | EtlError]:
    """The result of `work` for each account, in their order, or the error that it raised; at most `at_once` at a time.

    Other errors are raised, and stop the others.
    """
    done: dict[str, T | EtlError] = {}
    places = anyio.CapacityLimiter(at_once)

    async def one(source: Source) -> None:
        async with places:
            try:
                done[source.account] = await work(source)
            except EtlError as error:
                done[source.account] = error

    async with anyio.create_task_group() as tasks:
        for source in sources:
            tasks.start_soon(one, source)
    return [done[source.account] for source in sources]
