"""The results of the commands: frozen values, each with the document that `--json` prints.

It imports no engine and no server, so that a result can be rendered without either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from etl.errors import OK, PUBLISHED_WITH_REJECTS, EtlError
from etl.model import Counts, Mode, Requests, RunRecord
from etl.storage.attempts import Attempt

Document = dict[str, object]


@dataclass(frozen=True, slots=True)
class Throttling:
    """How the server slowed a run down."""

    throttled: int = 0
    """Responses that asked to slow down."""
    at_once: int | float = 0
    """Concurrent requests at the end."""
    per_second: float | None = None
    """Requests a second at the end, if they were limited."""
    waited: float = 0.0
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Remarks:
    """Remarks for people on the course of a run, from the evidence in its record (`RunRecord.detail`)."""

    requests: Mapping[str, int] = field(default_factory=dict)
    """By purpose."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By phase."""
    pace: Throttling = field(default_factory=Throttling)
    clock_ahead: int = 0
    """Seconds by which the server's clock is ahead of ours."""
    clock_back: int = 0
    """Seconds by which T0 is before that of the last run."""
    resumed: int = 0
    """Windows that a killed run had read."""
    by_windows: float = 1.0
    """The share of the contacts that is proven by windows, by this run or those before it."""
    order_doubt: str = ""
    """Why the order of the lists could not be relied on."""
    order_checks: Mapping[str, int] = field(default_factory=dict)
    """What was checked of that order, if it was relied on: segments counted, ranges read again."""


@dataclass(frozen=True, slots=True)
class AccountReport:
    """One account of a run: its record as far as it got, and the error that kept it from being published."""

    account: str
    record: RunRecord | None = None
    error: EtlError | None = None
    requests: Requests = field(default_factory=Requests)
    """Requests sent, even if the account failed before there was a record."""
    struck: int = 0
    """Contacts absent for the first time; they are deleted if the next run misses them too."""
    proven_since: datetime | None = None
    """Every contact of an incremental run was read in a proven window of a run that began then or later, by the
    server's clock; None: not computed, or not recorded."""

    @property
    def remarks(self) -> Remarks:
        """The remarks in the record."""
        return msgspec.convert(dict(self.record.detail), Remarks) if self.record else Remarks()

    def document(self) -> Document:
        """The account's entry in the `--json` document of `run`."""
        record, published = self.record, self.error is None
        proof = record and {
            "level": record.proof.level,
            "windows": record.proof.windows,
            "unproven": list(record.proof.unproven),
        }
        return {
            "account": self.account,
            "mode": record.mode if record else None,
            "seq": record.seq if record and published else None,
            "t0": instant(record.t0) if record else None,
            "watermark": instant(record.watermark) if record and published else None,
            "proof": proof,
            "counts": asdict(record.counts if record else Counts()),
            "requests": asdict(record.requests if record else self.requests),
            "error": self.error.document() if self.error else None,
        }


