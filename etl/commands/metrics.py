"""Metrics of the last attempt and the last published runs, in the text format of Prometheus (`[metrics] textfile`).

They are written after every attempt, failed ones too, and come from the attempts and the table `runs`: nothing is kept
between runs. Every series has the label `config`, the name of the configuration, so that several can share a folder.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import duckdb
import msgspec

from etl import __version__
from etl.commands.result import PublishedRun, Remarks, Status
from etl.commands.status import read_status
from etl.config import Config
from etl.errors import OK, PUBLISHED_WITH_REJECTS, EtlError
from etl.sinks.targets import reading
from etl.storage import files
from etl.storage.attempts import Attempt

MODE = 0o644
"""The collector of a node exporter runs as another user; the file has no contact values."""
_RESULTS = ("new", "changed", "unchanged", "deleted", "folded", "rejected")
_DETAILS = """
    select account, detail from runs
    qualify row_number() over (partition by account order by seq desc) = 1
"""

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]

FAMILIES: dict[str, str] = {
    "etl_build_info": "Versions of etl, Python and DuckDB; always 1.",
    "etl_last_attempt_timestamp_seconds": "When the last attempt to run ended, successful or not, by the local clock.",
    "etl_last_attempt_duration_seconds": "How long it took.",
    "etl_last_attempt_exit_code": "Its exit code: 0 and 40 mean published and proven.",
    "etl_last_attempt_requests": "Requests that it sent, for all accounts.",
    "etl_last_success_timestamp_seconds": "When the last attempt with exit code 0 or 40 ended; 0: never, or unknown.",
    "etl_last_run_timestamp_seconds": "T0 of the account's last published run, by the server's clock.",
    "etl_watermark_timestamp_seconds": "Everything that became visible up to here has been read.",
    "etl_contacts": "Contacts of the account in the target.",
    "etl_last_run_contacts": "Contacts that the account's last published run received, or deleted, by result.",
    "etl_last_run_requests": "Requests of the account's last published run, by purpose.",
    "etl_last_run_requests_retried": "Repeated requests among them.",
    "etl_last_run_phase_seconds": "Seconds of the account's last published run, by phase.",
    "etl_last_run_proven": "Whether it proved that no contact is missing: 1 or 0.",
}
"""Every family of metrics, all of them gauges, with its meaning."""


def write(config: Config, path: Path, attempt: Attempt) -> None:
    """Replace the file of metrics in one step. Raises `SinkError`."""
    files.replace_file(path, exposition(_samples(config, attempt)), MODE)


def exposition(samples: Iterable[Sample]) -> bytes:
    """The samples in the text format, family by family."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - an extra
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

    found = list(samples)

    class Families:
        def collect(self) -> Iterator[GaugeMetricFamily]:
            for family, meaning in FAMILIES.items():
                members = [(labels, value) for name, labels, value in found if name == family]
                gauge = GaugeMetricFamily(family, meaning, labels=[*members[0][0]] if members else ())
                for labels, value in members:
                    gauge.add_metric([*labels.values()], value)
                yield gauge

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    return generate_latest(registry)


def _samples(config: Config, attempt: Attempt) -> Iterator[Sample]:
    """Everything that is known after the attempt; if the target cannot be read, that is the attempt alone."""
    status, details = Status(attempt.finished), dict[str, Remarks]()
    with suppress(EtlError):
        status = read_status(config)
        with reading(config) as connection:
            rows = connection.execute(_DETAILS).fetchall()
        details = {account: msgspec.json.decode(detail, type=Remarks) for account, detail in rows}
    every = {"config": config.name}
    versions = {"version": __version__, "python": platform.python_version(), "duckdb": duckdb.__version__}
    yield "etl_build_info", every | versions, 1
    yield "etl_last_attempt_timestamp_seconds", every, attempt.finished.timestamp()
    yield "etl_last_attempt_duration_seconds", every, attempt.seconds
    yield "etl_last_attempt_exit_code", every, attempt.exit_code
    yield "etl_last_attempt_requests", every, attempt.requests
    successes = [one for one in (attempt, *status.attempts) if one.exit_code in {OK, PUBLISHED_WITH_REJECTS}]
    yield "etl_last_success_timestamp_seconds", every, successes[0].finished.timestamp() if successes else 0
    for account in (account for account in status.accounts if account.configured):
        yield from _account(account.last_run, details[account.last_run.account], every)


def _account(run: PublishedRun, remarks: Remarks, every: Labels) -> Iterator[Sample]:
    """The last published run of one account."""
    labels = {**every, "account": run.account}
    yield "etl_last_run_timestamp_seconds", labels, run.observed_at.timestamp()
    yield "etl_watermark_timestamp_seconds", labels, run.watermark.timestamp()
    yield "etl_contacts", labels, run.contacts
    for result in _RESULTS:
        yield "etl_last_run_contacts", {**labels, "result": result}, getattr(run, result)
    for purpose, count in remarks.requests.items():
        yield "etl_last_run_requests", {**labels, "purpose": purpose}, count
    yield "etl_last_run_requests_retried", labels, run.requests_retried
    for phase, seconds in remarks.seconds.items():
        yield "etl_last_run_phase_seconds", {**labels, "phase": phase}, seconds
    yield "etl_last_run_proven", labels, not run.unproven
