"""Ask several questions at the same time: a round trip to the server may take longer than anything else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import anyio

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


@overload
async def gather(one: Callable[[], Awaitable[A]], two: Callable[[], Awaitable[B]], /) -> tuple[A, B]: ...
@overload
async def gather(
    one: Callable[[], Awaitable[A]],
    two: Callable[[], Awaitable[B]],
    three: Callable[[], Awaitable[C]],
    four: Callable[[], Awaitable[D]],
    /,
) -> tuple[A, B, C, D]: ...
@overload
async def gather(*questions: Callable[[], Awaitable[A]]) -> tuple[A, ...]: ...
async def gather(*questions: Callable[[], Awaitable[Any]]) -> tuple[Any, ...]:
    """The answers, in the order of the questions. The first error is raised as it is, and stops the other questions."""
    answers = [None] * len(questions)

    async def ask(place: int) -> None:
        answers[place] = await questions[place]()

    try:
        async with anyio.create_task_group() as tasks:
            for place in range(len(questions)):
                tasks.start_soon(ask, place)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return tuple(answers)
