"""Read-only queries on the exported data: one SELECT, answered by DuckDB over whichever sink is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import count
from math import isfinite

import duckdb
import pyarrow as pa

from etl.commands.result import instant
from etl.config import Config
from etl.sinks.targets import readable
from etl.storage import duck

_RENAMED = """
    select seq, detail->>'renamed_from' from runs
    where account = ? and seq <= ? and detail->>'renamed_from' is not null order by seq desc limit 1
"""


def ask(config: Config, query: str, sink: str | None = None) -> pa.Table:
    """Answer `query` from this sink, by default from the first one that exists.

    Raises UsageError with the message of its engine.
    """
    return readable(config, sink).select(query)


def names_of(connection: duckdb.DuckDBPyConnection, account: str) -> list[tuple[str, int, int]]:
    """The names under which the account was published, the current one first, each with its runs (after, upto]."""
    names, upto = list[tuple[str, int, int]](), 1 << 62
    while account:
        found = connection.execute(_RENAMED, [account, upto]).fetchone()
        after, former = found or (0, "")
        names.append((account, after, upto))
        account, upto = former, after - 1
    return names


@contextmanager
def in_order() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that preserves the order of rows."""
    with duck.connect() as connection:
        connection.execute("SET preserve_insertion_order = true")
        yield connection


def rows_of(table: pa.Table) -> list[dict[str, object]]:
    """The rows of an Arrow table as JSON-able objects.

    Columns of the same name are kept apart: a, a, a becomes a, a_1, a_2, as in a table that DuckDB makes of them.
    """
    taken: dict[str, None] = {}
    for name in table.column_names:
        spellings = (f"{name}_{number}" if number else name for number in count())
        taken[next(spelling for spelling in spellings if spelling not in taken)] = None
    columns: dict[str, list[object]] = {}
    for name, column in zip(taken, table.columns, strict=True):
        try:
            values = list(column.to_pylist())
        except (OverflowError, ValueError):
            # Times that Python lacks (infinity, before year 1, nanoseconds) are shown as text.
            with in_order() as connection:
                named = connection.from_arrow(pa.table({"value": column}))
                values = named.project("value::VARCHAR AS value").to_arrow_table()["value"].to_pylist()
            for number, value in enumerate(column):
                with suppress(OverflowError, ValueError):
                    values[number] = value.as_py()
        columns[name] = [_plain(value, column.type) for value in values]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _plain(value: object, kind: pa.DataType) -> object:
    """A cell as a JSON value: times in ISO 8601 with `Z`, maps as objects, anything else unknown to JSON as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if pa.types.is_map(kind) and isinstance(value, list):
        return {str(key): _plain(item, kind.item_type) for key, item in value}
    if isinstance(value, list):
        return [_plain(item, kind.value_type) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item, kind.field(name).type) for name, item in value.items()}
    for known, render in _RENDERED.items():
        if isinstance(value, known):
            return render(value)
    return str(value)


def _interval(value: pa.MonthDayNano) -> str:
    """An interval as DuckDB writes it: `1 year 2 months -3 days 04:05:06.5`, each part with its sign."""
    years, months = (number if value.months >= 0 else -number for number in divmod(abs(value.months), 12))
    parts = ((years, "year"), (months, "month"), (value.days, "day"))
    words = [f"{number} {unit}{'' if abs(number) == 1 else 's'}" for number, unit in parts if number]
    if value.nanoseconds or not words:
        seconds, micros = divmod(abs(value.nanoseconds) // 1000, 1_000_000)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        fraction = f".{micros:06}".rstrip("0") if micros else ""
        words.append(f"{'-' if value.nanoseconds < 0 else ''}{clock}{fraction}")
    return " ".join(words)


_RENDERED: dict[type, Callable[..., object]] = {
    datetime: lambda value: instant(value) if value.tzinfo else value.isoformat(),
    date: date.isoformat,
    time: time.isoformat,
    timedelta: str,
    pa.MonthDayNano: _interval,
    float: lambda value: value if isfinite(value) else str(value),
    Decimal: lambda value: int(value) if value == value.to_integral_value() else float(value),
    bytes: bytes.hex,
}
