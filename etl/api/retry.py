"""Retry policy: pure arithmetic, no clock and no sleep.

Every request is a read, so it may be repeated. To prevent storms, attempts per request and retries per client are
limited, delays have full jitter, and a delay requested by the server applies to the whole client.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from etl.api.response import FailureKind, http_date

BASE_SECONDS = 0.5
CAP_SECONDS = 30.0
LONGEST_WAIT = 600.0
"""A longer wait requested by the server ends the run instead of stalling it."""

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
"""The maximum attempts of one request, by the kind of its last failure."""
TRUSTED_ATTEMPTS = {401: 2, 403: 5}
"""The same by status, if the rejected token was valid before: firewalls answer 403 now and then."""


@dataclass(slots=True)
class Budget:
    """Retries allowed to a client in total: 10, and one more for every ten requests sent."""

    sent: int = 0
    retried: int = 0

    def allows_retry(self) -> bool:
        """Whether one more retry is within the budget."""
        return self.retried + 1 <= 10 + self.sent * 0.1


def backoff(attempt: int, jitter: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1), with `jitter` drawn from [0, 1)."""
    return jitter * min(CAP_SECONDS, BASE_SECONDS * 2.0 ** (attempt - 1))


def retry_after(header: str | None, server_now: float | None) -> float | None:
    """Seconds requested by a `Retry-After` header: a number, or an HTTP date relative to the server's own clock.

    None if it is missing or invalid (the client's own backoff then applies); a time in the past is 0.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        moment = http_date(header)
        return None if moment is None or server_now is None else max(0.0, moment / 1000 - server_now)
    return max(0.0, seconds) if math.isfinite(seconds) else None
