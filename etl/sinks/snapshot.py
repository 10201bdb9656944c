"""Compares the last snapshot of an account with the contacts that a run has received so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
from anyio import to_thread

from etl.model import NOTHING, Look, Received, Span
from etl.sinks import Sink, checks
from etl.storage import duck, files
from etl.times import to_datetime

_ID = (("contact_id", "VARCHAR"),)
_TIMES = (*_ID, ("created_at", "TIMESTAMPTZ"), ("last_seen_at", "TIMESTAMPTZ"))
_EVER = datetime.min.replace(tzinfo=UTC)


class Published:
    """The contacts of one account in a sink: their creation times, read once, about 8 bytes per contact."""

    def __init__(self, sink: Sink, account: str) -> None:
        self.sink = sink
        self.account = account
        self._held: pa.Table | None = None
        self._lists: dict[bool | None, Sequence[int]] = {}

    def created(self, is_contact: bool | None) -> Sequence[int]:
        """The sorted creation times (ms), of one list or (None) of both.

        A contact that does not state its list counts in both, because windows planned too narrow are safe and windows
        planned too wide cost a request.
        """
        if is_contact not in self._lists:
            held = self._table()
            chosen = None
            if held.num_rows and is_contact is not None:
                # Takes 0.1 s to import; a first run does not need it.
                import pyarrow.compute as pc  # noqa: PLC0415

                chosen = pc.fill_null(pc.equal(held["is_contact"], is_contact), fill_value=True)
            self._lists[is_contact] = _milliseconds(held["created_at"], chosen)
        return self._lists[is_contact]

    def struck(self) -> Sequence[int]:
        """The sorted creation times (ms) of the contacts that have a strike."""
        held = self._table()
        return _milliseconds(held["created_at"], held["struck"])

    async def look(self, start: int | None, end: int) -> Look:  # noqa: ARG002 - see `history.Snapshot`
        """Check nothing: no run is in progress."""
        return NOTHING

    async def unknown(self, start: int | None, end: int, seen_before: int) -> int:  # noqa: ARG002 - see `history.Snapshot`
        """Check nothing: no run is in progress."""
        return 0

    def copy_ids(self, file: Path) -> None:
        """See `history.PublishedSnapshot`."""
        self.sink.copy_ids(self.account, file)

    def during(self, received: Received, folder: Path) -> SnapshotInUse:
        """See `history.PublishedSnapshot`."""
        return SnapshotInUse(self, received, folder)

    def _table(self) -> pa.Table:
        if self._held is None:
            self._held = self.sink.created_at(self.account)
        return self._held


def _milliseconds(times: pa.ChunkedArray, chosen: pa.ChunkedArray | None) -> Sequence[int]:
    found = times if chosen is None else times.filter(chosen)
    if not len(found):
        return ()
    whole = found.cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64()).combine_chunks()
    return memoryview(whole.buffers()[1]).cast("q")[: len(whole)]


@dataclass(frozen=True, slots=True)
class SnapshotInUse:
    """A snapshot (see `history.Snapshot`) during a run."""

    published: Published
    received: Received
    """Files that hold everything received so far: contacts, and rejects."""
    folder: Path
    """A private folder to work in."""

    def created(self, is_contact: bool | None) -> Sequence[int]:
        """See `history.Snapshot`."""
        return self.published.created(is_contact)

    def struck(self) -> Sequence[int]:
        """See `history.Snapshot`."""
        return self.published.struck()

    async def look(self, start: int | None, end: int) -> Look:
        """See `history.Snapshot`; the engine compares, so that memory does not grow with the range."""
        span = Span(None if start is None else to_datetime(start), to_datetime(end))
        return await to_thread.run_sync(self._look, span, *await self.received())

    def _look(self, span: Span, parts: Sequence[Path], rejects: Sequence[Path]) -> Look:
        with self._known(span) as (connection, known):
            query = f"""
                SELECT count(*), count(*) FILTER (here.contact_id IS NULL) FROM ({known}) LEFT JOIN (
                    SELECT contact_id FROM ({duck.scan(parts, (*_ID, ("status", "VARCHAR")))})
                    WHERE status IS DISTINCT FROM 'DELETED' UNION SELECT contact_id FROM ({duck.scan(rejects, _ID)})
                ) here USING (contact_id)
            """  # noqa: S608 - file names are quoted by the engine
            looked, absent = connection.execute(query).fetchone() or (0, 0)
        return Look(looked, absent)

    async def unknown(self, start: int | None, end: int, seen_before: int) -> int:
        """See `history.Snapshot`."""
        span = (to_datetime(start) if start is not None else _EVER, to_datetime(end), to_datetime(seen_before))
        return await to_thread.run_sync(self._unknown, span, (await self.received())[0])

    def _unknown(self, times: tuple[datetime, datetime, datetime], parts: Sequence[Path]) -> int:
        with self._known() as (connection, known):
            query = f"""
                SELECT count(DISTINCT contact_id) FROM ({duck.scan(parts, _TIMES)}) ANTI JOIN ({known})
                USING (contact_id) WHERE created_at >= ? AND created_at < ? AND last_seen_at < ?
            """  # noqa: S608 - file names are quoted by the engine
            (found,) = connection.execute(query, times).fetchone() or (0,)
        return int(found)

    @contextmanager
    def _known(self, span: Span | None = None) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        """A connection, and a query for the ids of the snapshot, or of those created within `span`."""
        known = self.folder / "known.parquet"
        self.published.sink.copy_ids(self.published.account, known, span)
        try:
            with duck.connect(duck.FRUGAL, self.folder / "spill") as connection:
                yield connection, duck.scan([known], _ID)
        except duckdb.Error as error:
            raise checks.translate(error, known) from error
        files.remove(known)
