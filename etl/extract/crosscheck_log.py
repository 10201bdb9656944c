"""On-disk log of the contacts seen by page scans, compared in DuckDB with the contacts received.

Memory holds one chunk of ids and the creation times (8 bytes per contact). The journal records each file and its pages,
so that a killed scan loses at most one chunk.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
from anyio import to_thread

from etl.api.response import Page, id_text
from etl.extract.crosscheck import SUSPECTS, FirstSeen, UnmatchedContact
from etl.extract.journal import Journal, Walked
from etl.extract.pages import SavedScan
from etl.storage import duck, files
from etl.times import milliseconds

CHUNK_ROWS = 10_000
"""Number of contacts seen that a killed run can lose."""
_COLUMNS = (("contact_id", "VARCHAR"), ("created", "BIGINT"), ("is_contact", "BOOLEAN"))
_SCHEMA = pa.schema(
    {
        "contact_id": pa.string(),
        "created": pa.int64(),
        "last_seen": pa.int64(),
        "is_contact": pa.bool_(),
        "page": pa.int32(),
    }
)


class _Seen(NamedTuple):
    """One contact on a page; times in milliseconds."""

    contact_id: str
    created: int | None
    last_seen: int | None
    """Only set if there is no creation time."""
    is_contact: bool
    page: int


class CrossCheckFiles:
    """A `crosscheck.CrossCheckLog` in Parquet files of a private folder."""

    def __init__(
        self,
        folder: Path,
        parts: Callable[[], Awaitable[Sequence[Path]]],
        copy_ids: Callable[[Path], None],
        journal: Journal,
    ) -> None:
        """`parts` returns the files that hold everything received so far; `copy_ids` writes the ids of the snapshot."""
        self._folder = folder
        self._parts = parts
        self._copy_ids = copy_ids
        self._journal = journal
        *self._ended, self._before = journal.left.walks
        """The page scans of a killed run: the complete ones, and the progress of the interrupted one."""
        self._walk = len(journal.left.walks)
        self._files = [file for walked in journal.left.walks for file in walked.files]
        self._rows: list[_Seen] = []
        self._pages: list[tuple[bool, int, int]] = []
        """The pages of the rows: list, page number, rows."""
        self._ends: dict[bool, int] = {}
        self._created = {False: array("q"), True: array("q")}
        self._without_created_at: dict[str, FirstSeen] = {}
        self._writing = anyio.Lock()

    @property
    def walk(self) -> int:
        """See `crosscheck.CrossCheckLog`."""
        return self._walk

    def next_walk(self) -> None:
        """See `crosscheck.CrossCheckLog`."""
        self._walk += 1
        self._ended, self._before = [], Walked()

    async def trail(self, is_contact: bool) -> SavedScan:
        """See `crosscheck.CrossCheckLog`."""
        trail = SavedScan(self._before.sizes[is_contact], self._before.ends.get(is_contact))
        if trail.over:
            return trail
        return replace(trail, ids=await to_thread.run_sync(self._ids, is_contact, trail.wanted))

    async def go_on(self, is_contact: bool, trail: SavedScan) -> None:
        """See `crosscheck.CrossCheckLog`."""
        if trail.end is None and self._before.sizes[is_contact]:
            self._journal.forget(self._walk, is_contact, trail.last)
        for number, walked in enumerate(self._ended, 1):
            await to_thread.run_sync(self._count_in, number, walked, is_contact, walked.sizes[is_contact].keys())
        await to_thread.run_sync(self._count_in, self._walk, self._before, is_contact, trail.sizes.keys())

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """See `crosscheck.CrossCheckLog`; contacts without an id cannot be matched and are skipped."""
        for row in page.rows:
            contact_id = id_text(bytes(row.contact_id))
            if contact_id is not None:
                created = milliseconds(row.created_at)
                last_seen = milliseconds(row.last_seen_at) if created is None else None
                self._rows.append(_Seen(contact_id, created, last_seen, is_contact, page.number))
                self._count(self._walk, self._rows[-1])
        self._pages.append((is_contact, page.number, len(page.rows)))
        if len(self._rows) >= CHUNK_ROWS:
            await self.keep()

    def end(self, is_contact: bool, end: int | None) -> None:
        """See `crosscheck.CrossCheckLog`."""
        if end is not None:
            self._ends[is_contact] = end

    async def keep(self) -> None:
        """Write the contacts seen since the last call, then record the file in the journal; also during shutdown."""
        with anyio.CancelScope(shield=True):
            async with self._writing:
                rows, pages, ends = self._rows, self._pages, self._ends
                self._rows, self._pages, self._ends = [], [], {}
                files = {}
                if rows:
                    path = self._folder / f"witness-{len(self._files) + 1:06d}.parquet"
                    files[path] = await to_thread.run_sync(_write, path, rows)
                    self._files.append(path)
                if pages or ends:
                    self._journal.walked(self._walk, files, pages, ends)

    def _ids(self, is_contact: bool, wanted: Collection[int]) -> dict[int, frozenset[str]]:
        """The ids listed on the `wanted` pages, as far as they were read."""
        listed: dict[int, set[str]] = {}
        pages = self._before.sizes[is_contact].keys() & wanted
        for row, newest in _seen(tuple(self._before.files), is_contact, pages):
            if newest:
                listed.setdefault(row.page, set()).add(row.contact_id)
        return {number: frozenset(ids) for number, ids in listed.items()}

    def _count_in(self, walk: int, walked: Walked, is_contact: bool, pages: Collection[int]) -> None:
        for row, newest in _seen(tuple(walked.files), is_contact, pages):
            # Contacts without a creation time were received already, and may be missing from a page that is read again.
            if newest or row.created is None:
                self._count(walk, row)

    def _count(self, walk: int, row: _Seen) -> None:
        if row.created is None:
            seen = FirstSeen(walk, row.last_seen or 0)
            self._without_created_at[row.contact_id] = min(self._without_created_at.get(row.contact_id, seen), seen)
        elif walk == 1:
            self._created[row.is_contact].append(row.created)

    def without_created_at(self) -> Mapping[str, FirstSeen]:
        """See `crosscheck.CrossCheckLog`."""
        return self._without_created_at

    def created(self, is_contact: bool) -> Sequence[int]:
        """See `crosscheck.CrossCheckLog`."""
        self._created[is_contact] = _in_order(self._created[is_contact])
        return self._created[is_contact]

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[UnmatchedContact]:
        """See `crosscheck.CrossCheckLog`."""
        held = list(await self._parts())
        if beyond_snapshot:
            held.append(await to_thread.run_sync(self._snapshot))
        return await to_thread.run_sync(partial(self._missing, held, before))

    def _snapshot(self) -> Path:
        path = self._folder / "snapshot.parquet"
        if not path.exists():
            self._copy_ids(path)
        return path

    def _missing(self, held: Sequence[Path], before: int) -> Sequence[UnmatchedContact]:
        if not self._files:
            return []
        seen = duck.scan(self._files, _COLUMNS)
        query = f"""
            select created, is_contact from ({seen}) anti join ({duck.scan(held, _COLUMNS[:1])}) using (contact_id)
            where created < ? limit {SUSPECTS}
        """  # noqa: S608 - file names are quoted by the engine
        # The spill folder is created here because DuckDB would create it with the umask's permissions.
        with duck.connect(duck.FRUGAL, files.private_folder(self._folder / "spill")) as connection:
            return [UnmatchedContact(*row) for row in connection.execute(query, [before]).fetchall()]


def _in_order(times: array[int]) -> array[int]:
    """Sorted with Arrow, to avoid one Python object per value."""
    ordered = array("q")
    if times:
        whole = pa.Array.from_buffers(pa.int64(), len(times), [None, pa.py_buffer(times)]).sort()
        ordered.frombytes(memoryview(whole.buffers()[1])[: whole.nbytes])
    return ordered


def _seen(paths: Sequence[Path], is_contact: bool, pages: Collection[int]) -> Iterator[tuple[_Seen, bool]]:
    """All contacts seen in one list, newest file first, and whether each is from the latest read of one of `pages`."""
    left = set(pages)
    for file in reversed(paths):
        with files.translate_os_errors("read what the witness saw", file):
            rows = map(_Seen, *(column.to_pylist() for column in pq.read_table(file).columns))
        found = set[int]()
        for row in rows:
            if row.is_contact is is_contact:
                found.add(row.page)
                yield row, row.page in left
        left -= found


def _write(path: Path, rows: list[_Seen]) -> str:
    """Write the rows to a new file; returns its checksum."""
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
    files.private_file(path)
    with files.translate_os_errors("write what the witness saw", path):
        pq.write_table(pa.table(columns, schema=_SCHEMA), path)
    return files.checksum(path)
