"""The last snapshot of an account held against what a run has received so far."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from etl import disk, engine
from etl.api.request import instant
from etl.model import Look, Span
from etl.targets import Published

_ID = (("contact_id", "VARCHAR"),)


@dataclass(frozen=True, slots=True)
class SnapshotInUse:
    """A snapshot (see `history.Snapshot`) during a run."""

    published: Published
    received: Callable[[], Awaitable[tuple[Sequence[Path], Sequence[Path]]]]
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
        """See `history.Snapshot`; the comparison is the engine's, so that memory does not grow with the range."""
        span = Span(None if start is None else instant(start), instant(end))
        return await to_thread.run_sync(self._look, span, *await self.received())

    def _look(self, span: Span, parts: Sequence[Path], rejects: Sequence[Path]) -> Look:
        known = self.folder / "known.parquet"
        self.published.sink.copy_ids(self.published.account, known, span)
        query = f"""
            SELECT count(*), count(*) FILTER (here.contact_id IS NULL) FROM ({engine.scan([known], _ID)}) LEFT JOIN (
                SELECT contact_id FROM ({engine.scan(parts, (*_ID, ("status", "VARCHAR")))})
                WHERE status IS DISTINCT FROM 'DELETED' UNION SELECT contact_id FROM ({engine.scan(rejects, _ID)})
            ) here USING (contact_id)
        """  # noqa: S608 - file names are quoted by the engine
        with engine.connect(engine.FRUGAL, self.folder / "spill") as connection:
            looked, absent = connection.execute(query).fetchone() or (0, 0)
        disk.remove(known)
        return Look(looked, absent)
