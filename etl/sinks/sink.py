"""The contract of a sink, which publishes a run in one atomic step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import duckdb
import pyarrow as pa

from etl.model import Merged, Publication, SinkState, Span
from etl.sinks.manifest import Manifest

SinkKind = Literal["duckdb", "parquet", "postgres", "delta"]
"""The kind of a target."""


class Sink(Protocol):
    """One target. Methods are called in this order: open, queries, prepare, publish.

    `discard`, `reading` and `select` may be called at any time. All methods are synchronous and called by one thread at
    a time; those that write, in the process that holds `storage.lock.Lock(path)`.
    """

    name: str
    """Its name in the configuration and in reports."""
    kind: SinkKind
    path: Path
    """The target or, if it is not on this machine, a path for its temporary files (see `staging.temporary`)."""
    location: str
    """The target as messages and reports show it."""

    def exists(self) -> bool:
        """Whether there may be something to read."""
        ...

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
        """Write the ids of the account's published and deleted contacts to a new Parquet file.

        Columns: `contact_id`, and `strikes`: 0 or 1, or 2 for a deleted contact.

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

    def reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A read-only connection to the published state; see `reader.open_readonly`."""
        ...

    def select(self, query: str) -> pa.Table:
        """The rows of one read-only statement, in the SQL of the target; see `reader.select`."""
        ...

    def restore(self, source: duckdb.DuckDBPyConnection, history: Sequence[Manifest]) -> None:
        """Prepare a copy of everything that another sink has published, for an empty target; `publish` publishes it.

        `source` is the other's `reading`, `history` are its manifests without files, oldest first. Raises `UsageError`
        if the target is not empty.
        """
        ...
