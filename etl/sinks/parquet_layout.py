"""The folder layout of a Parquet target: its names, and how its manifests are read and checked.

    current/seq=00000003/*.parquet      the complete state of manifest 3; states share files (hard links)
    versions/seq=00000003/*.parquet     the versions that run 3 added
    rejects/, strikes/                  complete as `current`, if there are any
    windows/                            accumulate as `versions`, if there are any
    manifests/00000003.json             the record of run 3, and its files

Only reads. Files that no manifest lists are not published.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from etl.errors import SinkError, TargetCorrupt, UsageError
from etl.model import SinkState
from etl.sinks import manifest
from etl.sinks.manifest import DataFile, Manifest
from etl.sinks.sink import SinkKind
from etl.storage import files, staging

CONTENTS = ("current", "versions", "rejects", "windows", "strikes")
STATES = ("current", "rejects", "strikes")
"""Complete in each run: only the latest ones are kept. The other contents accumulate.

Up to manifest format 2, `rejects` accumulated too (`etl.sinks.rejects`)."""
MANIFEST = "manifest.json"
"""The manifest among the files that a run prepared; linking it into the target publishes."""
_SEQ = re.compile(r"seq=(\d{8,})")
MANIFESTS: dict[SinkKind, re.Pattern[str]] = {
    "parquet": re.compile(r"manifests/(\d{8,})\.json"),
    "delta": re.compile(r"manifests/(\d{8,})\.([0-9a-f]{64})\.([0-9a-f]{64}|first)\.json"),
}
"""Names of the manifests of each kind of target that stores them as files.

Groups: the number of the run and, for Delta, the digests of the manifest and of the one before it."""


def part_folder(content: str, seq: int) -> str:
    """The folder of a run's files of one content, relative to the target."""
    return f"{content}/seq={seq:08d}"


def manifest_path(target: Path, seq: int) -> Path:
    """The path of a run's manifest; its existence means that the run is published."""
    return target / "manifests" / f"{seq:08d}.json"


@dataclass(frozen=True, slots=True)
class Chain:
    """The published manifests of a target, oldest first; empty for a target that does not exist."""

    target: Path
    manifests: tuple[Manifest, ...] = ()
    state: SinkState = field(default_factory=SinkState)
    contacts: str = "current"
    """The folder of the content `current`."""

    @property
    def complete_rejects(self) -> bool:
        """Whether the rejects of the last run are complete, so that those of earlier runs are not needed."""
        return not self.manifests or self.manifests[-1].format > manifest.FORMAT_OF_SIGHTINGS

    def entries(self, content: str) -> list[DataFile]:
        """The published files of one content: all of them, or for complete states only those of the last run."""
        complete = content in STATES and (content != "rejects" or self.complete_rejects)
        chosen = self.manifests[-1:] if complete else self.manifests
        folder = self.contacts if content == "current" else content
        return [file for published in chosen for file in published.files if file.path.startswith(f"{folder}/")]

    def files(self, content: str) -> list[Path]:
        """The paths of `entries`."""
        return [self.target / file.path for file in self.entries(content)]


def read(target: Path, *, runs: bool = False) -> Chain:
    """The published manifests, each checked against the previous one and against the files it lists; see `linked`.

    Raises `TargetCorrupt` for anything damaged, missing or altered, `SinkError` if the target is not a folder.
    """
    with files.translate_os_errors("read the target", target):
        if not os.path.lexists(target):
            return Chain(target)
        if not target.is_dir():
            raise SinkError("the target is a file, not a folder", where=str(target), hint="Choose another path.")
    names = [f"manifests/{path.name}" for path in files.entries(target / "manifests")]
    refuse_manifests("delta", names, str(target))
    found = map(MANIFESTS["parquet"].fullmatch, names)
    numbers = sorted(int(each[1]) for each in found if each)
    chain = linked(target, map(_document, (manifest_path(target, number) for number in numbers)), runs=runs)
    for number, current in zip(numbers, chain.manifests, strict=True):
        if current.seq != number:
            where = str(manifest_path(target, number))
            raise TargetCorrupt("the manifest does not follow the one before it", where=where)
    if chain.manifests:
        _check_files(chain)
        check_columns(chain, str(target))
    return chain


def refuse_manifests(kind: SinkKind, names: Iterable[str], where: str) -> None:
    """Raise `UsageError` if there are manifests of a target of this other kind."""
    if any(map(MANIFESTS[kind].fullmatch, names)):
        hint = "Name another path for this sink, or give it the kind of the target that is there."
        raise UsageError(f"the target of a sink of the kind {kind} is there", where=where, hint=hint)


def _document(path: Path) -> tuple[str, bytes]:
    with files.translate_os_errors("read the manifest", path):
        return str(path), path.read_bytes()


