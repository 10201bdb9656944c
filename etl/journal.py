"""The journal of a reading: what was received and accepted so far, so that a run that was killed can be gone on with.

Pages are kept as they came, in segments, until the part that holds their contacts is complete; every window accepted is
a line, and so is every stretch of the witness's walk. A line is one write, so that a killed process leaves at most one
torn line at the end. It outlives a process, not a machine: nothing is synced, and after a reboot what is left is thrown
away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self

import msgspec

from etl import disk
from etl.ledger import Begun, Resumption
from etl.model import RawPage
from etl.window import Accepted

NAME = "journal.jsonl"
TOO_OLD = timedelta(hours=24)
"""What was read longer ago is read again: it would be correct, but the sweep over the time between costs more."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _Began(msgspec.Struct, tag="began"):
    key: str
    boot: str
    at: float
    begun: Begun


class _Received(msgspec.Struct, tag="received"):
    segment: int
    offset: int
    size: int
    rows: int
    read_no: int


class _Accepted(msgspec.Struct, tag="accepted"):
    done: Accepted
    """Its contacts were received before: a line further up."""


class _Walked(msgspec.Struct, tag="walked"):
    walk: int
    """The witness's first walk, or a later one."""
    files: tuple[str, ...]
    """What was seen on the pages."""
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
    parts: tuple[str, ...] = ()
    rejects: tuple[str, ...] = ()
    upto: int = 0
    """Contacts received when all of them were in these parts."""
    counts: Mapping[str, int] = msgspec.field(default_factory=dict)


_Line = _Began | _Received | _Accepted | _Walked | _Forgotten | _Written
_decode = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Walked:
    """How far the witness had come in one of its walks; nowhere by default."""

    files: list[Path] = field(default_factory=list)
    """What it saw, in order."""
    sizes: dict[bool, dict[int, int]] = field(default_factory=lambda: {False: {}, True: {}})
    """By list: the rows of each page that need not be read again."""
    ends: dict[bool, int] = field(default_factory=dict)
    """By list: the first page past the end."""

    @property
    def pages(self) -> int:
        """How many need not be read again."""
        return sum(map(len, self.sizes.values()))


@dataclass(frozen=True, slots=True)
class Left:
    """What a killed run left of one account; nothing by default."""

    resumption: Resumption | None = None
    parts: Sequence[Path] = ()
    rejects: Sequence[Path] = ()
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

    def files(self, folder: Path) -> set[Path]:
        """Everything that the reading goes on with, the journal apart."""
        segments = {_segment_path(folder, page.segment) for page in self.pages}
        witnessed = [file for walked in self.walks for file in walked.files]
        return {*self.parts, *self.rejects, *witnessed, *segments}


def key_of(*facts: object) -> str:
    """What a reading depends on, as a fingerprint: leftovers with another are not gone on with."""
    return hashlib.sha256(_encode([repr(fact) for fact in facts])).hexdigest()


def left_in(folder: Path, key: str, now: float) -> Left:
    """What can be gone on with: nothing of another configuration, of before the last reboot, or too old.

    `now` is in seconds since 1970.
    """
    lines, size = _whole_lines(folder / NAME)
    began = lines[0] if lines else None
    if not isinstance(began, _Began) or (began.key, began.boot) != (key, _boot()):
        return Left()
    if not 0 <= now - began.at <= TOO_OLD.total_seconds():
        return Left()
    left = _left(began.begun, lines, size, folder)
    return left if all(file.is_file() for file in left.files(folder)) else Left()


def _whole_lines(path: Path) -> tuple[list[_Line], int]:
    """The lines up to the first that is torn, and their bytes."""
    lines: list[_Line] = []
    size = 0
    with suppress(OSError, msgspec.MsgspecError), path.open("rb") as file:
        for line in file:
            lines.append(_decode(line))
            size += len(line)
    return lines, size


