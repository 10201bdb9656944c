"""Small publications for the tests of staging, merging and sinks: contacts as dicts in, publications out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pyarrow as pa

from etl import schema
from etl.model import AccountYield, Counts, Mode, NormalizedBatch, Proof, Publication, Requests, RunRecord, Span
from etl.sinks import DuckDBSink, ParquetSink, Sink, SinkKind
from etl.sinks.delta_commits import DeltaCommits, options
from etl.sinks.parquet_commits import NumberedCommits
from etl.sinks.parquet_objects import ObjectLog
from etl.storage import duck
from etl.storage.local_objects import LocalObjects
from etl.storage.objects import Objects
from etl.storage.staging import Stage

DAY0 = datetime(2026, 1, 1, tzinfo=UTC)
EVERYTHING = (Span(None, None),)
_folders = count()

Row = Mapping[str, object]


def day(number: float) -> datetime:
    """Midnight `number` days after 1 January 2026; tests count in days."""
    return DAY0 + timedelta(days=number)


def contact(number: int, **values: object) -> dict[str, object]:
    """A contact created on day `number`, with these columns set."""
    return {"contact_id": f"{number:024x}", "created_at": day(number), "status": "OPEN", **values}


def batch(account: str, rows: Sequence[Row], rejects: Sequence[Row] = (), read_no: int = 0) -> NormalizedBatch:
    """The rows as the normalizer would return them, numbered from `read_no`."""
    numbered = [{**row, "account": account, "read_no": read_no + i} for i, row in enumerate(rows)]
    return NormalizedBatch(
        pa.Table.from_pylist(numbered, schema=schema.NORMALIZED_SCHEMA),
        pa.Table.from_pylist([{**row, "account": account} for row in rejects], schema=schema.REJECT_PART_SCHEMA),
    )


def brought(
    folder: Path,
    account: str,
    rows: Sequence[Row],
    *,
    seq: int,
    mode: Mode = "full",
    coverage: Sequence[Span] = EVERYTHING,
    confirmed: Sequence[Span] | None = None,
    rejects: Sequence[Row] = (),
    windows: Sequence[Row] = (),
) -> AccountYield:
    """The yield of an account in run `seq`, whose T0 is day `seq`; its parts are written below `folder`."""
    stage = Stage(folder / f"{next(_folders)}" / account)
    stage.append(batch(account, rows, rejects))
    stage.close()
    record = RunRecord(
        seq=seq,
        run_id=f"run-{seq}",
        account=account,
        mode=mode,
        t0=day(seq),
        watermark=day(seq) - timedelta(seconds=2),
        proof=Proof("windows", windows=len(windows)),
        requests=Requests(sent=len(rows), retried=1),
        seconds=1.5,
        counts=Counts(received=len(rows) + len(rejects), rejected=len(rejects)),
        detail={"page_size": 50},
    )
    table = pa.Table.from_pylist([{**row, "account": account} for row in windows], schema=schema.WINDOWS_SCHEMA)
    asked = coverage if confirmed is None else confirmed
    return AccountYield(record, stage.parts, stage.rejects, tuple(coverage), table, tuple(asked))


def sink_at(kind: SinkKind, path: Path, memory_limit: int = duck.MEMORY_LIMIT) -> Sink:
    """A sink of this kind on a path, as a new process would have it."""
    return DuckDBSink(path, memory_limit) if kind == "duckdb" else ParquetSink(path, memory_limit)


def objects_at(url: str, endpoint: str, path: Path, memory_limit: int = duck.MEMORY_LIMIT) -> Sink:
    """A Parquet sink in an object store, as a new process would have it."""
    store = Objects(url, endpoint)
    return ParquetSink(path, memory_limit, log=ObjectLog(store, NumberedCommits(store), path))


def delta_at(url: str, endpoint: str, path: Path, memory_limit: int = duck.MEMORY_LIMIT) -> Sink:
    """A sink of Delta tables, in an object store or (without an endpoint) in the folder `url`."""
    store = Objects(url, endpoint) if endpoint else LocalObjects(Path(url))
    commits = DeltaCommits(store, options(endpoint), timedelta(days=7))
    return ParquetSink(path, memory_limit, keep=1, log=ObjectLog(store, commits, path), name="delta", kind="delta")


def publication(*accounts: AccountYield, filters: Mapping[str, object] | None = None) -> Publication:
    """A run of these accounts."""
    record = accounts[0].record
    return Publication(record.seq, record.run_id, accounts, filters or {})
