"""How fast a client goes: requests at once, and the least time between two. Pure arithmetic, the clock is a parameter.

The server's limit is not known (API.md), so it is found: one more at once for every success while it goes well, half as
many when the server says that it was too fast, at most once for the requests that were under way together. A server
that counts requests a second is found by what it let through since it last said so. Source: FAULTS.md A5 to A7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

START = 8
"""Requests at once to begin with: a server that allows fewer refuses a handful, not a storm."""
FEW = 2
"""Requests at once below which it is not their number that the server minds."""
RECOVERY = 0.99
"""By how much each success shortens the time between two requests."""
SHORTEST_INTERVAL = 0.0005
"""Seconds; below this the pace is not held back at all."""


@dataclass(slots=True)
class Pace:
    """The pace of one client; its numbers may be read at any time."""

    ceiling: int
    """The most requests at once, from the configuration."""
    limit: float = START
    """Requests at once that seem possible; never above the ceiling, never under 1."""
    interval: float = 0.0
    """Seconds between two requests."""
    throttled: int = 0
    """How often the pace was cut."""
    _cut_at: float = -math.inf
    _passed: int = 0
    _next: float = -math.inf

    @property
    def at_once(self) -> int:
        """The requests that may be under way together now."""
        return max(1, min(self.ceiling, int(self.limit)))

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; its turn is then taken."""
        turn = max(now, self._next)
        self._next = turn + self.interval
        return turn - now

    def succeeded(self, in_flight: int) -> None:
        """An answer came while `in_flight` requests were under way, this one included."""
        self._passed += 1
        if in_flight >= self.at_once:
            self.limit = min(self.ceiling, self.limit + (1.0 if not self.throttled else 1.0 / self.limit))
        self.interval = self.interval * RECOVERY if self.interval > SHORTEST_INTERVAL else 0.0

    def refused(self, now: float, sent_at: float) -> None:
        """The server said at `now` that a request sent at `sent_at` was too much."""
        if sent_at <= self._cut_at:
            return
        self.limit = max(1.0, min(self.limit, self.ceiling) / 2)
        if self.limit <= FEW and self.throttled and self._passed:
            # Fewer at once did not help: the server counts requests a second.
            self.interval = max(self.interval, (now - self._cut_at) / self._passed)
        self.throttled += 1
        self._cut_at, self._passed = now, 0
