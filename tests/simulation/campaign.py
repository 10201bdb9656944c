"""Plays many schedules in order or in several processes, counts them and keeps the failing seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.simulation.personality import Personality, drawn, personality
from tests.simulation.schedule import Report, play

SEEDS = Path(__file__).with_name("seeds.txt")
"""Schedules that ever failed, always replayed first: seed, traits as JSON, broken promise, separated by tabs.

The traits are stored so that a schedule stays the same when the table of traits grows.
"""
CHUNK = 20


@dataclass(slots=True)
class Tally:
    """Totals over many schedules."""

    schedules: int = 0
    runs: int = 0
    proven: int = 0
    requests: int = 0
    events: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Runs that did not claim success, by the beginning of their reason."""
    failures: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count one schedule."""
        self.schedules += 1
        self.proven += report.proven
        self.runs += report.proven + len(report.unproven) + len(report.failed)
        self.requests += report.requests
        self.events += report.events
        self.refused.update(_kind(reason) for reason in (*report.unproven, *report.failed))
        if report.broken:
            self.failures.append(report)


def _kind(reason: str) -> str:
    """A reason without its numbers and times."""
    return "".join("#" if letter.isdigit() else letter for letter in reason)[:100]


def one(seed: int, *, unsparing: bool = False) -> Report:
    """Play the schedule of a seed."""
    return play(personality(seed, unsparing=unsparing))


def many(seeds: Iterable[int], *, processes: int = 1, unsparing: bool = False) -> Iterator[Report]:
    """Play the schedules of many seeds, in order."""
    each = partial(one, unsparing=unsparing)
    if processes == 1:
        yield from map(each, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(each, seeds, chunksize=CHUNK)


def kept() -> list[Personality]:
    """The schedules in the file, in its order."""
    lines = [line.split("\t") for line in SEEDS.read_text().splitlines()]
    return [personality(int(seed), json.loads(traits)) for seed, traits, _ in lines]


def keep(report: Report) -> None:
    """Add a failing schedule to the file."""
    with SEEDS.open("a") as file:
        file.write(f"{report.seed}\t{json.dumps(drawn(report.seed))}\t{report.broken[0][:120]}\n")


def told(report: Report) -> str:
    """Describe a failure, with the command that reproduces it."""
    lines = [f"seed {report.seed}: {len(report.broken)} promises broken", *report.broken[:10]]
    return "\n  ".join(lines) + f"\n  again: python -m tests.simulation --seed {report.seed}"