@dataclass(frozen=True, slots=True)
class SinkReport:
    """The published state of one sink."""

    path: str
    """The file or folder, or what a sink on a server is called."""
    seq: int | None
    """None: it could not be published."""
    error: EtlError | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a whole run."""

    seconds: float
    accounts: tuple[AccountReport, ...] = ()
    sinks: Mapping[str, SinkReport] = field(default_factory=dict)
    error: EtlError | None = None
    """The error that ended the whole run, or that of the first failed account, or else of the first failed sink."""
    unconfigured: Mapping[str, int] = field(default_factory=dict)
    """Accounts in a target that the configuration does not name, with their numbers of contacts."""

    @property
    def exit_code(self) -> int:
        """The exit code of `etl run`: 0 means that no contact is missing."""
        if self.error is not None:
            return self.error.exit_code
        return PUBLISHED_WITH_REJECTS if self.counts.rejected else OK

    @property
    def published(self) -> list[RunRecord]:
        """The records of the published accounts."""
        return [account.record for account in self.accounts if account.record and account.error is None]

    @property
    def counts(self) -> Counts:
        """The sum of the counts of all published accounts."""
        found = [asdict(record.counts) for record in self.published]
        return Counts(**{name: sum(counts[name] for counts in found) for name in asdict(Counts())})

    @property
    def requests(self) -> int:
        """The requests sent for all accounts, failed ones included."""
        return sum((account.record or account).requests.sent for account in self.accounts)

    def raise_for_error(self) -> None:
        """Raise the error that kept the run, or the first of its accounts that failed, from being published."""
        if self.error is not None:
            raise self.error

    def document(self) -> Document:
        """The `--json` document of `run`."""
        return {
            "exit": self.exit_code,
            "seconds": round(self.seconds, 3),
            "accounts": [account.document() for account in self.accounts],
            "sinks": sink_documents(self.sinks),
            "error": self.error.document() if self.error else None,
        }


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """The result of renaming or dropping an account."""

    account: str
    renamed_to: str | None
    """None for a drop."""
    contacts: int = 0
    seq: int | None = None
    sinks: Mapping[str, SinkReport] = field(default_factory=dict)
    """The targets in which the change is done."""
    error: EtlError | None = None

    @property
    def exit_code(self) -> int:
        """The exit code."""
        return self.error.exit_code if self.error else OK

    def document(self) -> Document:
        """The `--json` document of `account rename` and `account drop`."""
        return {
            "exit": self.exit_code,
            "account": self.account,
            "renamed_to": self.renamed_to,
            "contacts": self.contacts,
            "seq": self.seq,
            "sinks": sink_documents(self.sinks),
            "error": self.error.document() if self.error else None,
        }


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected cost of the next run of one account, if nothing changes."""

    account: str
    mode: Mode
    windows: int
    requests: int
    seconds: float
    """Estimated from the response times of the probe and of one page after it."""
    resumes: int = 0
    """Windows already read by a killed run, which are not read again."""
    latency: float = 0.0
    """Response time of one page in seconds."""
    per_second: float | None = None
    """The rate limit of its token, `extract.requests_per_second`."""
    sharing: int = 1
    """Accounts that share this limit: `seconds` is then at least the time that all of them need together."""
    exceeds_deadline: bool = False
    """Whether reading the account takes longer than `extract.deadline`, so that the run would not publish it."""

    def document(self) -> Document:
        """The account's entry in the `--json` document of `plan`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One row of `runs`: one account in one published run."""

    seq: int
    run_id: str
    account: str
    mode: Mode
    observed_at: datetime
    """The server's clock when the run began."""
    watermark: datetime
    seconds: float
    proof_level: str
    windows: int
    unproven: Sequence[str]
    """One sentence for each thing that could not be proven."""
    received: int
    new: int
    changed: int
    unchanged: int
    deleted: int
    folded: int
    rejected: int
    contacts: int
    requests_sent: int
    requests_retried: int
    by_windows: float
    """The share of the contacts that is proven by windows, by this run or those before it."""

    def document(self) -> Document:
        """The run's entry in the `--json` document of `status`."""
        return asdict(self) | {"observed_at": instant(self.observed_at), "watermark": instant(self.watermark)}


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """The last published run of one account."""

    last_run: PublishedRun
    configured: bool
    """Whether the configuration names the account."""

    def document(self) -> Document:
        """The account's entry in the `--json` document of `status`."""
        run = self.last_run.document()
        known = {"account": run["account"], "watermark": run["watermark"], "seq": run["seq"], "last_run": run}
        return known | {"configured": self.configured}


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a target: the last run of every account, the history, and the last attempts to run."""

    at: datetime
    """Our clock when the status was read."""
    accounts: tuple[AccountStatus, ...] = ()
    runs: tuple[PublishedRun, ...] = ()
    """The newest first."""
    attempts: tuple[Attempt, ...] = ()
    """The newest first, including those that failed."""

    def document(self) -> Document:
        """The `--json` document of `status`."""
        return {
            "accounts": [account.document() for account in self.accounts],
            "runs": [run.document() for run in self.runs],
            "attempts": [attempt.document() for attempt in self.attempts],
        }


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A report, as it was written."""

    path: Path
    size: int
    """Bytes."""
    seq: int
    """The newest run on it; 0: nothing had been published yet."""
    contacts: int

    def document(self) -> Document:
        """The `--json` document of `report`."""
        return {"path": str(self.path), "bytes": self.size, "seq": self.seq, "contacts": self.contacts}


@dataclass(frozen=True, slots=True)
class WindowRead:
    """An accepted window that contained a contact, and the request that proved it. Times are text, None: open end."""

    seq: int
    request: int
    field: str
    is_contact: bool | None
    start: str | None
    end: str | None
    rows: int
    attempts: int
    level: str


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a contact."""

    seq: int
    observed_at: str
    op: str
    row_hash: str


@dataclass(frozen=True, slots=True)
class Reject:
    """A contact as it was rejected by one run."""

    account: str
    seq: int
    observed_at: str
    reason: str
    path: str | None


@dataclass(frozen=True, slots=True)
class ContactHistory:
    """Everything known about one contact in one account."""

    account: str
    in_contacts: bool
    why: str
    """One sentence on why it is, or is not, in `contacts`."""
    last_read_by: WindowRead | None
    versions: Sequence[Version]
    rejects: Sequence[Reject]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything known about one contact."""

    contact_id: str
    accounts: Sequence[ContactHistory]

    def document(self) -> Document:
        """The `--json` document of `explain`."""
        return asdict(self)


def sink_documents(sinks: Mapping[str, SinkReport]) -> Document:
    """The `sinks` of every `--json` document that reports a publication."""
    return {
        name: {"path": sink.path, "seq": sink.seq} | ({"error": sink.error.document()} if sink.error else {})
        for name, sink in sinks.items()
    }


def unconfigured_line(account: str, contacts: int) -> str:
    """The notice about an account in a target that the configuration does not name."""
    return f"the configuration does not name account {account}: its {contacts:,} contacts stay as they are"


def unconfigured_hint(account: str) -> str:
    """The hint for such an account."""
    return (
        f"If it is missing by mistake, add it ([[accounts]] or [accounts_from]). If it has another name now: "
        f"etl account rename {account} NEW. If it is not wanted any more: etl account drop {account}."
    )


def instant(moment: datetime) -> str:
    """A time in the format of every document: ISO 8601 with `Z`."""
    text = moment.astimezone(UTC).isoformat(timespec="auto")
    return text.replace("+00:00", "Z")
