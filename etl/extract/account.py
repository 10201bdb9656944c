"""One account's share of a run: connect, extract into parts, and return a summary record.

Connects reading (async, `strategy`) with writing (threads, `pipeline`); publishes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic, time

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
from anyio import to_thread
from structlog.contextvars import bound_contextvars

from etl import __version__
from etl.api.client import Statistics
from etl.api.rate import Pace
from etl.api.sources import Source, reach
from etl.config import Config, Extract
from etl.errors import SourceUnavailable
from etl.extract.checkpoint_file import CheckpointFile, key_of
from etl.extract.crosscheck_log import CrossCheckFiles
from etl.extract.history import CLOCKS_DIFFER, History, PublishedSnapshot, Snapshot, Timing
from etl.extract.meter import Meter
from etl.extract.pipeline import Pipeline
from etl.extract.strategy import Extraction, extract
from etl.extract.windows import Accepted
from etl.log import log
from etl.model import NOTHING, AccountYield, Counts, Level, Look, Progress, Proof, Requests, RunRecord, SinkState, Span
from etl.schema import PART_SCHEMA, WINDOWS_SCHEMA
from etl.storage.staging import Stage
from etl.times import MILLISECOND, to_datetime, to_milliseconds

ROW_COUNTS = ("received", "folded", "rejected")
"""The counts of the pipeline that count contacts; the others count cells, texts and keys."""
FEWEST_ORDERED = 10
"""Pages of the longer list from which a first run is ordered: in a smaller account, reading twice costs little."""
MOST_OWNERS = 20
"""Maximum customers, or agencies, of one account that are recorded."""


@dataclass(slots=True)
class Reader:
    """Reads one account into `folder`; `progress` may be called at any time from the same thread."""

    source: Source
    published: PublishedSnapshot
    """The last published snapshot."""
    folder: Path
    config: Config
    full: bool
    seq: int
    run_id: str
    last: RunRecord | None = None
    """The account's last published run."""
    shared: bool = False
    """Whether other machines may have written the files in `folder`."""
    _meter: Meter | None = field(default=None, init=False)
    _pipeline: Pipeline | None = field(default=None, init=False)

    async def read(self) -> AccountYield:
        """Read the whole account.

        Raises the client's errors, and SourceUnavailable at the deadline.
        """
        started, account = monotonic(), self.source.account
        limit = self.config.extract.deadline.total_seconds()
        try:
            with anyio.fail_after(limit), bound_contextvars(account=account):
                extraction, pipeline, stage, seen = await self._extract()
        except TimeoutError:
            message = f"not done within extract.deadline ({limit:.0f} s)"
            raise SourceUnavailable(message, where=f"account {account}") from None
        owners = await to_thread.run_sync(_owners, stage.parts)
        record = self._record(extraction, pipeline.counts, seen, owners, monotonic() - started)
        log.info("account.read", account=account, mode=record.mode, **asdict(record.requests))
        return AccountYield(
            record,
            stage.parts,
            stage.rejects,
            tuple(Span(_time(start), _time(end)) for start, end in extraction.coverage),
            _windows(account, extraction.accepted),
            tuple(Span(_time(start), _time(end)) for start, end in extraction.confirmed),
        )

    def progress(self) -> Progress | None:
        """The current progress; None before the client exists."""
        if self._meter is None or self._pipeline is None:
            return None
        seen = self._meter.client.statistics()
        expected = self.last.counts.contacts if self.last else None
        account, rows = self.source.account, self._pipeline.rows
        return Progress(account, rows, seen.sent, seen.in_flight, expected, self._meter.phase)

    def spent(self) -> Requests:
        """The requests sent so far, also if reading failed."""
        if self._meter is None:
            return Requests()
        seen = self._meter.client.statistics()
        return Requests(seen.sent, seen.retried)

    async def _extract(self) -> tuple[Extraction, Pipeline, Stage, Statistics]:
        settings, account = self.config.extract, self.source.account
        key = reading_key(self.source, settings, self.last, full=self.full)
        checkpoint = await to_thread.run_sync(
            partial(CheckpointFile.open, self.folder, key, time(), shared=self.shared)
        )
        if checkpoint.resumed:
            log.info("run.resumed", account=account, windows=len(checkpoint.resumed.accepted))
        stage = Stage(self.folder, checkpoint.saved.parts, checkpoint.saved.rejects)
        pace = pace_of(self.last, settings.concurrency)
        with checkpoint, Pipeline(account, stage, checkpoint) as pipeline:
            self._pipeline = pipeline
            connection = reach(self.source, settings, self.config.http, pace)
            async with connection as client, anyio.create_task_group() as tasks:
                self._meter = Meter(client)
                tasks.start_soon(pipeline.run)
                await pipeline.resume()
                snapshot = self.published.during(pipeline.files, self.folder)
                # Read once, in a thread: on the event loop, it would block the other accounts.
                await to_thread.run_sync(snapshot.created, None)
                extraction = await extract(
                    client,
                    history_of(self.last, snapshot),
                    timing_of(settings),
                    pipeline.receive,
                    CrossCheckFiles(self.folder, pipeline.files, self.published.copy_ids, checkpoint),
                    checkpoint,
                    self._meter,
                    full=self.full,
                    filters=settings.filters,
                    local_now=int(time() * 1000),
                    shrink_share=self.config.guard.max_shrink_share,
                    ordered_from=ordered_from(settings),
                )
                await pipeline.parts()
                pipeline.close()
        return extraction, pipeline, stage, client.statistics()

    def _record(
        self,
        extraction: Extraction,
        counts: Mapping[str, int],
        seen: Statistics,
        owners: Mapping[str, Sequence[str]],
        seconds: float,
    ) -> RunRecord:
        """The record of this run. Warns if one of the clocks is or was wrong (N25); the watermark is safe anyway."""
        account, t0 = self.source.account, to_datetime(extraction.capabilities.t0)
        clock_back = max(0, round((self.last.t0 - t0).total_seconds())) if self.last else 0
        if abs(extraction.clock_ahead) > CLOCKS_DIFFER:
            log.warning("clocks.differ", account=account, server_ahead_seconds=extraction.clock_ahead)
        if clock_back:
            log.warning("clock.went_back", account=account, t0_earlier_seconds=clock_back)
        before = self.last.detail.get("identity") if self.last else None
        return RunRecord(
            seq=self.seq,
            run_id=self.run_id,
            account=account,
            mode=extraction.mode,
            t0=t0,
            watermark=to_datetime(extraction.watermark),
            proof=proof_of(extraction),
            requests=Requests(seen.sent, seen.retried),
            seconds=round(seconds, 3),
            counts=Counts(**{name: counts[name] for name in ROW_COUNTS}),
            detail=_detail(extraction, counts, seen)
            | {"identity": identity_of(self.source.base_url, owners, before), "clock_back": clock_back},
        )


