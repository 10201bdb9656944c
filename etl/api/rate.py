"""Adaptive request rate: concurrency and interval between two requests. Pure arithmetic, the clock is a parameter.

The server's limit is unknown, so the pace searches for it. Every success raises the concurrency. When the server
reports that requests are too fast, the concurrency is halved, at most once for the requests that were in flight
together. Whether the server limits concurrency or requests per second, it accepts a certain number of requests per
second: this rate is measured and kept. A faster one is tried now and then, less often if two measurements agree. A
rejected concurrency is also tried again, ever more rarely; it is remembered besides the rate because response times
vary, so that at any rate the concurrency may by chance exceed the server's limit.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

START = 4
"""The initial concurrency: a server that allows less rejects a handful of requests, not a storm."""
MEASURED, ENOUGH = 64, 4
"""The latest successes used to measure a rate, and the minimum for a measurement."""
MARGIN = 1.05
"""The factor by which the interval grows when the rate was rejected again at once."""
BURST = 1.4
"""The same, if the few successes show that the rate measured before was a burst that the server allows at first."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds that all requests wait after a rejection while the rate is unknown; doubled every time."""
RECOVERY = 0.01
"""The fraction by which a success shortens the interval while measurements do not agree."""
ALIKE = 1.25
"""The factor by which two measurements of one rate may differ."""
MOST_PATIENT = 256
"""The maximum factor by which recovery is slowed down."""
SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.0005, 2.0
"""Seconds; below the first, requests are not delayed at all."""
LOOKED_BACK = 20
"""The number of cuts used to check whether slowing down reduces rejections."""
SLOWER = 1.5
"""The factor by which the interval must have grown over these cuts for the check."""
RARE = 8
"""Average successes between two cuts that a pace which is too fast does not reach."""
TRIAL, RARER, RAREST_TRIAL = 4, 4, 256
"""Successes before a rejected concurrency is tried again, their growth factor per failed trial, and their maximum.

A trial costs a rejection, so it must be rare; a lifted limit should be found within some hundreds of successes.
"""
BROKEN = 10
"""Failures in a row after which requests are sent one by one until one succeeds: the server is down, not slow."""
BROKEN_INTERVAL = 1.0
"""Seconds between two of these requests."""


