"""The events in the account: a stream determined only by seed, rates and start.

So two processes that read the same account at the same time see the same contacts.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from etl.sandbox.settings import Settings

KINDS = ("inserts", "touches", "deletes", "flips", "edits", "imports")
"""Settings that are rates, and the kinds of events."""
LIVELY_EVENTS = 25_000
"""Events after which the churn of an account that persists between processes slows down."""


@dataclass(frozen=True, slots=True)
class Tide:
    """The time of churn as a function of the clock.

    The first `lively` seconds are equal. Then the rate falls with the age, so that a process which opens an old account
    replays a bounded number of events: 25,000, and 12,500 more for every doubling of the age (a year at ten events a
    second is 190,000). It is a function of the age alone, so that all processes see the same past.
    """

    lively: float = math.inf

    def clock(self, churned: float) -> float:
        """Seconds after the start at which `churned` seconds of churn have happened."""
        if churned <= self.lively:
            return churned
        return self.lively * math.pow(2, 2 * (churned / self.lively - 1))


def tide(settings: Settings) -> Tide:
    """A constant rate, unless the account persists between processes."""
    events = sum(getattr(settings, kind) for kind in KINDS) + settings.imports * (settings.import_size - 1)
    return Tide(LIVELY_EVENTS / events) if settings.state and events else Tide()


@dataclass(frozen=True, slots=True, order=True)
class Due:
    """One event of the stream, before its contact is known."""

    at: float
    """Seconds after the start."""
    kind: str
    chance: float
    """Uniform in [0, 1): selects one of the contacts that exist then."""


def stream(settings: Settings) -> Iterator[Due]:
    """All events in the order of time, without end; empty if every rate is 0."""
    return heapq.merge(*(_of_kind(settings, kind, tide(settings)) for kind in KINDS))


def _of_kind(settings: Settings, kind: str, flow: Tide) -> Iterator[Due]:
    """One event somewhere in each interval of 1 / rate seconds."""
    rate: float = getattr(settings, kind)
    draw = Random(f"{settings.seed} {kind}")  # noqa: S311 - reproducible on purpose
    number = 0
    while rate:
        yield Due(flow.clock((number + draw.random()) / rate), kind, draw.random())
        number += 1
