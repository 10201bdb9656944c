"""Staging: keeps fetched data until it is published, in the folder for temporary files of a target.

All temporary files of a target are in the `.etl` folder next to it (or inside it: see `temporary`), under names that
begin with the target's name: `<target>.lock`, `<target>.stage` (fetched data) and `<target>.next-*` (prepared by a
sink). A run leaves only the lock; a killed run also leaves its stage, from which the next run resumes if all of it
belongs exclusively to this user.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import SinkError
from etl.model import NormalizedBatch
from etl.storage import files, preflight, row_hash
from etl.storage.row_hash import with_row_hash

Checksums: TypeAlias = Mapping[Path, str]
"""Complete files, in order, each with its checksum (`files.checksum`)."""

PART_ROWS = 50_000
"""Rows after which a part is complete and the next begins."""
ROW_GROUP_ROWS = 12_500
ROW_GROUP_BYTES = 8 * 2**20
"""A row group is written when either limit is reached, so that memory does not grow with the account."""


def temporary(target: Path) -> Path:
    """The folder for all temporary files of this target, from which files can be renamed into it.

    It is inside a target that is a folder on a separate mount or whose parent is not writable; then it stays there.
    """
    inside, beside = target / ".etl", target.parent / ".etl"
    with files.translate_os_errors("look at the target", target):
        if not target.is_dir():
            return beside
        mounted = not files.same_mount(target, target.parent)
        closed = not beside.exists() and not os.access(target.parent, os.W_OK | os.X_OK)
        return inside if mounted or closed or inside.is_dir() else beside


def stage_folder(target: Path) -> Path:
    """The staging folder of this target, with one subfolder per account."""
    return temporary(target) / f"{target.name}.stage"


def refuse_strangers(target: Path) -> None:
    """Raise `SinkError` if another user could have written data that a run resumes from (`files.refuse_stranger`)."""
    files.refuse_stranger(temporary(target))
    _refuse_strangers(stage_folder(target))


def _refuse_strangers(path: Path) -> None:
    files.refuse_stranger(path)
    for entry in files.entries(path) if path.is_dir() else ():
        _refuse_strangers(entry)


def create_temporary(target: Path) -> Path:
    """The temporary folder, created if missing, after the checks of `files.refuse_stranger`."""
    home = files.private_folder(temporary(target))
    files.refuse_stranger(home)
    return home


def next_folder(target: Path) -> Path:
    """Create a private folder in which a sink prepares the next snapshot of this target."""
    home = create_temporary(target)
    with files.translate_os_errors("make a temporary folder", home):
        return Path(tempfile.mkdtemp(prefix=f"{target.name}.next-", dir=home))


def spill_folder(target: Path) -> Path:
    """The spill folder of an engine that prepares nothing; the engine creates and removes it."""
    return temporary(target) / f"{target.name}.next-spill"


def prepared(target: Path) -> tuple[Path, ...]:
    """The existing `next_folder`s, sorted by name: leftovers, unless another run is working on the target."""
    return tuple(path for path in files.entries(temporary(target)) if path.name.startswith(f"{target.name}.next-"))


def probe(target: Path, places: Sequence[Path], access: files.Access | None = None, *, folders: bool = False) -> None:
    """Check that a run can publish into each of these folders; files left by a kill are collected by a later run.

    Raises `SinkError`, and `UsageError` if `access` names a group that does not exist.
    """
    folder = next_folder(target)
    try:
        for place in places:
            preflight.probe(folder, _probed(folder, place), access, folders=folders)
        preflight.check_replaceable(folder, target)
    finally:
        with suppress(SinkError):
            _collect(folder, places)


def collect_leftovers(target: Path, places: Sequence[Path] = ()) -> None:
    """Remove files that sinks of killed runs prepared for this target, and nothing else.

    `places` are the folders that were probed. Staged data is kept: the next run may resume from it. The caller must
    hold the lock.
    """
    for folder in prepared(target):
        _collect(folder, places)


def _probed(folder: Path, place: Path) -> Path:
    """A free name in `place` that is ours as long as `folder` exists: its suffix is random."""
    return place / f".etl-{folder.name.rpartition('.next-')[2]}"


def _collect(folder: Path, places: Sequence[Path]) -> None:
    for left in (_probed(folder, place) for place in places):
        if os.path.lexists(left):
            files.remove(left)
    files.remove(folder)


def is_ours(folder: Path) -> bool:
    """Whether runs created this folder for targets: it is private and contains only targets."""
    home = folder / ".etl"
    with files.translate_os_errors("look at the folder", folder):
        found = folder.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != files.FOLDER_MODE:
            return False
    return all(path == home or (home / f"{path.name}.lock").exists() for path in files.entries(folder))


class Stage:
    """The parts of one account in one run: a private folder of Parquet files.

    Not thread-safe: one worker appends. Raises `SinkError` when a file cannot be written.
    """

    def __init__(
        self, folder: Path, parts: Checksums = MappingProxyType({}), rejects: Checksums = MappingProxyType({})
    ) -> None:
        """`parts` and `rejects` are complete files that a killed run left in `folder`."""
        self.folder = files.private_folder(folder)
        self._contacts = _Parts(folder, "part", parts, with_row_hash)
        self._rejects = _Parts(folder, "rejects", rejects)

    def append(self, batch: NormalizedBatch) -> bool:
        """Append a batch; return whether all data so far is in complete parts, as it is about every 50,000 rows."""
        self._contacts.append(batch.contacts)
        self._rejects.append(batch.rejects)
        full = max(self._contacts.written, self._rejects.written) >= PART_ROWS
        if full:
            self._contacts.close()
            self._rejects.close()
        return full

    def close(self) -> None:
        """Write the buffered rows."""
        self._contacts.close()
        self._rejects.close()

    @property
    def parts(self) -> tuple[Path, ...]:
        """The files of contacts written so far (schema.PART_SCHEMA)."""
        return tuple(self._contacts.files)

    @property
    def rejects(self) -> tuple[Path, ...]:
        """The files of rejected contacts written so far (schema.REJECT_PART_SCHEMA)."""
        return tuple(self._rejects.files)

    @property
    def checksums(self) -> tuple[Checksums, Checksums]:
        """Checksums of `parts` and of `rejects`, once they are complete."""
        return self._contacts.files, self._rejects.files

    def remove(self) -> None:
        """Delete the folder and everything in it."""
        files.remove(self.folder)


def release() -> None:
    """Free the memory that reading holds on to, before the merge needs it; every stage is closed."""
    row_hash.release()
    # Arrow keeps what was freed: 100 MB for 100,000 contacts.
    pa.default_memory_pool().release_unused()


class _Parts:
    """Writes tables to numbered files, one row group at a time, so that at most one is buffered in memory."""

    def __init__(
        self,
        folder: Path,
        stem: str,
        files: Checksums,
        finish: Callable[[pa.Table], pa.Table] = lambda table: table,
    ) -> None:
        """`finish` is applied to the rows of a row group before they are written."""
        self.files = dict(files)
        """Files with their checksums; "" for the open file."""
        self._finish = finish
        self._folder = folder
        self._stem = stem
        self._waiting: list[pa.Table] = []
        self._rows = 0
        """Buffered rows."""
        self._bytes = 0
        self._path = folder
        """The open file."""
        self._writer: pq.ParquetWriter | None = None
        self.written = 0
        """Rows in the open file."""

    def append(self, table: pa.Table) -> None:
        """Append the rows of a table."""
        if not table.num_rows:
            return
        self._waiting.append(table)
        self._rows += table.num_rows
        self._bytes += table.nbytes
        if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._write()

    def close(self) -> None:
        """Write the buffered rows and complete the file."""
        if self._waiting:
            self._write()
        if self._writer is not None:
            with files.translate_os_errors("write a part", self._path):
                self._writer.close()
            self.files[self._path] = files.checksum(self._path)
            self._writer, self.written = None, 0

    def _write(self) -> None:
        table = self._finish(pa.concat_tables(self._waiting))
        if self._writer is None:
            self._path = self._folder / f"{self._stem}-{len(self.files) + 1:06d}.parquet"
            files.private_file(self._path)
            with files.translate_os_errors("write a part", self._path):
                self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd", compression_level=1)
            self.files[self._path] = ""
        with files.translate_os_errors("write a part", self._path):
            self._writer.write_table(table, row_group_size=table.num_rows)
        self.written += table.num_rows
        self._waiting, self._rows, self._bytes = [], 0, 0
