"""A DuckDB file as a target: its tables, and the checks that it is ours, whole, and not being written.

Shared by the sink and by `etl.sinks.reader`. Only reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from etl.errors import OPEN_FILES_HINT, EtlError, SinkError, TargetCorrupt
from etl.sinks import rejects, tables
from etl.storage import duck, files

_HEADER_BYTES = 3 * 4096
"""A DuckDB file consists of three headers and whole blocks; a shorter file was truncated."""
_VIEW = "a view"
COLUMNS = f"""
SELECT c.schema_name, c.table_name, c.column_name, if(v.view_name IS NULL, c.data_type, '{_VIEW}')
FROM duckdb_columns() c
LEFT JOIN duckdb_views() v
    ON c.database_name = v.database_name AND c.schema_name = v.schema_name AND c.table_name = v.view_name
WHERE c.database_name = 'target' AND NOT c.internal
"""  # noqa: S608 - a constant
"""Query for the columns of all tables and views of the attached file `target`; see `held`."""
SIZE = "SELECT block_size, used_blocks FROM pragma_database_size() WHERE database_name = 'target'"

OURS: Mapping[tuple[str, str], tables.Columns] = {
    **{("main", table): columns for table, columns in tables.PUBLIC.items()},
    **{("etl", table): columns for table, columns in tables.INTERNAL.items()},
}
"""The columns of our tables, by schema and table."""

Held = Mapping[tuple[str, str], Mapping[str, str]]
"""The columns that a file holds, with their types, by schema and table."""

_INTACT = {
    "lock on file": "Close the program that writes to it, then try again.",
    "Too many open files": OPEN_FILES_HINT,
    "Interrupted system call": "Try again.",
    "Out of Memory": "Give it more memory, then try again.",
}
"""Engine messages for which an intact target cannot be read, each with its hint."""


def held(rows: Iterable[Sequence[object]]) -> Held:
    """The result of the query `COLUMNS`."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for home, table, column, kind in rows:
        found.setdefault((str(home), str(table)), {})[str(column)] = str(kind)
    return found


def is_published(found: Held) -> bool:
    """Whether a run has published into this file."""
    return ("etl", "manifests") in found


def unreadable(reason: str, path: Path | str) -> EtlError:
    """The error for a target that the engine cannot read: damage, unless the reason is in `_INTACT`."""
    hint = next((hint for words, hint in _INTACT.items() if words in reason), "")
    message = f"the target cannot be read: {reason}"
    return SinkError(message, where=str(path), hint=hint) if hint else TargetCorrupt(message, where=str(path))


def refuse_empty(path: Path, size: int) -> None:
    """Raise `TargetCorrupt` for a file of 0 bytes: the engine would take it for a new database."""
    if size == 0:
        raise TargetCorrupt("the target is an empty file", where=str(path))


def refuse_cut_off(path: Path, block: int, used: int) -> None:
    """Raise `TargetCorrupt` if the file is shorter than its `used` blocks of `block` bytes each (see `SIZE`)."""
    blocks, rest = divmod(path.stat().st_size - _HEADER_BYTES, block)
    if rest or blocks < used:
        raise TargetCorrupt("the target was cut off: blocks are missing at its end", where=str(path))


def refuse_foreign(found: Held, path: Path) -> None:
    """Raise `TargetCorrupt` if a file that no run has published into uses the name of one of our tables."""
    for home, table in OURS:
        if (home, table) in found:
            hint = f"Rename it (ALTER TABLE {home}.{table} RENAME TO ...) or choose another path."
            raise TargetCorrupt(f"the file has a table {home}.{table} that is not ours", where=str(path), hint=hint)


def refuse_altered(found: Held, path: Path) -> None:
    """Raise `TargetCorrupt` if one of our tables or columns is missing or of another type."""
    for (home, table), columns in OURS.items():
        own = found.get((home, table), {})
        if not own:
            raise TargetCorrupt(f"our table {home}.{table} is missing", where=str(path))
        if _VIEW in own.values():
            hint = f"Give our table its name back: DROP VIEW {home}.{table}; ALTER TABLE ... RENAME TO {table}."
            raise TargetCorrupt(f"{home}.{table} is a view, not our table", where=str(path), hint=hint)
        older = table == "rejects" and own.keys().isdisjoint(rejects.ADDED)  # The next publication adds these columns.
        for column, kind in rejects.SIGHTINGS if older else columns:
            name = duck.quoted(column)
            if column not in own:
                what, change = "is missing", f"ADD COLUMN {name}"
            elif own[column].replace('"', "") != kind.replace('"', ""):
                what, change = f"is {own[column]}, not {kind}", f"ALTER COLUMN {name} TYPE"
            else:
                continue
            raise TargetCorrupt(
                f"the column {column} of {home}.{table} {what}",
                where=str(path),
                hint=f"Restore it: ALTER TABLE {home}.{table} {change} {kind}.",
            )


def refuse_open_wal(path: Path) -> None:
    """Raise `SinkError` if a write-ahead log lies next to the file: a change was not finished, or is being made."""
    wal = path.with_name(path.name + ".wal")
    with files.translate_os_errors("look at the write-ahead log", wal):
        if wal.exists() and wal.stat().st_size:
            raise SinkError(
                f"the file {wal.name} belongs to a change that was not finished",
                where=str(wal),
                hint="Open the database with DuckDB once and close it, or delete the file if it is not wanted.",
            )
