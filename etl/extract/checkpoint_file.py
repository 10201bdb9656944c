"""Checkpoint of one account's extraction: the progress from which the next run resumes a killed one.

Pages are stored as received, in segments, until the part that holds their contacts is complete. Every accepted window
and every chunk of the cross-check's page scan is a line. A line is one write, so a killed process leaves at most one
torn line at the end. The checkpoint survives a process, not the machine: nothing is synced, and after a reboot it is
discarded.

Each line holds the checksums of its page or files, and one of itself and all lines before it. A line with a wrong
checksum ends the file; if a page or file does not match its checksum, everything is discarded. This detects damage and
edits, not forgery: the folder's permissions keep other users out (`staging.refuse_strangers`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Self

import msgspec

from etl.errors import SinkError
from etl.extract.checkpoint import ExtractionStart, Resumption
from etl.extract.windows import Accepted
from etl.model import RawPage
from etl.storage import files
from etl.storage.staging import Checksums

NAME = "journal.jsonl"
TOO_OLD = timedelta(hours=24)
"""Older progress is discarded: it would be correct, but the sweep over the time since then costs more."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


# --- one JSON object per line ---------------------------------------------------------------------------------------


class _Start(msgspec.Struct, tag="start"):
    key: str
    boot: str
    at: float
    start: ExtractionStart


class _Page(msgspec.Struct, tag="page"):
    segment: int
    offset: int
    size: int
    rows: int
    read_no: int
    checksum: str


class _Window(msgspec.Struct, tag="window"):
    done: Accepted
    """Its contacts are on the pages of earlier lines."""


class _Doubt(msgspec.Struct, tag="doubt"):
    reason: str


class _Unproven(msgspec.Struct, tag="unproven"):
    reason: str


class _Scan(msgspec.Struct, tag="scan"):
    scan: int
    """The number of the page scan, from 1."""
    files: Mapping[str, str]
    """Files with the contacts of the pages: name to checksum."""
    pages: tuple[tuple[bool, int, int], ...]
    """List, page number, rows."""
    ends: tuple[tuple[bool, int], ...]
    """List, first page past its end."""


class _Rescan(msgspec.Struct, tag="rescan"):
    scan: int
    is_contact: bool
    upto: int
    """The pages after it must be read again."""


class _Parts(msgspec.Struct, tag="parts"):
    parts: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Name to checksum."""
    rejects: Mapping[str, str] = msgspec.field(default_factory=dict)
    upto: int = 0
    """How many of the contacts received, in order, are in these parts."""
    counts: Mapping[str, int] = msgspec.field(default_factory=dict)


_Line = _Start | _Page | _Window | _Doubt | _Unproven | _Scan | _Rescan | _Parts
_decode = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder().encode
_CHAIN = b',"chain":"'
"""The last field of a line: a checksum of the previous line's checksum and of the line itself."""


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """The saved progress of one page scan of both lists; empty by default."""

    files: dict[Path, str] = field(default_factory=dict)
    """Files with the contacts it saw, in order, with checksums."""
    sizes: dict[bool, dict[int, int]] = field(default_factory=lambda: {False: {}, True: {}})
    """By list: the rows of each page that need not be read again."""
    ends: dict[bool, int] = field(default_factory=dict)
    """By list: the first page past the end."""

    @property
    def pages(self) -> int:
        """How many pages need not be read again."""
        return sum(map(len, self.sizes.values()))


@dataclass(frozen=True, slots=True)
class SavedProgress:
    """The progress of one account saved by a killed run; empty by default."""

    resumption: Resumption | None = None
    parts: Checksums = field(default_factory=dict)
    rejects: Checksums = field(default_factory=dict)
    upto: int = 0
    """How many of the contacts received, in order, are in these parts."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Counts from normalizing them."""
    pages: Sequence[_Page] = ()
    """Pages received whose contacts are in no part yet."""
    scans: Sequence[ScanProgress] = field(default_factory=lambda: [ScanProgress()])
    """Page scans, in order; all but the last are complete."""
    doubted: Sequence[Path] = ()
    """The parts received in the order of the lists, before that was doubted."""
    size: int = 0
    """Size in bytes of the valid lines."""
    chain: bytes = b""
    """The checksum of the last valid line."""

    def checksums(self) -> Checksums:
        """All complete files that the resumed run uses, with checksums."""
        return {**self.parts, **self.rejects, **{file: c for scan in self.scans for file, c in scan.files.items()}}

    def files(self, folder: Path) -> set[Path]:
        """All files that the resumed run uses, except the checkpoint file."""
        segments = {_segment_path(folder, page.segment) for page in self.pages}
        return {*self.checksums(), *segments}


def key_of(*facts: object) -> str:
    """A fingerprint of all inputs of an extraction: progress saved under another key is not resumed."""
    return hashlib.sha256(_encode([repr(fact) for fact in facts])).hexdigest()


