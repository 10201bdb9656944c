"""What a page walk showed, kept on disk: each contact of it is real, so one that no window brought is a question.

Memory holds one chunk of ids and the creation times (8 bytes a contact); the comparison with the parts is DuckDB's.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from anyio import to_thread

from etl import disk, engine
from etl.api.answer import Row
from etl.testimony import SUSPECTS, Suspect
from etl.window import milliseconds

CHUNK_ROWS = 50_000
_Seen = tuple[str, int, bool]
"""contact_id, creation time (ms), which list."""
_COLUMNS = (("contact_id", "VARCHAR"), ("created", "BIGINT"), ("is_contact", "BOOLEAN"))
_SCHEMA = pa.schema([("contact_id", pa.string()), ("created", pa.int64()), ("is_contact", pa.bool_())])


class WitnessFiles:
    """A witness log (see `testimony.WitnessLog`) in Parquet files of a private folder."""

    def __init__(
        self,
        folder: Path,
        parts: Callable[[], Awaitable[Sequence[Path]]],
        copy_ids: Callable[[Path], None],
        keep: Callable[[Sequence[Path]], None] = lambda _: None,
        files: Sequence[Path] = (),
    ) -> None:
        """`parts` tells the files that hold everything received so far; `copy_ids` writes the ids of the snapshot.

        `keep` is told the files of a walk that is over, and `files` are those of one that a killed run had ended.
        """
        self._folder = folder
        self._parts = parts
        self._copy_ids = copy_ids
        self._rows: list[_Seen] = []
        self._created = {False: array("q"), True: array("q")}
        self._keep = keep
        self._files = list(files)
        for file in files:
            self._read(file)

    async def record(self, rows: Sequence[Row], *, is_contact: bool) -> None:
        """Note contacts that the walk saw in one of the lists; those without a creation time do not count."""
        for row in rows:
            created, contact_id = milliseconds(row.created_at), id_text(bytes(row.contact_id))
            if created is not None and contact_id is not None:
                self._rows.append((contact_id, created, is_contact))
                self._created[is_contact].append(created)
        if len(self._rows) >= CHUNK_ROWS:
            # The rows and the name are taken before the thread starts: many pages are recorded at once.
            await to_thread.run_sync(_write, *self._chunk())

    async def keep(self) -> None:
        """See `testimony.WitnessLog`."""
        if self._rows:
            await to_thread.run_sync(_write, *self._chunk())
        self._keep(self._files)

    def _read(self, file: Path) -> None:
        with disk.doing("read what the witness saw", file):
            seen = pq.read_table(file, columns=["created", "is_contact"])
        for created, is_contact in zip(seen["created"].to_pylist(), seen["is_contact"].to_pylist(), strict=True):
            self._created[is_contact].append(created)

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms) of the contacts seen in one list."""
        return array("q", sorted(self._created[is_contact]))

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

    def _chunk(self) -> tuple[Path, list[_Seen]]:
        rows, self._rows = self._rows, []
        path = self._folder / f"witness-{len(self._files) + 1:06d}.parquet"
        self._files.append(path)
        return path, rows

    def _missing(self, held: Sequence[Path], before: int) -> Sequence[Suspect]:
        if not self._files:
            return []
        seen = engine.scan(self._files, _COLUMNS)
        query = f"""
            select created, is_contact from ({seen}) anti join ({engine.scan(held, _COLUMNS[:1])}) using (contact_id)
            where created < ? limit {SUSPECTS}
        """  # noqa: S608 - file names are quoted by the engine
        with engine.connect() as connection:
            return [Suspect(*row) for row in connection.execute(query, [before]).fetchall()]


def _write(path: Path, rows: list[_Seen]) -> None:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
    disk.private_file(path)
    with disk.doing("write what the witness saw", path):
        pq.write_table(pa.table(columns, schema=_SCHEMA), path)


def id_text(raw: bytes) -> str | None:
    """A raw JSON id as the normalizer would keep it; None where it is no id."""
    if raw.startswith(b'"') and b"\\" not in raw:
        return raw[1:-1].decode("utf-8", errors="replace") or None
    value = json.loads(raw, parse_int=str, parse_float=str)
    return value if isinstance(value, str) and value else None
