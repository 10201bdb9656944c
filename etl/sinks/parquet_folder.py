"""The log of a Parquet target on a local disk: a folder that any engine can read (`etl.sinks.parquet_layout`).

The folders of the next state are moved into the target, where no manifest lists them yet; linking the manifest under
its name publishes them. The link fails if the name is taken, and so does its replacement on file systems without links
(`files.put`). The next run removes folders that no manifest lists, if the prepared manifest still exists and shows that
they are ours.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from etl.errors import PublishConflict, SinkError
from etl.sinks import checks, manifest, parquet_layout, sharing
from etl.sinks.manifest import Manifest
from etl.sinks.parquet_layout import Chain
from etl.sinks.parquet_log import ReadRange
from etl.storage import files, preflight, staging


class FolderLog:
    """A target that is the folder `path`; see `parquet_log.Log`."""

    read_range: ReadRange | None = None
    """None: all files are local."""

    def __init__(self, path: Path, access: files.Access | None = None) -> None:
        self.path = path
        self.location = str(path)
        self._access = access
        self._kept: Path | None = None
        """A prepared folder whose manifest shows the next run that the folders left in the target are ours."""

    def exists(self) -> bool:
        """Whether the path exists."""
        return self.path.exists()

    def open(self) -> Chain:
        """Create the folder's parent, remove leftovers, and read the chain; raises as `parquet_layout.read` does."""
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
        return chain

    def read(self, *, runs: bool = False) -> Chain:
        """See `parquet_layout.read`."""
        return parquet_layout.read(self.path, runs=runs)

    def refuse_lost(self, chain: Chain) -> None:
        """See `Log.refuse_lost`; an unfinished run explains folders that no manifest lists."""
        parquet_layout.leftovers(chain)

    def load(self, chain: Chain, *, unaltered: bool = False) -> None:
        """The files are there; see `Log.load`."""
        if unaltered:
            parquet_layout.refuse_altered(chain)

    def stage(self, chain: Chain, folder: Path, written: Manifest) -> None:  # noqa: ARG002 - see `Log.stage`
        """Write the manifest and sync everything; the target is not changed yet."""
        files.private_file(folder / parquet_layout.MANIFEST, manifest.encode(written))
        files.sync_tree(folder)
        files.sync(folder.parent)

    def publish(self, folder: Path, seq: int) -> None:
        """Move the folders into place and link the manifest under its name; nothing is published before the link.

        Raises `PublishConflict` if the number is taken; then, as after any failure, the moved folders are removed.
        """
        with self._moved(folder, seq):
            prepared = folder / parquet_layout.MANIFEST
            if self._access:
                sharing.share(self._access, self.path, [*self._folders(), prepared])
            path = parquet_layout.manifest_path(self.path, seq)
            with files.translate_os_errors("publish the manifest", path):
                try:
                    files.put(prepared, path)
                except FileExistsError:
                    message = f"another process published run {seq}"
                    raise PublishConflict(message, where=str(path)) from None
        checks.sync_published(self.path / "manifests")

    def collect(self, keep: int) -> None:
        """See `Log.collect`."""
        for folder in parquet_layout.outdated(self.path, keep):
            files.remove(folder)

    def discard(self, folder: Path) -> None:
        """Remove the files that were prepared, unless the next run needs them to recognize ours."""
        if folder != self._kept:
            files.remove_quietly(folder)

    def verify(self, chain: Chain) -> None:
        """See `Log.verify`."""
        parquet_layout.leftovers(chain)
        parquet_layout.refuse_altered(chain, parquet_layout.CONTENTS)

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
                self._kept = folder
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