def reading_key(source: Source, extract: Extract, last: RunRecord | None, *, full: bool) -> str:
    """The inputs of an extraction after the run `last`: a killed run is resumed only if its key is the same."""
    return key_of(
        source.account, source.base_url, source.credential.token.get_secret_value(),
        full, timing_of(extract), extract.filters, extract.first_run,
        last and (last.run_id, last.seq), PART_SCHEMA, __version__,
    )  # fmt: skip


def proof_of(extraction: Extraction) -> Proof:
    """The weakest proof level of any part, and everything that is not proven."""
    levels: tuple[Level, ...] = ("sequential", "ordered", "windows")
    found = {done.level for done in extraction.accepted}
    level: Level = "pages" if extraction.scanned else next((one for one in levels if one in found), "windows")
    return Proof(level, len(extraction.accepted), tuple(extraction.unproven))


def last_run(states: Sequence[SinkState], account: str) -> RunRecord | None:
    """The published run to continue from: that of the most lagging sink; None if a sink has no run of the account."""
    records = [state.runs.get(account) for state in states]
    known = [record for record in records if record is not None]
    if len(known) < len(records) or not known:
        return None
    # The server's clock may have gone back since: the runs are compared by the local one.
    began = [record.t0 - timedelta(seconds=_whole(record.detail, "clock_ahead") or 0) for record in known]
    return known[began.index(min(began))]


def pace_of(record: RunRecord | None, concurrency: int) -> Pace:
    """The initial pace: that at which the last run of the account ended."""
    pace = Pace(concurrency)
    known = record.detail.get("pace") if record else None
    if isinstance(known, Mapping):
        at_once, per_second = float(known.get("at_once") or 0), float(known.get("per_second") or 0)
        pace.limit = at_once if per_second else max(pace.limit, at_once)
        pace.interval = 1.0 / per_second if per_second else 0.0
    return pace


