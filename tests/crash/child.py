"""The runs that are disturbed: the same each time, staged and published as in production.

`python -m tests.crash.child SINK TARGET` publishes the next of them and exits with its exit code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from etl.commands.publish import publish
from etl.errors import OK, EtlError
from etl.sinks import DuckDBSink, ParquetSink, Sink
from etl.storage import files
from etl.storage.lock import Lock
from etl.storage.staging import stage_folder
from tests.crash.planted import ForgetfulParquet, InPlaceDuckDB, ManifestFirstParquet
from tests.support.publishing import Row, brought, contact, publication

Kind = Literal["duckdb", "parquet", "delta"]


def _delta(path: Path) -> ParquetSink:
    """Delta tables in a folder. The library is imported only in the process that publishes: it starts threads."""
    from etl.sinks.delta_commits import DeltaCommits  # noqa: PLC0415
    from etl.sinks.parquet_objects import ObjectLog  # noqa: PLC0415
    from etl.storage.local_objects import LocalObjects  # noqa: PLC0415

    store = LocalObjects(path)
    return ParquetSink(
        path, keep=1, log=ObjectLog(store, DeltaCommits(store, {}, timedelta(days=7)), path), kind="delta"
    )


SINKS: dict[str, Callable[[Path], Sink]] = {
    "duckdb": DuckDBSink,
    "parquet": ParquetSink,
    "delta": _delta,
    "duckdb written in place": InPlaceDuckDB,
    "parquet manifest first": ManifestFirstParquet,
    "parquet left lying": ForgetfulParquet,
}
"""The sinks by name; those with more words are planted bugs."""
NAMES = {"duckdb": "contacts.duckdb", "parquet": "contacts", "delta": "lake"}
BEFORE = {"nothing": 0, "snapshot": 3}
"""Number of runs published before the one that is disturbed."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A sink, and the state of its target before."""

    sink: str
    start: str

    @property
    def kind(self) -> Kind:
        """How its target is read."""
        kind: Kind = self.sink.partition(" ")[0]  # type: ignore[assignment]
        return kind

    @property
    def before(self) -> int:
        """Number of runs already published."""
        return BEFORE[self.start]

    def target(self, folder: Path) -> Path:
        """The path to which it publishes."""
        return folder / "data" / NAMES[self.kind]

    def __str__(self) -> str:
        """Readable name."""
        return f"{self.sink} on {self.start}"


SCENARIOS = tuple(Scenario(sink, start) for sink in ("duckdb", "parquet", "delta") for start in ("nothing", "snapshot"))


def rows(seq: int) -> list[Row]:
    """The contacts of run `seq`; after run 3, run 4 has new, changed, unchanged and permanently deleted ones."""
    if seq < 3:
        return [contact(number) for number in range(1, 13)]
    if seq == 3:
        return [contact(number) for number in range(1, 11)]
    changed: list[Row] = [contact(number, name=f"renamed {number}", tags=["a", "b"]) for number in range(1, 4)]
    return changed + [contact(number) for number in (*range(4, 11), *range(13, 17))]


REJECTED: Row = {"contact_id": None, "reason": "contact_id is missing", "path": "_id", "raw": '{"name": "nobody"}'}


def run(sink: Sink) -> None:
    """Lock, open, stage, publish the next run, and clean up, in the order of `etl.commands.run`."""
    with Lock(sink.path):
        seq = sink.open().seq + 1
        folder = stage_folder(sink.path)
        files.remove(folder)  # These runs have no checkpoint, so there is nothing to resume.
        try:
            rejects = [REJECTED] if seq % 2 == 0 else []
            windows = [{"is_contact": True, "rows": len(rows(seq))}]
            brings = brought(folder, "main", rows(seq), seq=seq, rejects=rejects, windows=windows)
            publish([sink], publication(brings), shrink_share=0.05, published=lambda _: None)
        finally:
            files.remove_quietly(folder)


def attempt(sink: str, target: Path) -> int:
    """Publish the next run and return its exit code; only an `EtlError` is caught."""
    try:
        run(SINKS[sink](target))
    except EtlError as error:
        print(f"exit {error.exit_code}: {error}", file=sys.stderr)
        return error.exit_code
    return OK


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.crash.child", description=__doc__)
    parser.add_argument("sink", choices=SINKS)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    asked.target.parent.mkdir(parents=True, exist_ok=True)
    sys.exit(attempt(asked.sink, asked.target))
