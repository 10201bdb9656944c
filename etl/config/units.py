"""Quantities as written in a configuration: text with a unit, `30m` or `64MiB`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_CENTURY = 100 * 366 * 86400.0
_RIGHTS = re.compile(r"(?:0o?)?(6[046][04])")
_SIZES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _measure(value: object, units: Mapping[str, float], example: str) -> float:
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]+)\s*", value) if isinstance(value, str) else None
    if match is None or match[2].lower() not in units:
        raise ValueError(f"expected text with a unit ({', '.join(units)}), such as {example!r}")
    return float(match[1]) * units[match[2].lower()]


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    seconds = _measure(value, _UNITS, "30m")
    if seconds > _CENTURY:
        raise ValueError("longer than a hundred years")
    return timedelta(seconds=seconds)


def _time_limit(value: object) -> timedelta:
    limit = _duration(value)
    if not limit:
        raise ValueError("a time limit cannot be zero")
    return limit


def _size(value: object) -> int:
    return value if type(value) is int else int(_measure(value, _SIZES, "1GB"))


def _rights(value: object) -> int:
    # TOML has octal integers; a plain 640 can only be meant as octal, too.
    texts = (f"{value:o}", str(value)) if type(value) is int and value >= 0 else (value,)
    found = [match for text in texts if isinstance(text, str) and (match := _RIGHTS.fullmatch(text))]
    if not found:
        raise ValueError(
            'expected octal file permissions, such as "0640": 6, then 0, 4 or 6 (group), then 0 or 4 (others)'
        )
    return int(found[0][1], 8)


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""A length of time, down to milliseconds; may be zero."""
TimeLimit = Annotated[timedelta, BeforeValidator(_time_limit)]
"""A time limit; must not be zero, which would mean no limit at all."""
Size = Annotated[int, BeforeValidator(_size), Field(ge=1)]
"""Bytes."""
Rights = Annotated[int, BeforeValidator(_rights)]
"""The mode of a file: read and write for its owner, never executable, never world-writable."""
