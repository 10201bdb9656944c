"""Publishes the parts of one run, without reading an account, in a separate process; prints seconds and counts.

python -m tests.bench.publish FOLDER SEQ CONFIG
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq

from etl.config import load
from etl.model import AccountYield, Counts, Proof, Publication, Requests, RunRecord, Span
from etl.schema import WINDOWS_SCHEMA
from etl.sinks import targets

ACCOUNT = "bench"
T0 = datetime(2026, 1, 1, tzinfo=UTC)
"""Start of the first run; each further one starts a day later."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One publication."""

    seconds: float
    """From opening the sink to the end of the publication."""
    counts: Counts


def publish(folder: Path, seq: int, config: Path) -> Loaded:
    """Publish the parts in `folder` as run `seq` into the only sink of a configuration."""
    publication = _publication(folder, seq)
    [sink] = targets.sinks(load(config))
    began = time.perf_counter()
    sink.open()
    merged = sink.prepare(publication)
    sink.publish(publication)
    return Loaded(time.perf_counter() - began, merged.counts[ACCOUNT])


def _publication(folder: Path, seq: int) -> Publication:
    parts = tuple(sorted(folder.glob("*.parquet")))
    received = sum(pq.read_metadata(part).num_rows for part in parts)
    t0, full = T0 + timedelta(days=seq - 1), seq == 1
    record = RunRecord(
        seq=seq,
        run_id=f"bench-{seq}",
        account=ACCOUNT,
        mode="full" if full else "incremental",
        t0=t0,
        watermark=t0,
        proof=Proof("windows", 0),
        requests=Requests(),
        seconds=0.0,
        counts=Counts(received=received),
    )
    coverage = (Span(None, None),) if full else ()
    brought = AccountYield(record, parts, (), coverage, WINDOWS_SCHEMA.empty_table())
    return Publication(seq, record.run_id, (brought,))


if __name__ == "__main__":
    print(json.dumps(asdict(publish(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))))
