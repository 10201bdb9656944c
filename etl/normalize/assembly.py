"""Build the tables of a batch from columns and rows: derived columns, order, schema."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from etl.normalize.phones import e164
from etl.normalize.rowwise import Reject, Row
from etl.schema import ARROW, NORMALIZED_SCHEMA, READ, REJECT_PART_SCHEMA


def part(account: str, read: dict[str, pa.Array], extra: pa.Array, numbers: pa.Array) -> pa.Table:
    """Contacts as a table of schema.NORMALIZED_SCHEMA; `read` holds every column of schema.READ."""
    made = {
        "account": pa.repeat(pa.scalar(account), len(numbers)),
        "phone_e164": e164(read["phone_prefix"], read["phone_number"]),
        "extra": extra,
        "read_no": numbers,
    }
    columns = read | made
    return pa.Table.from_arrays([columns[name] for name in NORMALIZED_SCHEMA.names], schema=NORMALIZED_SCHEMA)


def part_of_rows(account: str, rows: Sequence[Row]) -> pa.Table:
    """Rows of the tolerant path as a table of schema.NORMALIZED_SCHEMA."""
    if not rows:
        return NORMALIZED_SCHEMA.empty_table()
    *cells, extra, numbers = zip(*rows, strict=True)
    read = {column.name: pa.array(values, ARROW[column.kind]) for column, values in zip(READ, cells, strict=True)}
    return part(account, read, pa.array(extra, pa.string()), pa.array(numbers, pa.int64()))


def in_reading_order(parts: Sequence[pa.Table]) -> pa.Table:
    """All contacts of `parts`, by read_no."""
    if len(parts) == 1:
        return parts[0]
    return pa.concat_tables([NORMALIZED_SCHEMA.empty_table(), *parts]).combine_chunks().sort_by("read_no")


def rejects_table(account: str, rejects: Sequence[Reject]) -> pa.Table:
    """Rejected contacts as a table of schema.REJECT_PART_SCHEMA; invalid UTF-8 becomes U+FFFD in `raw`."""
    rows = [
        {
            "account": account,
            "contact_id": reject.contact_id,
            "reason": reject.reason,
            "path": reject.path,
            "raw": reject.raw.decode(errors="replace"),
        }
        for reject in rejects
    ]
    return pa.Table.from_pylist(rows, schema=REJECT_PART_SCHEMA)
