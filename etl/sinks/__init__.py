"""Sinks: each publishes a run in one atomic step that carries data, state, proof and counts together.

May import `api`, `config`, `storage` and lower layers, never `extract`. Read `sink` first (the contract), then `merge`
(the changes of a publication, in SQL shared by all sinks) with `tables` and `rejects`. `duckdb` and `parquet` publish
them, each with its own modules (`duckdb_*`; `parquet_*`, `partitions`, `manifest`). `reader` queries published targets;
`targets` makes sinks from the configuration.
"""

from __future__ import annotations

from etl.sinks.duckdb import DuckDBSink
from etl.sinks.parquet import ParquetSink
from etl.sinks.reader import Unpublished, open_readonly, select
from etl.sinks.sink import Sink, SinkKind

__all__ = ["DuckDBSink", "ParquetSink", "Sink", "SinkKind", "Unpublished", "open_readonly", "select"]
