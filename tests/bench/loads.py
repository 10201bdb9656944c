"""Synthetic parts, as three runs over an account would have read them, and the same contacts as one file for each run.

    python -m tests.bench.loads FOLDER CONTACTS

The contacts of a small account are repeated many times, each with a unique id and creation time, half of them in each
of the API's two lists.
"""

# ruff: noqa: S608 - SQL is made of numbers and names from this file.

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from etl.model import RawPage
from etl.normalize.normalizer import Normalizer
from etl.sandbox.settings import Settings
from etl.sandbox.world import World
from etl.schema import NORMALIZED_SCHEMA
from etl.sinks import tables
from etl.storage.row_hash import with_row_hash
from etl.storage.staging import PART_ROWS, ROW_GROUP_ROWS
from tests.bench.publish import ACCOUNT, T0

MODELS = 25_000
"""Maximum number of different contacts; the others repeat them."""
BATCH = 1_600
"""Contacts normalized at once, as a run does."""
YEARS = 5
"""Period in which the contacts were created."""
OLDEST = datetime(2020, 1, 1, tzinfo=UTC)


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
    """Write the parts of every run over `contacts` contacts into `folder`/RUN, with the size that a run gives them.

    `folder`/RUN.parquet has the same contacts as rows of `contacts`, for a bare engine.
    """
    models = _models(min(MODELS, contacts))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("normalized", models)
        connection.execute("CREATE TABLE models AS SELECT *, row_number() OVER () - 1 AS model FROM normalized")
        for name, run in RUNS.items():
            home = folder / name
            home.mkdir(parents=True)
            for number, query in enumerate(_queries(run, contacts // 2, models.num_rows)):
                part = with_row_hash(connection.sql(query).to_arrow_table().cast(NORMALIZED_SCHEMA))
                path = home / f"{number:06d}.parquet"
                pq.write_table(part, path, compression="zstd", compression_level=1, row_group_size=ROW_GROUP_ROWS)
            connection.execute(
                f"""COPY (
                    SELECT {tables.names(tables.CONTACTS)} FROM (
                        SELECT *, '{T0}'::TIMESTAMPTZ AS observed_at, {list(RUNS).index(name) + 1}::BIGINT AS seq
                        FROM '{home}/*.parquet')
                ) TO '{home}.parquet' (COMPRESSION zstd)"""
            )


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


if __name__ == "__main__":
    write_parts(Path(sys.argv[1]), int(sys.argv[2]))
