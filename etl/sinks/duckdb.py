"""The DuckDB sink: one file, replaced atomically.

The run is merged into a copy next to the target, which is checkpointed, closed, read back by another process, synced
and renamed over the original. The original is only ever opened for reading, so readers neither block a run nor see a
partial state: they keep the old file until they reopen it. State (manifest, strikes, windows) is in the schema `etl` of
the same file.
"""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from etl import schema
from etl.errors import PublishConflict, SinkError, TargetCorrupt
from etl.model import Merged, Publication, SinkState, Span
from etl.sinks import checks, manifest, merge, partitions, sharing, storage, tables
from etl.sinks.readback import ReadBackError, Rows, read_back
from etl.storage import duck, files, preflight, staging

_HEADER_BYTES = 3 * 4096
"""A DuckDB file consists of three headers and whole blocks; a shorter file was truncated."""
STORAGE_VERSION = "v1.2.0"
"""The default: clients from DuckDB 1.2 on can open the file."""
_ROW_GROUP_ROWS = 30_720
"""A quarter of the default, so that several threads compress 100,000 rows (0.4 s instead of 0.9 s)."""

_VIEW = "a view"
_COLUMNS = f"""
SELECT c.schema_name, c.table_name, c.column_name, if(v.view_name IS NULL, c.data_type, '{_VIEW}')
FROM duckdb_columns() c
LEFT JOIN duckdb_views() v
    ON c.database_name = v.database_name AND c.schema_name = v.schema_name AND c.table_name = v.view_name
WHERE c.database_name = 'target' AND NOT c.internal
"""
SIZE = "SELECT block_size, used_blocks FROM pragma_database_size() WHERE database_name = 'target'"
_LAST_MANIFEST = "SELECT seq, digest, document FROM target.etl.manifests ORDER BY seq DESC LIMIT 1"

_OURS = {
    **{("main", table): columns for table, columns in tables.PUBLIC.items()},
    **{("etl", table): columns for table, columns in tables.INTERNAL.items()},
}

_SET = ", ".join(f"{duck.quoted(name)} = u.{duck.quoted(name)}" for name in schema.column_names())
_VERSION, _CONTACT = tables.names(tables.VERSIONS), tables.names(tables.CONTACTS)
_SHARE_BY_SHARE = (
    # Separate statements: a renamed account has equally many of both, and together they would take twice the memory.
    f"INSERT INTO contact_versions ({_VERSION}) SELECT {_VERSION} FROM versions WHERE op = 'upsert' AND {{share}}",
    f"INSERT INTO contact_versions ({_VERSION}) SELECT {_VERSION} FROM versions WHERE op = 'delete' AND {{share}}",
    # UPDATE sets only our columns: columns that the user added keep their values. (MERGE inserts 2.5 times slower.)
    f"""UPDATE contacts SET {_SET} FROM (FROM upserts WHERE verdict <> 'new' AND {{share}}) u
        WHERE contacts.account = u.account AND contacts.contact_id = u.contact_id""",
    f"INSERT INTO contacts ({_CONTACT}) SELECT {_CONTACT} FROM upserts WHERE verdict = 'new' AND {{share}}",
)
"""Executed for each share of `_SHARE_ROWS` rows, so that memory does not grow with the number of changes."""
_SHARE_ROWS = 200_000
"""Several row groups: shares smaller than one leave fragments, which every later checkpoint merges again."""
_AT_ONCE = (
    """DELETE FROM contacts USING outgoing o WHERE o.verdict = 'deleted'
       AND contacts.account = o.account AND contacts.contact_id = o.contact_id""",
    f"INSERT INTO rejects ({tables.names(tables.REJECTS)}) SELECT {tables.names(tables.REJECTS)} FROM next_rejects",
    f"INSERT INTO etl.windows ({tables.names(tables.WINDOWS)}) SELECT {tables.names(tables.WINDOWS)} FROM next_windows",
    "DELETE FROM etl.strikes",
    "INSERT INTO etl.strikes SELECT * FROM next_strikes",
)


