"""Instants as integer microseconds since 1970 (UTC), and the formats in which a server writes and reads them.

Microseconds, not milliseconds, because odd contacts carry times finer than the documented three digits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

MILLISECOND = 1_000
SECOND = 1_000_000
DAY = 86_400 * SECOND
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive on purpose: twice as fast to format, and always UTC here


def instant(seconds: float) -> int:
    """Seconds since 1970 as microseconds, floored to the millisecond as a document store keeps them."""
    return math.floor(seconds * 1000) * MILLISECOND


def iso(at: int) -> str:
    """ISO 8601 UTC with milliseconds and `Z`, the spelling of the API."""
    return (_EPOCH + timedelta(0, at // SECOND, at % SECOND)).isoformat("T", "milliseconds") + "Z"


def _iso_microseconds(at: int) -> str:
    return f'"{(_EPOCH + timedelta(0, at // SECOND, at % SECOND)).isoformat("T", "microseconds")}Z"'


def _iso_offset(at: int) -> str:
    return f'"{iso(at + 5 * 3600 * SECOND + 1800 * SECOND)[:-1]}+05:30"'


SPELLINGS: Mapping[str, Callable[[int], str]] = MappingProxyType(
    {
        "ms": lambda at: f'"{iso(at)}"',
        "us": _iso_microseconds,
        "no_zone": lambda at: f'"{iso(at)[:-1]}"',
        "offset": _iso_offset,
        "epoch_ms": lambda at: str(at // MILLISECOND),
        "epoch_s": lambda at: str(at // SECOND),
        "epoch_text": lambda at: f'"{at // MILLISECOND}"',
        "blank": lambda _: '""',
        "null": lambda _: "null",
        "garbage": lambda _: '"yesterday"',
    }
)
"""JSON tokens for an instant, by name of the spelling."""


def read(text: str, zone: timedelta) -> int:
    """An ISO 8601 text as an instant; without a zone, a bare date is in `zone` and a time in UTC.

    Raises `ValueError` for anything else.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC) - (zone if len(text) == len("2025-01-01") else timedelta())
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Granule:
    """The step to which a server floors times before it compares them."""

    size: int
    """Microseconds."""
    offset: int = 0
    """Microseconds by which the zone of the account is ahead of UTC; relevant only for days."""

    def floor(self, at: int) -> int:
        """The start of the step that contains `at`."""
        return (at + self.offset) // self.size * self.size - self.offset


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of instants, `start <= t < end`; it never contains the absent time -1."""

    start: int = 0
    end: int = 1 << 62

    def __contains__(self, at: int) -> bool:
        """Whether the instant is in the range."""
        return self.start <= at < self.end


EVER = Span()


def window(start: int | None, end: int | None, resolution: Granule, *, start_in: bool, end_in: bool) -> Span:
    """The instants that a date filter accepts; an open side is None."""
    low = EVER.start if start is None else resolution.floor(start) + (0 if start_in else resolution.size)
    high = EVER.end if end is None else resolution.floor(end) + (resolution.size if end_in else 0)
    return Span(max(low, 0), high)
