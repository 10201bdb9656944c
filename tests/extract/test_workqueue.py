"""A work queue that grows during the work: each item once, bounded concurrency, and the first error ends all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from random import Random

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.extract.workqueue import WorkQueue
from tests.simulation.loop import run

Item = tuple[int, ...]
"""A node in a tree of work: the path from its root."""


@given(
    roots=st.integers(0, 30),
    workers=st.integers(1, 8),
    width=st.integers(0, 3),
    depth=st.integers(1, 4),
    chance=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_every_item_is_worked_off_once(roots: int, workers: int, width: int, depth: int, chance: Random) -> None:
    """All items and their follow-up items are processed exactly once, by no more workers than given (N23)."""
    done: list[Item] = []
    left: set[Item] = set()
    busy = peak = 0

    async def work(item: Item) -> Sequence[Item]:
        nonlocal busy, peak
        busy += 1
        peak = max(peak, busy)
        await anyio.sleep(chance.random())
        busy -= 1
        done.append(item)
        further = [(*item, n) for n in range(width)] if len(item) < depth else []
        left.update(further)
        return further

    items = [(n,) for n in range(roots)]
    run(WorkQueue(work, items).run(workers))
    assert sorted(done) == sorted([*items, *left])
    assert peak <= workers


def test_items_are_drawn_only_when_somebody_is_free() -> None:
    """Items are drawn only as workers become free, follow-up items first, so that long plans fit in memory (S21)."""
    drawn = 0
    order: list[str] = []

    def items() -> Iterator[str]:
        nonlocal drawn
        for number in range(20):
            drawn += 1
            yield f"{number}"

    async def work(item: str) -> Sequence[str]:
        await anyio.sleep(1)
        order.append(item)
        assert drawn <= len(order) + 2
        return [f"{item}+"] if item == "3" else ()

    run(WorkQueue(work, items()).run(2))
    assert drawn == 20
    # The other worker may have drawn the next item at the same time.
    assert order.index("3+") <= order.index("3") + 2


def test_an_idle_worker_waits_for_what_a_busy_one_leaves() -> None:
    """No worker stops while an item in progress may still add further ones."""
    at: dict[str, float] = {}

    async def work(item: str) -> Sequence[str]:
        await anyio.sleep(5)
        at[item] = anyio.current_time()
        return ["left", "right"] if item == "root" else ()

    run(WorkQueue(work, ["root"]).run(4))
    assert at == {"root": 5.0, "left": 10.0, "right": 10.0}


def test_the_first_error_ends_all() -> None:
    """If one item fails, the others stop and its error is raised (P22)."""
    started: list[int] = []

    async def work(item: int) -> Sequence[int]:
        started.append(item)
        await anyio.sleep(1)
        if item == 2:
            raise LookupError
        await anyio.sleep(100)
        return ()

    with pytest.raises(ExceptionGroup) as caught:
        run(WorkQueue(work, range(50)).run(3))
    assert caught.group_contains(LookupError)
    assert started == [0, 1, 2]


def test_nothing_to_do_is_done_at_once() -> None:
    """An empty list ends without work."""

    async def work(_: int) -> Sequence[int]:
        raise AssertionError

    run(WorkQueue(work, []).run(3))


def test_an_item_that_is_not_ready_waits_for_those_before_it() -> None:
    """Nothing overtakes a waiting item, nothing is lost, and the follow-up items of earlier ones go first (M13)."""
    order: list[str] = []

    async def work(item: str) -> Sequence[str]:
        await anyio.sleep(1 if item.startswith("slow") else 0.1)
        order.append(item)
        return ["slow part"] if item == "slow" else []

    def ready(item: str, unfinished: Collection[str]) -> bool:
        return item != "careful" or not any(other.startswith("slow") for other in unfinished)

    run(WorkQueue(work, ["slow", "quick", "careful", "last"], ready).run(3))
    assert order == ["quick", "slow", "slow part", "careful", "last"]
