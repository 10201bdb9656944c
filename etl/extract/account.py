"""One account's share of a run: connect, extract into parts, and return a summary record.

Connects reading (async, `strategy`) with writing (threads, `pipeline`); publishes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic, time

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
from anyio import to_thread

from etl import __version__
from etl.api.client import Client
from etl.api.rate import Pace
from etl.api.sources import Source, reach
from etl.config import Extract, Http
from etl.errors import SourceUnavailable
from etl.extract.crosscheck_log import CrossCheckFiles
from etl.extract.history import CLOCKS_DIFFER, History, PublishedSnapshot, Snapshot, Timing
from etl.extract.journal import Journal, key_of, left_in
from etl.extract.pipeline import Pipeline
from etl.extract.strategy import Extraction, extract
from etl.extract.windows import Accepted
from etl.log import log
from etl.model import NOTHING, AccountYield, Counts, Level, Look, Progress, Proof, Requests, RunRecord, SinkState, Span
from etl.schema import PART_SCHEMA, WINDOWS_SCHEMA
from etl.storage import files
from etl.storage.staging import Stage
from etl.times import MILLISECOND, to_datetime, to_milliseconds

MOST_OWNERS = 20
"""Maximum customers, or agencies, of one account that are recorded."""


@dataclass(slots=True)
class Reader:
    """Reads one account into `folder`; `progress` may be called at any time from the same thread."""

    source: Source
    published: PublishedSnapshot
    """The last published snapshot."""
    folder: Path
    extract: Extract
    http: Http
    full: bool
    seq: int
    run_id: str
    shrink_share: float = 0.05
    """The share of the contacts checked for that may be absent (`guard.max_shrink_share`)."""
    last: RunRecord | None = None
    """The account's last published run."""
    _began_at: float = field(default=0.0, init=False)
    _client: Client | None = field(default=None, init=False)
    _pipeline: Pipeline | None = field(default=None, init=False)

    async def read(self) -> AccountYield:
        """Read the whole account.

        Raises the client's errors, and SourceUnavailable at the deadline.
        """
        started, self._began_at = monotonic(), time()
        limit = self.extract.deadline.total_seconds()
        try:
            with anyio.fail_after(limit):
                extraction, pipeline, stage = await self._extract()
        except TimeoutError:
            raise SourceUnavailable(f"not done within extract.deadline ({limit:.0f} s)", where=self._where) from None
        owners = await to_thread.run_sync(_owners, stage.parts)
        record = self._record(extraction, pipeline, owners, monotonic() - started)
        log.info("account.read", account=self.source.account, mode=record.mode, **asdict(record.requests))
        return AccountYield(
            record,
            stage.parts,
            stage.rejects,
            tuple(Span(_time(start), _time(end)) for start, end in extraction.coverage),
            _windows(self.source.account, extraction.accepted),
            tuple(Span(_time(start), _time(end)) for start, end in extraction.confirmed),
        )

    def _clocks(self, extraction: Extraction) -> dict[str, int]:
        """Seconds by which the server's clock is ahead of ours, and by which T0 is before the last run's; may warn.

        The watermark is safe in both cases, but one of the clocks is or was wrong (N25).
        """
        ahead, t0 = extraction.clock_ahead, to_datetime(extraction.capabilities.t0)
        back = max(0, round((self.last.t0 - t0).total_seconds())) if self.last else 0
        if abs(ahead) > CLOCKS_DIFFER:
            log.warning("clocks.differ", account=self.source.account, server_ahead_seconds=ahead)
        if back:
            log.warning("clock.went_back", account=self.source.account, t0_earlier_seconds=back)
        return {"clock_ahead": ahead, "clock_back": back}

    def progress(self) -> Progress | None:
        """The current progress; None before the client exists."""
        if self._client is None or self._pipeline is None:
            return None
        seen = self._client.statistics()
        expected = self.last.counts.contacts if self.last else None
        return Progress(self.source.account, self._pipeline.rows, seen.sent, seen.in_flight, expected)

    def spent(self) -> Requests:
        """The requests sent so far, also if reading failed."""
        if self._client is None:
            return Requests()
        seen = self._client.statistics()
        return Requests(seen.sent, seen.retried)

    async def _extract(self) -> tuple[Extraction, Pipeline, Stage]:
        journal = await to_thread.run_sync(self._journal)
        left = journal.left
        stage = Stage(self.folder, left.parts, left.rejects)
        pace = pace_of(self.last, self.extract.concurrency)
        with journal, Pipeline(self.source.account, stage, journal) as pipeline:
            self._pipeline = pipeline
            async with reach(self.source, self.extract, self.http, pace) as client, anyio.create_task_group() as tasks:
                self._client = client
                tasks.start_soon(pipeline.run)
                await pipeline.go_on()
                snapshot = self.published.during(pipeline.files, self.folder)
                extraction = await extract(
                    client,
                    history_of(self.last, snapshot),
                    timing_of(self.extract),
                    pipeline.receive,
                    CrossCheckFiles(self.folder, pipeline.parts, self.published.copy_ids, journal),
                    journal,
                    full=self.full,
                    filters=self.extract.filters,
                    local_now=int(time() * 1000),
                    shrink_share=self.shrink_share,
                )
                await pipeline.parts()
                pipeline.close()
        return extraction, pipeline, stage

    def _journal(self) -> Journal:
        """The journal of this account's stage, with the progress of a killed run or empty."""
        key = reading_key(self.source, self.extract, self.last, full=self.full)
        left = left_in(self.folder, key, self._began_at)
        if left.resumption is None:
            files.remove(self.folder)
        else:
            log.info("run.resumed", account=self.source.account, windows=len(left.resumption.accepted))
        files.private_folder(self.folder)
        return Journal(self.folder, key, self._began_at, left)

    def _record(
        self, extraction: Extraction, pipeline: Pipeline, owners: Mapping[str, Sequence[str]], seconds: float
    ) -> RunRecord:
        before = self.last.detail.get("identity") if self.last else None
        return RunRecord(
            seq=self.seq,
            run_id=self.run_id,
            account=self.source.account,
            mode=extraction.mode,
            t0=to_datetime(extraction.capabilities.t0),
            watermark=to_datetime(extraction.watermark),
            proof=proof_of(extraction),
            requests=self.spent(),
            seconds=round(seconds, 3),
            counts=Counts(**{name: pipeline.counts[name] for name in ("received", "folded", "rejected")}),
            detail=_detail(extraction, pipeline.counts)
            | {"pace": self._pace(), "identity": identity_of(self.source.base_url, owners, before)}
            | self._clocks(extraction),
        )

    def _pace(self) -> dict[str, object]:
        """The request rate and concurrency learned for this server."""
        if self._client is None:
            return {}
        seen = self._client.statistics()
        return {
            "peak_in_flight": seen.peak_in_flight,
            "at_once": seen.at_once,
            "per_second": round(1 / seen.interval, 1) if seen.interval else None,
            "throttled": seen.throttled,
            "waited": round(seen.waited, 1),
        }

    @property
    def _where(self) -> str:
        return f"account {self.source.account}"