def saved_progress(folder: Path, key: str, now: float, *, shared: bool = False) -> SavedProgress:
    """The progress that can be resumed; none if it has another key, predates a reboot, was changed or is too old.

    `now` is in seconds since 1970. `shared`: other machines write in the folder, so a reboot cannot be recognized; then
    the checksums alone show what such a machine could not save.
    """
    lines, size, chain = _valid_lines(folder / NAME)
    first = lines[0] if lines else None
    if not isinstance(first, _Start) or first.key != key or (first.boot != _boot() and not shared):
        return SavedProgress()
    if not 0 <= now - first.at <= TOO_OLD.total_seconds():
        return SavedProgress()
    written = _written(lines)
    at, doubt = next(((at, line.reason) for at, line in enumerate(lines) if isinstance(line, _Doubt)), (0, ""))
    accepted = [line.done for line in lines[at:] if isinstance(line, _Window)]
    unproven = [line.reason for line in lines[at:] if isinstance(line, _Unproven)]
    saved = SavedProgress(
        Resumption(first.start, accepted, doubt, unproven),
        parts=_paths(folder, written.parts),
        rejects=_paths(folder, written.rejects),
        upto=written.upto,
        counts=written.counts,
        pages=[line for line in lines if isinstance(line, _Page) and line.read_no >= written.upto],
        scans=_scans(lines, folder),
        doubted=[*_paths(folder, _written(lines[:at]).parts)],
        size=size,
        chain=chain,
    )
    try:
        for page in saved.pages:
            _body(folder, page)
        unchanged = all(files.checksum(file) == checksum for file, checksum in saved.checksums().items())
    except SinkError:
        unchanged = False
    return saved if unchanged else SavedProgress()


def _valid_lines(path: Path) -> tuple[list[_Line], int, bytes]:
    """The lines before the first torn or changed one, their size in bytes, and the last one's checksum."""
    lines: list[_Line] = []
    size, chain = 0, b""
    with suppress(SinkError, msgspec.MsgspecError), files.own_file(path) as file:
        for line in file:
            content, _, rest = line.rpartition(_CHAIN)
            following = _checksum(chain + content)
            if rest != following.hex().encode() + b'"}\n':
                break
            lines.append(_decode(line))
            size, chain = size + len(line), following
    return lines, size, chain


def _scans(lines: Sequence[_Line], folder: Path) -> Sequence[ScanProgress]:
    """The progress of every page scan: later lines add pages, or withdraw those that must be read again."""
    known = [line for line in lines if isinstance(line, _Scan | _Rescan)]
    scans = [ScanProgress() for _ in range(max((line.scan for line in known), default=1))]
    for line in known:
        scan = scans[line.scan - 1]
        if isinstance(line, _Scan):
            scan.files.update(_paths(folder, line.files))
            scan.ends.update(line.ends)
            for is_contact, number, rows in line.pages:
                scan.sizes[is_contact][number] = rows
        else:
            read = scan.sizes[line.is_contact]
            scan.sizes[line.is_contact] = {number: rows for number, rows in read.items() if number <= line.upto}
            scan.ends.pop(line.is_contact, None)
    return scans


def _written(lines: Sequence[_Line]) -> _Parts:
    """The last line about complete parts; empty if there is none."""
    return next((line for line in reversed(lines) if isinstance(line, _Parts)), _Parts())


def _body(folder: Path, page: _Page) -> bytes:
    """A page as it was received. Raises `SinkError` if it was changed since."""
    path = _segment_path(folder, page.segment)
    with files.own_file(path) as file, files.translate_os_errors("read a page again", path):
        file.seek(page.offset)
        body = file.read(page.size)
    if _checksum(body).hex() != page.checksum:
        hint = "Run again: everything is read from the beginning."
        raise SinkError("a page was changed after it was received", where=str(path), hint=hint)
    return body


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _boot() -> str:
    with suppress(OSError):
        return _BOOT.read_text(encoding="ascii").strip()
    return ""


