"""Rows between the engine and the tables of a PostgreSQL server, in both directions, batch by batch."""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

import duckdb
import pyarrow as pa

from etl import schema
from etl.sinks import tables
from etl.sinks.postgres_server import Session
from etl.storage import duck

_BATCH_ROWS = 4096
"""Rows that are converted at once on their way to the server."""
_OBJECTS = (schema.SQL[schema.Kind.ATTRIBUTES], schema.SQL[schema.Kind.NOTES])
"""Types of the engine that are stored as `jsonb`."""
SORTED_KEYS = """
list_transform(list_sort(list_transform(map_keys({0}), lambda k: {{'bytes': strlen(k), 'key': k}})), lambda p: p.key)
"""
"""The keys of a map in the order of `jsonb`: shorter ones first, then by bytes."""


def copy(
    server: Session,
    engine: duckdb.DuckDBPyConnection,
    source: str,
    columns: tables.Columns,
    table: str,
    home: str | None = None,
) -> int:
    """Append these columns of a relation of the engine to a table of the schema `home`; return the number of rows.

    Without `home`, the table is a temporary one.
    """
    values = ", ".join(f"{_value(duck.quoted(name), kind)} AS {duck.quoted(name)}" for name, kind in columns)
    rows = engine.sql(f"SELECT {values} FROM {source}").to_arrow_reader(_BATCH_ROWS)
    # The driver writes text into a jsonb column only if it is declared as JSON.
    kinds = [
        pa.json_() if kind in _OBJECTS else each.type for (_, kind), each in zip(columns, rows.schema, strict=True)
    ]
    wanted = pa.schema(list(zip(rows.schema.names, kinds, strict=True)))
    batches = (pa.record_batch(list(map(_declared, batch.columns, kinds)), schema=wanted) for batch in rows)
    return server.copy(pa.RecordBatchReader.from_batches(wanted, batches), table, home)


def _value(name: str, kind: str) -> str:
    """A column as SQL, in a type that the driver knows."""
    if kind in _OBJECTS:
        return f"to_json({name})::VARCHAR"
    return f"{name}::{'VARCHAR' if kind == 'JSON' else kind}"


def _declared(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, column) if isinstance(kind, pa.BaseExtensionType) else column


def load(
    server: Session, engine: duckdb.DuckDBPyConnection, relation: str, columns: tables.Columns, source: str
) -> None:
    """Create a table of the engine with these columns of `source`, a table of the server with its condition."""
    engine.execute(tables.create(relation, columns))
    for batch in server.stream(f"SELECT {tables.names(columns)} FROM {source}"):
        engine.register("batch", pa.table(batch))
        engine.execute(f"INSERT INTO {relation} FROM batch")
        engine.unregister("batch")
