"""Agreement of the two sweeps: a new contact is in the range of both, over `createdAt` and over `lastSeenAt`.

A server that answers one of them from a stale replica, or with a cut page, shows such contacts to the other only, or
on the unfiltered first pages that are read after the sweeps. That costs no request: only the contacts that differ are
requested again. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from etl.api.request import TimeField
from etl.api.response import Row
from etl.times import milliseconds

MOST_COMPARED = 100_000
"""Contacts of one sweep that are kept for the comparison (15 MB); with more there is none."""


@dataclass(slots=True)
class Agreement:
    """The contacts created in [since, before) (ms) that each sweep has shown, or (None) an unfiltered list."""

    since: int
    before: int
    _shown: dict[TimeField | None, dict[bytes, int]] = field(
        default_factory=lambda: {"createdAt": {}, "lastSeenAt": {}, None: {}}
    )

    def note(self, by: TimeField | None, rows: Iterable[Row]) -> None:
        """Note the rows of an answer to a sweep over `by`; None: of an unfiltered list."""
        for row in rows if self.since < self.before else ():
            created, seen = milliseconds(row.created_at), milliseconds(row.last_seen_at)
            if created is not None and self.since <= created < self.before and (seen or 0) >= self.since:
                self._shown[by][bytes(row.contact_id)] = created
        if len(self._shown[by]) > MOST_COMPARED:
            self.before = self.since

    def differing(self) -> Mapping[bytes, int]:
        """The creation times (ms) of the contacts that were not shown by both sweeps."""
        if self.since >= self.before:
            return {}
        one, other, listed = self._shown.values()
        shown = one | other | listed
        return {contact: shown[contact] for contact in shown.keys() - (one.keys() & other.keys())}
