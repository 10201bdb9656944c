"""The operator's limit on requests per second. Pure arithmetic, the clock is a parameter.

The limit applies to the arrival of requests at the server, which cannot be observed here: it is some time between
sending a request and receiving its response. So a request over the limit is sent a second after the response to the one
that it has to follow, not a second after that one was sent: no network or server delay can then bring them closer
together. The first request also waits for a second: a command that just ended may have used up the limit.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

ON_ITS_WAY = 0.5
"""The maximum seconds that a request without a response is assumed to need to reach the server."""
MARGIN = 0.01
"""The fraction by which a second is extended, because the server's clock is a different one."""


@dataclass(slots=True)
class Passage:
    """One request under the cap."""

    sent_at: float
    arrived_by: float
    """The latest time at which it reached the server."""

    def answered(self, now: float) -> None:
        """Record its response, or the end of its connection without one."""
        self.arrived_by = min(self.arrived_by, now)


@dataclass(slots=True)
class Cap:
    """At most `most` requests reach the server in any `span` seconds."""

    per_second: float
    """As configured: 2.5 allows two requests in any second, 0.5 one in any two seconds."""
    _passages: deque[Passage] = field(default_factory=deque)
    """The requests that delay the next one, in the order in which they were sent."""
    _begins: float | None = None
    """When the first request may be sent; None until there is one."""

    @property
    def most(self) -> int:
        """The maximum number of requests in any span."""
        return max(1, math.floor(self.per_second))

    @property
    def span(self) -> float:
        """The length of a span in seconds."""
        return max(1.0, 1.0 / self.per_second) * (1 + MARGIN)

    def wait(self, now: float) -> float:
        """Seconds until another request may be sent, as far as known; then call again."""
        if self._begins is None:
            self._begins = now + self.span
        while self._passages and self._passages[0].arrived_by + self.span <= now:
            self._passages.popleft()
        if len(self._passages) < self.most:
            return max(0.0, self._begins - now)
        followed = self._passages[len(self._passages) - self.most]
        return min(now, followed.arrived_by) + self.span - now

    def send(self, now: float) -> Passage:
        """Record a request that is sent now, after `wait` has returned 0."""
        self._passages.append(Passage(now, now + ON_ITS_WAY))
        return self._passages[-1]

    def seconds(self, requests: int, latency: float) -> float:
        """The minimum seconds in which `requests` requests can be read, each answered after `latency` seconds."""
        return requests / self.most * (self.span + min(latency, ON_ITS_WAY))
