"""On-disk checkpoint of one account's extraction, from which a killed run is resumed.

Pages are stored as received, in segments, until the part that holds their contacts is complete. Every accepted window
and every chunk of the cross-check's page scan is a line. A line is one write, so a killed process leaves at most one
torn line at the end. The journal survives a process, not the machine: nothing is synced, and after a reboot it is
discarded.

Each line holds the checksums of its page or files, and one of itself and all lines before it. A line with a wrong
checksum ends the journal; if a page or file does not match its checksum, everything is discarded. This detects damage
and edits, not forgery: the folder's permissions keep other users out (`staging.refuse_strangers`).
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


class _Began(msgspec.Struct, tag="began"):
    key: str
    boot: str
    at: float
    begun: ExtractionStart


class _Received(msgspec.Struct, tag="received"):
    segment: int
    offset: int
    size: int
    rows: int
    read_no: int
    checksum: str


class _Accepted(msgspec.Struct, tag="accepted"):
    done: Accepted
    """Its contacts were received before: see an earlier line."""


class _Walked(msgspec.Struct, tag="walked"):
    walk: int
    """The number of the page scan, from 1."""
    files: Mapping[str, str]
    """Files with the contacts of the pages: name to checksum."""
    pages: tuple[tuple[bool, int, int], ...]
    """List, page number, rows."""
    ends: tuple[tuple[bool, int], ...]
    """List, first page past its end."""


class _Forgotten(msgspec.Struct, tag="forgotten"):
    walk: int
    is_contact: bool
    upto: int
    """The pages after it must be read again."""


class _Written(msgspec.Struct, tag="written"):
    parts: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Name to checksum."""
    rejects: Mapping[str, str] = msgspec.field(default_factory=dict)
    upto: int = 0
    """How many of the contacts received, in order, are in these parts."""
    counts: Mapping[str, int] = msgspec.field(default_factory=dict)


_Line = _Began | _Received | _Accepted | _Walked | _Forgotten | _Written
_decode = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder().encode
_CHAIN = b',"chain":"'
"""The last field of a line: a checksum of the previous line's checksum and of the line itself."""


@dataclass(frozen=True, slots=True)
class Walked:
    """The saved progress of one page scan; empty by default."""

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
    pages: Sequence[_Received] = ()
    """Pages received whose contacts are in no part yet."""
    walks: Sequence[Walked] = field(default_factory=lambda: [Walked()])
    """Page scans, in order; all but the last are complete."""
    size: int = 0
    """Size in bytes of the journal's valid lines."""
    chain: bytes = b""
    """The checksum of the last valid line."""

    def checksums(self) -> Checksums:
        """All complete files that the resumed run uses, with checksums."""
        return {**self.parts, **self.rejects, **{file: c for walked in self.walks for file, c in walked.files.items()}}

    def files(self, folder: Path) -> set[Path]:
        """All files that the resumed run uses, except the journal."""
        segments = {_segment_path(folder, page.segment) for page in self.pages}
        return {*self.checksums(), *segments}


def key_of(*facts: object) -> str:
    """A fingerprint of all inputs of an extraction: progress saved under another key is not resumed."""
    return hashlib.sha256(_encode([repr(fact) for fact in facts])).hexdigest()


def left_in(folder: Path, key: str, now: float) -> SavedProgress:
    """The progress that can be resumed; none if it has another key, predates a reboot, was changed or is too old.

    `now` is in seconds since 1970.
    """
    lines, size, chain = _whole_lines(folder / NAME)
    began = lines[0] if lines else None
    if not isinstance(began, _Began) or (began.key, began.boot) != (key, _boot()):
        return SavedProgress()
    if not 0 <= now - began.at <= TOO_OLD.total_seconds():
        return SavedProgress()
    left = _left(began.begun, lines, folder)
    return replace(left, size=size, chain=chain) if _is_unchanged(left, folder) else SavedProgress()


def _is_unchanged(left: SavedProgress, folder: Path) -> bool:
    """Whether all saved pages and files still match their checksums."""
    try:
        for page in left.pages:
            _body(folder, page)
        return all(files.checksum(file) == checksum for file, checksum in left.checksums().items())
    except SinkError:
        return False


def _body(folder: Path, page: _Received) -> bytes:
    """A page as it was received. Raises `SinkError` if it was changed since."""
    path = _segment_path(folder, page.segment)
    with files.own_file(path) as file, files.translate_os_errors("read a page again", path):
        file.seek(page.offset)
        body = file.read(page.size)
    if _checksum(body).hex() != page.checksum:
        hint = "Run again: everything is read anew."
        raise SinkError("A page was changed after it was received", where=str(path), hint=hint)
    return body


def _whole_lines(path: Path) -> tuple[list[_Line], int, bytes]:
    """The lines before the first torn or changed one, their size in bytes, and the last one's checksum."""
    lines: list[_Line] = []
    size, chain = 0, b""
    with suppress(SinkError, msgspec.MsgspecError), files.own_file(path) as file:
        for line in file:
            told, _, rest = line.rpartition(_CHAIN)
            following = _checksum(chain + told)
            if rest != following.hex().encode() + b'"}\n':
                break
            lines.append(_decode(line))
            size, chain = size + len(line), following
    return lines, size, chain


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _left(begun: ExtractionStart, lines: Sequence[_Line], folder: Path) -> SavedProgress:
    written = next((line for line in reversed(lines) if isinstance(line, _Written)), _Written())
    accepted = [line.done for line in lines if isinstance(line, _Accepted)]
    return SavedProgress(
        Resumption(begun, accepted),
        parts=_paths(folder, written.parts),
        rejects=_paths(folder, written.rejects),
        upto=written.upto,
        counts=written.counts,
        pages=[line for line in lines if isinstance(line, _Received) and line.read_no >= written.upto],
        walks=_walks(lines, folder),
    )


