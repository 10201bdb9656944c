"""The log of a Parquet target in an object store (`s3://bucket/prefix`).

    current/seq=00000003/part-000001.k2x8.parquet   files that run 3 wrote; later states list those that did not change
    versions/, rejects/, windows/, strikes/         likewise
    manifests/00000003.json                         the third manifest: the record of its run, and its files
    preparing/seq=00000004.k2x8                     run 4 uploads files, or was killed doing so

Objects are never changed. Creating the next manifest publishes; the store refuses it if it exists. A file's name has a
random part, so that two machines preparing the same run do not meet. What a run has uploaded may be published as long
as the number of its manifest is free, even after the run has died, if its last request is still on the way: it is
removed only once that number is taken. The files of the last state are copied to this machine, next to the lock, for
the engine to merge.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from etl.errors import OutcomeUnknown, PublishConflict, SinkError, TargetCorrupt
from etl.sinks import manifest, parquet_layout
from etl.sinks.manifest import DataFile, Manifest
from etl.sinks.parquet_commits import Commits
from etl.sinks.parquet_layout import CONTENTS, STATES, Chain
from etl.sinks.parquet_log import ReadRange
from etl.storage import files, preflight, staging
from etl.storage.objects import Listed, Missing, Store

_SMALL_AT_ONCE, _LARGE_AT_ONCE = 16, 4
"""Requests at once for manifests, and for files."""
_FILE = re.compile(rf"({'|'.join(CONTENTS)}|contacts|runs)/seq=(\d{{8,}})/part-\d+\.(\w+)\.parquet")
_COMPLETE = tuple(f"{content}/" for content in (*STATES, "contacts"))
_PREPARING = re.compile(r"preparing/seq=(\d{8,})\.(\w+)")
_PROBE = "preparing/probe."
_ABANDONED = re.compile(r"preparing/probe\..*|(preparing|manifests)/\..*|\w+/_delta_log/\d+\.json#\d+")
"""Temporary files of a folder, of a probe or not yet linked to their names: the holder of the lock may remove them."""
_RESTORE = "Restore it from a backup, or choose another prefix for a full export."


class ObjectLog:
    """A target that is the prefix of a bucket; see `parquet_log.Log`."""

    def __init__(self, objects: Store, commits: Commits, path: Path) -> None:
        """`path` names the place of the temporary files: see `Log.path`."""
        self.path = path
        self.location = objects.url
        self._objects = objects
        self._commits = commits
        self._copies = objects.local or staging.temporary(path) / f"{path.name}.copies"
        self._checked: set[Path] = set()
        """Copies that were found to be as published."""
        self._names: Sequence[str] = ()
        """The names of the manifests that were read last."""
        self._previous: tuple[Manifest, ...] = ()
        """The manifests that the staged one follows, or the published ones after that."""
        self._uploaded: dict[str, Path] = {}
        """The staged objects and their local files, as long as it is certain that they are not published."""

    def exists(self) -> bool:
        """Whether there is a manifest."""
        return bool(self._objects.list("manifests"))

    def open(self) -> Chain:
        """See `Log.open`; also checks that the store never replaces an object that is created."""
        staging.create_temporary(self.path)
        staging.collect_leftovers(self.path)
        chain = self.read()
        if self._objects.local:  # The lock of this run is next to the folder, so no other one is at work.
            self._objects.remove(filter(_ABANDONED.fullmatch, self._objects.list()))
        self._probe()
        wanted = {path: file.bytes for path, file in _states(chain).items()}
        if not self._objects.local:
            for path in [path for path in files.tree(self._copies) if path.is_file() and path not in wanted]:
                files.remove(path)
                files.remove_if_empty(path.parent)
        missing = sum(size for path, size in wanted.items() if not path.exists())
        preflight.check_room(staging.temporary(self.path), copied=missing + sum(wanted.values()))
        return chain

    def _probe(self) -> None:
        folder = staging.next_folder(self.path)
        files.remove_quietly(folder)
        name = f"{_PROBE}{_token(folder)}"
        if not self._objects.create(name, b"1") or self._objects.create(name, b"2"):
            message = "the store replaces objects that must only be created (it ignores If-None-Match)"
            raise SinkError(message, where=self.location, hint="Use a store with conditional writes, such as S3.")
        self._objects.remove([name])

    def read(self, *, runs: bool = False) -> Chain:
        """See `Log.read`; a list is never the only evidence that something is missing."""
        listed = self._objects.list()
        names = self._names = self._commits.published(listed)
        chain = parquet_layout.linked(self._copies, self._documents(names), runs=runs)
        chain = replace(chain, contacts=self._commits.contacts)
        if lost := _lost(chain, listed):
            if self._commits.moved(names):  # Another run has just published.
                return self.read(runs=runs)
            hint = "Restore the manifest from a backup, or choose another prefix for a full export."
            raise TargetCorrupt("no manifest lists this file", where=self._objects.where(lost), hint=hint)
        if chain.manifests:
            self._check_files(chain, listed)
            self._commits.check(chain)
            parquet_layout.check_columns(chain, self.location)
        return chain

    def _documents(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """These manifests, each with its place; a few at a time, as each holds the whole state."""
        with ThreadPoolExecutor(_SMALL_AT_ONCE) as pool:
            for first in range(0, len(names), _SMALL_AT_ONCE):
                yield from pool.map(self._document, names[first : first + _SMALL_AT_ONCE])

    def _document(self, name: str) -> tuple[str, bytes]:
        where = self._objects.where(name)
        try:
            return where, self._objects.read(name)
        except Missing as error:
            raise TargetCorrupt("a manifest is missing", where=where, hint=_RESTORE) from error

    def _check_files(self, chain: Chain, listed: Mapping[str, Listed]) -> None:
        """Raise `TargetCorrupt` if a published file is missing or has another size."""
        for file in (file for content in CONTENTS for file in chain.entries(content)):
            found, problem = listed.get(file.path), ""
            if not _FILE.fullmatch(file.path):
                problem = "the manifest lists a file that is none of ours"
            elif found is None and not self._objects.exists(file.path):
                problem = "a published file is missing"
            elif found is not None and found.bytes != file.bytes:
                problem = f"a published file has {found.bytes} bytes instead of {file.bytes}"
            if problem:
                raise TargetCorrupt(problem, where=self._objects.where(file.path), hint=_RESTORE)

    def refuse_lost(self, chain: Chain) -> None:
        """Do nothing: `read` has checked it."""

    def load(self, chain: Chain, *, unaltered: bool = False) -> None:
        """Copy the files of the last state to this machine, each checked against its SHA-256; see `Log.load`."""
        if unaltered:
            self._checked.clear()
        wanted = {path: file for path, file in _states(chain).items() if path not in self._checked}
        with ThreadPoolExecutor(_LARGE_AT_ONCE) as pool:
            self._checked.update(pool.map(self._copy, wanted, wanted.values()))

    def _copy(self, path: Path, file: DataFile) -> Path:
        """Make `path` a checked copy of a published file, unless it is one already."""
        if path.exists() and files.sha256(path) == file.sha256:
            return path
        files.private_folder(path.parent)
        with files.translate_os_errors("copy a published file", path):
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as copy:
                try:
                    self._check(file, copy.write)
                except BaseException:
                    files.remove_quietly(Path(copy.name))
                    raise
            Path(copy.name).replace(path)
        return path

    def _check(self, file: DataFile, receive: Callable[[bytes], object] = lambda _: None) -> None:
        """Read a published file; raise `TargetCorrupt` if it is not bit for bit as published."""
        digest = sha256()
        for chunk in self._objects.chunks(file.path):
            digest.update(chunk)
            receive(chunk)
        if digest.hexdigest() != file.sha256:
            where = self._objects.where(file.path)
            raise TargetCorrupt("a published file was altered: its SHA-256 differs", where=where, hint=_RESTORE)

    @property
    def read_range(self) -> ReadRange | None:
        """See `Log.read_range`."""
        return None if self._objects.local else self._read_range

    def _read_range(self, path: Path, start: int, length: int) -> bytes:
        return self._objects.read_range(path.relative_to(self._copies).as_posix(), start, length)

    def verify(self, chain: Chain) -> None:
        """See `Log.verify`; reads every file from the store."""
        listed = [file for content in CONTENTS for file in chain.entries(content)]
        with ThreadPoolExecutor(_LARGE_AT_ONCE) as pool:
            list(pool.map(self._check, listed))

    def stage(self, chain: Chain, folder: Path, written: Manifest) -> None:
        """Upload the files that the last state does not have, and write the manifest that lists all of them."""
        self._previous, token = chain.manifests, _token(folder)
        self._objects.create(f"preparing/seq={written.seq:08d}.{token}", b"")
        held = {(_folder(file), file.sha256): file for file in _states(chain).values()}
        written, listed = self._commits.stage(folder, written), []
        for file in written.files:
            path = folder / file.path
            if _folder(file) == "current":
                file = replace(file, path=f"{chain.contacts}/{file.path.partition('/')[2]}")  # noqa: PLW2901
            found = held.get((_folder(file), file.sha256))
            if found is None:
                found = replace(file, path=f"{file.path.removesuffix('.parquet')}.{token}.parquet")
                self._uploaded[found.path] = path
                self._objects.upload(path, found.path)
            listed.append(found)
        files.private_file(folder / parquet_layout.MANIFEST, manifest.encode(replace(written, files=tuple(listed))))

    def publish(self, folder: Path, seq: int) -> None:
        """Publish the manifest. Raises `PublishConflict` if another is there, `OutcomeUnknown` if that is not known."""
        with files.translate_os_errors("read the manifest", folder):
            document = (folder / parquet_layout.MANIFEST).read_bytes()
        listed = manifest.decode(document)
        # From here on, a request that is still on the way could publish the files whatever happens to this process.
        uploaded, self._uploaded = self._uploaded, {}
        try:
            name = self._commits.publish(self._names, self._previous, listed, document)
        except OutcomeUnknown:
            raise
        except SinkError:
            self._uploaded = uploaded if self._commits.traceless else {}
            raise
        if name is None:
            self._uploaded = uploaded if self._commits.traceless else {}
            raise PublishConflict(f"another process published run {seq}", where=self.location)
        self._previous, self._names = (*self._previous, listed), (*self._names, name)
        if not self._objects.local:
            with suppress(SinkError, OSError):  # The next run need not copy what this one wrote.
                for path, local in uploaded.items():
                    if path.startswith(_COMPLETE):
                        files.private_folder((self._copies / path).parent)
                        local.replace(self._copies / path)

    def collect(self, keep: int) -> None:
        """See `Log.collect`; states are also kept until their successor is as old as `Commits.retention`.

        Whatever an earlier run or one with the same number uploaded can no longer be published if no manifest lists it.
        """
        listed, published = self._objects.list(), self._previous
        ages = [listed.get(name) for name in self._names]
        times = [found.modified if found else None for found in ages]
        kept = set[str]()
        for number, one in enumerate(published):
            left = number < len(published) - keep and self._older(times[number + 1], times[-1])
            kept.update(file.path for file in one.files if not (left and file.path.startswith(_COMPLETE)))
        last = published[-1].seq
        outdated = [found[0] for found in map(_FILE.fullmatch, listed) if found and int(found[2]) <= last]
        self._objects.remove(name for name in outdated if name not in kept)
        dead = [found[0] for found in map(_PREPARING.fullmatch, listed) if found and int(found[1]) <= last]
        probes = [name for name in listed if name.startswith(_PROBE)]
        dead += [name for name in probes if self._older(listed[name].modified, times[-1])]
        self._objects.remove([*dead, *self._commits.orphans(listed, self._names, last)])

    def _older(self, moment: datetime | None, now: datetime | None) -> bool:
        return moment is not None and now is not None and now - moment >= self._commits.retention

    def discard(self, folder: Path) -> None:
        """See `Log.discard`; the announcement stays, because an upload that failed may still arrive."""
        with suppress(SinkError):
            self._objects.remove(self._uploaded)
        self._uploaded = {}
        files.remove_quietly(folder)


def _folder(file: DataFile) -> str:
    return file.path.partition("/")[0]


def _token(folder: Path) -> str:
    """The random part of the name of a `staging.next_folder`."""
    return folder.name.rpartition(".next-")[2]


def _states(chain: Chain) -> dict[Path, DataFile]:
    """The files that the next state is built from, by their copies."""
    return {chain.target / file.path: file for content in STATES for file in chain.entries(content)}


def _lost(chain: Chain, listed: Iterable[str]) -> str | None:
    """A file newer than the last manifest whose upload no run has announced: its manifest was lost."""
    announced = {found.groups() for found in map(_PREPARING.fullmatch, listed) if found}
    newer = (found for found in map(_FILE.fullmatch, listed) if found and int(found[2]) > chain.state.seq)
    return next((found[0] for found in newer if found.groups()[1:] not in announced), None)