def reading_key(source: Source, extract: Extract, last: RunRecord | None, *, full: bool) -> str:
    """The inputs of an extraction after the run `last`: a killed run is resumed only if its key is the same."""
    return key_of(
        source.account, source.base_url, source.credential.token.get_secret_value(),
        full, timing_of(extract), extract.filters,
        last and (last.run_id, last.seq), PART_SCHEMA, __version__,
    )  # fmt: skip


def proof_of(extraction: Extraction) -> Proof:
    """The weakest proof level of any part, and everything that is not proven."""
    level: Level = "windows"
    if any(done.level == "sequential" for done in extraction.accepted):
        level = "sequential"
    if extraction.walked:
        level = "pages"
    return Proof(level, len(extraction.accepted), tuple(extraction.unproven))


def last_run(states: Sequence[SinkState], account: str) -> RunRecord | None:
    """The published run to continue from: that of the most lagging sink; None if a sink has no run of the account."""
    records = [state.runs.get(account) for state in states]
    known = [record for record in records if record is not None]
    return min(known, key=_began) if len(known) == len(records) else None


def _began(record: RunRecord) -> datetime:
    """When a run began, by the local clock: the server's may have gone back since."""
    return record.t0 - timedelta(seconds=_whole(record.detail, "clock_ahead") or 0)


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
        witness_at=_whole(record.detail, "witness_at"),
        scrub_after=_whole(record.detail, "scrub_after"),
        proven=record.proof.holds,
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


def _detail(extraction: Extraction, cells: Mapping[str, int]) -> dict[str, object]:
    return {
        "capabilities": extraction.capabilities.document(),
        "requests": dict(extraction.requests),
        "seconds": {purpose: round(seconds, 3) for purpose, seconds in extraction.seconds.items()},
        "cells": {
            name: count for name, count in sorted(cells.items()) if name not in {"received", "folded", "rejected"}
        },
        "witness_at": extraction.witness_at,
        "scrub_after": extraction.scrub_after,
        "late": extraction.late,
        "look": asdict(extraction.look),
        "escalated": extraction.escalated and asdict(extraction.escalated),
        "cuts": {"contacts" if listed else "leads": cut for listed, cut in extraction.cuts.items()},
        "resumed": extraction.resumed,
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
        witness_every=extract.witness_every // MILLISECOND,
        scrub_every=extract.scrub_every // MILLISECOND,
        scrub_runs=extract.scrub_runs,
    )


def _whole(detail: Mapping[str, object], name: str) -> int | None:
    value = detail.get(name)
    return value if isinstance(value, int) else None


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else to_datetime(milliseconds)
