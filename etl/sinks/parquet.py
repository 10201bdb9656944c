"""The Parquet sink: a folder that any engine can read (its layout: `etl.sinks.parquet_layout`).

The next state is prepared next to the target (`etl.sinks.parquet_files`), read back by another process and synced. Its
folders are then moved into the target, where no manifest lists them yet; linking the manifest under its name publishes
them. The link fails if the name is taken, and so does its replacement on file systems without links (`files.put`). The
next run removes folders that no manifest lists, if the prepared manifest still exists and shows that they are ours.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from etl.errors import PublishConflict, SinkError
from etl.model import Merged, Publication, SinkState, Span
from etl.sinks import checks, manifest, merge, parquet_layout, queries, rejects, sharing, tables
from etl.sinks.parquet_files import write
from etl.sinks.sink import SinkKind
from etl.storage import duck, files, preflight, staging


class ParquetSink:
    """Publishes into one folder of Parquet files; keeps the last `keep` complete states for slow readers."""

    name: SinkKind = "parquet"

    def __init__(
        self,
        path: Path,
        memory_limit: int = duck.MEMORY_LIMIT,
        keep: int = 3,
        *,
        access: files.Access | None = None,
    ) -> None:
        self.path = path
        self._access = access
        self._memory_limit = memory_limit
        self._keep = keep
        self._next: Path | None = None
        self._known: parquet_layout.Chain | None = None
        """The last state, kept for queries: there are some for every account, and reading all manifests is slow."""

    def open(self) -> SinkState:
        """Create the folder's parent, remove leftovers, and read the state; raises as `parquet_layout.read` does."""
        with files.translate_os_errors("look at the target", self.path):
            places = [place for place in (self.path, *self._folders()) if place.is_dir()] or [self.path.parent]
        staging.probe(self.path, places, self._access, folders=True)
        chain = parquet_layout.read(self.path)
        for path in parquet_layout.leftovers(chain):
            files.remove(path)
        if not chain.manifests:
            self._remove_empty()
        staging.collect_leftovers(self.path, [self.path.parent, *places])
        if self._access:
            sharing.refuse_foreign(self._access, self._folders())
            sharing.warn_closed(self._access, self.path)
        preflight.check_room(staging.temporary(self.path), copied=sum(file.bytes for file in chain.entries("current")))
        return self._keep_in_mind(chain)

    def state(self) -> SinkState:
        """Return the state of the target; writes nothing."""
        chain = parquet_layout.read(self.path)
        parquet_layout.leftovers(chain)
        return self._keep_in_mind(chain)

    def _keep_in_mind(self, chain: parquet_layout.Chain) -> SinkState:
        self._known = replace(chain, manifests=chain.manifests[-1:])
        return chain.state

    def created_at(self, account: str) -> pa.Table:
        """Creation times of the account's contacts in the published snapshot, in order, without nulls."""
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
        """Write the next state next to the target and have it read back; the target is not changed yet.

        Raises `UsageError` if the target was made with other filters, `PublishConflict` if the run number is taken.
        """
        return checks.with_memory_fallback(self._memory_limit, partial(self._prepare, publication))

    def _prepare(self, publication: Publication, memory: int) -> Merged:
        self.discard()
        chain = parquet_layout.read(self.path)
        checks.check_compatible(self, chain.state, publication)
        parquet_layout.refuse_altered(chain)
        folder = self._next = staging.next_folder(self.path)
        with self._engine(chain, memory, files.private_folder(folder / "spill")) as connection:
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
        files.private_file(folder / parquet_layout.MANIFEST, manifest.encode(written))
        files.sync_tree(folder)
        files.sync(folder.parent)
        return merged

    def publish(self, publication: Publication) -> None:
        """Move the folders into place and link the manifest under its name; nothing is published before the link.

        Raises `PublishConflict` if the number is taken; then, as after any failure, the moved folders are removed.
        """
        if self._next is None:
            raise SinkError(f"nothing is prepared for run {publication.seq}", where=str(self.path))
        with self._moved(self._next, publication.seq):
            prepared = self._next / parquet_layout.MANIFEST
            if self._access:
                sharing.share(self._access, self.path, [*self._folders(), prepared])
            path = parquet_layout.manifest_path(self.path, publication.seq)
            with files.translate_os_errors("publish the manifest", path):
                try:
                    files.put(prepared, path)
                except FileExistsError:
                    message = f"another process published run {publication.seq}"
                    raise PublishConflict(message, where=str(path)) from None
        self._known = None
        checks.sync_published(self.path / "manifests")
        self.discard()
        with contextlib.suppress(SinkError):
            for folder in parquet_layout.outdated(self.path, self._keep):
                files.remove(folder)

    def discard(self) -> None:
        """Remove the files that `prepare` created."""
        if self._next is not None:
            files.remove_quietly(self._next)
            self._next = None

    def _reading(self) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        """An engine for queries on the published snapshot."""
        chain = self._known or parquet_layout.read(self.path)
        return self._engine(chain, self._memory_limit, staging.spill_folder(self.path))

    @contextlib.contextmanager
    def _engine(self, chain: parquet_layout.Chain, memory: int, spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        """An engine with the last state as `contacts`, `strikes` and `rejects`; translates engine errors to ours."""
        relations = {
            "contacts": duck.scan(chain.files("current"), tables.in_files(tables.CONTACTS)),
            "strikes": duck.scan(chain.files("strikes"), tables.STRIKES),
            "rejects": rejects.scan(chain.files("rejects"), complete=chain.complete_rejects),
        }
        try:
            with duck.connect(memory, spill) as connection:
                for name, query in relations.items():
                    connection.execute(f"CREATE TEMP VIEW {name} AS {query}")
                yield connection
        except duckdb.Error as error:
            raise checks.translate(error, self.path) from error

    @contextlib.contextmanager
    def _moved(self, folder: Path, seq: int) -> Iterator[None]:
        """Move the prepared folders into the target; remove them again after an error inside the block."""
        placed: list[Path] = []
        try:
            for content in parquet_layout.CONTENTS:
                name = parquet_layout.part_folder(content, seq)
                if (folder / name).is_dir():
                    placed.append(self._place(folder / name, self.path / name))
                    files.sync(placed[-1].parent)
            files.private_folder(self.path / "manifests")
            for made in (self.path, self.path.parent):
                files.sync(made)
            yield
        except BaseException:
            try:
                for path in placed:
                    files.remove(path)
                self._remove_empty()
            except SinkError:
                self._next = None  # Not discarded: the prepared manifest shows the next run that these are ours.
            raise

    def _place(self, source: Path, target: Path) -> Path:
        files.private_folder(target.parent)
        with files.translate_os_errors("move the new files into place", target):
            try:  # A rename never replaces a folder that is not empty.
                source.rename(target)
            except OSError as error:
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                    raise
                raise PublishConflict("another run is publishing the same number", where=str(target)) from None
        return target

    def _folders(self) -> list[Path]:
        return [self.path / name for name in (*parquet_layout.CONTENTS, "manifests")]

    def _remove_empty(self) -> None:
        for folder in self._folders():
            files.remove_if_empty(folder)
        files.remove_if_empty(self.path)
