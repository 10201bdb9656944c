"""Copy (`etl copy FROM TO`): fill a new sink with everything that another one has published, without the API.

History, runs, rejects and state are copied; the manifests are chained anew, so the next run of the new sink is
incremental. Both sinks are in the configuration, and the new one is empty.
"""

# ruff: noqa: S608 - SQL is built from our own names.

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import duckdb

from etl.commands.result import Document, SinkReport, sink_documents
from etl.config import Config
from etl.errors import PublishConflict, UsageError
from etl.log import log
from etl.model import Publication, RunRecord
from etl.sinks import ParquetSink, Sink, Unpublished
from etl.sinks.checks import refuse_published
from etl.sinks.manifest import Manifest, chained, decode
from etl.sinks.targets import named, sinks
from etl.storage.lock import Lock
from etl.storage.row_hash import is_former


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What was copied."""

    source: str
    target: str
    contacts: int
    versions: int
    runs: int
    report: SinkReport
    """The new sink."""

    def document(self) -> Document:
        """The `--json` document of `copy`."""
        return {
            "exit": 0,
            "from": self.source,
            "to": self.target,
            "contacts": self.contacts,
            "versions": self.versions,
            "runs": self.runs,
            "sinks": sink_documents({self.target: self.report}),
        }


def copy_sink(config: Config, source_name: str, target_name: str) -> CopyResult:
    """Fill the sink `target_name` from the sink `source_name`, in one atomic step.

    Raises `UsageError` if the target holds something or the source nothing, and the errors of the sinks.
    """
    made = sinks(config)
    source, target = named(made, source_name), named(made, target_name)
    if source is target:
        raise UsageError("a sink cannot be copied into itself", where="command line")
    if not source.exists():  # The lock would make its folder.
        raise Unpublished("nothing was published yet", where=source.location)
    # No run may publish into the source while its tables are read one after the other.
    with Lock(source.path), Lock(target.path):
        try:
            with source.reading() as connection:
                refuse_published(target, target.open())
                _refuse_former(connection, source)
                history = _history(connection, source)
                target.restore(connection, history)
                contacts, versions = (
                    int(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])
                    for table in ("contacts", "contact_versions")
                )
            last = history[-1]
            target.publish(Publication(last.seq, last.run_id, (), last.filters))
        finally:
            target.discard()
    log.info("sink.published", sink=target.name, seq=last.seq)
    report = SinkReport(target.location, last.seq)
    return CopyResult(source_name, target_name, contacts, versions, len(history), report)


def _history(connection: duckdb.DuckDBPyConnection, source: Sink) -> list[Manifest]:
    """The manifests of the new target: one for each run that the connection shows.

    Raises `PublishConflict` if another machine, which no lock keeps away, has published since the connection was made.
    """
    if isinstance(source, ParquetSink):
        manifests = list(source.manifests())
    else:
        documents = connection.execute("SELECT document FROM etl.manifests ORDER BY seq").fetchall()
        manifests = [decode(document.encode()) for (document,) in documents]
    runs: defaultdict[int, list[RunRecord]] = defaultdict(list)
    for published in manifests:
        for run in published.runs:  # A copy has all of them in one manifest.
            runs[run.seq].append(run)
    [[last]] = connection.execute("SELECT max(seq) FROM runs").fetchall()
    if last != max(runs):
        message = "another run was published while this one was copied"
        raise PublishConflict(message, where=source.location, hint="Copy again.")
    return chained(runs, manifests[-1].filters)


def _refuse_former(connection: duckdb.DuckDBPyConnection, source: Sink) -> None:
    """Raise `UsageError` if contacts have fingerprints of an earlier version, which the next run could not compare."""
    [[former]] = connection.execute(f"SELECT count(*) FROM contacts WHERE {is_former('row_hash')}").fetchall()
    if former:
        raise UsageError(
            f"{former} contacts were published by an earlier version of etl",
            where=source.location,
            hint="Run `etl run --full` with this sink alone, then copy it.",
        )
