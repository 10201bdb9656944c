"""How the manifests of an object log are published: the one step that decides what readers see."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from etl.sinks import parquet_layout
from etl.sinks.manifest import Manifest
from etl.sinks.parquet_layout import Chain
from etl.storage.objects import Store

_MANIFEST = parquet_layout.MANIFESTS["parquet"]


class Commits(Protocol):
    """The published manifests of one target, by their names in its store."""

    contacts: str
    """The folder of the contacts."""
    retention: timedelta
    """How long readers may still need a state after the next one was published."""
    traceless: bool
    """Whether nothing refers to the files of a manifest that was certainly not published."""

    def published(self, listed: Collection[str]) -> Sequence[str]:
        """The published manifests among all objects, oldest first."""
        ...

    def moved(self, names: Sequence[str]) -> bool:
        """Whether another manifest follows these by now."""
        ...

    def check(self, chain: Chain) -> None:
        """Raise `TargetCorrupt` if another program has changed what was published."""
        ...

    def stage(self, folder: Path, written: Manifest) -> Manifest:
        """The manifest to publish, with any further files that were written into `folder`."""
        ...

    def publish(
        self, names: Sequence[str], earlier: Sequence[Manifest], listed: Manifest, document: bytes
    ) -> str | None:
        """Publish a manifest after those of the last `published`; its name, or None if another one was faster.

        Raises `OutcomeUnknown` if that cannot be found out, and another `SinkError` if it is certainly not published.
        """
        ...

    def orphans(self, listed: Collection[str], names: Sequence[str], last: int) -> list[str]:
        """Manifests of runs up to the number `last` that were never published."""
        ...


class NumberedCommits:
    """Manifests are numbered without gaps; creating the next one publishes."""

    contacts = "current"
    retention = timedelta(hours=1)
    traceless = True

    def __init__(self, store: Store) -> None:
        self._store = store

    def published(self, listed: Collection[str]) -> Sequence[str]:
        """See `Commits.published`."""
        parquet_layout.refuse_manifests("delta", listed, self._store.url)
        return [_name(number) for number, _ in enumerate(filter(_MANIFEST.fullmatch, listed), start=1)]

    def moved(self, names: Sequence[str]) -> bool:
        """See `Commits.moved`."""
        return self._store.exists(_name(len(names) + 1))

    def check(self, chain: Chain) -> None:
        """See `Commits.check`: the log has checked the files."""

    def stage(self, folder: Path, written: Manifest) -> Manifest:  # noqa: ARG002
        """See `Commits.stage`: nothing is added."""
        return written

    def publish(
        self,
        names: Sequence[str],
        earlier: Sequence[Manifest],  # noqa: ARG002 - see `Commits.publish`
        listed: Manifest,  # noqa: ARG002
        document: bytes,
    ) -> str | None:
        """See `Commits.publish`."""
        name = _name(len(names) + 1)
        return name if self._store.create(name, document) else None

    def orphans(self, listed: Collection[str], names: Sequence[str], last: int) -> list[str]:  # noqa: ARG002
        """See `Commits.orphans`: there are none."""
        return []


def _name(number: int) -> str:
    return f"manifests/{number:08d}.json"
