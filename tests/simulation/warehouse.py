"""The production merge behind the simulation's protocol: normalizer, parts and merge SQL on a DuckDB in memory.

On accounts this small it is a hundred times slower than the model, so only a share of the schedules use it. `Both` runs
it next to the model and requires equal results, which justifies the use of the model in all other schedules.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import duckdb

from etl.api.response import Page
from etl.extract.checkpoint_file import CheckpointFile
from etl.extract.pipeline import Pipeline
from etl.extract.strategy import Extraction
from etl.model import AccountYield, Counts, Proof, Publication, RawPage, Requests, RunRecord, Span
from etl.normalize.normalizer import Normalizer
from etl.schema import WINDOWS_SCHEMA
from etl.sinks import duckdb_tables, merge
from etl.storage.staging import Stage
from tests.simulation.contact import Version, versions
from tests.simulation.fold import Model, Outcome

ACCOUNT = "main"
T = TypeVar("T")
_KEPT = """
SELECT contact_id, status, is_contact, epoch_us(created_at), epoch_us(updated_at), unread_messages FROM contacts
"""


class Disagreement(Exception):
    """The merge model and the production merge have different results."""


class Warehouse:
    """The production merge (`etl.sinks.merge`)."""

    def __init__(self) -> None:
        self._seq = 0
        self._contacts: dict[str, Version] = {}
        self._strikes: dict[str, int] = {}
        self._versions: dict[tuple[object, ...], Version] = {}
        """Every version ever received, by the values in its row."""
        self._database = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": "false"})
        self._database.execute("SET TimeZone = 'UTC'; ATTACH ':memory:' AS target")
        self._merging: duckdb.DuckDBPyConnection | None = None
        self._home = tempfile.TemporaryDirectory(prefix="simulation-")

    def prepare(self, pages: Sequence[Page], run: Extraction) -> Outcome:
        """See `fold.Fold`."""
        self._seq += 1
        publication = self._publication(pages, run)
        self._drop()
        self._merging = self._database.cursor()
        self._merging.execute("USE target")
        duckdb_tables.create(self._merging)
        merged = merge.prepare(self._merging, publication, {})
        self._versions |= {_shown(row): row for page in pages for row in versions(page)}
        return Outcome(merged.counts[ACCOUNT], merged.struck[ACCOUNT], merged.previous[ACCOUNT])

    def publish(self) -> None:
        """See `fold.Fold`."""
        assert self._merging is not None
        duckdb_tables.write(self._merging)
        self._contacts = {row[0]: self._versions[row] for row in self._merging.execute(_KEPT).fetchall()}
        self._strikes = dict(self._merging.execute("SELECT contact_id, strikes FROM etl.strikes").fetchall())
        self._drop()

    def contacts(self) -> Mapping[str, Version]:
        """See `fold.Fold`."""
        return self._contacts

    def strikes(self) -> Mapping[str, int]:
        """See `fold.Fold`."""
        return self._strikes

    def close(self) -> None:
        """Release memory and disk."""
        self._drop()
        self._database.close()
        self._home.cleanup()

    def _publication(self, pages: Sequence[Page], run: Extraction) -> Publication:
        stage = Stage(Path(self._home.name) / str(self._seq))
        record = RunRecord(
            seq=self._seq,
            run_id=f"run-{self._seq}",
            account=ACCOUNT,
            mode=run.mode,
            t0=_instant(run.capabilities.t0),
            watermark=_instant(run.watermark),
            proof=Proof("windows", len(run.accepted)),
            requests=Requests(),
            seconds=0.0,
            counts=_staged(pages, stage),
        )
        coverage = tuple(Span(None if start is None else _instant(start), _instant(end)) for start, end in run.coverage)
        confirmed = tuple(Span(_instant(start), _instant(end)) for start, end in run.confirmed)
        brought = AccountYield(record, stage.parts, stage.rejects, coverage, WINDOWS_SCHEMA.empty_table(), confirmed)
        return Publication(self._seq, record.run_id, (brought,))

    def _drop(self) -> None:
        """Discard a merge that was published, or refused by a guard."""
        if self._merging is not None:
            self._merging.close()
            self._merging = None


def _staged(pages: Sequence[Page], stage: Stage) -> Counts:
    """Normalize the pages into the stage as the production pipeline does, here without its thread."""
    pipeline = Pipeline(ACCOUNT, stage, CheckpointFile(stage.folder, "", 0.0))
    starts = accumulate((len(page.rows) for page in pages), initial=0)
    raw = [RawPage(page.body, len(page.rows), start) for page, start in zip(pages, starts, strict=False)]
    if raw:
        pipeline._keep(Normalizer(ACCOUNT)(raw))
    stage.close()
    pipeline.close()
    pipeline._receiver.close()
    return Counts(**{name: pipeline.counts[name] for name in ("received", "folded", "rejected")})


class Both:
    """The model and the warehouse side by side; raises Disagreement if they differ."""

    def __init__(self) -> None:
        self._model, self._warehouse = Model(), Warehouse()

    def prepare(self, pages: Sequence[Page], run: Extraction) -> Outcome:
        """See `fold.Fold`."""
        return _same("outcome", self._model.prepare(pages, run), self._warehouse.prepare(pages, run))

    def publish(self) -> None:
        """See `fold.Fold`."""
        self._model.publish()
        self._warehouse.publish()

    def contacts(self) -> Mapping[str, Version]:
        """See `fold.Fold`."""
        return _same("contacts", self._model.contacts(), self._warehouse.contacts())

    def strikes(self) -> Mapping[str, int]:
        """See `fold.Fold`."""
        return _same("strikes", self._model.strikes(), self._warehouse.strikes())

    def close(self) -> None:
        """See `fold.Fold`."""
        self._warehouse.close()


def _shown(row: Version) -> tuple[object, ...]:
    return row.id, row.status or None, row.is_contact, row.created, row.updated, row.unread


def _same(what: str, model: T, warehouse: T) -> T:
    if model != warehouse:
        raise Disagreement(f"{what}: the model says {model}, the warehouse {warehouse}")
    return warehouse


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
