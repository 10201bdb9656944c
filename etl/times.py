"""Times as milliseconds since the epoch, the API's own precision, and their conversions. Pure: no clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
_EARLIEST = -62_135_596_800_000
"""0001-01-01T00:00:00.000Z."""
_LATEST = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z."""


def milliseconds(value: object) -> int | None:
    """A time of the API in milliseconds since the epoch, floored; None if it is not an ISO 8601 string."""
    if not isinstance(value, str) or not value:
        return None
    try:
        moment = datetime.fromisoformat(value)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    except (ValueError, OverflowError):
        return None
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def to_milliseconds(moment: datetime) -> int:
    """An aware datetime in milliseconds since the epoch, rounded."""
    return round(moment.timestamp() * 1000)


def to_datetime(time: int) -> datetime:
    """Milliseconds since the epoch as a datetime, clamped to the years 1 to 9999 that Python supports."""
    return EPOCH + timedelta(milliseconds=min(max(time, _EARLIEST), _LATEST))
