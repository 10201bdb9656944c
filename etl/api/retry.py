"""When to ask again: pure arithmetic, no clock and no sleep.

A request is a read, so every one of them may be repeated. What may not happen is a storm: attempts per request and
retries per run are bounded, waits carry full jitter, and a server's own wait is obeyed by the whole client.
Source: FAULTS.md, "Retry and pacing".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from etl.api.response import FailureKind, server_time

BASE_SECONDS = 0.5
CAP_SECONDS = 30.0
LONGEST_WAIT = 600.0
"""A server's wait beyond this ends the run instead of stalling it."""

ATTEMPTS: dict[FailureKind, int] = {
    FailureKind.AUTH: 1,
    FailureKind.BLOCKED: 5,
    FailureKind.CONTRACT: 1,
    FailureKind.GARBLED: 3,
    FailureKind.THROTTLED: 5,
    FailureKind.UNAVAILABLE: 5,
    FailureKind.UNREACHABLE: 1,
    FailureKind.STALE: 5,
}
"""The most attempts of one request, by how the last one failed."""
TRUSTED_ATTEMPTS = {401: 2, 403: 5}
"""The same by status where a token is refused that was good before: firewalls answer 403 now and then."""


@dataclass(slots=True)
class Budget:
    """Retries allowed to a client as a whole: 10, and one more for every ten requests sent."""

    sent: int = 0
    retried: int = 0

    def allows_retry(self) -> bool:
        """Whether one more retry keeps within the budget."""
        return self.retried + 1 <= 10 + self.sent * 0.1


def backoff(attempt: int, jitter: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1), with `jitter` drawn from [0, 1)."""
    return jitter * min(CAP_SECONDS, BASE_SECONDS * 2.0 ** (attempt - 1))


def retry_after(header: str | None, server_now: float | None) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number or an HTTP date against the server's own clock.

    None where it is missing or nonsense (then our own backoff holds); a time in the past is 0.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        return _until(header, server_now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _until(header: str, server_now: float | None) -> float | None:
    moment = server_time({"Date": header})
    return None if moment is None or server_now is None else max(0.0, moment / 1000 - server_now)
