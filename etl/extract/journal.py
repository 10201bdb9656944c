"""The journal of a reading: what was received and accepted so far, so that a run that was killed can be resumed.

Pages are kept as they came, in segments, until the part that holds their contacts is complete; every window accepted is
a line, and so is every stretch of the witness's walk. A line is one write, so that a killed process leaves at most one
torn line at the end. It outlives a process, not a machine: nothing is synced, and after a reboot what is left is thrown
away.

Every page and every file has its checksum in its line, and every line one that also covers the lines before it. A line
that does not fit ends the journal; where a page or a file does not fit what is left of it, all of it is thrown away.
That finds damage and edits. Whoever can write into the folder could forge checksums as well: they are kept off by its
rights (`staging.refuse_strangers`).
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
from etl.storage import disk
from etl.storage.staging import Checksums

NAME = "journal.jsonl"
TOO_OLD = timedelta(hours=24)
"""What was read longer ago is read again: it would be correct, but the sweep over the time between costs more."""
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
    """Its contacts were received before: a line further up."""


class _Walked(msgspec.Struct, tag="walked"):
    walk: int
    """The witness's first walk, or a later one."""
    files: Mapping[str, str]
    """What was seen on the pages; by name, with checksums."""
    pages: tuple[tuple[bool, int, int], ...]
    """Which list, number, rows."""
    ends: tuple[tuple[bool, int], ...]
    """Which list, the first page past its end."""


class _Forgotten(msgspec.Struct, tag="forgotten"):
    walk: int
    is_contact: bool
    upto: int
    """The pages behind it are to be read again."""


class _Written(msgspec.Struct, tag="written"):
    parts: Mapping[str, str] = msgspec.field(default_factory=dict)
    """By name, with checksums."""
    rejects: Mapping[str, str] = msgspec.field(default_factory=dict)
    upto: int = 0
    """Contacts received when all of them were in these parts."""
    counts: Mapping[str, int] = msgspec.field(default_factory=dict)


_Line = _Began | _Received | _Accepted | _Walked | _Forgotten | _Written
_decode = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder().encode
_CHAIN = b',"chain":"'
"""What comes last in a line: the checksum of the one before it and of itself so far."""


@dataclass(frozen=True, slots=True)
class Walked:
    """How far the witness had come in one of its walks; nowhere by default."""

    files: dict[Path, str] = field(default_factory=dict)
    """What it saw, in order, with checksums."""
    sizes: dict[bool, dict[int, int]] = field(default_factory=lambda: {False: {}, True: {}})
    """By list: the rows of each page that need not be read again."""
    ends: dict[bool, int] = field(default_factory=dict)
    """By list: the first page past the end."""

    @property
    def pages(self) -> int:
        """How many need not be read again."""
        return sum(map(len, self.sizes.values()))


@dataclass(frozen=True, slots=True)
class SavedProgress:
    """What a killed run left of one account; nothing by default."""

    resumption: Resumption | None = None
    parts: Checksums = field(default_factory=dict)
    rejects: Checksums = field(default_factory=dict)
    upto: int = 0
    """Contacts received that are in these parts."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What normalizing them came to."""
    pages: Sequence[_Received] = ()
    """Received, and in no part yet."""
    walks: Sequence[Walked] = field(default_factory=lambda: [Walked()])
    """One after the other; all but the last came to their end."""
    size: int = 0
    """Bytes of the journal's whole lines."""
    chain: bytes = b""
    """The checksum of the last of them."""

    def checksums(self) -> Checksums:
        """Every complete file that the reading goes on with."""
        return {**self.parts, **self.rejects, **{file: c for walked in self.walks for file, c in walked.files.items()}}

    def files(self, folder: Path) -> set[Path]:
        """Everything that the reading goes on with, the journal apart."""
        segments = {_segment_path(folder, page.segment) for page in self.pages}
        return {*self.checksums(), *segments}


def key_of(*facts: object) -> str:
    """What a reading depends on, as a fingerprint: leftovers with another are not resumed."""
    return hashlib.sha256(_encode([repr(fact) for fact in facts])).hexdigest()