def _walks(lines: Sequence[_Line], folder: Path) -> Sequence[Walked]:
    told = [line for line in lines if isinstance(line, _Walked | _Forgotten)]
    walks = [Walked() for _ in range(max((line.walk for line in told), default=1))]
    for line in told:
        walked = walks[line.walk - 1]
        if isinstance(line, _Walked):
            walked.files.update(_paths(folder, line.files))
            walked.ends.update(line.ends)
            for is_contact, number, rows in line.pages:
                walked.sizes[is_contact][number] = rows
        else:
            held = walked.sizes[line.is_contact]
            walked.sizes[line.is_contact] = {number: rows for number, rows in held.items() if number <= line.upto}
            walked.ends.pop(line.is_contact, None)
    return walks


def _boot() -> str:
    with suppress(OSError):
        return _BOOT.read_text(encoding="ascii").strip()
    return ""


@dataclass(slots=True)
class Journal:
    """Writes the journal of one account; `folder` is the account's stage. Not thread-safe: the event loop writes."""

    folder: Path
    key: str
    began_at: float
    """When this process started, in seconds since 1970."""
    left: SavedProgress = field(default_factory=SavedProgress)
    """The progress to resume from."""
    _segment: int = field(default=0, init=False)
    _offset: int = field(default=0, init=False)
    _ends: dict[int, int] = field(default_factory=dict, init=False)
    """By segment: the number of contacts received up to its last page."""
    _begun: bool = field(default=False, init=False)
    _chain: bytes = field(default=b"", init=False)
    """The checksum of the last line."""
    _lines: files.Appended | None = field(default=None, init=False)
    _pages: files.Appended | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Append to the existing journal, if there is one."""
        if self.left.resumption:
            self._begun = True
            self._chain = self.left.chain
            self._ends = {page.segment: page.read_no + page.rows for page in self.left.pages}
            self._segment = max(self._ends, default=0) + 1
            # Lines after a torn one could not be read.
            files.truncate(self.folder / NAME, self.left.size)
            self._drop_the_rest()

    def _drop_the_rest(self) -> None:
        """Remove files that were not complete when the run was killed."""
        kept = {self.folder / NAME} | self.left.files(self.folder)
        for path in files.entries(self.folder):
            if path not in kept:
                files.remove(path)

    @property
    def resumed(self) -> Resumption | None:
        """See `checkpoint.Checkpoint`."""
        return self.left.resumption

    def begin(self, begun: ExtractionStart) -> None:
        """See `checkpoint.Checkpoint`."""
        if not self._begun:
            self._begun = True
            self._write(_Began(self.key, _boot(), self.began_at, begun))

    def accept(self, done: Accepted) -> None:
        """See `checkpoint.Checkpoint`."""
        self._write(_Accepted(done))

    def receive(self, page: RawPage) -> None:
        """Keep a page until `written` records that its contacts are in a part."""
        if self._begun:
            if self._pages is None:
                self._pages = files.Appended(_segment_path(self.folder, self._segment))
            self._pages.add(page.body)
            checksum = _checksum(page.body).hex()
            self._write(_Received(self._segment, self._offset, len(page.body), page.rows, page.read_no, checksum))
            self._ends[self._segment] = page.read_no + page.rows
            self._offset += len(page.body)

    def walked(
        self, walk: int, files: Checksums, pages: Sequence[tuple[bool, int, int]], ends: Mapping[bool, int]
    ) -> None:
        """Record `pages` (list, page number, rows) of a page scan, whose contacts are in the complete `files`.

        `walk` is the number of the page scan, from 1; `ends` is, by list, the first page past the end.
        """
        self._write(_Walked(walk, _names(files), tuple(pages), tuple(ends.items())))

    def forget(self, walk: int, is_contact: bool, upto: int) -> None:
        """Record that the page scan reads the pages of a list after `upto`, and finds its end, again."""
        self._write(_Forgotten(walk, is_contact, upto))

    def written(self, parts: Checksums, rejects: Checksums, upto: int, counts: Mapping[str, int]) -> None:
        """Record the complete parts, which hold the first `upto` contacts received, and remove the pages of those."""
        self._write(_Written(_names(parts), _names(rejects), upto, counts))
        for segment in [segment for segment, end in self._ends.items() if end <= upto]:
            files.remove(_segment_path(self.folder, segment))
            del self._ends[segment]
        self._segment, self._offset = self._segment + 1, 0
        if self._pages is not None:
            self._pages.close()
            self._pages = None

    def pages(self) -> Iterator[RawPage]:
        """The pages received by a killed run whose contacts are in no part, in the order received."""
        for page in self.left.pages:
            yield RawPage(_body(self.folder, page), page.rows, page.read_no)

    def _write(self, line: _Line) -> None:
        if self._begun:
            if self._lines is None:
                self._lines = files.Appended(self.folder / NAME)
            told = _encode(line).removesuffix(b"}")
            self._chain = _checksum(self._chain + told)
            self._lines.add(b'%b%b%b"}\n' % (told, _CHAIN, self._chain.hex().encode()))

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
