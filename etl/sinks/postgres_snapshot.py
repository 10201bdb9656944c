"""One state of a PostgreSQL schema as relations of the engine, so that every query of `etl` works on it.

A relation is a stream of the columns that a query needs. It starts when the engine scans it, on a connection of its
own; all streams of a snapshot show the same state. Memory does not grow with the tables.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
from pyarrow import dataset

from etl import schema
from etl.errors import EtlError
from etl.sinks import postgres_tables, tables
from etl.sinks.postgres_server import Dsn, Session, session
from etl.storage import duck

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_MAP, _NOTES = schema.SQL[schema.Kind.ATTRIBUTES], schema.SQL[schema.Kind.NOTES]
_ONE_CONTACT = re.compile(r'\(contact_id == "([^"\\]+)"\)')
"""The condition of a question about one contact, as pyarrow writes it."""
_PARSED = f"{{0}}::JSON::{_MAP}"
_VALUES = {
    _MAP: f"""CASE WHEN attribute_order IS NULL THEN {_PARSED} ELSE
        map_from_entries(list_transform(attribute_order, lambda k: {{{{'key': k, 'value': ({_PARSED})[k]}}}})) END""",
    _NOTES: f"{{0}}::JSON::{_NOTES}",
    "JSON": "{0}::JSON",
    "TINYINT": "{0}::TINYINT",
}
"""A column in the type of every other sink; the others have it already."""
_ARROW = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int16(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "TIMESTAMP WITH TIME ZONE": schema.TIME,
    "VARCHAR[]": pa.list_(pa.string()),
}
"""The types in which the server's columns arrive; the others arrive as text."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of a schema, as long as the connection that exported it is open."""

    dsn: Dsn
    where: str
    name: str
    failed: list[EtlError] = field(default_factory=list)
    """Errors of its streams, which the engine reports in words of its own."""

    def batches(self, query: str, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows of a query on this state."""
        try:
            with session(self.dsn, self.where) as server:
                server.execute(_BEGIN)
                server.execute(f"SET TRANSACTION SNAPSHOT {duck.literal(self.name)}")
                for batch in server.stream(query):
                    cells = [each.storage if isinstance(each, pa.ExtensionArray) else each for each in batch.columns]
                    yield pa.record_batch(cells, schema=columns)
        except EtlError as error:
            self.failed.append(error)
            raise


class _Stored(dataset.InMemoryDataset):  # type: ignore[misc]  # pyarrow has no types
    """A table of the schema as an Arrow dataset: the engine names the columns and rows that it needs."""

    def __init__(self, shown: Snapshot, source: str, columns: Mapping[str, tuple[str, pa.DataType]]) -> None:
        """`source` is the table and what it is joined with; `columns` are their names on the server and types."""
        self._declared = pa.schema([(name, kind) for name, (_, kind) in columns.items()])
        super().__init__(self._declared.empty_table())
        self._shown, self._source, self._columns = shown, source, columns

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: dataset.Expression | None = None,  # noqa: A002 - a parameter of datasets
        **_: object,
    ) -> dataset.Scanner:
        """Scan these columns; the query is sent when the first batch is taken."""
        condition = "" if filter is None else str(filter)
        # Every column that the condition could name; a name in a text only adds a column.
        needed = [each for each in self._declared if columns is None or each.name in columns or each.name in condition]
        needed = needed or [self._declared[0]]
        query = f"SELECT {', '.join(self._columns[each.name][0] for each in needed)} FROM {self._source}"
        if one := _ONE_CONTACT.fullmatch(condition):
            query += f" WHERE t.contact_id = {duck.literal(one[1])}"
        batches = self._shown.batches(query, pa.schema(needed))
        return dataset.Scanner.from_batches(
            batches, schema=pa.schema(needed), columns=columns, filter=filter, use_threads=False, batch_readahead=1
        )


@contextmanager
def snapshot(dsn: Dsn, where: str) -> Iterator[tuple[Snapshot, Session]]:
    """The state of a database now, and the connection that holds it."""
    with session(dsn, where) as server:
        server.execute(_BEGIN)
        server.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        [[name]] = server.rows("SELECT pg_export_snapshot()")
        yield Snapshot(dsn, where, name), server


def relate(engine: duckdb.DuckDBPyConnection, shown: Snapshot, home: str) -> None:
    """Make the tables of a schema relations of the engine: `contacts`, ..., `contacts_as_of(t)`, `etl.strikes`, ..."""
    space = duck.quoted(home)
    engine.execute("CREATE SCHEMA etl")
    for table, columns in postgres_tables.TABLES.items():
        source = f"{space}.{table} t"
        stored = {name: (f"t.{duck.quoted(name)}", _ARROW.get(kind, pa.string())) for name, kind in columns}
        if _MAP in dict(columns).values():
            source += f" LEFT JOIN {space}.etl_attribute_orders o ON t.row_hash = o.row_hash"
            stored["attribute_order"] = ("o.keys", pa.list_(pa.string()))
        engine.register(f"stored_{table}", _Stored(shown, source, stored))
        values = ", ".join(
            f"{_VALUES.get(kind, '{0}').format(duck.quoted(name))} AS {duck.quoted(name)}" for name, kind in columns
        )
        view = f"etl.{table.removeprefix('etl_')}" if table.startswith("etl_") else table
        engine.execute(f"CREATE VIEW {view} AS SELECT {values} FROM stored_{table}")
    engine.execute(tables.AS_OF)
