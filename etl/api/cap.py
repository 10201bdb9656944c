"""The most requests a second that the operator allows. Pure arithmetic, the clock is a parameter.

What counts is when requests reach the server, which nobody here sees: it is some time between sending a request and its
answer. So a request that would be one too many goes a second after the answer to the one that it has to follow, and not
a second after that was sent: then no network and no busy server, whatever they hold up, brings them closer together.
The first request waits for a second, too: a command that ended just now may have used it up.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

ON_ITS_WAY = 0.5
"""Seconds that a request without an answer is taken to need to reach the server, at most."""
MARGIN = 0.01
"""By how much longer than a second a second is taken: the server's clock is another."""


@dataclass(slots=True)
class Passage:
    """One request under the cap."""

    sent_at: float
    arrived_by: float
    """When it had reached the server, at the latest."""

    def answered(self, now: float) -> None:
        """It has its answer, or its connection has ended without one."""
        self.arrived_by = min(self.arrived_by, now)


@dataclass(slots=True)
class Cap:
    """In any `span` seconds at most `most` requests reach the server."""

    per_second: float
    """As configured: of 2.5 two may go in any second, of 0.5 one in any two seconds."""
    _passages: deque[Passage] = field(default_factory=deque)
    """Those by which the next is held back, in the order in which they were sent."""
    _begins: float | None = None
    """When the first request may go; None until it is known that there is one."""

    @property
    def most(self) -> int:
        """The requests in any span."""
        return max(1, math.floor(self.per_second))

    @property
    def span(self) -> float:
        """Seconds."""
        return max(1.0, 1.0 / self.per_second) * (1 + MARGIN)

    def wait(self, now: float) -> float:
        """Seconds until another request may be sent, as far as is known: when they are over, ask again."""
        if self._begins is None:
            self._begins = now + self.span
        while self._passages and self._passages[0].arrived_by + self.span <= now:
            self._passages.popleft()
        if len(self._passages) < self.most:
            return max(0.0, self._begins - now)
        followed = self._passages[len(self._passages) - self.most]
        return min(now, followed.arrived_by) + self.span - now

    def send(self, now: float) -> Passage:
        """A request is sent now, for which `wait` is over."""
        self._passages.append(Passage(now, now + ON_ITS_WAY))
        return self._passages[-1]

    def seconds(self, requests: int, latency: float) -> float:
        """The least time in which so many requests can be read, each of which is answered after so many seconds."""
        return requests / self.most * (self.span + min(latency, ON_ITS_WAY))
