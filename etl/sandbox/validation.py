"""Validate a request body: a table of checks; all problems are reported together."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from types import MappingProxyType

from etl.sandbox.filters import DATES, EMPTY_BODY, OPTIONAL, Body
from etl.sandbox.times import read

Check = Callable[[object], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_page(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value: object) -> bool:
    """Whether it is empty, or a readable time."""
    if not isinstance(value, str):
        return False
    try:
        return not value or read(value, timedelta()) is not None
    except ValueError:
        return False


def _is_dates(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= {"startAt", "endsAt"}
        and all(_is_time(bound) for bound in value.values())
    )


def _is_order(value: object) -> bool:
    return isinstance(value, dict) and _is_flag(value.get("status")) and _is_time(value.get("lastAt", ""))


_BY_TYPE: Mapping[type, tuple[Check, str]] = MappingProxyType(
    {
        str: (_is_text, "must be a string"),
        bool: (_is_flag, "must be a boolean value"),
        list: (_is_texts, "must be an array of strings"),
    }
)
_CHECKS: Mapping[str, tuple[Check, str]] = MappingProxyType(
    {
        **{field: _BY_TYPE[type(empty)] for field, empty in EMPTY_BODY.items() if type(empty) in _BY_TYPE},
        **dict.fromkeys(DATES, (_is_dates, "must be an object of startAt and endsAt, ISO 8601 or empty")),
        "hasOrdered": (_is_order, "must be an object of status and lastAt"),
        "page": (_is_page, "must be an integer number not less than 0"),
        "isExport": (lambda value: value == "none", 'must be "none"'),
    }
)
ALWAYS_REQUIRED = frozenset({"page", "isContact", "isExport"})


def problems(body: object, *, require_all_fields: bool) -> list[str]:
    """The problems of a body, one text for each field; none for a valid one."""
    if not isinstance(body, dict):
        return ["body must be an object"]
    required = EMPTY_BODY.keys() - OPTIONAL if require_all_fields else ALWAYS_REQUIRED
    missing = [f"{field} should not be empty" for field in _CHECKS if field in required and field not in body]
    return missing + [f"{field} {text}" for field, text in _wrong(body)]


def _wrong(body: Body) -> list[tuple[str, str]]:
    return [(field, text) for field, (check, text) in _CHECKS.items() if field in body and not check(body[field])]
