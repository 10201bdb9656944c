"""The fingerprint of a contact's content, which detects whether a contact has changed since it was published.

It is computed when parts are written, so that it is ready when reading ends. Presence fields are excluded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import duckdb
import pyarrow as pa

from etl import schema
from etl.errors import EtlError
from etl.storage import duck


def _hashed(column: schema.Column) -> str:
    name = duck.quoted(column.name)
    match column.kind:
        case schema.Kind.TIME:
            return f"epoch_us({name})"
        case schema.Kind.JSON:
            return f"{name}::VARCHAR"
    return name


# JSON distinguishes null from "" and a list from its text, and does not depend on locale or machine.
ROW_HASH_SQL = f"md5(json_array({', '.join(_hashed(column) for column in schema.CONTENT)}))"
"""The fingerprint of a contact as SQL over its columns, in a part or in a target."""


@contextmanager
def _memory() -> Iterator[None]:
    """Translate DuckDB out-of-memory errors to `MemoryError`, which every command reports with its hint."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise MemoryError from error


@cache
def _engine() -> duckdb.DuckDBPyConnection:
    """The shared engine for all fingerprints: it holds no data, reads no files, and starts no threads.

    A query runs in the calling thread, so the order of rows is kept. One engine per account would cost 5 MB each.
    """
    return duckdb.connect(config={"autoinstall_known_extensions": "false", "threads": 1, "async_threads": 0})


class RowHasher:
    """Adds `row_hash` to normalized contacts. An object serves one thread at a time."""

    def __init__(self) -> None:
        """Connect to the shared engine."""
        with _memory():
            self._connection = _engine().cursor()

    def __call__(self, contacts: pa.Table) -> pa.Table:
        """`contacts` (schema.NORMALIZED) with their fingerprints (schema.PART_SCHEMA): 32 hexadecimal digits each.

        The same content has the same fingerprint on every machine and with every version of the engine.
        """
        with _memory():
            rows = self._connection.from_arrow(contacts.to_reader())
            made = rows.project(f"read_no, {ROW_HASH_SQL} AS {schema.ROW_HASH}").to_arrow_table()
        if not made["read_no"].equals(contacts["read_no"]):
            message = "the fingerprints are not in the order of the contacts"
            raise EtlError(message)
        return contacts.append_column(schema.PART_SCHEMA.field(schema.ROW_HASH), made[schema.ROW_HASH])
