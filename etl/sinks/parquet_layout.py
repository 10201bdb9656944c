"""The folder layout of a Parquet target: its names, and how its manifests are read and checked.

    current/seq=00000003/*.parquet      the complete state of manifest 3; states share files (hard links)
    versions/seq=00000003/*.parquet     the versions that run 3 added
    rejects/, windows/, strikes/        the same, if there are any
    manifests/00000003.json             the record of run 3, and its files

Only reads. Files that no manifest lists are not published.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from etl.errors import SinkError, TargetCorrupt
from etl.model import SinkState
from etl.sinks import manifest
from etl.sinks.manifest import DataFile, Manifest
from etl.storage import files, staging

CONTENTS = ("current", "versions", "rejects", "windows", "strikes")
STATES = ("current", "strikes")
"""Complete in each run: only the latest ones are kept. The other contents accumulate."""
MANIFEST = "manifest.json"
"""The manifest among the files that a run prepared; linking it into the target publishes."""
_SEQ = re.compile(r"seq=(\d{8,})")
_MANIFEST = re.compile(r"(\d{8,})\.json")


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

    def entries(self, content: str) -> list[DataFile]:
        """The published files of one content: all of them, or for complete states only those of the last run."""
        chosen = self.manifests[-1:] if content in STATES else self.manifests
        return [file for published in chosen for file in published.files if file.path.startswith(f"{content}/")]

    def files(self, content: str) -> list[Path]:
        """The paths of `entries`."""
        return [self.target / file.path for file in self.entries(content)]


def read(target: Path, *, runs: bool = False) -> Chain:
    """The published manifests, each checked against the previous one and against the files it lists.

    They are returned without `state`, which the chain holds, and without `runs` unless requested: every night adds a
    record per account.

    Raises `TargetCorrupt` for anything damaged, missing or altered, `SinkError` if the target is not a folder.
    """
    with files.translate_os_errors("read the target", target):
        if not os.path.lexists(target):
            return Chain(target)
        if not target.is_dir():
            raise SinkError("A file stands where the folder should be", where=str(target), hint="Choose another path.")
    found = [_MANIFEST.fullmatch(path.name) for path in files.entries(target / "manifests")]
    numbers = sorted(int(each[1]) for each in found if each)
    return _linked(target, numbers, runs=runs)


def _linked(target: Path, numbers: list[int], *, runs: bool) -> Chain:
    manifests: list[Manifest] = []
    state = SinkState()
    for number in numbers:
        path = manifest_path(target, number)
        with files.translate_os_errors("read the manifest", path):
            document = path.read_bytes()
        try:
            current = manifest.decode(document)
        except ValueError as error:
            raise TargetCorrupt(f"The manifest cannot be read: {error}", where=str(path)) from error
        if current.seq != number or current.previous != state.digest:
            raise TargetCorrupt("The manifest does not follow the one before it", where=str(path))
        manifests.append(replace(current, state={}, runs=current.runs if runs else ()))
        state = SinkState(number, manifest.digest(document), current.state, current.filters)
    chain = Chain(target, tuple(manifests), state)
    _check_files(chain)
    return chain


def _check_files(chain: Chain) -> None:
    for published in chain.manifests:
        for file in published.files:
            if published is chain.manifests[-1] or file.path.split("/")[0] not in STATES:
                _check_size(chain.target / file.path, file)
    if chain.manifests:
        _refuse_strangers(chain)
        _refuse_other_columns(chain)


def _check_size(path: Path, file: DataFile) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise TargetCorrupt(f"A published file is missing: {error.strerror}", where=str(path)) from error
    if found != file.bytes:
        raise TargetCorrupt(f"A published file has {found} bytes instead of {file.bytes}", where=str(path))


def _refuse_strangers(chain: Chain) -> None:
    """Raise `TargetCorrupt` for a foreign file in the current folder: readers would see it as part of the state."""
    folder = chain.target / part_folder("current", chain.state.seq)
    ours = set(chain.files("current"))
    for stranger in (path for path in files.entries(folder) if path.suffix == ".parquet" and path not in ours):
        hint = "Move it away, then run again."
        raise TargetCorrupt("A file that no run wrote stands in the current state", where=str(stranger), hint=hint)


def _refuse_other_columns(chain: Chain) -> None:
    published = chain.manifests[-1].columns
    for column, kind in manifest.columns().items():
        if published.get(column) != kind:
            message = f"The target has no column {column} of type {kind}"
            hint = "It was made by another version: move it away and run again for a full export."
            raise TargetCorrupt(message, where=str(chain.target), hint=hint)


def refuse_altered(chain: Chain) -> None:
    """Raise `TargetCorrupt` if the state is not bit for bit as published: the next one is built from it."""
    for content in STATES:
        for file in chain.entries(content):
            path = chain.target / file.path
            with files.translate_os_errors("read", path), path.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != file.sha256:
                raise TargetCorrupt("A published file was altered: its SHA-256 differs", where=str(path))


def leftovers(chain: Chain) -> list[Path]:
    """Folders that a killed run moved into place but did not publish.

    Raises `TargetCorrupt` for a folder that no run prepared: its manifest was lost.
    """
    found = list(unpublished(chain))
    ours = {seq for folder in staging.prepared(chain.target) if (seq := _prepared_seq(folder))} if found else set()
    for seq, path in found:
        # Checked last: folders that a concurrent run has just published are neither lost nor left over.
        if seq not in ours and not manifest_path(chain.target, seq).exists():
            hint = "Restore the manifest from a backup, or move the target away and run again for a full export."
            raise TargetCorrupt(f"No manifest lists this folder of run {seq}", where=str(path), hint=hint)
    return [path for seq, path in found if seq in ours]


def _prepared_seq(folder: Path) -> int:
    """The number of the run that prepared this folder; 0 if it has no readable manifest."""
    try:
        return manifest.decode((folder / MANIFEST).read_bytes()).seq
    except (OSError, ValueError):
        return 0


def unpublished(chain: Chain) -> Iterator[tuple[int, Path]]:
    """Folders (seq, path) newer than the last manifest."""
    for content in CONTENTS:
        for path in files.entries(chain.target / content):
            found = _SEQ.fullmatch(path.name)
            if found and int(found[1]) > chain.state.seq:
                yield int(found[1]), path
