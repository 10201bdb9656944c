"""Publishers with one planted bug each, which the harness must find to prove that it can find bugs."""

from __future__ import annotations

import shutil

from etl.errors import SinkError
from etl.model import Merged, Publication
from etl.sinks import DuckDBSink, ParquetSink, parquet_layout
from etl.sinks.parquet_folder import FolderLog
from etl.storage import files


class InPlaceDuckDB(DuckDBSink):
    """Writes the new file over the old one instead of renaming it."""

    def publish(self, publication: Publication) -> None:
        """Publish, with the planted bug."""
        assert self._next is not None, publication.seq
        shutil.copyfile(self._next / self.path.name, self.path)
        self.discard()


class ManifestFirstParquet(ParquetSink):
    """Puts the manifest in place before the folders that it lists."""

    def publish(self, publication: Publication) -> None:
        """Publish, with the planted bug."""
        assert self._next is not None
        path = parquet_layout.manifest_path(self.path, publication.seq)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.put(self._next / parquet_layout.MANIFEST, path)
        with FolderLog(self.path)._moved(self._next, publication.seq):
            pass
        self.discard()


class ForgetfulParquet(ParquetSink):
    """Continues after a failed sync, and publishes data that may not be on the disk."""

    def prepare(self, publication: Publication) -> Merged:
        """Prepare, but ignore a failed sync."""
        try:
            return super().prepare(publication)
        except SinkError as error:
            if "sync" not in error.message:
                raise
            return Merged({}, {}, {})
