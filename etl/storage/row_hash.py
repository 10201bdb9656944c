"""The fingerprint of a contact's content, which detects whether a contact has changed since it was published.

It is computed when parts are written, so that it is ready when reading ends. Presence fields are excluded. It begins
with the number of its definition: targets also hold rows with fingerprints of the former definition, which have no
number (`etl.sinks.rehash`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import duckdb
import pyarrow as pa

from etl import schema
from etl.errors import EtlError
from etl.storage import duck

_NUMBER = "2:"
_TEXTS = pa.list_(pa.string())


def _json_array(columns: Iterable[schema.Column], attributes: str) -> str:
    """The columns as a JSON array, which distinguishes null from "" and a list from its text, on every machine."""
    special = {
        schema.Kind.TIME: "epoch_us({})",
        schema.Kind.JSON: "{}::VARCHAR",
        schema.Kind.ATTRIBUTES: attributes,
    }
    return f"json_array({', '.join(special.get(each.kind, '{}').format(duck.quoted(each.name)) for each in columns)})"


def _current(attributes: str) -> str:
    """The definition, given the keys and the values of the attributes."""
    columns = (column for column in schema.CONTENT if column.kind is not schema.Kind.JSON)
    return f"'{_NUMBER}' || md5({_json_array(columns, attributes)}::VARCHAR || coalesce(extra::VARCHAR, ''))"


CURRENT_SQL = _current("map_keys({0}), map_values({0})")
"""The fingerprint as SQL over the columns of a published contact."""
FORMER_SQL = f"md5({_json_array(schema.CONTENT, '{}')})"


def is_former(row_hash: str) -> str:
    """Whether a fingerprint, as SQL, was made by the former definition; false for null."""
    return f"coalesce(NOT starts_with({row_hash}, '{_NUMBER}'), false)"


ROW_HASH_SQL = f"CASE WHEN {is_former('row_hash')} THEN {FORMER_SQL} ELSE {CURRENT_SQL} END"
"""The fingerprint of a published contact by the definition of the one that it has."""


@cache
def _engine() -> duckdb.DuckDBPyConnection:
    """The shared engine for all fingerprints: it holds no data, reads no files, and starts no threads.

    A query runs in the calling thread, so the order of rows is kept. One engine per account would cost 5 MB each.
    """
    return duckdb.connect(config={"autoinstall_known_extensions": "false", "threads": 1, "async_threads": 0})


def release() -> None:
    """Close the shared engine, which holds on to 50 MB after 1,000,000 contacts; further contacts start another."""
    _engine.cache_clear()


def _list(attributes: pa.MapArray, items: pa.StringArray) -> pa.ListArray:
    """The keys or values of each row, not copied."""
    buffers, offset = attributes.buffers()[:2], attributes.offset
    return pa.Array.from_buffers(_TEXTS, len(attributes), buffers, offset=offset, children=[items])


def with_row_hash(contacts: pa.Table) -> pa.Table:
    """`contacts` (schema.NORMALIZED) with their fingerprints (schema.PART_SCHEMA).

    The same content has the same fingerprint on every machine and with every version of the engine.
    """
    maps = contacts["attributes"].chunks
    keys = pa.chunked_array([_list(each, each.keys) for each in maps], _TEXTS)
    values = pa.chunked_array([_list(each, each.items) for each in maps], _TEXTS)
    # Of an Arrow map the engine checks the keys, which takes three times as long as all lists.
    columns = contacts.drop(["attributes"]).append_column("keys", keys).append_column("values", values)
    try:
        with _engine().cursor() as connection:
            rows = connection.from_arrow(columns.to_reader())
            made = rows.project(f"read_no, {_current('keys, values')} AS {schema.ROW_HASH}").to_arrow_table()
    except duckdb.OutOfMemoryException as error:
        raise MemoryError from error  # Every command reports it with its hint.
    if not made["read_no"].equals(contacts["read_no"]):
        message = "the fingerprints are not in the order of the contacts"
        raise EtlError(message)
    return contacts.append_column(schema.PART_SCHEMA.field(schema.ROW_HASH), made[schema.ROW_HASH])
