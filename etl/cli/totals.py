"""The totals of a run over all its accounts, for runs with too many of them to show each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl.model import Progress


@dataclass(frozen=True, slots=True)
class Totals:
    """Numbers of accounts, and what was received and sent for all of them."""

    accounts: int
    waiting: int
    reading: int
    read: int
    """Read completely; published, too, if the run has come to that."""
    failed: int
    contacts: int
    requests: int


def totals(progress: Sequence[Progress]) -> Totals:
    """The totals of these accounts, each of which is in one of the four groups."""
    failed = sum(now.failed for now in progress)
    waiting = sum(now.phase == "waiting" and not now.failed for now in progress)
    reading = sum(now.is_reading for now in progress)
    return Totals(
        accounts=len(progress),
        waiting=waiting,
        reading=reading,
        read=len(progress) - failed - waiting - reading,
        failed=failed,
        contacts=sum(now.contacts for now in progress),
        requests=sum(now.pages for now in progress),
    )