class DuckDBSink:
    """Publishes into one DuckDB file."""

    name: checks.SinkKind = "duckdb"

    def __init__(
        self,
        path: Path,
        memory_limit: int = duck.MEMORY_LIMIT,
        storage_version: str = STORAGE_VERSION,
        *,
        access: files.Access | None = None,
    ) -> None:
        self.path = path
        self._memory_limit = memory_limit
        self._floor = storage_version
        self._version = ""
        """The storage version of the target, as the engine reports it."""
        self._access = access
        self._next: Path | None = None
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
            sharing.tell_closed(self._access, self.path)
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
        if self.state().seq == 0:
            flags = dict.fromkeys(("is_contact", "struck"), pa.array([], pa.bool_()))
            return pa.table({"created_at": pa.array([], schema.TIME), **flags})
        query, parameters = duck.creation_times("target.contacts", "target.etl.strikes", account)
        with self._reading() as connection:
            return connection.sql(query, params=parameters).to_arrow_table()

    def copy_ids(self, account: str, file: Path, within: Span | None = None) -> None:
        """Write the ids of the account's published and deleted contacts to a new file; see `Sink.copy_ids`."""
        files.private_file(file)
        statement, parameters = duck.known_ids("target.contacts", "target.etl.strikes", account, file, within)
        with self._reading() as connection:
            connection.execute(statement, parameters)
        # The engine has replaced the private file with a new one.
        files.make_private(file)

    def copy_contacts(self, account: str, name: str, file: Path) -> int:
        """Write the account's published contacts to a new part of the account `name`; return their number."""
        files.private_file(file)
        statement, parameters = tables.copy_part("target.contacts", account, name, file)
        with self._reading() as connection:
            [[rows]] = connection.execute(statement, parameters).fetchall()
        files.make_private(file)
        return int(rows)

    def prepare(self, publication: Publication) -> Merged:
        """Merge into a copy next to the target and have it read back; readers do not see it.

        Raises `UsageError` if the target was made with other filters, `PublishConflict` if the run number is taken.
        """
        return checks.with_memory_fallback(self._memory_limit, partial(self._prepare, publication))

    def _prepare(self, publication: Publication, memory: int) -> Merged:
        self.discard()
        previous = self.state()
        checks.check_compatible(previous, publication, self.path)
        self._copied = self._identity()
        folder = self._next = staging.next_folder(self.path)
        copy = folder / self.path.name
        rewritten = bool(self._copied) and storage.is_newer(self._version, self._floor)
        option = f"ROW_GROUP_SIZE {_ROW_GROUP_ROWS}"
        if self._copied and not rewritten:
            files.copy_file(self.path, copy)
        else:
            option += f", STORAGE_VERSION {duck.literal(self._floor)}"
        with self._attached(copy, option, folder, memory) as connection:
            if rewritten:
                storage.rewrite(connection, str(self.path), self._floor)
            merged = self._merge(connection, previous, publication)
        self._access.give(copy) if self._access else files.make_private(copy)
        _refuse_open_wal(copy)
        checks.read_back_whole(
            (
                *duck.bounds(self._memory_limit, folder),
                f"ATTACH {duck.literal(copy)} AS target (READ_ONLY)",
                "USE target",
            ),
            merged,
            publication,
            copy,
        )
        files.sync(copy)
        return merged

    def publish(self, publication: Publication) -> None:
        """Replace the target with the prepared file, in one rename.

        Raises `PublishConflict` if the target is no longer the file that was copied.
        """
        if self._next is None:
            raise SinkError(f"Nothing is prepared for run {publication.seq}", where=str(self.path))
        _refuse_open_wal(self.path)
        if self._identity() != self._copied:
            raise PublishConflict("The target was changed during the run", where=str(self.path))
        if self._access:
            sharing.share(self._access, self.path, [])
        self._replace(self._next / self.path.name)
        checks.sync_published(self.path.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the files that `prepare` created."""
        if self._next is not None:
            files.remove_quietly(self._next)
            self._next = None

    def _merge(self, connection: duckdb.DuckDBPyConnection, previous: SinkState, publication: Publication) -> Merged:
        _make_tables(connection)
        merged = merge.prepare(connection, publication, previous.runs)
        written = manifest.follow(previous, publication, merged)
        document = manifest.encode(written)
        connection.register("this_run", tables.run_rows(written.runs))
        connection.execute("BEGIN")
        _write(connection)
        connection.execute(tables.insert_runs("runs", "this_run"))
        connection.execute(
            "INSERT INTO etl.manifests VALUES (?, ?, ?)",
            [written.seq, manifest.digest(document), document.decode()],
        )
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT target")
        return merged

    def _replace(self, copy: Path) -> None:
        with files.translate_os_errors("put the new file in place", self.path):
            if self._copied:
                copy.replace(self.path)
                return
            try:  # Never replaces a file that another process has created since.
                files.put(copy, self.path)
            except FileExistsError:
                raise PublishConflict("The target was made by somebody else", where=str(self.path)) from None

    def _identity(self) -> tuple[int, ...]:
        """Device, inode, mtime and size of the target, which detect any change; () if there is no file."""
        with files.translate_os_errors("look at the target", self.path):
            if not os.path.lexists(self.path):
                return ()
            if self.path.is_dir():
                raise IsADirectoryError(21, "is a folder", str(self.path))
            found = self.path.stat()
        if found.st_size == 0:
            raise TargetCorrupt("The target is an empty file", where=str(self.path))
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _reading(self) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        """An engine for queries on the published snapshot."""
        return self._attached(self.path, "READ_ONLY", staging.spill_folder(self.path), self._memory_limit)

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
        with files.translate_os_errors("read the target", self.path):
            self.path.open("rb").close()
        self._refuse_unfinished()
        columns, sizes, versions, manifests = self._read(_COLUMNS, SIZE, storage.VERSION, _LAST_MANIFEST)
        self._version = str(versions[0][0])
        refuse_cut_off(self.path, *(int(str(number)) for number in sizes[0]))
        held: dict[tuple[str, str], dict[str, str]] = {}
        for home, table, column, kind in columns:
            held.setdefault((str(home), str(table)), {})[str(column)] = str(kind)
        if ("etl", "manifests") not in held:
            self._refuse_foreign(held)
            return SinkState()
        self._refuse_altered(held)
        return self._last_state(manifests)

    def _refuse_unfinished(self) -> None:
        """Like `_refuse_open_wal`, but report a program that is writing now: its log must not be deleted."""
        try:
            _refuse_open_wal(self.path)
        except SinkError:
            with contextlib.suppress(TargetCorrupt):
                self._read(SIZE)
            raise

    def _read(self, *queries: str) -> list[Rows]:
        setup = f"ATTACH {duck.literal(self.path)} AS target (READ_ONLY)"
        try:
            with files.translate_os_errors("start another process", self.path):
                return read_back([setup], queries)
        except ReadBackError as error:
            if "lock on file" in str(error):
                hint = "Close the program that writes to it, then run again."
                raise SinkError(f"The target is being written: {error}", where=str(self.path), hint=hint) from error
            raise TargetCorrupt(f"The target cannot be read: {error}", where=str(self.path)) from error

    def _refuse_foreign(self, held: dict[tuple[str, str], dict[str, str]]) -> None:
        for home, table in _OURS:
            if (home, table) in held:
                hint = f"Rename it (ALTER TABLE {home}.{table} RENAME TO ...) or choose another path."
                message = f"The file has a table {home}.{table} that is not ours"
                raise TargetCorrupt(message, where=str(self.path), hint=hint)

    def _refuse_altered(self, held: dict[tuple[str, str], dict[str, str]]) -> None:
        for (home, table), columns in _OURS.items():
            found = held.get((home, table), {})
            if not found:
                raise TargetCorrupt(f"Our table {home}.{table} is missing", where=str(self.path))
            if _VIEW in found.values():
                hint = f"Give our table its name back: DROP VIEW {home}.{table}; ALTER TABLE ... RENAME TO {table}."
                raise TargetCorrupt(f"{home}.{table} is a view, not our table", where=str(self.path), hint=hint)
            for column, kind in columns:
                if column in found and _same_type(found[column], kind):
                    continue
                what = f"is {found[column]}, not {kind}" if column in found else "is missing"
                verb = (
                    f"ALTER COLUMN {duck.quoted(column)} TYPE"
                    if column in found
                    else f"ADD COLUMN {duck.quoted(column)}"
                )
                raise TargetCorrupt(
                    f"The column {column} of {home}.{table} {what}",
                    where=str(self.path),
                    hint=f"Restore it: ALTER TABLE {home}.{table} {verb} {kind}.",
                )

    def _last_state(self, manifests: Rows) -> SinkState:
        if not manifests:
            raise TargetCorrupt("The target has no manifest", where=str(self.path))
        [[seq, digest, document]] = manifests
        try:
            state = manifest.sink_state(str(document).encode())
        except ValueError as error:
            raise TargetCorrupt(f"Manifest {seq} cannot be read: {error}", where=str(self.path)) from error
        if state.digest != digest or state.seq != seq:
            raise TargetCorrupt(f"Manifest {seq} was altered", where=str(self.path))
        return state


def refuse_cut_off(path: Path, block: int, used: int) -> None:
    """Raise `TargetCorrupt` if the file is shorter than its `used` blocks of `block` bytes each (see `SIZE`)."""
    blocks, rest = divmod(path.stat().st_size - _HEADER_BYTES, block)
    if rest or blocks < used:
        raise TargetCorrupt("The target was cut off: blocks are missing at its end", where=str(path))


def _write(connection: duckdb.DuckDBPyConnection) -> None:
    """Write the merge result to our tables."""
    for share in partitions.shares(connection, _SHARE_ROWS):
        for statement in _SHARE_BY_SHARE:
            connection.execute(statement.format(share=share))
    _hand_over(connection)
    for statement in _AT_ONCE:
        connection.execute(statement)


def _hand_over(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep the values of columns that the user added to `contacts` when an account is renamed."""
    found = connection.execute("SELECT * FROM contacts LIMIT 0").description or ()
    theirs = [duck.quoted(name) for name, *_ in found if name not in schema.column_names()]
    if theirs:
        connection.execute(
            f"""UPDATE contacts SET {", ".join(f"{name} = o.{name}" for name in theirs)}
            FROM (FROM contacts JOIN yields USING (account) WHERE renamed_to IS NOT NULL) o
            WHERE contacts.account = o.renamed_to AND contacts.contact_id = o.contact_id"""
        )


def _make_tables(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("CREATE SCHEMA IF NOT EXISTS target.etl")
    for table, columns in tables.PUBLIC.items():
        connection.execute(tables.create(f"target.main.{table}", columns))
    for table, columns in tables.INTERNAL.items():
        connection.execute(tables.create(f"target.etl.{table}", columns))
    connection.execute(tables.AS_OF)
    connection.execute("CREATE TEMP VIEW strikes AS SELECT * FROM target.etl.strikes")


def _same_type(found: str, wanted: str) -> bool:
    return found.replace('"', "") == wanted.replace('"', "")


def _refuse_open_wal(database: Path) -> None:
    wal = database.with_name(database.name + ".wal")
    with files.translate_os_errors("look at the write-ahead log", wal):
        if wal.exists() and wal.stat().st_size:
            raise SinkError(
                f"The file {wal.name} belongs to a change that was not finished",
                where=str(wal),
                hint="Open the database with DuckDB once and close it, or delete the file if it is not wanted.",
            )
