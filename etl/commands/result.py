"""The result of a run: one value, rendered for programs (`--json`) and for people (the summary)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from etl.display import lines
from etl.errors import OK, PUBLISHED_WITH_REJECTS, EtlError
from etl.extract.history import CLOCKS_DIFFER
from etl.model import Counts, Requests, RunRecord

Document = dict[str, object]


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

    def document(self) -> Document:
        """The account's entry in the `--json` document of `run`."""
        record, published = self.record, self.error is None
        return {
            "account": self.account,
            "mode": record.mode if record else None,
            "seq": record.seq if record and published else None,
            "t0": instant(record.t0) if record else None,
            "watermark": instant(record.watermark) if record and published else None,
            "proof": _proof(record),
            "counts": asdict(record.counts if record else Counts()),
            "requests": asdict(record.requests if record else self.requests),
            "error": self.error.document() if self.error else None,
        }


@dataclass(frozen=True, slots=True)
class SinkReport:
    """The published state of one sink."""

    path: Path
    seq: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a whole run."""

    seconds: float
    accounts: tuple[AccountReport, ...] = ()
    sinks: Mapping[str, SinkReport] = field(default_factory=dict)
    error: EtlError | None = None
    """The error that ended the whole run, or that of the first failed account in the order of the file."""
    unconfigured: Mapping[str, int] = field(default_factory=dict)
    """Accounts in a target that the configuration does not name, with their numbers of contacts."""

    @property
    def exit_code(self) -> int:
        """The exit code of `etl run`: 0 means that no contact is missing."""
        if self.error is not None:
            return self.error.exit_code
        return PUBLISHED_WITH_REJECTS if self.counts.rejected else OK

    @property
    def counts(self) -> Counts:
        """The sum of the counts of all published accounts."""
        published = [asdict(a.record.counts) for a in self.accounts if a.record and a.error is None]
        return Counts(**{name: sum(counts[name] for counts in published) for name in asdict(Counts())})

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


def sink_documents(sinks: Mapping[str, SinkReport]) -> Document:
    """The `sinks` of every `--json` document that reports a publication."""
    return {name: {"path": str(sink.path), "seq": sink.seq} for name, sink in sinks.items()}


def unconfigured_line(account: str, contacts: int) -> str:
    """The notice about an account in a target that the configuration does not name."""
    return f"the configuration does not name account {account}: its {contacts:,} contacts stay as they are"


def unconfigured_hint(account: str) -> str:
    """The hint for such an account."""
    return (
        f"If it has another name now: etl account rename {account} NEW. If it is not wanted any more: "
        f"etl account drop {account}. It may also stay."
    )


def instant(moment: datetime) -> str:
    """A time in the format of every document: ISO 8601 with `Z`."""
    text = moment.astimezone(UTC).isoformat(timespec="auto")
    return text.replace("+00:00", "Z")


def _proof(record: RunRecord | None) -> Document | None:
    if record is None:
        return None
    return {
        "level": record.proof.level,
        "windows": record.proof.windows,
        "unproven": list(record.proof.unproven),
    }


def render_run(report: RunResult) -> str:
    """The summary at the end of a run, for people."""
    told = [line for account in report.accounts for line in _account_lines(account)]
    told += sink_lines(report.sinks)
    for name, contacts in report.unconfigured.items():
        told += [f"{'notice':<9} {unconfigured_line(name, contacts)}", f"{'':<9} {unconfigured_hint(name)}"]
    told.append(f"{'seconds':<9} {report.seconds:.1f}")
    several = len(report.accounts) > 1
    told += [f"{account.account}: " * several + _verdict(account) for account in report.accounts]
    return lines(told)


def sink_lines(sinks: Mapping[str, SinkReport]) -> list[str]:
    """One line per sink that has published."""
    return [f"{name:<9} {sink.path} (state {sink.seq})" for name, sink in sinks.items()]


def _account_lines(account: AccountReport) -> Sequence[str]:
    record = account.record
    if record is None or account.error is not None:
        return ()
    counts, requests = record.counts, record.requests
    purposes = record.detail.get("requests")
    spent = ", ".join(f"{name} {count}" for name, count in purposes.items()) if isinstance(purposes, Mapping) else ""
    rows = (
        ("account", f"{account.account}: {record.mode} export as of {instant(record.t0)}"),
        ("contacts", f"{counts.contacts:,} ({_changes(counts, account.struck)})"),
        ("received", f"{counts.received:,} ({counts.folded:,} folded, {counts.rejected:,} rejected)"),
        ("requests", f"{requests.sent:,} ({requests.retried:,} retried; {spent})"),
    )
    notes = (*_pace(record.detail.get("pace")), *_clocks(record.detail), *_resumed(record.detail))
    return [f"{name:<9} {text}" for name, text in (*rows, *notes)]


def _pace(pace: object) -> Sequence[tuple[str, str]]:
    """A line for a run that the server slowed down."""
    if not isinstance(pace, Mapping) or not pace.get("throttled"):
        return ()
    rate = f"{pace['per_second']} requests a second" if pace["per_second"] else f"{pace['at_once']} requests at once"
    return [("pace", f"slowed down {pace['throttled']} times by the server, to {rate}; waited {pace['waited']} s")]


def _clocks(detail: Mapping[str, object]) -> Sequence[tuple[str, str]]:
    """Lines for clocks that differ, and for a server clock that has gone back."""
    ahead, back = detail.get("clock_ahead"), detail.get("clock_back")
    told = []
    if isinstance(ahead, int) and abs(ahead) > CLOCKS_DIFFER:
        side = "ahead of" if ahead > 0 else "behind"
        told.append(f"the server's is {abs(ahead):,} s {side} ours; nothing is lost, and observed_at goes by it")
    if isinstance(back, int) and back:
        told.append(f"the server's has gone back: T0 is {back:,} s before that of the last run; nothing is lost")
    return [("clock", line) for line in told]


def _resumed(detail: Mapping[str, object]) -> Sequence[tuple[str, str]]:
    """A line for a run that resumed a killed one."""
    windows = detail.get("resumed")
    return (
        [("resumed", f"{windows:,} windows that a killed run had read")] if isinstance(windows, int) and windows else []
    )


def _changes(counts: Counts, struck: int) -> str:
    absent = f", {struck:,} absent for the first time" if struck else ""
    return (
        f"{counts.new:,} new, {counts.changed:,} changed, {counts.unchanged:,} unchanged, "
        f"{counts.deleted:,} deleted{absent}"
    )


def _verdict(account: AccountReport) -> str:
    """The one-line verdict on an account."""
    record = account.record
    if account.error is not None or record is None:
        return f"not published: account {account.account}"
    contacts, windows = f"{record.counts.contacts:,} contacts", f"{record.proof.windows:,} windows"
    if record.mode == "filtered":
        return f"filtered export: {contacts} matched (a filtered export has no proof)"
    if not record.proof.holds:
        return f"unproven: {contacts}; {record.proof.unproven[0]}"
    return f"complete: {contacts} in {windows}, all proven"