@dataclass(slots=True)
class Pace:
    """The pace of one client; its numbers may be read at any time."""

    ceiling: int
    """The maximum concurrency, from the configuration."""
    limit: float = START
    """The concurrency that seems possible, at least 1; `at_once` applies the ceiling."""
    interval: float = 0.0
    """Seconds between two requests."""
    throttled: int = 0
    """How often the pace was cut."""
    _again: int = 0
    """Cuts in a row with too few successes between them to measure a rate."""
    _failed: int = 0
    """Failures since the last success."""
    _cut_at: float = -math.inf
    _passed: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MEASURED))
    """The latest successes sent since the cut: the time, and the concurrency of each."""
    _successes: int = 0
    """Successes since the cut."""
    _cuts: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=LOOKED_BACK))
    """The latest cuts: the successes before each, and the interval."""
    _measured: float = 0.0
    _patience: int = 1
    """The factor by which recovery is slowed down: grows with every measurement that agrees with the one before."""
    _next: float = -math.inf
    _refused: int = 0
    """The concurrency rejected at the last cut; 0 if the server does not limit concurrency."""
    _trial: int = TRIAL
    """Successes since the cut after which that concurrency is tried again."""

    @property
    def broken(self) -> bool:
        """Whether no request gets through any more."""
        return self._failed >= BROKEN

    @property
    def at_once(self) -> int:
        """The number of requests that may be in flight now."""
        return 1 if self.broken else max(1, min(self.ceiling, int(self.limit)))

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; reserves its turn."""
        turn = max(now, self._next)
        self._next = turn + (BROKEN_INTERVAL if self.broken else self.interval)
        return turn - now

    def succeeded(self, now: float, sent_at: float, in_flight: int, among: int, *, may_try: bool = True) -> None:
        """Record a response to one of `in_flight` requests in flight, which was sent as one of `among`.

        Without `may_try` a rejected concurrency is not tried again now.
        """
        self._failed = 0
        self._successes += 1
        if sent_at >= self._cut_at:
            self._passed.append((now, min(among, in_flight)))
        if in_flight >= self.at_once:
            # If the rate is limited, concurrency need not be; while the rate is unknown, it grows cautiously.
            step = 1.0 if self.interval or not self.throttled else 1.0 / self.limit
            held_back = self._refused and not (may_try and self._successes >= self._trial)
            most = min(self.ceiling, self._refused - 1) if held_back else self.ceiling
            self.limit = max(self.limit, min(most, self.limit + step))
        held = self.interval > SHORTEST_INTERVAL
        self.interval = self.interval * (1 - RECOVERY / self._patience) if held else 0.0

    def failed(self) -> None:
        """Record a request without a response, or with one that reports a server failure."""
        self._failed += 1

    def refused(self, now: float, sent_at: float, among: int) -> float:
        """Record that the server rejected, at `now`, a request sent at `sent_at` as one of `among` in flight.

        Returns the seconds that all requests should wait.
        """
        if sent_at <= self._cut_at:
            return 0.0
        self._cuts.append((self._successes, self.interval))
        too_many = self._is_too_many(among)
        known = len(self._passed) >= ENOUGH
        self._again = 0 if known or too_many else self._again + 1
        if too_many or self._is_in_vain():
            known = True
        elif known:
            measured = (now - self._passed[0][0]) / len(self._passed)
            alike = self._measured / ALIKE < measured < self._measured * ALIKE
            self._patience = min(MOST_PATIENT, self._patience * 4) if alike else 1
            at_once_again = len(self._passed) < MEASURED
            self.interval = min(LONGEST_INTERVAL, max(measured, self.interval) * (MARGIN if at_once_again else 1))
            self._measured = measured
        elif among == 1 and self._passed and self.throttled and (self._again > 1 or not self.interval):
            # Lower concurrency did not help: the successes since the last cut are the only data.
            measured = (now - self._cut_at) / len(self._passed)
            self.interval, self._patience = min(LONGEST_INTERVAL, max(measured, self.interval * BURST)), 1
        elif self.interval:
            self.interval, self._patience = min(LONGEST_INTERVAL, self.interval * BURST), 1
        self.limit = max(1.0, among - 1.0 if too_many else min(self.limit, self.ceiling) / 2)
        self.throttled += 1
        self._cut_at, self._next, self._successes = now, now + self.interval, 0
        self._passed.clear()
        return 0.0 if known else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._again - 1))

    def _is_too_many(self, among: int) -> bool:
        """Whether concurrency is the limit: `among` requests at once were tried again and rejected again."""
        if among == 1 or sum(number >= among for _, number in self._passed) >= ENOUGH:
            self._refused = 0  # That concurrency has succeeded since the cut.
            return False
        again = among == self._refused and self._successes >= self._trial
        self._trial = min(RAREST_TRIAL, self._trial * RARER) if again else TRIAL
        self._refused = among
        return again

    def _is_in_vain(self) -> bool:
        """Whether slowing down does not reduce rare rejections: the server is then busy for other reasons."""
        if len(self._cuts) < LOOKED_BACK:
            return False
        spacings = [spacing for spacing, _ in self._cuts]
        before, after = sum(spacings[: LOOKED_BACK // 2]), sum(spacings[LOOKED_BACK // 2 :])
        interval = self._cuts[0][1]
        in_vain = after < 2 * before and after >= RARE * LOOKED_BACK / 2 and self.interval > SLOWER * interval > 0
        if in_vain:
            self.interval, self._patience = interval, 1
            self._cuts.clear()
        return in_vain
