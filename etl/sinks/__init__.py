"""Sinks: where a run is published, each in one atomic step that carries data, state, proof and counts together.

May import `api`, `storage` and what is below; it never sees `extract`. Read `Sink` below first, then `merge` (what a
publication changes, as SQL that every sink shares), `duckdb` and `parquet`; `reader` shows what was published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pyarrow as pa

from etl.model import Merged, Publication, SinkState, Span
from etl.sinks.checks import SinkKind
from etl.sinks.duckdb import DuckDBSink
from etl.sinks.parquet import ParquetSink
from etl.sinks.reader import Unpublished, open_readonly, select

__all__ = ["DuckDBSink", "ParquetSink", "Sink", "SinkKind", "Unpublished", "open_readonly", "select"]


class Sink(Protocol):
    """One target. Its calls come in this order: open, questions, prepare, publish.

    `discard` may be called at any time. All of them are synchronous and are made by one thread at a time, by the
    process that holds `staging.Lock(path)`.
    """

    name: SinkKind
    path: Path

    def open(self) -> SinkState:
        """Show that the target can be written, drop what killed runs prepared, validate what is there, tell its state.

        Raises `SinkError`, `TargetCorrupt`.
        """
        ...

    def state(self) -> SinkState:
        """The state alone; nothing is written."""
        ...

    def created_at(self, account: str) -> pa.Table:
        """Creation times of the account's published contacts in order, without nulls.

        Columns: `created_at`, `is_contact`, and `struck`: whether the contact has a strike.
        """
        ...

    def copy_ids(self, account: str, file: Path, within: Span | None = None) -> None:
        """Write the ids of the account's published and deleted contacts to a new Parquet file (column `contact_id`).

        With `within` only those of the published ones that were created then.
        """
        ...

    def copy_contacts(self, account: str, name: str, file: Path) -> int:
        """Write the account's published contacts to a new part of the account `name`; tell how many there are."""
        ...

    def prepare(self, publication: Publication) -> Merged:
        """Make the next snapshot beside the target and verify it; readers see nothing. May be called again."""
        ...

    def publish(self, publication: Publication) -> None:
        """Publish what is prepared, in one atomic step; raises `PublishConflict` when somebody else was first."""
        ...

    def discard(self) -> None:
        """Drop what is prepared; nothing happens where nothing is."""
        ...
