"""One schedule: a world, a full run, the runs after it, and what the oracle says of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from etl import guard
from etl.api.answer import Page, Row
from etl.api.client import Client
from etl.api.retry import ATTEMPTS
from etl.errors import EtlError
from etl.extract import Extraction, History, Suspect, extract
from etl.model import Merged
from etl.sandbox.service import Service
from etl.window import milliseconds
from tests.simulation import loop
from tests.simulation.contact import versions
from tests.simulation.fold import Fold, Model
from tests.simulation.oracle import Oracle, Run
from tests.simulation.personality import Personality
from tests.simulation.weather import Weather, peopled
from tests.simulation.wire import START, Endless, Wire, let_pass, now

SHRINK_SHARE = 0.05
"""The default of `guard.max_shrink_share`."""


@dataclass(slots=True)
class Report:
    """What came of a schedule."""

    seed: int
    broken: list[str] = field(default_factory=list)
    """Promises broken by runs that claimed success, and rules broken by any run."""
    proven: int = 0
    unproven: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    events: int = 0
    requests: int = 0


class Schedule:
    """The runs of one personality against one world."""

    def __init__(self, personality: Personality, fold: Callable[[], Fold] = Model) -> None:
        self.personality = personality
        self.world = peopled(personality, START)
        self.weather = Weather(self.world, personality)
        self.service = Service(self.world)
        self.fold = fold()
        self.oracle = Oracle(self.world, personality.timing)
        self.report = Report(personality.seed)
        self._draw = personality.draw("schedule")
        self._last: Extraction | None = None

    async def play(personality: Personality, fold: Callable[[], Fold] = Model) -> Report:
    """Play the schedule of a personality; whatever stops it is a broken promise."""
    schedule = Schedule(personality, fold)
    shuffle = personality.draw("tasks") if personality["shuffled_tasks"] else None
    try:
        loop.run(schedule.play(), shuffle=shuffle)
    except Exception as error:  # noqa: BLE001 - a crash must not hide the seed it came from
        schedule.report.broken.append(f"CRASH {told(error)}")
    finally:
        schedule.fold.close()
    return schedule.report


def first(error: BaseException) -> BaseException:
    """The first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def told(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(first(error)).__name__}: {first(error)}"
