"""What a page walk showed, kept on disk: each contact of it is real, so one that no window brought is a question.

Memory holds one chunk of ids and the creation times (8 bytes a contact); the comparison with the parts is DuckDB's. The
journal knows each file and the pages that are in it, so that a walk which is killed costs one chunk at most.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
from anyio import to_thread

from etl import disk, engine
from etl.api.answer import Page, id_text
from etl.journal import Journal
from etl.testimony import SUSPECTS, Suspect
from etl.walk import Trail
from etl.window import milliseconds

CHUNK_ROWS = 10_000
"""Contacts seen that a run which is killed can lose."""
_Seen = tuple[str, int | None, bool, int]
"""contact_id, creation time (ms), which list, which page."""
_COLUMNS = (("contact_id", "VARCHAR"), ("created", "BIGINT"), ("is_contact", "BOOLEAN"))
_SCHEMA = pa.schema(
    [("contact_id", pa.string()), ("created", pa.int64()), ("is_contact", pa.bool_()), ("page", pa.int32())]
)


class WitnessFiles:
    """A witness log (see `testimony.WitnessLog`) in Parquet files of a private folder."""

    def __init__(
        self,
        folder: Path,
        parts: Callable[[], Awaitable[Sequence[Path]]],
        copy_ids: Callable[[Path], None],
        journal: Journal,
    ) -> None:
        """`parts` tells the files that hold everything received so far; `copy_ids` writes the ids of the snapshot."""
        self._folder = folder
        self._parts = parts
        self._copy_ids = copy_ids
        self._journal = journal
        self._before = journal.left.walked
        """The walk of a run that was killed."""
        self._files = list(self._before.files)
        self._rows: list[_Seen] = []
        self._pages: list[tuple[bool, int, int]] = []
        """Those that the rows are from: which list, number, rows."""
        self._ends: dict[bool, int] = {}
        self._created = {False: array("q"), True: array("q")}
        self._undated: set[str] = set()
        self._writing = anyio.Lock()

    async def trail(self, is_contact: bool) -> Trail:
        """See `testimony.WitnessLog`."""
        trail = Trail(self._before.sizes[is_contact], self._before.ends.get(is_contact))
        if trail.over:
            return trail
        return replace(trail, ids=await to_thread.run_sync(self._ids, is_contact, trail.wanted))

    async def go_on(self, is_contact: bool, trail: Trail) -> None:
        """See `testimony.WitnessLog`."""
        if trail.end is None and self._before.sizes[is_contact]:
            self._journal.forget(is_contact, trail.last)
        await to_thread.run_sync(self._count_in, is_contact, trail.sizes.keys())

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """See `testimony.WitnessLog`; whoever has no id cannot be asked after."""
        for row in page.rows:
            created, contact_id = milliseconds(row.created_at), id_text(bytes(row.contact_id))
            if contact_id is not None:
                self._rows.append((contact_id, created, is_contact, page.number))
                self._count(contact_id, created, is_contact)
        self._pages.append((is_contact, page.number, len(page.rows)))
        if len(self._rows) >= CHUNK_ROWS:
            await self.keep()

    def end(self, is_contact: bool, end: int | None) -> None:
        """See `testimony.WitnessLog`."""
        if end is not None:
            self._ends[is_contact] = end

    async def keep(self) -> None:
        """Write what was seen since the last time, and only then note it; also in a run that is being ended."""
        with anyio.CancelScope(shield=True):
            async with self._writing:
                rows, pages, ends = self._rows, self._pages, self._ends
                self._rows, self._pages, self._ends = [], [], {}
                files = []
                if rows:
                    files = [self._folder / f"witness-{len(self._files) + 1:06d}.parquet"]
                    await to_thread.run_sync(_write, files[0], rows)
                    self._files += files
                if pages or ends:
                    self._journal.walked(files, pages, ends)

    def _ids(self, is_contact: bool, wanted: Collection[int]) -> dict[int, frozenset[str]]:
        """Who was listed on pages that were taken."""
        listed: dict[int, set[str]] = {}
        for number, contact_id, _ in self._newest(is_contact, self._before.sizes[is_contact].keys() & wanted):
            listed.setdefault(number, set()).add(contact_id)
        return {number: frozenset(ids) for number, ids in listed.items()}

    def _count_in(self, is_contact: bool, pages: Collection[int]) -> None:
        for _, contact_id, created in self._newest(is_contact, pages):
            self._count(contact_id, created, is_contact)

    def _count(self, contact_id: str, created: int | None, is_contact: bool) -> None:
        if created is None:
            self._undated.add(contact_id)
        else:
            self._created[is_contact].append(created)

    def undated(self) -> Collection[str]:
        """The ids of the contacts seen that have no creation time."""
        return self._undated

    def _newest(self, is_contact: bool, pages: Collection[int]) -> Iterator[tuple[int, str, int | None]]:
        """Page, contact_id, creation time (ms) as pages were last taken: one taken again is in a later file, too."""
        left = set(pages)
        for file in reversed(self._before.files):
            if not left:
                return
            with disk.doing("read what the witness saw", file):
                columns = [column.to_pylist() for column in pq.read_table(file).columns]
            found = set[int]()
            for contact_id, created, listed, number in zip(*columns, strict=True):
                if listed is is_contact and number in left:
                    found.add(number)
                    yield number, contact_id, created
            left -= found

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms) of the contacts seen in one list."""
        times = self._created[is_contact]
        if not times:
            return ()
        whole = pa.Array.from_buffers(pa.int64(), len(times), [None, pa.py_buffer(times)]).sort()
        return memoryview(whole.buffers()[1]).cast("q")[: len(whole)]

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> Sequence[Suspect]:
        """The contacts created before `before` (ms) that are in no part, nor in the last snapshot."""
        held = list(await self._parts())
        if beyond_snapshot:
            held.append(await to_thread.run_sync(self._snapshot))
        return await to_thread.run_sync(partial(self._missing, held, before))

    def _snapshot(self) -> Path:
        path = self._folder / "snapshot.parquet"
        if not path.exists():
            self._copy_ids(path)
        return path

    def _missing(self, held: Sequence[Path], before: int) -> Sequence[Suspect]:
        if not self._files:
            return []
        seen = engine.scan(self._files, _COLUMNS)
        query = f"""
            select created, is_contact from ({seen}) anti join ({engine.scan(held, _COLUMNS[:1])}) using (contact_id)
            where created < ? limit {SUSPECTS}
        """  # noqa: S608 - file names are quoted by the engine
        with engine.connect(engine.FRUGAL, self._folder / "spill") as connection:
            return [Suspect(*row) for row in connection.execute(query, [before]).fetchall()]


def _write(path: Path, rows: list[_Seen]) -> None:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
    disk.private_file(path)
    with disk.doing("write what the witness saw", path):
        pq.write_table(pa.table(columns, schema=_SCHEMA), path)
