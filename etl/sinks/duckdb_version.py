"""The storage version of a DuckDB file, which decides which clients can open it, and the rewrite to an older version.

Files are written at a minimum version (the floor), so that clients of DuckDB 1.x can read them. The engine raises a
file's version but never lowers it: a file above the floor is rewritten once, with everything in it.
"""

from __future__ import annotations

import duckdb

from etl.errors import SinkError
from etl.storage import duck

VERSION = "SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = 'target'"
"""Query for the version of the attached file `target`, such as `v1.2.0+`."""
_CONTENTS = """
SELECT 'table', schema_name, table_name, estimated_size FROM duckdb_tables() WHERE database_name = '{0}'
UNION ALL SELECT 'view', schema_name, view_name, NULL FROM duckdb_views() WHERE database_name = '{0}' AND NOT internal
UNION ALL SELECT 'index', schema_name, index_name, NULL FROM duckdb_indexes() WHERE database_name = '{0}'
UNION ALL SELECT 'sequence', schema_name, sequence_name, NULL FROM duckdb_sequences() WHERE database_name = '{0}'
UNION ALL SELECT 'type', schema_name, type_name, NULL FROM duckdb_types() WHERE database_name = '{0}' AND NOT internal
UNION ALL SELECT 'macro', schema_name, function_name, NULL
    FROM duckdb_functions() WHERE database_name = '{0}' AND NOT internal
"""
_ABOUT_KINDS = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.InvalidInputException,
    duckdb.NotImplementedException,
    duckdb.FatalException,
)
"""Errors of the engine if a version does not support a kind of table, column or view."""


def is_newer(found: str, floor: str) -> bool:
    """Whether clients of storage version `floor` cannot open a file of version `found`."""
    first, second = (tuple(map(int, version.strip("v+").split("."))) for version in (found, floor))
    return first > second


def rewrite(connection: duckdb.DuckDBPyConnection, file: str, floor: str) -> None:
    """Copy everything in the file into the empty database `target`, which was created with version `floor`.

    Raises `SinkError` for content that this version cannot hold.
    """
    connection.execute(f"ATTACH {duck.literal(file)} AS source (READ_ONLY)")
    try:
        connection.execute("COPY FROM DATABASE source TO target")
        connection.execute("CHECKPOINT target")
    except _ABOUT_KINDS as error:
        raise _refusal(str(error).splitlines()[0], file, floor) from error
    before, after = (set(connection.execute(_CONTENTS.format(name)).fetchall()) for name in ("source", "target"))
    if lost := before - after:
        kind, home, name, _ = min(lost, key=str)
        raise _refusal(f"the {kind} {home}.{name} is not copied", file, floor)
    connection.execute("DETACH source")


def _refusal(reason: str, file: str, floor: str) -> SinkError:
    return SinkError(
        f"the file cannot be rewritten in the storage version {floor}: {reason}",
        where=file,
        hint="Remove content that it does not support, or raise sinks.duckdb.storage_version, then run again.",
    )
