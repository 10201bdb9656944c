"""Convert one JSON value to a cell: exactly the column's type, or a safe coercion.

`EXACT` parses the values of the column's own type (texts and booleans need no parsing and have no entry);
`LOOSE` coerces those of another type. None means that the value does not fit. Neither is called for null and "", which
are null in every column. This module does not depend on contacts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from msgspec import Raw

from etl.normalize.json_text import Json, text_of, token
from etl.schema import Kind
from etl.times import EPOCH

_INT64 = range(-(2**63), 2**63)
_INT64_DIGITS = len(str(-(2**63)))
_NUMBER = re.compile(r"-?[0-9]{1,5000}(\.[0-9]{1,5000})?([eE][+-]?[0-9]{1,5})?")
_EPOCH_DIGITS = re.compile(r"-?[0-9]{9,17}(\.[0-9]+)?")
"""At least nine digits: 2025 and 20250105 are more likely a year and a date than seconds of 1970."""

_ISO = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([T ]([01][0-9]|2[0-3])(:[0-5][0-9](:[0-5][0-9]([.,][0-9]+)?)?)?(Z|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)?)?",
    re.IGNORECASE,
)
_MICROSECOND = timedelta(microseconds=1)
EARLIEST = (datetime.min.replace(tzinfo=UTC) - EPOCH) // _MICROSECOND
"""Microseconds of 0001-01-01T00:00:00Z: every engine downstream supports it."""
LATEST = (datetime.max.replace(tzinfo=UTC) - EPOCH) // _MICROSECOND
"""Microseconds of 9999-12-31T23:59:59.999999Z."""

_EPOCH_UNITS = ((10**11, 10**6), (10**14, 10**3), (10**17, 1))
"""Limit and factor: below the first limit are seconds (to year 5138), then milliseconds, then microseconds."""

_WORDS = {"true": True, "false": False}


def _exact_integer(value: Json) -> int | None:
    if not isinstance(value, Raw):
        return None
    digits = bytes(value)
    if len(digits) > _INT64_DIGITS:
        return None
    try:
        number = int(digits)
    except ValueError:  # 12.0
        return None
    return number if number in _INT64 else None


def iso_micros(text: Json) -> int | None:
    """Microseconds since 1970 of an ISO 8601 time: with offset, without zone (then UTC), or a date alone.

    Digits beyond microseconds are truncated. 24:00 and the leap second :60 are rejected.
    """
    if not isinstance(text, str) or not _ISO.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:  # 30 February
        return None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    return _storable_micros((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _storable_micros(micros: int) -> int | None:
    return micros if EARLIEST <= micros <= LATEST else None


def _loose_integer(value: Json) -> int | None:
    number = _number(value)
    if number is None or abs(number) > 2**63 or number != number.to_integral_value():
        return None
    return int(number) if int(number) in _INT64 else None


def _number(value: Json) -> Decimal | None:
    """The exact value of a number, or of a text that contains exactly one."""
    text = token(value) if isinstance(value, Raw) else value
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        return None
    return Decimal(text)


def _loose_boolean(value: Json) -> bool | None:
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    number = _number(value)
    return bool(number) if number in (0, 1) else None


def _loose_time(value: Json) -> int | None:
    if isinstance(value, str) and not _EPOCH_DIGITS.fullmatch(value):
        return None
    number = _number(value)
    if number is None:
        return None
    factor = next((factor for limit, factor in _EPOCH_UNITS if abs(number) < limit), None)
    return None if factor is None else _storable_micros(int((number * factor).to_integral_value()))


Cell = Callable[[Json], "str | int | bool | None"]

EXACT: dict[Kind, Cell] = {
    Kind.INTEGER: _exact_integer,
    Kind.TIME: iso_micros,
}
LOOSE: dict[Kind, Cell] = {
    Kind.TEXT: text_of,
    Kind.INTEGER: _loose_integer,
    Kind.BOOLEAN: _loose_boolean,
    Kind.TIME: _loose_time,
}
