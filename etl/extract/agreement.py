"""Agreement of the two sweeps: a new contact is in the range of both, over `createdAt` and over `lastSeenAt`.

A server that answers one of them from a stale replica, or with a cut page, shows such contacts to the other only. That
costs no request: only the contacts that differ are requested again. No I/O.
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
    """The contacts created in [since, before) (ms) that each sweep has shown."""

    since: int
    before: int
    _shown: dict[TimeField, dict[bytes, int]] = field(default_factory=lambda: {"createdAt": {}, "lastSeenAt": {}})

    def note(self, by: TimeField, rows: Iterable[Row]) -> None:
        """Note the rows of an answer to a sweep over `by`."""
        for row in rows if self.since < self.before else ():
            created, seen = milliseconds(row.created_at), milliseconds(row.last_seen_at)
            if created is not None and self.since <= created < self.before and (seen or 0) >= self.since:
                self._shown[by][bytes(row.contact_id)] = created
        if len(self._shown[by]) > MOST_COMPARED:
            self.before = self.since

    def differing(self) -> Mapping[bytes, int]:
        """The creation times (ms) of the contacts that only one sweep has shown."""
        if self.since >= self.before:
            return {}
        one, other = self._shown.values()
        both = one | other
        return {contact: both[contact] for contact in one.keys() ^ other.keys()}
