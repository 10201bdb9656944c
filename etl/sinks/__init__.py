"""Sinks: each publishes a run in one atomic step that carries data, state, proof and counts together.

May import `api`, `config`, `storage` and lower layers, never `extract`. Read `sink` first (the contract), then `merge`
(the changes of a publication, in SQL shared by all sinks) with `tables` and `rejects`. `duckdb`, `parquet` and
`postgres` publish them, each with its own modules (`duckdb_*`; `parquet_*`, `partitions`, `manifest`; `postgres_*`).
The files of `parquet` are published by a log (`parquet_log`): a folder (`parquet_folder`), or objects
(`parquet_objects`), whose commits (`parquet_commits`) are numbered manifests or those of Delta tables
(`delta_commits`). `reader` queries published targets; `targets` makes sinks from the configuration.
"""

from __future__ import annotations

from etl.sinks.duckdb import DuckDBSink
from etl.sinks.parquet import ParquetSink
from etl.sinks.reader import Unpublished, open_readonly, select
from etl.sinks.sink import Sink, SinkKind

__all__ = [
    "DuckDBSink",
    "ParquetSink",
    "Sink",
    "SinkKind",
    "Unpublished",
    "open_readonly",
    "select",
]