def linked(target: Path, documents: Iterable[tuple[str, bytes]], *, runs: bool) -> Chain:
    """The chain of these manifests, oldest first, each given with its place; `TargetCorrupt` if one does not follow.

    They are returned without `state`, which the chain holds, and without `runs` unless requested: every night adds a
    record per account.
    """
    manifests: list[Manifest] = []
    state = SinkState()
    for where, document in documents:
        try:
            current = manifest.decode(document)
        except ValueError as error:
            raise TargetCorrupt(f"the manifest cannot be read: {error}", where=where) from error
        if current.previous != state.digest:
            raise TargetCorrupt("the manifest does not follow the one before it", where=where)
        manifests.append(replace(current, state={}, runs=current.runs if runs else ()))
        state = SinkState(current.seq, manifest.digest(document), current.state, current.filters)
    return Chain(target, tuple(manifests), state)


def _check_files(chain: Chain) -> None:
    """Raise `TargetCorrupt` if a published file is missing or cut off, or the state has foreign files."""
    for path, file in ((chain.target / file.path, file) for content in CONTENTS for file in chain.entries(content)):
        try:
            size = path.stat().st_size
        except OSError as error:
            raise TargetCorrupt(f"a published file is missing: {error.strerror}", where=str(path)) from error
        if size != file.bytes:
            raise TargetCorrupt(f"a published file has {size} bytes instead of {file.bytes}", where=str(path))
    ours = set(chain.files("current"))
    for path in files.entries(chain.target / part_folder("current", chain.state.seq)):
        if path.suffix == ".parquet" and path not in ours:  # Readers would see it as part of the state.
            message = "a file that no run wrote stands in the current state"
            raise TargetCorrupt(message, where=str(path), hint="Move it away, then run again.")


def check_columns(chain: Chain, where: str) -> None:
    """Raise `TargetCorrupt` if the last state lacks a column of `contacts`."""
    published = chain.manifests[-1].columns
    for column, kind in manifest.columns().items():
        if published.get(column) != kind:
            message = f"the target has no column {column} of type {kind}"
            hint = "It was made by another version: move it away and run again for a full export."
            raise TargetCorrupt(message, where=where, hint=hint)


def refuse_altered(chain: Chain, contents: Sequence[str] = STATES) -> None:
    """Raise `TargetCorrupt` if a file is not bit for bit as published; the next state is built from `STATES`."""
    for file in (file for content in contents for file in chain.entries(content)):
        path = chain.target / file.path
        if files.sha256(path) != file.sha256:
            raise TargetCorrupt("a published file was altered: its SHA-256 differs", where=str(path))


def leftovers(chain: Chain) -> list[Path]:
    """Folders that a killed run moved into place but did not publish.

    Raises `TargetCorrupt` for a folder that no run prepared: its manifest was lost.
    """
    found = list(unpublished(chain))
    prepared = staging.prepared(chain.target) if found else ()
    ours = {written.seq for folder in prepared if (written := _read_quietly(folder / MANIFEST))}
    for seq, path in found:
        # Checked last: folders that a concurrent run has just published are neither lost nor left over.
        if seq not in ours and not manifest_path(chain.target, seq).exists():
            hint = "Restore the manifest from a backup, or move the target away and run again for a full export."
            raise TargetCorrupt(f"no manifest lists this folder of run {seq}", where=str(path), hint=hint)
    return [path for seq, path in found if seq in ours]


def _read_quietly(path: Path) -> Manifest | None:
    """The manifest in a file; None if it cannot be read."""
    try:
        return manifest.decode(path.read_bytes())
    except (OSError, ValueError):
        return None


def outdated(target: Path, keep: int) -> list[Path]:
    """Folders that belong to no state but those before the last `keep`."""
    folders = {content: _numbered(target / content) for content in STATES}
    for seq, _ in folders["current"][-keep:]:
        kept = _read_quietly(manifest_path(target, seq))
        if kept is not None and kept.format <= manifest.FORMAT_OF_SIGHTINGS:
            del folders["rejects"]  # This state consists of the rejects of all runs before it.
            break
    return [path for numbered in folders.values() for _, path in numbered[:-keep]]


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The folders of runs in a folder (seq, path), oldest first."""
    found = ((_SEQ.fullmatch(path.name), path) for path in files.entries(folder))
    return [(int(match[1]), path) for match, path in found if match]


def unpublished(chain: Chain) -> Iterator[tuple[int, Path]]:
    """Folders (seq, path) newer than the last manifest."""
    for content in CONTENTS:
        yield from ((seq, path) for seq, path in _numbered(chain.target / content) if seq > chain.state.seq)
