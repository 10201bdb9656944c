"""The log of a Parquet target: where its manifests are published, and where the files that they list are.

The sink writes and checks the next state in a local folder (`etl.sinks.parquet`). A log brings it to the target, where
it is invisible, and then publishes its manifest in one step that fails if another run has published meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from etl.sinks.manifest import Manifest
from etl.sinks.parquet_layout import Chain

ReadRange = Callable[[Path, int, int], bytes]
"""Reads a published file: its path in `Chain.target`, the first byte, and how many."""


class Log(Protocol):
    """One target. The holder of the lock on `path` calls `open`, `stage`, `publish`, `collect` and `discard`."""

    path: Path
    """Local: the lock and all temporary files are next to it."""
    location: str
    """The target as messages and reports show it."""

    @property
    def read_range(self) -> ReadRange | None:
        """Reads published files that are not local; None if all are at `Chain.files`."""
        ...

    def exists(self) -> bool:
        """Whether something may have been published."""
        ...

    def open(self) -> Chain:
        """Check that the target is writable, remove local leftovers of killed runs, and read the chain."""
        ...

    def read(self, *, runs: bool = False) -> Chain:
        """The published manifests; see `parquet_layout.read`. Writes nothing."""
        ...

    def refuse_lost(self, chain: Chain) -> None:
        """Raise `TargetCorrupt` if there are files whose manifest was lost."""
        ...

    def load(self, chain: Chain, *, unaltered: bool = False) -> None:
        """Have the files of the last state at `chain.files`; with `unaltered`, check that they are as published."""
        ...

    def stage(self, chain: Chain, folder: Path, written: Manifest) -> None:
        """Bring the next state in `folder` to where `publish` needs it, with its manifest; readers do not see it."""
        ...

    def publish(self, folder: Path, seq: int) -> None:
        """Publish what was staged; raises `PublishConflict` if another run was faster."""
        ...

    def collect(self, keep: int) -> None:
        """After publishing, remove the files that belong to no state but those before the last `keep`."""
        ...

    def discard(self, folder: Path) -> None:
        """Remove the next state, and everything of it that can no longer be published."""
        ...

    def verify(self, chain: Chain) -> None:
        """Raise `TargetCorrupt` if any published file is not bit for bit as published."""
        ...
