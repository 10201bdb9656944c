"""A query's result as CSV, which a spreadsheet may open: no cell of it is a formula."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from io import StringIO

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def guarded(value: object) -> object:
    """A cell; text that a spreadsheet could take for a formula begins with an apostrophe."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if text.lstrip(" \u00a0\ufeff").startswith(_FORMULA) else text


def as_csv(columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """The rows in UTF-8 with a byte order mark, by which spreadsheets recognize it."""
    file = StringIO()
    writer = csv.writer(file)
    writer.writerow([guarded(name) for name in columns])
    writer.writerows([guarded(value) for value in row.values()] for row in rows)
    return file.getvalue().encode("utf-8-sig")
