"""Compares contacts with the rows that an earlier version published.

Their fingerprints are by the former definition, and the lists of attributes and notes with further fields were in
`extra` as a whole. A received contact is compared with the fingerprint that its row would have now. If both are the
same, the row is replaced as if only fields of presence had changed: no version is written.
"""

# ruff: noqa: S608 - SQL is built from our own names.

from __future__ import annotations

import duckdb
import pyarrow as pa

from etl.storage.row_hash import CURRENT_SQL, is_former

_TABLE = "CREATE TEMP TABLE rehashed (account VARCHAR, contact_id VARCHAR, row_hash VARCHAR)"
_FOUND = f"SELECT EXISTS (FROM contacts WHERE {is_former('row_hash')})"
_FORMER = f"contacts p SEMI JOIN folded USING (account, contact_id) WHERE {is_former('p.row_hash')}"
_LISTS = f"""
CREATE TEMP TABLE lists AS
    SELECT account, contact_id, extra::VARCHAR AS extra, row_number() OVER () AS number FROM {_FORMER}
    AND (contains(extra::VARCHAR, '"attributes":[') OR contains(extra::VARCHAR, '"notes":['))
"""
_SHARE = "SELECT account, contact_id, extra FROM lists WHERE number > ? AND number <= ?"
_SHARE_ROWS = 10_000
"""Rows read into memory at once."""
_FILL = f"""
INSERT INTO rehashed
    SELECT account, contact_id, {CURRENT_SQL} FROM (
        SELECT p.* REPLACE (coalesce(s.extra, p.extra::VARCHAR) AS extra)
        FROM (FROM {_FORMER}) p LEFT JOIN shortened s ON p.account = s.account AND p.contact_id = s.contact_id
    )
"""


def prepare(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the relation `rehashed`, given `contacts` and the received contacts in `folded`."""
    connection.execute(_TABLE)
    [[found]] = connection.execute(_FOUND).fetchall()
    if not found:
        return
    from etl.normalize.rowwise import without_columns  # noqa: PLC0415 - only old targets need it

    connection.execute(_LISTS)
    connection.execute("CREATE TEMP TABLE shortened AS SELECT account, contact_id, extra FROM lists LIMIT 0")
    [[rows]] = connection.execute("SELECT count(*) FROM lists").fetchall()
    for start in range(0, rows, _SHARE_ROWS):
        share = connection.sql(_SHARE, params=[start, start + _SHARE_ROWS]).to_arrow_table()
        extras = pa.array(map(without_columns, share["extra"].to_pylist()), pa.string())
        connection.register("share", share.set_column(2, "extra", extras))
        connection.execute("INSERT INTO shortened FROM share")
        connection.unregister("share")
    connection.execute(_FILL)
    connection.execute("DROP TABLE lists; DROP TABLE shortened")
