"""The load phase alone, in a separate process: synthetic parts, and their publication into one sink.

    python -m tests.bench.loads parts FOLDER CONTACTS          writes the parts that three runs would have read
    python -m tests.bench.loads publish FOLDER RUN SINK PATH   publishes one of them; prints seconds and counts

The contacts of a small account are repeated many times, each with a unique id and creation time, half of them in each
of the API's two lists.
"""

# ruff: noqa: S608 - SQL is made of numbers and names from this file.

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from etl.model import AccountYield, Counts, Proof, Publication, RawPage, Requests, RunRecord, Span
from etl.normalize import Normalizer
from etl.sandbox.settings import Settings
from etl.sandbox.world import World
from etl.schema import NORMALIZED_SCHEMA, WINDOWS_SCHEMA
from etl.sinks import DuckDBSink, ParquetSink
from etl.storage.row_hash import RowHasher
from etl.storage.staging import PART_ROWS, ROW_GROUP_ROWS

ACCOUNT = "bench"
MODELS = 25_000
"""Maximum number of different contacts; the others repeat them."""
BATCH = 1_600
"""Contacts normalized at once, as a run does."""
YEARS = 5
"""Period in which the contacts were created."""
OLDEST = datetime(2020, 1, 1, tzinfo=UTC)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
"""Start of the first run; each further one starts a day later."""
SINKS = {"parquet": ParquetSink, "duckdb": DuckDBSink}


@dataclass(frozen=True, slots=True)
class Reading:
    """The part of each list that a run reads; lists are in order of creation."""

    newest: float = 1.0
    """Share of the list, from its new end."""
    every: int = 1
    """Only every `every`-th contact of that share."""
    mark: str = ""
    """Prefix of the names: a different mark is a change."""

    def serials(self, contacts: int) -> range:
        """The indexes in a list of this number of contacts."""
        return range(contacts - round(contacts * self.newest), contacts, self.every)


RUNS = {"first": Reading(), "newest": Reading(0.02, 2, "again "), "evenly": Reading(1.0, 100, "once more ")}
"""In this order, numbered from 1; the later two read one contact in a hundred, each of them changed."""


def write_parts(folder: Path, contacts: int) -> None:
    """Write the parts of every run over `contacts` contacts, in reading order, with the size that a run gives them."""
    models, fingerprinted = _models(min(MODELS, contacts)), RowHasher()
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("normalized", models)
        connection.execute("CREATE TABLE models AS SELECT *, row_number() OVER () - 1 AS model FROM normalized")
        for name, run in RUNS.items():
            home = folder / name
            home.mkdir(parents=True)
            for number, query in enumerate(_queries(run, contacts // 2, models.num_rows)):
                part = fingerprinted(connection.sql(query).to_arrow_table().cast(NORMALIZED_SCHEMA))
                path = home / f"{number:06d}.parquet"
                pq.write_table(part, path, compression="zstd", compression_level=1, row_group_size=ROW_GROUP_ROWS)


def _models(contacts: int) -> pa.Table:
    """Contacts of the sandbox as a part, normalized as in a run."""
    world = World(Settings(contacts=contacts, nasty_share=0), T0.timestamp())
    raws = [contact.raw for contact in world.account.living().values()]
    normalize = Normalizer(ACCOUNT)
    batches = [raws[start : start + BATCH] for start in range(0, len(raws), BATCH)]
    pages = (RawPage(b'{"data":[' + b",".join(batch) + b"]}", len(batch), 0) for batch in batches)
    return pa.concat_tables([normalize([page]).contacts for page in pages])


def _queries(run: Reading, half: int, models: int) -> Iterator[str]:
    """One query for each part: both lists, each with `half` of the contacts.

    As in the API, an id begins with the second of creation in hexadecimal digits.
    """
    oldest = int(OLDEST.timestamp()) * 1_000_000
    step = round(timedelta(days=365 * YEARS) / timedelta(microseconds=1) / half)
    for leads in (False, True):
        serials = run.serials(half)
        for start in range(0, len(serials), PART_ROWS):
            part = serials[start : start + PART_ROWS]
            yield f"""
                SELECT models.* EXCLUDE (model) REPLACE (
                    lower(to_hex(created // 1000000)) || left(md5(concat(serial, ' {leads:d}')), 16) AS contact_id,
                    make_timestamptz(created) AS created_at,
                    {not leads} AS is_contact,
                    concat('{run.mark}', name) AS name,
                    serial + {half * leads} AS read_no)
                FROM (
                    SELECT range AS serial, {oldest} + serial * {step} + {leads:d} AS created
                    FROM range({part.start}, {part.stop}, {part.step}))
                JOIN models ON model = serial % {models}
                ORDER BY serial
            """


@dataclass(frozen=True, slots=True)
class Loaded:
    """One publication."""

    seconds: float
    """From opening the sink to the end of the publication."""
    counts: Counts


def publish(folder: Path, run: str, sink: str, path: Path) -> Loaded:
    """Publish the parts of one run, which follows those before it in `RUNS`."""
    publication = _publication(folder / run, list(RUNS).index(run) + 1)
    target = SINKS[sink](path)
    began = time.perf_counter()
    target.open()
    merged = target.prepare(publication)
    target.publish(publication)
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
    match sys.argv[1:]:
        case ["parts", folder, contacts]:
            write_parts(Path(folder), int(contacts))
        case ["publish", folder, run, sink, path]:
            print(json.dumps(asdict(publish(Path(folder), run, sink, Path(path)))))
        case _:
            sys.exit(__doc__)
