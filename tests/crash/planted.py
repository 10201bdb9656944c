"""Publishers with one planted bug each, which the harness must find to prove that it can find bugs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from etl.errors import SinkError
from etl.model import Merged, Publication
from etl.sinks import DuckDBSink, ParquetSink


class InPlaceDuckDB(DuckDBSink):
    """Writes the new file over the old one instead of renaming it."""

    def _replace(self, copy: Path) -> None:
        shutil.copyfile(copy, self.path)


class ManifestFirstParquet(ParquetSink):
    """Links the manifest before the folders that it lists are in place."""

    @contextlib.contextmanager
    def _moved(self, folder: Path, seq: int) -> Iterator[None]:
        (self.path / "manifests").mkdir(parents=True, exist_ok=True)
        super()._link(folder / "manifest.json", seq)
        with super()._moved(folder, seq):
            yield

    def _link(self, source: Path, seq: int) -> None:
        del source, seq


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
