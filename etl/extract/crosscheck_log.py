"""On-disk log of the contacts seen by page scans, compared in DuckDB with the contacts received.

Memory holds one chunk of ids and the creation times (8 bytes per contact). The checkpoint records each file and its
pages, so that a killed scan loses at most one chunk.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import anyio
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from anyio import to_thread

from etl.api.response import Page, Row, id_text
from etl.extract.checkpoint_file import CheckpointFile, ScanProgress
from etl.extract.crosscheck import MOST_UNMATCHED, FirstSeen, UnmatchedContact
from etl.extract.pages import SavedScan
from etl.model import Received
from etl.storage import duck, files
from etl.times import milliseconds

CHUNK_ROWS = 10_000
"""Number of contacts seen that a killed run can lose."""
MOST_NOTED = 100_000
"""The most contacts that are noted of answers to other requests (25 MB); a killed run loses them."""
_COLUMNS = (("contact_id", "VARCHAR"), ("created", "BIGINT"), ("is_contact", "BOOLEAN"), ("page", "INTEGER"))
_NOTED = pa.schema(
    {
        "contact_id": pa.string(),
        "created": pa.int64(),
        "is_contact": pa.bool_(),
        "page": pa.int32(),
        "after_windows": pa.bool_(),
    }
)
_REJECT_COLUMNS = (("contact_id", "VARCHAR"), ("raw", "VARCHAR"))
_KNOWN = (("contact_id", "VARCHAR"), ("strikes", "TINYINT"))
_PART_COLUMNS = (("contact_id", "VARCHAR"), ("created_at", "TIMESTAMPTZ"), ("is_contact", "BOOLEAN"))
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
        received: Received,
        copy_ids: Callable[[Path], None],
        checkpoint: CheckpointFile,
    ) -> None:
        """`received` returns the files that hold everything received so far: parts, and rejects.

        `copy_ids` writes the ids of the snapshot.
        """
        self._folder = folder
        self._received = received
        self._copy_ids = copy_ids
        self._checkpoint = checkpoint
        *self._ended, self._before = checkpoint.saved.scans
        """The page scans of a killed run: the complete ones, and the progress of the interrupted one."""
        self._scan = len(checkpoint.saved.scans)
        self._files = [file for scan in checkpoint.saved.scans for file in scan.files]
        self._rows: list[_Seen] = []
        self._pages: list[tuple[bool, int, int]] = []
        """The pages of the rows: list, page number, rows."""
        self._ends: dict[bool, int] = {}
        self._created = {False: array("q"), True: array("q")}
        self._without_created_at: dict[str, FirstSeen] = {}
        self._noted: dict[str, UnmatchedContact] = {}
        self._doubted = checkpoint.saved.doubted
        """The parts that count as seen only."""
        self._writing = anyio.Lock()

    @property
    def scan(self) -> int:
        """See `crosscheck.CrossCheckLog`."""
        return self._scan

    def next_scan(self) -> None:
        """See `crosscheck.CrossCheckLog`."""
        self._scan += 1
        self._ended, self._before = [], ScanProgress()

    async def saved_scan(self, is_contact: bool) -> SavedScan:
        """See `crosscheck.CrossCheckLog`."""
        saved = SavedScan(self._before.sizes[is_contact], self._before.ends.get(is_contact))
        if saved.over:
            return saved
        return replace(saved, ids=await to_thread.run_sync(self._ids, is_contact, saved.wanted))

    async def resume(self, is_contact: bool, valid: SavedScan) -> None:
        """See `crosscheck.CrossCheckLog`."""
        if valid.end is None and self._before.sizes[is_contact]:
            self._checkpoint.rescan(self._scan, is_contact, valid.last)
        for number, scan in enumerate(self._ended, 1):
            await to_thread.run_sync(self._count_in, number, scan, is_contact, scan.sizes[is_contact].keys())
        await to_thread.run_sync(self._count_in, self._scan, self._before, is_contact, valid.sizes.keys())

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """See `crosscheck.CrossCheckLog`; contacts without an id cannot be matched and are skipped."""
        for row in page.rows:
            contact_id = id_text(bytes(row.contact_id))
            if contact_id is not None:
                created = milliseconds(row.created_at)
                last_seen = milliseconds(row.last_seen_at) if created is None else None
                self._rows.append(_Seen(contact_id, created, last_seen, is_contact, page.number))
                self._count(self._scan, self._rows[-1])
        self._pages.append((is_contact, page.number, len(page.rows)))
        if len(self._rows) >= CHUNK_ROWS:
            await self.save()

    def note(self, rows: Iterable[Row], *, is_contact: bool, after_windows: bool) -> None:
        """See `crosscheck.CrossCheckLog`; contacts without a creation time are skipped."""
        for row in rows:
            contact_id, created = id_text(bytes(row.contact_id)), milliseconds(row.created_at)
            if contact_id is not None and created is not None and len(self._noted) < MOST_NOTED:
                one = UnmatchedContact(created, is_contact, contact_id, 0, after_windows)
                self._noted.setdefault(contact_id, one)

    def noted(self) -> int:
        """See `crosscheck.CrossCheckLog`."""
        rows = [pq.read_metadata(part).num_rows for part in self._doubted]
        return len(self._noted) + int(sum(rows))

    def end(self, is_contact: bool, end: int | None) -> None:
        """See `crosscheck.CrossCheckLog`."""
        if end is not None:
            self._ends[is_contact] = end

    async def save(self) -> None:
        """Write the contacts seen since the last call, then record the file; also during shutdown."""
        with anyio.CancelScope(shield=True):
            async with self._writing:
                rows, pages, ends = self._rows, self._pages, self._ends
                self._rows, self._pages, self._ends = [], [], {}
                files = {}
                if rows:
                    path = self._folder / f"cross-check-{len(self._files) + 1:06d}.parquet"
                    files[path] = await to_thread.run_sync(_write, path, rows)
                    self._files.append(path)
                if pages or ends:
                    self._checkpoint.scanned(self._scan, files, pages, ends)

    def _ids(self, is_contact: bool, wanted: Collection[int]) -> dict[int, frozenset[str]]:
        """The ids listed on the `wanted` pages, as far as they were read."""
        listed: dict[int, set[str]] = {}
        pages = self._before.sizes[is_contact].keys() & wanted
        for row, newest in _seen(tuple(self._before.files), is_contact, pages):
            if newest:
                listed.setdefault(row.page, set()).add(row.contact_id)
        return {number: frozenset(ids) for number, ids in listed.items()}

    def _count_in(self, number: int, scan: ScanProgress, is_contact: bool, pages: Collection[int]) -> None:
        """Count the contacts that scan `number` of a killed run saw on `pages`."""
        for row, newest in _seen(tuple(scan.files), is_contact, pages):
            # Contacts without a creation time were received already, and may be missing from a page that is read again.
            if newest or row.created is None:
                self._count(number, row)

    def _count(self, scan: int, row: _Seen) -> None:
        if row.created is None:
            seen = FirstSeen(scan, row.last_seen or 0)
            self._without_created_at[row.contact_id] = min(self._without_created_at.get(row.contact_id, seen), seen)
        elif scan == 1:
            self._created[row.is_contact].append(row.created)

    async def distrust_received(self) -> None:
        """See `crosscheck.CrossCheckLog`; the checkpoint's line of the doubt, which must follow, makes it last."""
        self._doubted, _ = await self._received()

    def without_created_at(self) -> Mapping[str, FirstSeen]:
        """See `crosscheck.CrossCheckLog`."""
        return self._without_created_at

    def created(self, is_contact: bool) -> Sequence[int]:
        """See `crosscheck.CrossCheckLog`."""
        times = self._created[is_contact]
        if times:
            # Sorted with Arrow, to avoid one Python object per value.
            whole = pa.Array.from_buffers(pa.int64(), len(times), [None, pa.py_buffer(times)]).sort()
            times = array("q")
            times.frombytes(memoryview(whole.buffers()[1])[: whole.nbytes])
            self._created[is_contact] = times
        return times

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[UnmatchedContact]:
        """See `crosscheck.CrossCheckLog`."""
        parts, rejects = await self._received()
        return await to_thread.run_sync(self._missing, parts, rejects, before, beyond_snapshot)

    async def shows_returns(self) -> bool:
        """See `crosscheck.CrossCheckLog`."""
        if not self._files:
            return False
        parts, _ = await self._received()
        return await to_thread.run_sync(self._shows_returns, [part for part in parts if part not in self._doubted])

    def _shows_returns(self, parts: Sequence[Path]) -> bool:
        query = f"""
            with seen as (from ({duck.scan(self._files, _COLUMNS)})),
            leads as (select contact_id from ({duck.scan(parts, _PART_COLUMNS)}) where not is_contact)
            select count(*) > 0 from (from seen where is_contact) semi join leads using (contact_id)
            anti join (from seen where not is_contact) as listed using (contact_id)
        """  # noqa: S608 - file names are quoted by the engine
        with self._connect() as connection:
            [(found,)] = connection.execute(query).fetchall()
        return bool(found)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        """A new engine; its spill folder is created here: DuckDB would create it with the umask's permissions."""
        return duck.connect(duck.FRUGAL, files.private_folder(self._folder / "spill"))

    def _missing(
        self, parts: Sequence[Path], rejects: Sequence[Path], before: int, beyond_snapshot: bool
    ) -> Sequence[UnmatchedContact]:
        if not self._files and not self._doubted and not self._noted:
            return []
        held = duck.scan((part for part in parts if part not in self._doubted), _COLUMNS[:1])
        if beyond_snapshot:
            snapshot = self._folder / "snapshot.parquet"
            if not snapshot.exists():
                self._copy_ids(snapshot)
            known = duck.scan([snapshot], _KNOWN)
            held += f" union all select contact_id from ({known}) where strikes <> 1"  # noqa: S608 - as below
        # A server may not tell in which list a contact is: then it is asked for in both. A rejected contact was
        # received, under any of its ids if it has two.
        query = f"""
            with seen as (
                select *, false as after_windows from ({duck.scan(self._files, _COLUMNS)})
                union all
                from noted
                union all
                select contact_id, epoch_ms(created_at), listed, 0, false
                from ({duck.scan(self._doubted, _PART_COLUMNS)})
                join (values (false), (true)) lists(listed) on coalesce(is_contact = listed, true)
            ), missing as (
                select created, is_contact, contact_id, max(page) as page, bool_and(after_windows) as after_windows
                from seen anti join ({held}) using (contact_id) where created < ? group by all
            ), rejects as (
                from ({duck.scan(rejects, _REJECT_COLUMNS)})
            )
            from missing where not exists (
                from rejects where coalesce(rejects.contact_id = missing.contact_id, contains(raw, missing.contact_id))
            ) order by after_windows, page desc limit {MOST_UNMATCHED}
        """  # noqa: S608 - file names are quoted by the engine
        noted = pa.table(
            [pa.array([getattr(one, field.name) for one in self._noted.values()], field.type) for field in _NOTED],
            schema=_NOTED,
        )
        with self._connect() as connection:
            connection.register("noted", noted)
            return [UnmatchedContact(*row) for row in connection.execute(query, [before]).fetchall()]


def _seen(paths: Sequence[Path], is_contact: bool, pages: Collection[int]) -> Iterator[tuple[_Seen, bool]]:
    """All contacts seen in one list, newest file first, and whether each is from the latest read of one of `pages`."""
    left = set(pages)
    for file in reversed(paths):
        with files.translate_os_errors("read the contacts seen", file):
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
    with files.translate_os_errors("write the contacts seen", path):
        pq.write_table(pa.table(columns, schema=_SCHEMA), path)
    return files.checksum(path)