@dataclass(slots=True)
class CheckpointFile:
    """The checkpoint of one account in its stage `folder`. Not thread-safe: the event loop writes."""

    folder: Path
    key: str
    started_at: float
    """When this process started, in seconds since 1970."""
    saved: SavedProgress = field(default_factory=SavedProgress)
    """The progress to resume from."""
    _segment: int = field(default=0, init=False)
    _offset: int = field(default=0, init=False)
    _ends: dict[int, int] = field(default_factory=dict, init=False)
    """By segment: the number of contacts received up to its last page."""
    _started: bool = field(default=False, init=False)
    _chain: bytes = field(default=b"", init=False)
    """The checksum of the last line."""
    _lines: files.Appended | None = field(default=None, init=False)
    _pages: files.Appended | None = field(default=None, init=False)

    @classmethod
    def open(cls, folder: Path, key: str, now: float, *, shared: bool = False) -> Self:
        """The checkpoint in a private `folder`, with the progress of a killed run; otherwise the folder is emptied.

        `shared`: see `saved_progress`.
        """
        saved = saved_progress(folder, key, now, shared=shared)
        files.private_folder(folder)
        if saved.resumption is None:
            for path in files.entries(folder):
                files.remove(path)
        return cls(folder, key, now, saved)

    def __post_init__(self) -> None:
        """Append to the existing file, if there is one; remove files that were not complete when the run was killed."""
        if self.saved.resumption:
            self._started = True
            self._chain = self.saved.chain
            self._ends = {page.segment: page.read_no + page.rows for page in self.saved.pages}
            self._segment = max(self._ends, default=0) + 1
            # Lines after a torn one could not be read.
            files.truncate(self.folder / NAME, self.saved.size)
            kept = {self.folder / NAME} | self.saved.files(self.folder)
            for path in files.entries(self.folder):
                if path not in kept:
                    files.remove(path)

    @property
    def resumed(self) -> Resumption | None:
        """See `checkpoint.Checkpoint`."""
        return self.saved.resumption

    def begin(self, start: ExtractionStart) -> None:
        """See `checkpoint.Checkpoint`."""
        if not self._started:
            self._started = True
            self._write(_Start(self.key, _boot(), self.started_at, start))

    def accept(self, done: Accepted) -> None:
        """See `checkpoint.Checkpoint`."""
        self._write(_Window(done))

    def doubt(self, reason: str) -> None:
        """See `checkpoint.Checkpoint`."""
        if resumed := self.saved.resumption:
            again = replace(resumed, accepted=(), doubt=reason, unproven=())
            self.saved = replace(self.saved, resumption=again)
        self._write(_Doubt(reason))

    def unproven(self, reason: str) -> None:
        """See `checkpoint.Checkpoint`."""
        self._write(_Unproven(reason))

    def receive(self, page: RawPage) -> None:
        """Keep a page until `written` records that its contacts are in a part."""
        if self._started:
            if self._pages is None:
                self._pages = files.Appended(_segment_path(self.folder, self._segment))
            self._pages.add(page.body)
            checksum = _checksum(page.body).hex()
            self._write(_Page(self._segment, self._offset, len(page.body), page.rows, page.read_no, checksum))
            self._ends[self._segment] = page.read_no + page.rows
            self._offset += len(page.body)

    def scanned(
        self, scan: int, files: Checksums, pages: Sequence[tuple[bool, int, int]], ends: Mapping[bool, int]
    ) -> None:
        """Record `pages` (list, page number, rows) of a page scan, whose contacts are in the complete `files`.

        `scan` is the number of the page scan, from 1; `ends` is, by list, the first page past the end.
        """
        self._write(_Scan(scan, _names(files), tuple(pages), tuple(ends.items())))

    def rescan(self, scan: int, is_contact: bool, upto: int) -> None:
        """Record that the page scan reads the pages of a list after `upto`, and finds its end, again."""
        self._write(_Rescan(scan, is_contact, upto))

    def written(self, parts: Checksums, rejects: Checksums, upto: int, counts: Mapping[str, int]) -> None:
        """Record the complete parts, which hold the first `upto` contacts received, and remove the pages of those."""
        self._write(_Parts(_names(parts), _names(rejects), upto, counts))
        for segment in [segment for segment, end in self._ends.items() if end <= upto]:
            files.remove(_segment_path(self.folder, segment))
            del self._ends[segment]
        self._segment, self._offset = self._segment + 1, 0
        if self._pages is not None:
            self._pages.close()
            self._pages = None

    def pages(self) -> Iterator[RawPage]:
        """The pages received by a killed run whose contacts are in no part, in the order received."""
        for page in self.saved.pages:
            yield RawPage(_body(self.folder, page), page.rows, page.read_no)

    def _write(self, line: _Line) -> None:
        if self._started:
            if self._lines is None:
                self._lines = files.Appended(self.folder / NAME)
            content = _encode(line).removesuffix(b"}")
            self._chain = _checksum(self._chain + content)
            self._lines.add(b'%b%b%b"}\n' % (content, _CHAIN, self._chain.hex().encode()))

    def __enter__(self) -> Self:
        """Close its files when the block ends, also on errors."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its files."""
        for file in (self._lines, self._pages):
            if file is not None:
                file.close()


def _segment_path(folder: Path, segment: int) -> Path:
    return folder / f"pages-{segment:06d}.jsonl"


def _names(files: Checksums) -> dict[str, str]:
    return {file.name: checksum for file, checksum in files.items()}


def _paths(folder: Path, names: Mapping[str, str]) -> dict[Path, str]:
    return {folder / name: checksum for name, checksum in names.items()}