def _left(begun: Begun, lines: Sequence[_Line], size: int, folder: Path) -> Left:
    written = next((line for line in reversed(lines) if isinstance(line, _Written)), _Written())
    accepted = [line.done for line in lines if isinstance(line, _Accepted)]
    return Left(
        Resumption(begun, accepted),
        parts=[folder / name for name in written.parts],
        rejects=[folder / name for name in written.rejects],
        upto=written.upto,
        counts=written.counts,
        pages=[line for line in lines if isinstance(line, _Received) and line.read_no >= written.upto],
        walks=_walks(lines, folder),
        size=size,
    )


def _walks(lines: Sequence[_Line], folder: Path) -> Sequence[Walked]:
    told = [line for line in lines if isinstance(line, _Walked | _Forgotten)]
    walks = [Walked() for _ in range(max((line.walk for line in told), default=1))]
    for line in told:
        walked = walks[line.walk - 1]
        if isinstance(line, _Walked):
            walked.files.extend(folder / name for name in line.files)
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
    left: Left = field(default_factory=Left)
    """What the reading goes on with."""
    _segment: int = field(default=0, init=False)
    _offset: int = field(default=0, init=False)
    _ends: dict[int, int] = field(default_factory=dict, init=False)
    """Contacts received when a segment's last page had come."""
    _begun: bool = field(default=False, init=False)
    _lines: disk.Appended | None = field(default=None, init=False)
    _pages: disk.Appended | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Go on behind what is there."""
        if self.left.resumption:
            self._begun = True
            self._ends = {page.segment: page.read_no + page.rows for page in self.left.pages}
            self._segment = max(self._ends, default=0) + 1
            # Behind a torn line nothing could be read.
            disk.cut(self.folder / NAME, self.left.size)
            self._drop_the_rest()

    def _drop_the_rest(self) -> None:
        """Remove files that were not complete when the run was killed."""
        kept = {self.folder / NAME} | self.left.files(self.folder)
        for path in disk.entries(self.folder):
            if path not in kept:
                disk.remove(path)

    @property
    def resumed(self) -> Resumption | None:
        """See `ledger.Ledger`."""
        return self.left.resumption

    def begin(self, begun: Begun) -> None:
        """See `ledger.Ledger`."""
        if not self._begun:
            self._begun = True
            self._write(_Began(self.key, _boot(), self.began_at, begun))

    def accept(self, done: Accepted) -> None:
        """See `ledger.Ledger`."""
        self._write(_Accepted(done))

    def receive(self, page: RawPage) -> None:
        """Keep a page until `written` says that its contacts are in a part."""
        if self._begun:
            if self._pages is None:
                self._pages = disk.Appended(_segment_path(self.folder, self._segment))
            self._pages.add(page.body)
            self._write(_Received(self._segment, self._offset, len(page.body), page.rows, page.read_no))
            self._ends[self._segment] = page.read_no + page.rows
            self._offset += len(page.body)

    def walked(
        self, walk: int, files: Sequence[Path], pages: Sequence[tuple[bool, int, int]], ends: Mapping[bool, int]
    ) -> None:
        """Note `pages` (which list, number, rows) that the witness took: `files`, complete, hold what it saw on them.

        `walk` is 1 for its first walk; `ends` tells, by list, the first page past the end.
        """
        self._write(_Walked(walk, _names(files), tuple(pages), tuple(ends.items())))

    def forget(self, walk: int, is_contact: bool, upto: int) -> None:
        """Note that the witness takes the pages of a list behind `upto` once more, and looks for its end."""
        self._write(_Forgotten(walk, is_contact, upto))

    def written(self, parts: Sequence[Path], rejects: Sequence[Path], upto: int, counts: Mapping[str, int]) -> None:
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
            path = _segment_path(self.folder, page.segment)
            with disk.doing("read a page again", path), path.open("rb") as file:
                file.seek(page.offset)
                yield RawPage(file.read(page.size), page.rows, page.read_no)

    def _write(self, line: _Line) -> None:
        if self._begun:
            if self._lines is None:
                self._lines = disk.Appended(self.folder / NAME)
            self._lines.add(_encode(line) + b"\n")

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


def _names(files: Sequence[Path]) -> tuple[str, ...]:
    return tuple(file.name for file in files)
