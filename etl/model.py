"""The values that travel through a run: frozen, and without behaviour beyond simple arithmetic.

Each stage has its type: `RawPage` (bytes as read) -> `NormalizedBatch` (Arrow) -> parts on disk -> `Publication`
(input of the sinks) -> `Merged` (result of the merge). Times are aware UTC datetimes everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa

Mode = Literal["full", "incremental", "filtered", "renamed", "dropped"]
"""How an account entered a publication: read from the server, or, without a read, as the start or end of a name."""
SNAPSHOTS: tuple[Mode, ...] = ("filtered", "renamed", "dropped")
"""Modes that publish an account's complete new state: absent contacts are deleted at once, without a strike."""
Level = Literal["windows", "ordered", "sequential", "pages"]
"""How completeness is shown: one-request windows; pages in a checked order; sequential reads that agreed; a plain page
scan (no proof)."""


@dataclass(frozen=True, slots=True)
class RawPage:
    """One response as the server sent it, accepted by the fetcher and not yet decoded."""

    body: bytes
    """The whole response: `{"success": true, ..., "data": [contact, ...]}` in UTF-8 without BOM."""
    rows: int
    """Contacts in `data`."""
    read_no: int
    """Number of its first contact in the run's reading order; the others follow without gaps."""


@dataclass(frozen=True, slots=True)
class NormalizedBatch:
    """Contacts of many pages as columns, and the rejected ones."""

    contacts: pa.Table
    """Schema: `schema.NORMALIZED_SCHEMA`."""
    rejects: pa.Table
    """Schema: `schema.REJECT_PART_SCHEMA`."""
    counts: Counter[str] = field(default_factory=Counter)
    """received, rejected, coerced (cells), nulled (cells kept in extra), replaced (texts), repeated (keys)."""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of creation times, [start, end), that a run read completely; None: open end."""

    start: datetime | None
    end: datetime | None


Time = TypeVar("Time", float, datetime)


def union(ranges: Iterable[tuple[Time, Time]]) -> list[tuple[Time, Time]]:
    """The union of half-open ranges [start, end), as sorted ranges that neither overlap nor touch."""
    joined: list[tuple[Time, Time]] = []
    for start, end in sorted((start, end) for start, end in ranges if start < end):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


FEWEST_ABSENT = 3
"""Fewer absent contacts than this, in a part of the account, say nothing about the rest."""


@dataclass(frozen=True, slots=True)
class Look:
    """How many known contacts a run checked for, and how many of them it did not find."""

    looked: int = 0
    absent: int = 0

    def __add__(self, other: Look) -> Look:
        """The sum of both."""
        return Look(self.looked + other.looked, self.absent + other.absent)

    def is_suspicious(self, share: float) -> bool:
        """Whether too many are absent to believe that the server shows the whole account.

        A scrub checks a part of the account, so the absent contacts are measured against that part.
        """
        return self.absent > share * self.looked and (self.absent >= FEWEST_ABSENT or self.absent == self.looked)


NOTHING = Look()
"""No contacts were checked for."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The evidence that no contact is missing."""

    level: Level
    windows: int
    """Windows accepted."""
    unproven: tuple[str, ...] = ()
    """One sentence for each thing that could not be proven; empty for a proven run."""

    @property
    def holds(self) -> bool:
        """Whether nothing is left unproven."""
        return not self.unproven


@dataclass(frozen=True, slots=True)
class Counts:
    """The conservation of rows in one account: received = new + changed + unchanged + folded + rejected."""

    received: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    """Read again with the same content (fields of presence may differ)."""
    deleted: int = 0
    folded: int = 0
    """Further copies of contacts that were read more than once."""
    rejected: int = 0
    contacts: int = 0
    """Rows of the account in `contacts` after the run."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one account: all attempts, and the retries among them."""

    sent: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One account in one published run: a row of `runs`, and the state the next run starts from."""

    seq: int
    run_id: str
    account: str
    mode: Mode
    t0: datetime
    """The server's clock when the run began, floored to the second; `observed_at` of everything it publishes."""
    watermark: datetime
    """Everything that became visible up to here has been read; the next run starts before it."""
    proof: Proof
    requests: Requests
    seconds: float
    counts: Counts = field(default_factory=Counts)
    detail: Mapping[str, object] = field(default_factory=dict)
    """JSON-able evidence: probed capabilities, requests by purpose, cell counts, scrub position."""


@dataclass(frozen=True, slots=True)
class SinkState:
    """The state in a sink's last manifest; `seq` is 0 for a target that does not exist yet."""

    seq: int = 0
    digest: str = ""
    """SHA-256 of the last manifest, which the next one contains."""
    runs: Mapping[str, RunRecord] = field(default_factory=dict)
    """The last published run of every account."""
    filters: Mapping[str, object] = field(default_factory=dict)
    """The filters the target was created with; empty for a full export."""


@dataclass(frozen=True, slots=True)
class AccountYield:
    """The data and evidence that a run collected for one account, before the merge."""

    record: RunRecord
    """Its counts have only `received`, `rejected` and the `folded` among the rejected; the merge adds the rest."""
    parts: tuple[Path, ...]
    rejects: tuple[Path, ...]
    coverage: tuple[Span, ...]
    """Ranges in which absence is a strike. Empty: deletions cannot be detected."""
    windows: pa.Table
    """schema.WINDOWS_SCHEMA: one row per accepted window."""
    confirmed: tuple[Span, ...] = ()
    """Ranges in which contacts with a strike were requested directly, so that absence is the second strike."""


@dataclass(frozen=True, slots=True)
class Publication:
    """Everything one run publishes, in one atomic step per sink."""

    seq: int
    run_id: str
    accounts: tuple[AccountYield, ...]
    filters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of merging a publication into one sink's previous snapshot, by account."""

    counts: Mapping[str, Counts]
    struck: Mapping[str, int]
    """Contacts absent for the first time: not deleted yet."""
    previous: Mapping[str, int]
    """Rows of the account in `contacts` before the run."""


Phase = Literal["waiting", "probe", "cross-check", "windows", "sweep", "read", "merge", "publish"]
"""The current step for an account; an incremental run scrubs in the phase `windows`. One that is read waits for the
others before the merge."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one account has been read."""

    account: str
    contacts: int
    pages: int
    in_flight: int
    expected: int | None
    """Contacts in the last snapshot, if all of them are read again; used to estimate the remaining time."""
    phase: Phase = "probe"
    failed: bool = False
    """Whether an error ended it; `phase` is where."""

    @property
    def is_reading(self) -> bool:
        """Whether contacts are being received."""
        return not self.failed and self.phase not in {"waiting", "read", "merge", "publish"}


Received = Callable[[], Awaitable[tuple[Sequence[Path], Sequence[Path]]]]
"""Returns the files that hold everything a run has received so far: contacts, and rejects."""
