"""How fast a client goes: requests at once, and the least time between two. Pure arithmetic, the clock is a parameter.

The server's limit is not known (API.md), so it is found: more at once for every success while it goes well, half as
many when the server says that it was too fast, at most once for the requests that were under way together. Whatever the
server counts, requests at once or requests a second, it lets so many through a second: that rate is measured, kept, and
now and then tried again, the less often the better two measurements agree. A number at once that was refused is also
tried again ever more rarely: answers take their time by chance, so that no rate keeps below it. Source: FAULTS.md A5
to A8.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

START = 4
"""Requests at once to begin with: a server that allows fewer refuses a handful, not a storm."""
MEASURED, ENOUGH = 64, 4
"""The latest successes by which a rate is measured, and the fewest that tell it."""
MARGIN = 1.05
"""By how much the time between two requests grows when the rate was refused again at once."""
BURST = 1.4
"""The same, where so few got through that the rate measured before was a burst that the server allows at first."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds for which all wait when a request was refused and the rate is not known yet; doubled every time."""
RECOVERY = 0.01
"""The share by which a success shortens the time between two requests, while measurements do not agree."""
ALIKE = 1.25
"""By how much two measurements of one rate may differ."""
MOST_PATIENT = 256
"""By how much recovery is slowed down at most."""
SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.0005, 2.0
"""Seconds; below the first the pace is not held back at all."""
LOOKED_BACK = 20
"""Cuts by which is told whether slowing down makes refusals fewer."""
SLOWER = 1.5
"""By how much slower a pace must have become in these cuts to be looked back on."""
RARE = 8
"""Successes between two cuts, on average, that a pace which is too fast does not come to."""
TRIAL, RARER, RAREST_TRIAL = 4, 4, 256
"""Successes before a number at once that was refused is tried again, by how much rarer whenever that fails, and the
most: a trial costs a refusal, so it must be rare, and a limit that is lifted should be found within some hundreds.
"""
BROKEN = 10
"""Failures in a row after which requests go one by one, until one succeeds: the server is away, not slow."""
BROKEN_INTERVAL = 1.0
"""Seconds between two of those."""


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
    _again: int = 0
    """Cuts in a row with too few successes between them to tell a rate."""
    _failed: int = 0
    """Failures since the last success."""
    _cut_at: float = -math.inf
    _passed: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MEASURED))
    """The latest requests that succeeded and were sent since the cut: when, and among how many at once."""
    _successes: int = 0
    """Since the cut."""
    _cuts: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=LOOKED_BACK))
    """The latest cuts: the successes before each, and the interval."""
    _measured: float = 0.0
    _patience: int = 1
    """By how much recovery is slowed down: more with every measurement that agrees with the one before."""
    _next: float = -math.inf
    _refused: int = 0
    """The number at once that was refused at the last cut; 0 where it is not their number that the server minds."""
    _trial: int = TRIAL
    """Successes since the cut after which that number is tried again."""

    @property
    def broken(self) -> bool:
        """Whether nothing gets through any more."""
        return self._failed >= BROKEN

    @property
    def at_once(self) -> int:
        """The requests that may be under way together now."""
        return 1 if self.broken else max(1, min(self.ceiling, int(self.limit)))

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; its turn is then taken."""
        turn = max(now, self._next)
        self._next = turn + (BROKEN_INTERVAL if self.broken else self.interval)
        return turn - now

    def succeeded(self, now: float, sent_at: float, in_flight: int, among: int, *, may_try: bool = True) -> None:
        """An answer came while `in_flight` requests were under way, this one included; it was sent as one of `among`.

        Without `may_try` the number at once that was refused is not tried now.
        """
        self._failed = 0
        self._successes += 1
        if sent_at >= self._cut_at:
            self._passed.append((now, min(among, in_flight)))
        if in_flight >= self.at_once:
            # Where the rate is held, requests at once need not be; where it is not known yet they grow with care.
            step = 1.0 if self.interval or not self.throttled else 1.0 / self.limit
            held_back = self._refused and not (may_try and self._successes >= self._trial)
            most = min(self.ceiling, self._refused - 1) if held_back else self.ceiling
            self.limit = max(self.limit, min(most, self.limit + step))
        held = self.interval > SHORTEST_INTERVAL
        self.interval = self.interval * (1 - RECOVERY / self._patience) if held else 0.0

    def failed(self) -> None:
        """A request got no answer, or one that says that the server failed."""
        self._failed += 1

    def refused(self, now: float, sent_at: float, among: int) -> float:
        """The server said at `now` that a request sent at `sent_at`, one of `among` under way, was too much.

        Returns the seconds that all had better wait.
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
            self._measure(now)
        elif among == 1 and self._passed and self.throttled and (self._again > 1 or not self.interval):
            # Fewer at once did not help: what got through since the last cut is all that there is to go by.
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
        """Whether it is their number that is refused: `among` at once again, when so many were tried again."""
        if among == 1 or sum(number >= among for _, number in self._passed) >= ENOUGH:
            self._refused = 0  # As many have got through since the cut.
            return False
        again = among == self._refused and self._successes >= self._trial
        self._trial = min(RAREST_TRIAL, self._trial * RARER) if again else TRIAL
        self._refused = among
        return again

    def _is_in_vain(self) -> bool:
        """Whether slowing down makes rare refusals no rarer: then the server is busy for reasons of its own."""
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

    def _measure(self, now: float) -> None:
        measured = (now - self._passed[0][0]) / len(self._passed)
        alike = self._measured / ALIKE < measured < self._measured * ALIKE
        self._patience = min(MOST_PATIENT, self._patience * 4) if alike else 1
        at_once_again = len(self._passed) < MEASURED
        self.interval = min(LONGEST_INTERVAL, max(measured, self.interval) * (MARGIN if at_once_again else 1))
        self._measured = measured