def history_of(record: RunRecord | None, snapshot: Snapshot) -> History:
    """The history of an account that the next run needs, from its last run."""
    if record is None:
        return History(snapshot=snapshot)
    look, cuts = record.detail.get("look"), record.detail.get("cuts")
    return History(
        t0=to_milliseconds(record.t0),
        watermark=to_milliseconds(record.watermark),
        clock_ahead=_whole(record.detail, "clock_ahead") or 0,
        cross_checked_at=_whole(record.detail, "witness_at"),
        scrub_after=_whole(record.detail, "scrub_after"),
        proven=record.proof.holds,
        by_windows=by_windows if isinstance(by_windows := record.detail.get("by_windows"), float) else 1.0,
        without_created_at=record.counts.contacts > len(snapshot.created(None)),
        look=Look(look["looked"], look["absent"]) if isinstance(look, Mapping) else NOTHING,
        cuts={name == "contacts": (rows, at) for name, (rows, at) in cuts.items()} if isinstance(cuts, Mapping) else {},
        snapshot=snapshot,
    )


def identity_of(base_url: str, owners: Mapping[str, Sequence[str]], before: object) -> dict[str, object]:
    """The account's owners: `owners` received in this run, merged with those of runs `before` if any agree."""
    known = before if isinstance(before, Mapping) else {}
    identity: dict[str, object] = {"base_url": base_url}
    for name, new in owners.items():
        old = set(known.get(name, ()))
        identity[name] = sorted(old | set(new) if not new or old & set(new) else new)
    return identity


def _owners(parts: Sequence[Path]) -> dict[str, Sequence[str]]:
    """The customers and agencies that own the contacts received; none if too many to identify the account."""
    found: dict[str, set[str]] = {"customers": set(), "agencies": set()}
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(columns=["customer_id", "agency_id"]):
            for name, column in zip(found, batch.columns, strict=True):
                if len(found[name]) <= MOST_OWNERS:
                    found[name].update(filter(None, column.unique().to_pylist()))
    return {name: sorted(owners) if len(owners) <= MOST_OWNERS else () for name, owners in found.items()}


def _detail(extraction: Extraction, counts: Mapping[str, int], seen: Statistics) -> dict[str, object]:
    return {
        "capabilities": extraction.capabilities.document(),
        "requests": dict(extraction.requests),
        "seconds": {purpose: round(seconds, 3) for purpose, seconds in extraction.seconds.items()},
        "cells": {name: count for name, count in sorted(counts.items()) if name not in ROW_COUNTS},
        "witness_at": extraction.cross_checked_at,
        "scrub_after": extraction.scrub_after,
        "late": extraction.late,
        "by_windows": round(extraction.by_windows, 4),
        "order_checks": asdict(extraction.order_checks),
        "order_doubt": extraction.order_doubt,
        "look": asdict(extraction.look),
        "escalated": extraction.escalated and asdict(extraction.escalated),
        "cuts": {"contacts" if listed else "leads": cut for listed, cut in extraction.cuts.items()},
        "resumed": extraction.resumed,
        "clock_ahead": extraction.clock_ahead,
        "pace": {
            "peak_in_flight": seen.peak_in_flight,
            "at_once": seen.at_once,
            "per_second": round(1 / seen.interval, 1) if seen.interval else None,
            "throttled": seen.throttled,
            "waited": round(seen.waited, 1),
        },
    }


def _windows(account: str, accepted: Sequence[Accepted]) -> pa.Table:
    columns = {
        "account": [account] * len(accepted),
        "field": [done.window.field for done in accepted],
        "is_contact": [done.window.is_contact for done in accepted],
        "start": [_time(done.window.start) for done in accepted],
        "end": [_time(done.window.end) for done in accepted],
        "rows": [done.rows for done in accepted],
        "request": [done.request for done in accepted],
        "attempts": [done.attempts for done in accepted],
        "level": [done.level for done in accepted],
    }
    return pa.table(columns, schema=WINDOWS_SCHEMA)


def timing_of(extract: Extract) -> Timing:
    """The configured margins in milliseconds."""
    return Timing(
        visibility_lag=extract.visibility_lag // MILLISECOND,
        lookback=extract.lookback // MILLISECOND,
        cross_check_every=extract.witness_every // MILLISECOND,
        scrub_every=extract.scrub_every // MILLISECOND,
        scrub_runs=extract.scrub_runs,
        deadline=extract.deadline // MILLISECOND,
    )


def ordered_from(extract: Extract) -> int | None:
    """Pages of the longer list from which a first run relies on the order of the lists; None: it never does."""
    return FEWEST_ORDERED if extract.first_run == "ordered" else None


def _whole(detail: Mapping[str, object], name: str) -> int | None:
    value = detail.get(name)
    return value if isinstance(value, int) else None


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else to_datetime(milliseconds)
