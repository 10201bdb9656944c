"""Partitions a state into ranges of `created_at`, each about the size of one file.

A merge is written range by range, so that memory grows with a range and not with the account; only files in which
something changed are rewritten. Works on the relations of `etl.sinks.merge`.
"""

# ruff: noqa: S608 - SQL is built from our own names, numbers and quoted literals.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path

import duckdb

from etl.storage import duck

SLICE_ROWS = 50_000
"""Contacts per file; contacts with the same creation time stay together."""
_PLACED = (
    *(("account", "VARCHAR"), ("contact_id", "VARCHAR"), ("created_at", "TIMESTAMPTZ")),
    ("filename", "VARCHAR"),
)


@dataclass(frozen=True, slots=True)
class Range:
    """Creation times in [start, end), in microseconds since 1970; None is an open end.

    Contacts without a creation time are in the range that is not `dated`.
    """

    start: int | None = None
    end: int | None = None
    dated: bool = True

    def holds(self, column: str) -> str:
        """The condition that a time is in the range, as SQL that the engine can check against its statistics."""
        if not self.dated:
            return f"{column} IS NULL"
        after = f"{column} >= make_timestamptz({self.start})" if self.start is not None else f"{column} IS NOT NULL"
        return after if self.end is None else f"{after} AND {column} < make_timestamptz({self.end})"

    def meets(self, other: Range) -> bool:
        """Whether two `dated` ranges overlap."""
        return _before(self.start, other.end) and _before(other.start, self.end)


def _before(start: int | None, end: int | None) -> bool:
    return start is None or end is None or start < end


WITHOUT_CREATED_AT = Range(dated=False)


@dataclass(frozen=True, slots=True)
class Slice:
    """One file of the next state."""

    within: Range
    files: tuple[Path, ...]
    """Files of the last state that hold contacts of the range."""
    stale: bool
    """Whether it must be rewritten; otherwise its only file is kept."""


# A file of contacts with and without a creation time (from an older version) is split again.
_STANDING = """
CREATE OR REPLACE TEMP TABLE standing AS
    SELECT p.filename AS file, min(p.created_at) AS start, count(p.created_at) < count(*) AS without_created_at,
           count(o.contact_id) > 0 OR (without_created_at AND start IS NOT NULL) AS stale
    FROM ({contacts}) p LEFT JOIN outgoing o ON p.account = o.account AND p.contact_id = o.contact_id
    GROUP BY p.filename
"""

# A file covers the times from its own first to the first of the next; the first and the last file are open-ended.
_DATED = """
WITH dated AS (
    SELECT file, stale, if(lag(file) OVER time IS NULL, '-infinity', start) AS start, lead(start) OVER time AS "end"
    FROM standing WHERE start IS NOT NULL WINDOW time AS (ORDER BY start)
), met AS (
    SELECT DISTINCT d.file FROM incoming i ASOF JOIN dated d ON i.created_at >= d.start
)
SELECT file, if(isinf(start), NULL, epoch_us(start)), epoch_us("end"), stale OR file IN (FROM met)
FROM dated ORDER BY dated.start
"""

_STALE_WITHOUT_CREATED_AT = "SELECT file, stale FROM standing WHERE without_created_at ORDER BY file"
_MEETS_WITHOUT_CREATED_AT = """
SELECT EXISTS (FROM incoming WHERE created_at IS NULL) OR EXISTS (FROM outgoing WHERE created_at IS NULL)
"""

_STARTS = """
WITH times AS ({times}), ordered AS (
    SELECT created_at, row_number() OVER (ORDER BY created_at) - 1 AS place FROM times
), size AS (
    SELECT ceil(count(*) / greatest(1, round(count(*) / {rows})))::BIGINT AS rows FROM times
)
SELECT DISTINCT epoch_us(created_at) AS start FROM ordered, size WHERE place > 0 AND place % rows = 0 ORDER BY start
"""


def _cut(connection: duckdb.DuckDBPyConnection, whole: Range, rows: int, *created: str) -> list[Range]:
    """Split a range into even ranges of about `rows` contacts, by the creation times in all given relations."""
    at = whole.holds("created_at")
    times = " UNION ALL ".join(f"SELECT created_at FROM {relation} WHERE {at}" for relation in created)
    found = connection.execute(_STARTS.format(times=times, rows=rows)).fetchall()
    bounds = (whole.start, *(start for (start,) in found), whole.end)
    return [Range(start, end) for start, end in pairwise(bounds)]


def shares(connection: duckdb.DuckDBPyConnection, rows: int) -> list[str]:
    """Conditions on `upserts` and `versions` that divide the result of a merge into shares of about `rows` rows."""
    deleted = "(FROM outgoing WHERE verdict = 'deleted')"
    ranges = _cut(connection, Range(), rows, "incoming", deleted)
    if _meets_without_created_at(connection):
        ranges.append(WITHOUT_CREATED_AT)
    return [f"{within.holds('created_at')} AND {within.holds('cut_at')}" for within in ranges]


def evenly(connection: duckdb.DuckDBPyConnection, relation: str) -> list[str]:
    """Conditions that divide a relation with `created_at` into files of about `SLICE_ROWS` rows."""
    ranges = _cut(connection, Range(), SLICE_ROWS, relation)
    if connection.execute(f"SELECT EXISTS (FROM {relation} WHERE created_at IS NULL)").fetchall() == [(True,)]:
        ranges.append(WITHOUT_CREATED_AT)
    return [within.holds("created_at") for within in ranges]


def next_state(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> Iterator[Slice]:
    """The files of the next state, in order of time, given the files of the last one.

    Adjacent stale files are split again together, which keeps their sizes even.
    """
    connection.execute(_STANDING.format(contacts=duck.scan(files, _PLACED)))
    found = connection.execute(_DATED).fetchall()
    dated = [Slice(Range(start, end), (Path(file),), stale) for file, start, end, stale in found]
    for stale, group in groupby(dated or [Slice(Range(), (), stale=True)], key=attrgetter("stale")):
        stretch = tuple(group)
        if not stale:
            yield from stretch
            continue
        whole = Range(stretch[0].within.start, stretch[-1].within.end)
        contacts = duck.scan((file for one in stretch for file in one.files), _PLACED)
        staying = f"({contacts}) ANTI JOIN outgoing USING (account, contact_id)"
        for within in _cut(connection, whole, SLICE_ROWS, staying, "incoming"):
            held = (file for one in stretch if one.within.meets(within) for file in one.files)
            yield Slice(within, tuple(held), stale=True)
    files_without = connection.execute(_STALE_WITHOUT_CREATED_AT).fetchall()
    met = _meets_without_created_at(connection)
    if files_without or met:
        yield Slice(
            WITHOUT_CREATED_AT,
            tuple(Path(file) for file, _ in files_without),
            met or any(stale for _, stale in files_without),
        )


def _meets_without_created_at(connection: duckdb.DuckDBPyConnection) -> bool:
    return connection.execute(_MEETS_WITHOUT_CREATED_AT).fetchall() == [(True,)]
