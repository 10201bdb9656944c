"""The contract of a sink, which publishes a run in one atomic step."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa

from etl.model import Merged, Publication, SinkState, Span

SinkKind = Literal["duckdb", "parquet"]
"""The name of a sink, in the configuration and in reports."""


class Sink(Protocol):
    """One target. Methods are called in this order: open, queries, prepare, publish.

    `discard` may be called at any time. All methods are synchronous and called by one thread at a time, in the process
    that holds `storage.lock.Lock(path)`.
    """

    name: SinkKind
    path: Path

    def open(self) -> SinkState:
        """Check that the target is writable, remove leftovers of killed runs, validate the target, return its state.

        Raises `SinkError`, `TargetCorrupt`.
        """
        ...

    def state(self) -> SinkState:
        """Return the state; writes nothing."""
        ...

    def created_at(self, account: str) -> pa.Table:
        """Creation times of the account's published contacts in order, without nulls.

        Columns: `created_at`, `is_contact`, and `struck`: whether the contact has a strike.
        """
        ...

    def copy_ids(self, account: str, file: Path, within: Span | None = None) -> None:
        """Write the ids of the account's published and deleted contacts to a new Parquet file (column `contact_id`).

        With `within`, only the ids of published contacts created in that span.
        """
        ...

    def copy_contacts(self, account: str, name: str, file: Path) -> int:
        """Write the account's published contacts to a new part of the account `name`; return their number."""
        ...

    def prepare(self, publication: Publication) -> Merged:
        """Prepare the next snapshot next to the target and verify it; readers do not see it. May be called again."""
        ...

    def publish(self, publication: Publication) -> None:
        """Publish the prepared snapshot in one atomic step; raises `PublishConflict` on a concurrent publish."""
        ...

    def discard(self) -> None:
        """Remove the prepared snapshot, if any."""
        ...