def left_in(folder: Path, key: str, now: float) -> SavedProgress:
    """What can be resumed: nothing of another configuration, of before the last reboot, changed, or too old.

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
    """Whether everything that the reading would go on with is what it was when its line was written."""
    try:
        for page in left.pages:
            _body(folder, page)
        return all(disk.checksum(file) == checksum for file, checksum in left.checksums().items())
    except SinkError:
        return False


def _body(folder: Path, page: _Received) -> bytes:
    """A page as it was received. Raises `SinkError` where it is not any more."""
    path = _segment_path(folder, page.segment)
    with disk.own_file(path) as file, disk.translate_os_errors("read a page again", path):
        file.seek(page.offset)
        body = file.read(page.size)
    if _checksum(body).hex() != page.checksum:
        hint = "Run again: everything is read anew."
        raise SinkError("A page was changed after it was received", where=str(path), hint=hint)
    return body


def _whole_lines(path: Path) -> tuple[list[_Line], int, bytes]:
    """The lines up to the first that is torn or changed, their bytes, and the last one's checksum."""
    lines: list[_Line] = []
    size, chain = 0, b""
    with suppress(SinkError, msgspec.MsgspecError), disk.own_file(path) as file:
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
    """When this process began, in seconds since 1970."""
    left: SavedProgress = field(default_factory=SavedProgress)
    """What the reading goes on with."""
    _segment: int = field(default=0, init=False)
    _offset: int = field(default=0, init=False)
    _ends: dict[int, int] = field(default_factory=dict, init=False)
    """Contacts received when a segment's last page had come."""
    _begun: bool = field(default=False, init=False)
    _chain: bytes = field(default=b"", init=False)
    """The checksum of the last line."""
    _lines: disk.Appended | None = field(default=None, init=False)
    _pages: disk.Appended | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Go on behind what is there."""
        if self.left.resumption:
            self._begun = True
            self._chain = self.left.chain
            self._ends = {page.segment: page.read_no + page.rows for page in self.left.pages}
            self._segment = max(self._ends, default=0) + 1
            # Behind a torn line nothing could be read.
            disk.truncate(self.folder / NAME, self.left.size)
            self._drop_the_rest()

    def _drop_the_rest(self) -> None:
        """Remove files that were not complete when the run was killed."""
        kept = {self.folder / NAME} | self.left.files(self.folder)
        for path in disk.entries(self.folder):
            if path not in kept:
                disk.remove(path)

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
        """Keep a page until `written` says that its contacts are in a part."""
        if self._begun:
            if self._pages is None:
                self._pages = disk.Appended(_segment_path(self.folder, self._segment))
            self._pages.add(page.body)
            checksum = _checksum(page.body).hex()
            self._write(_Received(self._segment, self._offset, len(page.body), page.rows, page.read_no, checksum))
            self._ends[self._segment] = page.read_no + page.rows
            self._offset += len(page.body)

    def walked(
        self, walk: int, files: Checksums, pages: Sequence[tuple[bool, int, int]], ends: Mapping[bool, int]
    ) -> None:
        """Note `pages` (which list, number, rows) that the witness took: `files`, complete, hold what it saw on them.

        `walk` is 1 for its first walk; `ends` tells, by list, the first page past the end.
        """
        self._write(_Walked(walk, _names(files), tuple(pages), tuple(ends.items())))

    def forget(self, walk: int, is_contact: bool, upto: int) -> None:
        """Note that the witness takes the pages of a list behind `upto` once more, and looks for its end."""
        self._write(_Forgotten(walk, is_contact, upto))

    def written(self, parts: Checksums, rejects: Checksums, upto: int, counts: Mapping[str, int]) -> None:
        """Note the complete parts, which hold the first `upto` contacts received, and drop the pages of those."""
        self._write(_Written(_names(parts), _names(rejects), upto, counts))
        for segment in [segment for segment, end in self._ends.items() if end <= upto]:
            disk.remove(_segment_path(self.folder, segment))
            del self._ends[segment]
        self._segment, self._offset = self._segment + 1, 0
        if self._pages is not None:
            self._pages.close()
            self._pages = None

    def pages(self) -> Iterator[RawPage]:
        """The pages that a killed run received and no part holds, in the order of reading."""
        for page in self.left.pages:
            yield RawPage(_body(self.folder, page), page.rows, page.read_no)

    def _write(self, line: _Line) -> None:
        if self._begun:
            if self._lines is None:
                self._lines = disk.Appended(self.folder / NAME)
            told = _encode(line).removesuffix(b"}")
            self._chain = _checksum(self._chain + told)
            self._lines.add(b'%b%b%b"}\n' % (told, _CHAIN, self._chain.hex().encode()))

    def __enter__(self) -> Self:
        """Its files are closed when the block ends, however it does."""
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
