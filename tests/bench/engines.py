"""The bare engines: each brings the contacts of one Parquet file into its tables `contacts` and `contact_versions`.

    python -m tests.bench.engines SINK FILE TARGET [FIRST]

The first file fills new tables; later ones, which hold changed and new contacts, are merged. The engines have the
libraries, types, keys and indexes of the sinks; they check nothing and keep no state for another run. It prints the
number of contacts in the target, which the caller compares.
"""

# ruff: noqa: S608, PLC0415 - SQL is made of names from this file; a library is imported on use, as start-up is measured.

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb

_KEY = "account, contact_id"
_BATCH_ROWS = 20_000


def _into_duckdb(file: str, target: Path, *, first: bool) -> int:
    with duckdb.connect(target) as engine:
        engine.execute("BEGIN")
        if first:
            engine.execute(f"CREATE TABLE contacts AS FROM '{file}'")
            engine.execute(f"CREATE TABLE contact_versions AS SELECT *, 'upsert' AS op FROM '{file}'")
        else:
            engine.execute(
                f"MERGE INTO contacts USING '{file}' USING ({_KEY})"
                " WHEN MATCHED THEN UPDATE WHEN NOT MATCHED THEN INSERT"
            )
            engine.execute(f"INSERT INTO contact_versions SELECT *, 'upsert' FROM '{file}'")
        engine.execute("COMMIT; CHECKPOINT")
        [count] = engine.execute("SELECT count(*) FROM contacts").fetchone() or (0,)
    return int(count)


def _into_parquet(file: str, target: Path, *, first: bool) -> int:
    """One file of contacts, written anew each time, and one of versions for each run."""
    target.mkdir(exist_ok=True)
    contacts, fresh, versions = target / "contacts.parquet", target / "next.parquet", _versions(target)
    kept = "" if first else f"FROM '{contacts}' ANTI JOIN '{file}' USING ({_KEY}) UNION ALL "
    with duckdb.connect() as engine:
        engine.execute(f"COPY ({kept}FROM '{file}') TO '{fresh}' (COMPRESSION zstd)")
        engine.execute(f"COPY (SELECT *, 'upsert' AS op FROM '{file}') TO '{versions}' (COMPRESSION zstd)")
        fresh.replace(contacts)
        [count] = engine.execute(f"SELECT count(*) FROM '{contacts}'").fetchone() or (0,)
    return int(count)


def _versions(target: Path) -> Path:
    return target / f"versions-{len([*target.glob('versions-*')]) + 1}.parquet"


def _into_s3(file: str, target: Path, *, first: bool) -> int:
    """The same, and both files are put into the store; the contacts stay on this machine for the next merge."""
    import obstore
    from obstore.store import S3Store

    target.mkdir(exist_ok=True)
    versions = _versions(target)
    count = _into_parquet(file, target, first=first)
    config, options = {"endpoint": os.environ["AWS_ENDPOINT_URL"]}, {"allow_http": True}
    store = S3Store.from_url("s3://bucket/bare", config=config, client_options=options)
    for path in (target / "contacts.parquet", versions):
        obstore.put(store, path.name, path)
    return count


def _into_delta(file: str, target: Path, *, first: bool) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from deltalake import DeltaTable, write_deltalake

    def rows(op: str = "") -> pa.RecordBatchReader:
        opened = pq.ParquetFile(file)
        fields = [*opened.schema_arrow, *([pa.field("op", pa.string())] if op else [])]
        batches = (
            pa.record_batch([*batch.columns, *([pa.array([op] * len(batch))] if op else [])], schema=pa.schema(fields))
            for batch in opened.iter_batches(_BATCH_ROWS)
        )
        return pa.RecordBatchReader.from_batches(pa.schema(fields), batches)

    contacts = str(target / "contacts")
    if first:
        write_deltalake(contacts, rows())
    else:
        same = "t.account = n.account and t.contact_id = n.contact_id"
        merge = DeltaTable(contacts).merge(rows(), same, source_alias="n", target_alias="t")
        merge.when_matched_update_all().when_not_matched_insert_all().execute()
    write_deltalake(str(target / "versions"), rows("upsert"), mode="append")
    return int(sum(pa.table(DeltaTable(contacts).get_add_actions())["num_records"].to_pylist()))


def _into_postgres(file: str, target: Path, *, first: bool) -> int:  # noqa: ARG001 - the DSN names the target
    """COPY of Arrow, then INSERT ... ON CONFLICT, into tables and indexes as the sink has created them before."""
    import adbc_driver_postgresql.dbapi
    import pyarrow as pa

    def declared(column: pa.Array, field: pa.Field) -> pa.Array:
        return pa.ExtensionArray.from_storage(pa.json_(), column) if field.name in _JSON else column

    with (
        duckdb.connect() as engine,
        adbc_driver_postgresql.dbapi.connect(os.environ["WAREHOUSE_DSN"]) as server,
        server.cursor() as cursor,
    ):
        engine.execute("SET TimeZone = 'UTC'")
        values = ", ".join(f"to_json({name})::VARCHAR AS {name}" for name in _JSON)
        rows = engine.sql(f"SELECT * REPLACE ({values}) FROM '{file}'").to_arrow_reader(_BATCH_ROWS)
        wanted = pa.schema([(each.name, pa.json_() if each.name in _JSON else each.type) for each in rows.schema])
        batches = (pa.record_batch(list(map(declared, batch.columns, wanted)), schema=wanted) for batch in rows)
        into = "contacts" if first else "fresh"
        names = ", ".join(f'"{name}"' for name in wanted.names)
        changes = ", ".join(f'"{name}" = excluded."{name}"' for name in wanted.names)
        for statement in _SAME_TABLES if first else (f"CREATE TEMP TABLE {into} (LIKE bare.contacts)",):
            cursor.execute(statement)
        reader = pa.RecordBatchReader.from_batches(wanted, batches)
        cursor.adbc_ingest(into, reader, mode="append", db_schema_name="bare" if first else "pg_temp")
        cursor.execute("SET search_path = pg_temp, bare")
        if not first:
            merge = f"INSERT INTO contacts ({names}) SELECT {names} FROM {into}"
            cursor.execute(f"{merge} ON CONFLICT ({_KEY}) DO UPDATE SET {changes}")
        cursor.execute(f"INSERT INTO contact_versions ({names}, op) SELECT {names}, 'upsert' FROM {into}")
        server.commit()
        cursor.execute("SELECT count(*) FROM contacts")
        [count] = cursor.fetchone()
    return int(count)


_JSON = ("attributes", "notes")
_SAME_TABLES = (
    "CREATE SCHEMA bare",
    "CREATE TABLE bare.contacts (LIKE etl.contacts INCLUDING ALL)",
    "CREATE TABLE bare.contact_versions (LIKE etl.contact_versions INCLUDING ALL)",
)

ENGINES: dict[str, Callable[..., int]] = {
    "duckdb": _into_duckdb,
    "parquet": _into_parquet,
    "postgres": _into_postgres,
    "s3": _into_s3,
    "delta": _into_delta,
}

if __name__ == "__main__":
    sink, file, target, *asked = sys.argv[1:]
    print(ENGINES[sink](file, Path(target), first=bool(asked)))
