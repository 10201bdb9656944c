"""The Parquet sink: files cut by creation time, published by a log (`etl.sinks.parquet_log`).

The next state is prepared in a local folder (`etl.sinks.parquet_files`), read back by another process, and brought to
the target by the log: a folder (`parquet_folder`) or an object store (`parquet_objects`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from etl.errors import SinkError
from etl.model import Merged, Publication, SinkState, Span
from etl.sinks import checks, duckdb_tables, manifest, merge, queries, reader, rejects, tables
from etl.sinks.parquet_files import copy_all, write
from etl.sinks.parquet_folder import FolderLog
from etl.sinks.parquet_layout import CONTENTS, Chain
from etl.sinks.parquet_log import Log
from etl.sinks.query_engine import QueryEngine
from etl.sinks.sink import SinkKind
from etl.storage import duck, files, staging


class ParquetSink:
    """Publishes Parquet files; keeps the last `keep` complete states for slow readers."""

    def __init__(
        self,
        path: Path,
        memory_limit: int = duck.MEMORY_LIMIT,
        keep: int = 3,
        *,
        access: files.Access | None = None,
        name: str = "parquet",
        log: Log | None = None,
        kind: SinkKind = "parquet",
    ) -> None:
        """`path` is the target, or what its temporary files are next to if `log` publishes elsewhere."""
        self.name = name
        self.kind = kind
        self.path = path
        self._log: Log = log or FolderLog(path, access)
        self.location = self._log.location
        self._memory_limit = memory_limit
        self._keep = keep
        self._next: Path | None = None
        self._queries = QueryEngine(memory_limit, staging.spill_folder(path))
        self._known: Chain | None = None
        """The last state, kept for queries: there are some for every account, and reading all manifests is slow."""

    def open(self) -> SinkState:
        """Check the target, remove leftovers, and read the state; see `Log.open`."""
        return self._keep_in_mind(self._log.open())

    def state(self) -> SinkState:
        """Return the state of the target; writes nothing."""
        chain = self._log.read()
        self._log.refuse_lost(chain)
        return self._keep_in_mind(chain)

    def _keep_in_mind(self, chain: Chain) -> SinkState:
        self._known = replace(chain, manifests=chain.manifests[-1:])
        return chain.state

    def created_at(self, account: str) -> pa.Table:
        """Creation times of the account's contacts in the published snapshot, in order, without nulls."""
        if self._known is not None and account not in self._known.state.runs:
            return queries.NO_TIMES
        with self._querying() as connection:
            return queries.created_at(connection, account)

    def copy_ids(self, account: str, file: Path, within: Span | None = None) -> None:
        """Write the ids of the account's published and deleted contacts to a new file; see `Sink.copy_ids`."""
        with self._querying() as connection:
            queries.copy_ids(connection, account, file, within)

    def copy_contacts(self, account: str, name: str, file: Path) -> int:
        """Write the account's published contacts to a new part of the account `name`; return their number."""
        with self._querying() as connection:
            return queries.copy_contacts(connection, account, name, file)

    def prepare(self, publication: Publication) -> Merged:
        """Write the next state, have it read back, and stage it; nothing is published yet.

        Raises `UsageError` if the target was made with other filters, `PublishConflict` if the run number is taken.
        """
        return checks.with_memory_fallback(self._memory_limit, partial(self._prepare, publication))

    def _prepare(self, publication: Publication, memory: int) -> Merged:
        self.discard()
        chain = self._log.read()
        checks.check_compatible(self, chain.state, publication)
        self._log.load(chain, unaltered=True)
        folder = self._next = staging.next_folder(self.path)
        spill = files.private_folder(folder / "spill")
        with self._engine(chain, partial(duck.connect, memory, spill)) as connection:
            merged = merge.prepare(connection, publication, chain.state.runs)
            made = write(connection, chain, folder, publication.seq)
        written = replace(manifest.follow(chain.state, publication, merged), files=tuple(made))
        views = (
            f"CREATE VIEW {name} AS "
            + duck.scan((folder / file.path for file in made if file.path.startswith(f"{content}/")), columns)
            for name, content, columns in (
                ("contacts", "current", tables.in_files(tables.CONTACTS)),
                ("contact_versions", "versions", tables.in_files(tables.VERSIONS)),
            )
        )
        bounds = duck.bounds(self._memory_limit, folder / "spill")
        checks.read_back_whole((*bounds, *views), merged, publication, folder)
        self._log.stage(chain, folder, written)
        return merged

    def restore(self, source: duckdb.DuckDBPyConnection, history: Sequence[manifest.Manifest]) -> None:
        """Write everything that `source` reads as the files of one run, and stage them; see `Sink.restore`.

        It goes through a file of the engine: that is read once for each range of time, a server only once.
        """
        self.discard()
        chain = self._log.read()
        checks.refuse_published(self, chain.state)
        folder, whole = staging.next_folder(self.path), manifest.joined(history)
        self._next, spill = folder, files.private_folder(folder / "spill")
        try:
            with duck.connect(self._memory_limit, spill) as connection:
                connection.execute(f"ATTACH {duck.literal(spill / 'copy.duckdb')} AS target; USE target")
                duckdb_tables.create(connection)
                duckdb_tables.restore(connection, source)
                made = copy_all(connection, folder, whole.seq)
        except duckdb.Error as error:
            raise checks.translate(error, self.location) from error
        files.remove(spill)
        self._log.stage(chain, folder, replace(whole, files=tuple(made)))

    def publish(self, publication: Publication) -> None:
        """Publish the staged state in one step; see `Log.publish`."""
        if self._next is None:
            raise SinkError(f"nothing is prepared for run {publication.seq}", where=self.location)
        self._known = None
        self._log.publish(self._next, publication.seq)
        self.discard()
        with contextlib.suppress(SinkError):
            self._log.collect(self._keep)

    def discard(self) -> None:
        """Remove the files that `prepare` created, and end the engine of the queries."""
        self._queries.close()
        if self._next is not None:
            self._log.discard(self._next)
            self._next = None

    def exists(self) -> bool:
        """Whether there may be something to read."""
        return self._log.exists()

    def reading(self) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A read-only connection to the published state."""
        return reader.open_log(self._log)

    def select(self, query: str) -> pa.Table:
        """The rows of one read-only statement."""
        with self.reading() as connection:
            return reader.select(connection, query)

    def manifests(self) -> tuple[manifest.Manifest, ...]:
        """Every published manifest with its runs, oldest first."""
        return self._log.read(runs=True).manifests

    def verify(self) -> str:
        """Check every published file, bit for bit; return what was checked. Raises `TargetCorrupt`."""
        chain = self._log.read()
        self._log.verify(chain)
        count = sum(len(chain.entries(content)) for content in CONTENTS)
        return f"{len(chain.manifests)} in a chain, {count} files as published"

    def _querying(self) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        """An engine for queries on the published snapshot."""
        chain = self._known or self._log.read()
        self._log.load(chain)
        return self._engine(chain, self._queries.query)

    @contextlib.contextmanager
    def _engine(
        self, chain: Chain, start: Callable[[], contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]]
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """An engine with the last state as `contacts`, `strikes` and `rejects`; translates engine errors to ours."""
        relations = {
            "contacts": duck.scan(chain.files("current"), tables.in_files(tables.CONTACTS)),
            "strikes": duck.scan(chain.files("strikes"), tables.STRIKES),
            "rejects": rejects.scan(chain.files("rejects"), complete=chain.complete_rejects),
        }
        try:
            with start() as connection:
                for name, query in relations.items():
                    connection.execute(f"CREATE TEMP VIEW {name} AS {query}")
                yield connection
        except duckdb.Error as error:
            raise checks.translate(error, self.location) from error
