"""Compares jobs in rounds, so that a temporary slowdown of the machine affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from tests.bench.jobs import Ran
from tests.bench.measure import Cost
from tests.bench.table import Row

Side = Callable[[], Ran]


def interleaved(sides: Mapping[str, Side], rounds: int, seconds: float) -> dict[str, list[Ran]]:
    """Run A B C A B C: at least one round, and no further one that would end after `seconds`."""
    found: dict[str, list[Ran]] = {what: [] for what in sides}
    began = time.monotonic()
    for done in range(rounds):
        if done and (time.monotonic() - began) * (done + 1) / done > seconds:
            break
        for what, side in sides.items():
            found[what].append(side())
    return found


def compared(case: str, label: str, contacts: int, rounds: Mapping[str, Sequence[Ran]]) -> dict[str, Row]:
    """A row for each side, speed and CPU relative to the first one: the medians of the ratios per round."""
    base = next(iter(rounds.values()))
    rows: dict[str, Row] = {}
    for what, rans in rounds.items():
        speeds = [first.cost.seconds / ran.cost.seconds for first, ran in zip(base, rans, strict=True)]
        works = [ran.cost.cpu / first.cost.cpu for first, ran in zip(base, rans, strict=True)]
        row = row_of(case, f"{label}: {what}", contacts, rans)
        rows[what] = replace(row, speed=median(speeds), work=median(works))
    return rows


def row_of(case: str, what: str, contacts: int, rans: Sequence[Ran]) -> Row:
    """The medians of some runs."""
    return spent(case, what, [ran.cost for ran in rans], contacts)


def spent(case: str, what: str, costs: Sequence[Cost], contacts: int = 0) -> Row:
    """The median costs of some commands."""
    return Row(
        case,
        what,
        len(costs),
        contacts,
        seconds=median(cost.seconds for cost in costs),
        cpu=median(cost.cpu for cost in costs),
        peak_mb=median(cost.peak_mb for cost in costs),
    )
