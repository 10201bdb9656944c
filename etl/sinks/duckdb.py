"""The DuckDB sink: one file, replaced atomically.

The run is merged into a copy next to the target, which is checkpointed, closed, read back by another process, synced
and renamed over the original. The original is only ever opened for reading, so readers neither block a run nor see a
partial state: they keep the old file until they reopen it. State (manifest, strikes, windows) is in the schema `etl` of
the same file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from etl.errors import PublishConflict, SinkError, TargetCorrupt
from etl.model import Merged, Publication, SinkState, Span
from etl.sinks import (
    checks,
    duckdb_file,
    duckdb_tables,
    duckdb_version,
    manifest,
    merge,
    queries,
    reader,
    sharing,
    tables,
)
from etl.sinks.query_engine import QueryEngine
from etl.sinks.readback import ReadBackError, Rows, read_back
from etl.sinks.sink import SinkKind
from etl.storage import duck, files, preflight, staging

STORAGE_VERSION = "v1.2.0"
"""The default: clients from DuckDB 1.2 on can open the file."""
_ROW_GROUP_ROWS = 30_720
"""A quarter of the default, so that several threads compress 100,000 rows (0.4 s instead of 0.9 s)."""
_LAST_MANIFEST = "SELECT seq, digest, document FROM target.etl.manifests ORDER BY seq DESC LIMIT 1"


class DuckDBSink:
    """Publishes into one DuckDB file."""

    kind: SinkKind = "duckdb"

    def __init__(
        self,
        path: Path,
        memory_limit: int = duck.MEMORY_LIMIT,
        storage_version: str = STORAGE_VERSION,
        *,
        access: files.Access | None = None,
        name: str = "duckdb",
    ) -> None:
        self.name = name
        self.path = path
        self.location = str(path)
        self._memory_limit = memory_limit
        self._floor = storage_version
        self._version = ""
        """The storage version of the target, as the engine reports it."""
        self._access = access
        self._next: Path | None = None
        attach = f"ATTACH {duck.literal(path)} AS target (READ_ONLY)"
        self._queries = QueryEngine(memory_limit, staging.spill_folder(path), attach=attach, detach="DETACH target")
        self._copied: tuple[int, ...] = ()
        """Identity (device, inode, mtime, size) at copy time; detects concurrent changes."""
        self._known = SinkState()
        self._read_at: tuple[int, ...] = ()
        """Identity when the state was read; reading starts a process, so it is not repeated without a change."""

    def open(self) -> SinkState:
        """Create the folder, remove leftovers, and read the state of the target; raises as `state` does."""
        staging.probe(self.path, [self.path.parent], self._access)
        staging.collect_leftovers(self.path, [self.path.parent])
        if self._access:
            sharing.warn_closed(self._access, self.path)
        state = self.state()
        preflight.check_room(self.path.parent, copied=self.path.stat().st_size if self._read_at else 0)
        return state

    def state(self) -> SinkState:
        """Return the state of the target; writes nothing.

        Raises `TargetCorrupt` if the file is damaged or has foreign tables under our names, `SinkError` if another
        program is writing to it.
        """
        found = self._identity()
        if found != self._read_at:
            self._known = self._read_state() if found else SinkState()
            self._read_at = found
        return self._known

    def created_at(self, account: str) -> pa.Table:
        """Creation times of the account's contacts in the published snapshot, in order, without nulls."""
        if account not in self.state().runs:
            return queries.NO_TIMES
        with self._reading() as connection:
            return queries.created_at(connection, account)

    def copy_ids(self, account: str, file: Path, within: Span | None = None) -> None:
        """Write the ids of the account's published and deleted contacts to a new file; see `Sink.copy_ids`."""
        with self._reading() as connection:
            queries.copy_ids(connection, account, file, within)

    def copy_contacts(self, account: str, name: str, file: Path) -> int:
        """Write the account's published contacts to a new part of the account `name`; return their number."""
        with self._reading() as connection:
            return queries.copy_contacts(connection, account, name, file)

    def prepare(self, publication: Publication) -> Merged:
        """Merge into a copy next to the target and have it read back; readers do not see it.

        Raises `UsageError` if the target was made with other filters, `PublishConflict` if the run number is taken.
        """
        return checks.with_memory_fallback(self._memory_limit, partial(self._prepare, publication))

    def _prepare(self, publication: Publication, memory: int) -> Merged:
        self.discard()
        previous = self.state()
        checks.check_compatible(self, previous, publication)
        with self._beside(memory) as connection:
            merged = self._merge(connection, previous, publication)
        copy = self._next_file
        checks.read_back_whole(
            (
                *duck.bounds(self._memory_limit, copy.parent),
                f"ATTACH {duck.literal(copy)} AS target (READ_ONLY)",
                "USE target",
            ),
            merged,
            publication,
            copy,
        )
        files.sync(copy)
        return merged

    @property
    def _next_file(self) -> Path:
        """The file that is prepared."""
        if self._next is None:
            raise SinkError("nothing is prepared", where=str(self.path))
        return self._next / self.path.name

    @contextlib.contextmanager
    def _beside(self, memory: int) -> Iterator[duckdb.DuckDBPyConnection]:
        """An engine with a copy of the target, or a new file, as database `target`, which is closed after the block."""
        self._copied = self._identity()
        folder = self._next = staging.next_folder(self.path)
        copy = self._next_file
        rewritten = bool(self._copied) and duckdb_version.is_newer(self._version, self._floor)
        option = f"ROW_GROUP_SIZE {_ROW_GROUP_ROWS}"
        if self._copied and not rewritten:
            files.copy_file(self.path, copy)
        else:
            option += f", STORAGE_VERSION {duck.literal(self._floor)}"
        with self._attached(copy, option, folder, memory) as connection:
            if rewritten:
                duckdb_version.rewrite(connection, str(self.path), self._floor)
            yield connection
        self._access.give(copy) if self._access else files.make_private(copy)
        duckdb_file.refuse_open_wal(copy)

    def restore(self, source: duckdb.DuckDBPyConnection, history: Sequence[manifest.Manifest]) -> None:
        """Copy everything that `source` reads into a new file next to the target; see `Sink.restore`."""
        self.discard()
        checks.refuse_published(self, self.state())
        with self._beside(self._memory_limit) as connection:
            duckdb_tables.create(connection)
            connection.execute("BEGIN")
            duckdb_tables.restore(connection, source)
            connection.executemany("INSERT INTO etl.manifests VALUES (?, ?, ?)", manifest.rows(history))
            connection.execute("COMMIT")
            connection.execute("CHECKPOINT target")
        files.sync(self._next_file)

    def publish(self, publication: Publication) -> None:
        """Replace the target with the prepared file, in one rename.

        Raises `PublishConflict` if the target is no longer the file that was copied.
        """
        if self._next is None:
            raise SinkError(f"nothing is prepared for run {publication.seq}", where=str(self.path))
        duckdb_file.refuse_open_wal(self.path)
        if self._identity() != self._copied:
            raise PublishConflict("the target was changed during the run", where=str(self.path))
        if self._access:
            sharing.share(self._access, self.path, [])
        copy = self._next / self.path.name
        with files.translate_os_errors("put the new file in place", self.path):
            if self._copied:
                copy.replace(self.path)
            else:
                try:  # Never replaces a file that another process has created since.
                    files.put(copy, self.path)
                except FileExistsError:
                    raise PublishConflict("another process made the target", where=str(self.path)) from None
        checks.sync_published(self.path.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the files that `prepare` created, and end the engine of the queries."""
        self._queries.close()
        if self._next is not None:
            files.remove_quietly(self._next)
            self._next = None

    def exists(self) -> bool:
        """Whether there is a file."""
        return self.path.exists()

    def reading(self) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A read-only connection to the published state."""
        return reader.open_readonly("duckdb", self.path)

    def select(self, query: str) -> pa.Table:
        """The rows of one read-only statement."""
        with self.reading() as connection:
            return reader.select(connection, query)

    def _merge(self, connection: duckdb.DuckDBPyConnection, previous: SinkState, publication: Publication) -> Merged:
        duckdb_tables.create(connection)
        merged = merge.prepare(connection, publication, previous.runs)
        written = manifest.follow(previous, publication, merged)
        document = manifest.encode(written)
        connection.register("this_run", tables.run_rows(written.runs))
        connection.execute("BEGIN")
        duckdb_tables.write(connection)
        connection.execute(tables.insert_runs("runs", "this_run"))
        connection.execute(
            "INSERT INTO etl.manifests VALUES (?, ?, ?)",
            [written.seq, manifest.digest(document), document.decode()],
        )
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT target")
        return merged

    def _identity(self) -> tuple[int, ...]:
        """Device, inode, mtime and size of the target, which detect any change; () if there is no file."""
        with files.translate_os_errors("look at the target", self.path):
            if not os.path.lexists(self.path):
                return ()
            if self.path.is_dir():
                raise IsADirectoryError(21, "is a folder", str(self.path))
            found = self.path.stat()
        duckdb_file.refuse_empty(self.path, found.st_size)
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    @contextlib.contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """An engine for `queries` on the published snapshot."""
        try:
            with self._queries.query() as connection:
                connection.execute("USE target")
                connection.execute(duckdb_tables.STRIKES)
                yield connection
        except duckdb.Error as error:
            raise checks.translate(error, self.path) from error

    @contextlib.contextmanager
    def _attached(self, file: Path, option: str, spill: Path, memory: int) -> Iterator[duckdb.DuckDBPyConnection]:
        """An engine with the file attached as database `target`; translates engine errors to ours."""
        options = f"({option})" if option else ""
        try:
            with duck.connect(memory, spill) as connection:
                connection.execute(f"ATTACH {duck.literal(file)} AS target {options}")
                connection.execute("USE target")
                yield connection
                connection.execute("USE memory; DETACH target")
        except duckdb.Error as error:
            raise checks.translate(error, self.path) from error

    def _read_state(self) -> SinkState:
        """Check the file and read its last manifest, in another process."""
        with files.translate_os_errors("read the target", self.path):
            self.path.open("rb").close()
        try:
            duckdb_file.refuse_open_wal(self.path)
        except SinkError:
            # A program that is writing now is reported as such: its log must not be deleted.
            with contextlib.suppress(TargetCorrupt):
                self._read(duckdb_file.SIZE)
            raise
        columns, sizes, versions, manifests = self._read(
            duckdb_file.COLUMNS, duckdb_file.SIZE, duckdb_version.VERSION, _LAST_MANIFEST
        )
        self._version = str(versions[0][0])
        duckdb_file.refuse_cut_off(self.path, *(int(str(number)) for number in sizes[0]))
        held = duckdb_file.held(columns)
        if not duckdb_file.is_published(held):
            duckdb_file.refuse_foreign(held, self.path)
            return SinkState()
        duckdb_file.refuse_altered(held, self.path)
        return checks.last_state(manifests, str(self.path))

    def _read(self, *statements: str) -> list[Rows]:
        setup = f"ATTACH {duck.literal(self.path)} AS target (READ_ONLY)"
        try:
            with files.translate_os_errors("start another process", self.path):
                return read_back([setup], statements)
        except ReadBackError as error:
            raise duckdb_file.unreadable(str(error), self.path) from error
