"""One contract for all sinks, checked by independent readers."""

# ruff: noqa: S608 - the SQL consists of the column table, constant names and quoted literals.

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from etl import schema
from etl.errors import EtlError, PublishConflict, SinkError, TargetCorrupt, UsageError
from etl.model import Merged, NormalizedBatch, Publication
from etl.sinks import Sink, SinkKind, select
from etl.sinks.delta_commits import options
from etl.sinks.postgres import PostgresSink
from etl.sinks.snapshot import Published
from etl.storage import staging
from etl.storage.lock import Lock
from etl.times import to_datetime
from tests.support.azure import BlobStore
from tests.support.campaign import campaign
from tests.support.object_store import ObjectStore
from tests.support.postgres import Server
from tests.support.publishing import Row, batch, brought, contact, day, delta_at, objects_at, publication, sink_at


def _read_duckdb(path: Path, table: str) -> list[dict[str, object]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.sql(f"SELECT * FROM {table}").to_arrow_table().to_pylist()


_STATES = {"contacts": "current", "rejects": "rejects"}
_FOLDERS = {"contact_versions": "versions", "etl.windows": "windows"}


def _runs(manifests: list[dict[str, Any]]) -> list[dict[str, object]]:
    return [
        run["counts"] | {"seq": run["seq"], "account": run["account"]} for each in manifests for run in each["runs"]
    ]


def _read_parquet(path: Path, table: str) -> list[dict[str, object]]:
    manifests = [json.loads(file.read_bytes()) for file in sorted(path.glob("manifests/*.json"))]
    if table == "runs":
        return _runs(manifests)
    folder = path / (f"{_STATES[table]}/seq={manifests[-1]['seq']:08d}" if table in _STATES else _FOLDERS[table])
    return ds.dataset(folder).to_table().to_pylist() if folder.exists() else []


@dataclass
class Target:
    """A sink on a path, with an independent reader."""

    kind: SinkKind
    path: Path
    folder: Path
    reader: Callable[[Path, str], list[dict[str, object]]]

    def sink(self) -> Sink:
        """A new sink object, as a new process has it."""
        return sink_at(self.kind, self.path)

    windows = "etl.windows"

    def bring(self, seq: int, *rows: Row, **options: object) -> Publication:
        """A run of one account."""
        return publication(brought(self.folder, "main", rows, seq=seq, **options))  # type: ignore[arg-type]

    def publish(self, run: Publication) -> Merged:
        """Publish a whole run."""
        sink = self.sink()
        sink.open()
        merged = sink.prepare(run)
        sink.publish(run)
        return merged

    def read(self, table: str) -> list[dict[str, object]]:
        """The rows of a table, as another program reads them."""
        return self.reader(self.path, table)

    def exists(self) -> bool:
        """Whether anything was published."""
        return self.path.exists()

    def ids(self) -> list[int]:
        """The numbers of the live contacts."""
        return sorted(int(str(row["contact_id"]), 16) for row in self.read("contacts"))

    def bytes(self) -> dict[str, str]:
        """A digest of every published file."""
        files = [self.path] if self.path.is_file() else sorted(path for path in self.path.rglob("*") if path.is_file())
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def temporary(self) -> list[str]:
        """The names in the temporary folder."""
        return sorted(path.name for path in staging.temporary(self.path).iterdir())


@dataclass
class PostgresTarget(Target):
    """A sink on a database of its own, read by another client."""

    server: Server
    database: str
    windows = "etl_windows"

    def sink(self) -> Sink:
        """A new sink object, as a new process has it."""
        return PostgresSink(partial(self.server.dsn, self.database), HOME, self.path)

    def read(self, table: str) -> list[dict[str, object]]:
        """The rows of a table, as another program reads them."""
        return self.server.rows(f'"{HOME}".{table}', self.database)

    def exists(self) -> bool:
        """Whether there is a state: the server is there anyway."""
        return self.sink().state().seq > 0

    def bytes(self) -> dict[str, str]:
        """A digest of every table."""
        tables = self.server.sql(
            f"SELECT relname FROM pg_stat_user_tables WHERE schemaname = '{HOME}'", database=self.database
        )
        return {
            str(table): hashlib.sha256(str(sorted(map(str, self.read(str(table))))).encode()).hexdigest()
            for (table,) in tables
        }


@dataclass
class ObjectTarget(Target):
    """A Parquet target in an object store, read by another client."""

    store: ObjectStore | BlobStore
    url: str

    def sink(self) -> Sink:
        """A new sink object, as a new process has it."""
        return objects_at(self.url, self.store.endpoint, self.path)

    def read(self, table: str) -> list[dict[str, object]]:
        """The rows of a table, from the files that the manifests list."""
        names = sorted(name for name in self.store.names(self.url) if name.startswith("manifests/"))
        manifests = [json.loads(self.store.get(self.url, name)) for name in names]
        if table == "runs":
            return _runs(manifests)
        content, chosen = (_STATES[table], manifests[-1:]) if table in _STATES else (_FOLDERS[table], manifests)
        files = [file["path"] for one in chosen for file in one["files"] if file["path"].startswith(f"{content}/")]
        return [row for file in files for row in pq.read_table(BytesIO(self.store.get(self.url, file))).to_pylist()]

    def exists(self) -> bool:
        """Whether there is a manifest."""
        return any(name.startswith("manifests/") for name in self.store.names(self.url))

    def bytes(self) -> dict[str, str]:
        """A digest of every object, without the announcements of runs."""
        names = [name for name in self.store.names(self.url) if not name.startswith("preparing/")]
        return {name: hashlib.sha256(self.store.get(self.url, name)).hexdigest() for name in names}

    def temporary(self) -> list[str]:
        """The names in the temporary folder, without the copies of the last state."""
        return [name for name in super().temporary() if not name.endswith(".copies")]


@dataclass
class DeltaTarget(Target):
    """Delta tables, in a folder or in an object store, read as Delta tables."""

    url: str
    endpoint: str

    def sink(self) -> Sink:
        """A new sink object, as a new process has it."""
        return delta_at(self.url, self.endpoint, self.path)

    def read(self, table: str) -> list[dict[str, object]]:
        """The rows of a table; windows are no table."""
        if table == "etl.windows":
            with self.sink().reading() as connection:
                return select(connection, "FROM etl.windows").to_pylist()
        name = {"contact_versions": "versions"}.get(table, table)
        found = DeltaTable(f"{self.url}/{name}", storage_options=options(self.endpoint)).to_pyarrow_table()
        return found.sort_by("seq").to_pylist()

    def exists(self) -> bool:
        """Whether the table `contacts` can be read."""
        try:
            return bool(self.read("contacts"))
        except TableNotFoundError:
            return False

    def bytes(self) -> dict[str, str]:
        """What readers see of every table."""
        names = ("contacts", "contact_versions", "runs", "rejects")
        return {name: str(sorted(map(str, self.read(name)))) for name in names}

    def temporary(self) -> list[str]:
        """The names in the temporary folder, without the copies of the last state."""
        return [name for name in super().temporary() if not name.endswith(".copies")]


of_files = pytest.mark.parametrize("target", ["duckdb", "parquet"], indirect=True)
"""For tests of targets that consist of files on this disk."""
without_server = pytest.mark.parametrize(
    "target", ["duckdb", "parquet", "s3", "delta", *map(campaign, ("delta-s3", "az", "delta-az"))], indirect=True
)
"""For tests of what any sink of files leaves on this disk."""
HOME = "Customer data"
"""A schema whose name must be quoted."""


def of_kind(kind: str, folder: Path) -> Target:
    """A target of files that does not exist yet."""
    if kind == "duckdb":
        return Target("duckdb", folder / "data" / "contacts.duckdb", folder / "parts", _read_duckdb)
    return Target("parquet", folder / "data" / "contacts", folder / "parts", _read_parquet)


STORES = {"s3": "object_store", "az": "blob_store"}
"""The fixtures of the object stores, by their scheme."""


@pytest.fixture(params=["duckdb", "parquet", "s3", "postgres", "delta", *map(campaign, ("delta-s3", "az", "delta-az"))])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """A target of each kind that does not exist yet."""
    kind, _, scheme = request.param.rpartition("-")
    if scheme in STORES:
        store: ObjectStore | BlobStore = request.getfixturevalue(STORES[scheme])
        return as_delta(tmp_path, store.new_url(), store.endpoint) if kind else in_store(store, tmp_path)
    if scheme == "postgres":
        return on_server(request.getfixturevalue("postgres"), tmp_path)
    if scheme == "delta":
        return as_delta(tmp_path, str(tmp_path / "data" / "contacts"))
    return of_kind(scheme, tmp_path)


def on_server(server: Server, folder: Path) -> PostgresTarget:
    """A target in a new database."""
    path = folder / "data" / "postgres"
    return PostgresTarget("postgres", path, folder / "parts", _read_duckdb, server, server.create_database())


def in_store(store: ObjectStore | BlobStore, folder: Path) -> ObjectTarget:
    """A target under a new prefix."""
    path = folder / "data" / "contacts"
    return ObjectTarget("parquet", path, folder / "parts", _read_parquet, store, store.new_url())


def as_delta(folder: Path, url: str, endpoint: str = "") -> DeltaTarget:
    """Delta tables, in an object store or in a folder, that do not exist yet."""
    path = folder / "data" / "contacts"
    return DeltaTarget("delta", path, folder / "parts", _read_parquet, url, endpoint)


FULL = contact(
    1,
    name="Zo\u00eb \U0001f600 '; DROP TABLE contacts; --",
    tags=["a", None, ""],
    attributes=[("k", "v"), ("empty", None)],
    notes=[{"title": "t", "description": None, "_id": "n"}],
    is_online=True,
    website_visits=2**40,
    last_seen_at=day(365 * 900),
    extra='{"a": {"b": [1, null]}}',
)


def test_every_kind_of_value_comes_back_as_it_went_in(target: Target) -> None:
    """Lists, maps, notes, times in 2926, JSON and SQL in a name are stored verbatim (S10, X5)."""
    target.publish(target.bring(1, FULL))
    [row] = target.read("contacts")
    expected = dict.fromkeys(schema.column_names()) | FULL | {"account": "main", "observed_at": day(1), "seq": 1}
    assert {name: value for name, value in row.items() if name != "row_hash"} == {
        name: value for name, value in expected.items() if name != "row_hash"
    }
    [version] = target.read("contact_versions")
    assert version == row | {"op": "upsert"}


def test_two_runs_tell_every_case_and_carry_the_state(target: Target) -> None:
    """New, changed, presence, unchanged, struck and deleted agree in the tables, the counts and the next state."""
    target.publish(target.bring(1, *(contact(number) for number in range(1, 6))))
    second = [contact(1, name="new"), contact(2, is_online=True), contact(3), contact(3), contact(6)]
    merged = target.publish(target.bring(2, *second))
    assert merged.struck == {"main": 2}
    target.publish(target.bring(3, contact(1, name="new"), contact(2, is_online=True), contact(3), contact(5)))
    assert target.ids() == [1, 2, 3, 5, 6]
    versions = [(int(str(row["contact_id"]), 16), row["seq"], row["op"]) for row in target.read("contact_versions")]
    first = [(number, 1, "upsert") for number in range(1, 6)]
    assert sorted(versions) == sorted([*first, (1, 2, "upsert"), (6, 2, "upsert"), (4, 3, "delete")])
    runs = [
        {
            name: run[name]
            for name in ("seq", "received", "new", "changed", "unchanged", "deleted", "folded", "contacts")
        }
        for run in target.read("runs")
    ]
    assert [tuple(run.values()) for run in runs] == [
        (1, 5, 5, 0, 0, 0, 0, 5),
        (2, 5, 1, 1, 2, 0, 1, 6),
        (3, 4, 0, 0, 4, 1, 0, 5),
    ]
    state = target.sink().open()
    assert (state.seq, state.runs["main"].t0, state.runs["main"].counts.contacts) == (3, day(3), 5)
    assert state.runs["main"].detail == {"page_size": 50}


def test_as_of_shows_the_contacts_that_a_run_left(target: Target) -> None:
    """`contacts_as_of` is empty before the first run, then shows the last state, with deletions and resurrections."""
    for seq, rows in enumerate([[contact(1), contact(2)], [contact(2, name="b")], [contact(2)], [contact(1)]], start=1):
        target.publish(target.bring(seq, *rows))
    with target.sink().reading() as connection:

        def as_of(moment: float) -> list[tuple[object, ...]]:
            query = f"SELECT * FROM contacts_as_of(TIMESTAMPTZ '{day(moment)}') ORDER BY contact_id"
            rows = select(connection, query)
            assert rows.column_names == list(schema.column_names())
            return [(int(row["contact_id"], 16), row["name"], row["seq"]) for row in rows.to_pylist()]

        assert as_of(0.9) == []
        assert as_of(1) == [(1, None, 1), (2, None, 1)]
        assert as_of(2.5) == [(1, None, 1), (2, "b", 2)]
        assert as_of(3) == [(2, None, 3)]
        assert as_of(9) == [(1, None, 4), (2, None, 3)]


def at(run: Publication, moment: float, **detail: object) -> Publication:
    """The same run with another T0 and with this detail."""
    accounts = (replace(one, record=replace(one.record, t0=day(moment), detail=detail)) for one in run.accounts)
    return replace(run, accounts=tuple(accounts))


def test_as_of_goes_by_the_last_run_when_the_servers_clock_went_back(target: Target) -> None:
    """For each account, the highest-numbered run observed by that time counts (N25)."""
    both = [("one", [contact(1), contact(2)]), ("two", [contact(3)])]
    target.publish(at(publication(*(brought(target.folder, name, rows, seq=1) for name, rows in both)), 10))
    target.publish(at(publication(brought(target.folder, "one", [contact(1, name="b"), contact(4)], seq=2)), 5))
    target.publish(at(publication(brought(target.folder, "two", [contact(5)], seq=3)), 6))
    target.publish(at(publication(brought(target.folder, "one", [contact(1, name="b"), contact(4)], seq=4)), 7))
    second = {("one", 1, "b"), ("one", 2, None), ("one", 4, None)}
    third = {("two", 3, None), ("two", 5, None)}
    with target.sink().reading() as connection:

        def as_of(moment: float) -> set[tuple[object, ...]]:
            rows = select(connection, f"SELECT * FROM contacts_as_of(TIMESTAMPTZ '{day(moment)}')").to_pylist()
            return {(row["account"], int(row["contact_id"], 16), row["name"]) for row in rows}

        assert as_of(4.9) == set()
        assert as_of(5) == second
        assert as_of(6) == second | third
        assert as_of(7) == as_of(10) == as_of(99) == (second | third) - {("one", 2, None)}


def test_a_run_gone_on_with_brings_a_sink_that_has_it_no_second_strike(target: Target) -> None:
    """If a run was killed between two sinks, its resumption is no second strike for the first sink (P4, A45)."""
    target.publish(target.bring(1, contact(1), contact(2)))
    for seq in (2, 3):
        merged = target.publish(at(target.bring(seq, contact(2)), 2, resumed=5))
        assert (merged.struck, merged.counts["main"].deleted) == ({"main": 1}, 0)
    assert target.ids() == [1, 2]
    target.publish(target.bring(4, contact(2)))
    assert target.ids() == [2]


def test_the_same_answers_again_change_no_contact(target: Target) -> None:
    """A run without changes adds a row to `runs`, and no version."""
    target.publish(target.bring(1, contact(1), contact(2)))
    before = sorted(target.read("contacts"), key=str)
    assert target.publish(target.bring(2, contact(2), contact(1))).counts["main"].unchanged == 2
    assert sorted(target.read("contacts"), key=str) == before
    assert len(target.read("contact_versions")) == 2
    assert len(target.read("runs")) == 2


def test_an_account_that_failed_keeps_its_contacts_and_state(target: Target) -> None:
    """A run without an account keeps that account's contacts and state."""
    one, two = (brought(target.folder, name, [contact(1)], seq=1) for name in ("one", "two"))
    target.publish(publication(one, two))
    target.publish(publication(brought(target.folder, "two", [contact(1, name="x")], seq=2)))
    assert sorted((row["account"], row["seq"]) for row in target.read("contacts")) == [("one", 1), ("two", 2)]
    assert {name: run.seq for name, run in target.sink().open().runs.items()} == {"one": 1, "two": 2}


def test_rejects_and_windows_are_kept_with_their_run(target: Target) -> None:
    """A rejected contact is counted and in `rejects` with its raw JSON (A25)."""
    reject = {"contact_id": None, "reason": "no id", "path": "_id", "raw": "{}"}
    window = {
        "field": "createdAt",
        "is_contact": True,
        "start": None,
        "end": day(1),
        "rows": 1,
        "request": 7,
        "attempts": 1,
    }
    merged = target.publish(target.bring(1, contact(1), rejects=[reject], windows=[window]))
    assert merged.counts["main"].rejected == 1
    [row] = target.read("rejects")
    assert row == reject | {
        "account": "main",
        "seq": 1,
        "observed_at": day(1),
        "first_seq": 1,
        "last_seq": 1,
        "seen": 1,
    }
    windows = target.read(target.windows)
    assert [(row["end"], row["request"], row["seq"]) for row in windows] == [(day(1), 7, 1)]


def test_an_empty_account_is_a_snapshot_too(target: Target) -> None:
    """The tables of an empty account exist with all columns (A42)."""
    target.publish(target.bring(1))
    with target.sink().reading() as connection:
        for table in ("contacts", "contact_versions", "rejects"):
            assert select(connection, f"FROM {table}").num_rows == 0
        [run] = select(connection, "FROM runs").to_pylist()
    assert (run["contacts"], run["unproven"], run["detail"]) == (0, [], '{"page_size": 50}')


def test_creation_times_come_sorted_for_each_list(target: Target) -> None:
    """Creation times are sorted and only those of the account; a contact without a known list counts in both lists."""
    assert target.sink().created_at("main").num_rows == 0
    rows = [contact(3, is_contact=True), contact(2, is_contact=False), contact(1), contact(4, created_at=None)]
    other = brought(target.folder, "other", [contact(9)], seq=1)
    target.publish(publication(brought(target.folder, "main", rows, seq=1), other))
    sink = target.sink()
    sink.open()
    created = Published(sink, "main").created
    assert [to_datetime(time) for time in created(None)] == [day(1), day(2), day(3)]
    assert [to_datetime(time) for time in created(True)] == [day(1), day(3)]
    assert [to_datetime(time) for time in created(False)] == [day(1), day(2)]
    assert Published(sink, "nobody").created(True) == ()
    assert sink.created_at("main").schema.types == [schema.TIME, pa.bool_(), pa.bool_()]


def test_contacts_are_copied_as_a_part_of_another_account(target: Target) -> None:
    """The copy has every value and fingerprint of one account, is private, and can be published under another name."""
    other = brought(target.folder, "other", [contact(9)], seq=1)
    without_created_at = contact(2, created_at=None, status=None)
    target.publish(publication(brought(target.folder, "main", [FULL, without_created_at], seq=1), other))
    sink, part = target.sink(), target.folder / "copied.parquet"
    sink.open()
    before = os.umask(0)
    try:
        assert sink.copy_contacts("main", "shop", part) == 2
        assert sink.copy_contacts("nobody", "shop", target.folder / "none.parquet") == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(part.stat().st_mode) == 0o600
    assert sorted(pq.read_schema(part).names) == sorted(schema.PART_SCHEMA.names)
    target.publish(publication(replace(brought(target.folder, "shop", [contact(1), contact(2)], seq=2), parts=(part,))))
    by_account = {
        account: {row["contact_id"]: {**row, "account": "", "seq": 0, "observed_at": None} for row in rows}
        for account in ("main", "shop")
        if (rows := [row for row in target.read("contacts") if row["account"] == account])
    }
    assert len(by_account["main"]) == 2
    assert by_account["shop"] == by_account["main"]


def test_filters_belong_to_the_target(target: Target) -> None:
    """A target made with filters accepts only the same filters, and holds exactly the matches."""

    def filtered(seq: int, *rows: Row, status: str = "OPEN") -> Publication:
        one = brought(target.folder, "main", rows, seq=seq, mode="filtered", coverage=())
        return publication(one, filters={"status": [status]})

    target.publish(filtered(1, contact(1), contact(2)))
    target.publish(filtered(2, contact(2)))
    assert target.ids() == [2]
    assert target.sink().open().filters == {"status": ["OPEN"]}
    for other in (filtered(3, contact(2), status="CLOSED"), target.bring(3, contact(2))):
        with pytest.raises(UsageError, match="other filters"):
            target.sink().prepare(other)


def test_nothing_is_visible_before_publishing_or_after_discarding(target: Target) -> None:
    """A failed first run leaves no target and only the lock, and preparing again after `discard` works."""
    run = target.bring(1, contact(1))
    with Lock(target.path):
        sink = target.sink()
        sink.open()
        sink.prepare(run)
        assert not target.exists()
        sink.discard()
        sink.discard()
        assert not target.exists()
        assert sink.prepare(run).counts["main"].new == 1
        sink.publish(run)
    assert target.ids() == [1]
    assert target.temporary() == [f"{target.path.name}.lock"]
    with pytest.raises(SinkError, match="nothing is prepared"):
        sink.publish(run)


@without_server
def test_files_are_private_whatever_the_umask(target: Target) -> None:
    """Files are 0600 and folders 0700, after a second run too (X3)."""
    before = os.umask(0)
    try:
        for seq in (1, 2):
            target.publish(target.bring(seq, contact(1)))
    finally:
        os.umask(before)
    for path in target.path.parent.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_reader_sees_its_snapshot_and_blocks_nobody(target: Target) -> None:
    """A connection opened before a run shows the old state after it, and a new connection the new state (S1, S12)."""
    target.publish(target.bring(1, contact(1)))
    with target.sink().reading() as reader:
        assert select(reader, "SELECT count(*) AS n FROM contacts")["n"].to_pylist() == [1]
        target.publish(target.bring(2, contact(1), contact(2)))
        assert select(reader, "SELECT count(*) AS n FROM contacts")["n"].to_pylist() == [1]
    assert target.ids() == [1, 2]


def test_the_second_of_two_that_prepared_the_same_run_loses(target: Target) -> None:
    """The second publisher gets exit 21, and the data of the first stays byte-identical (P17, P18)."""
    for seq in (1, 2):
        run = target.bring(seq, contact(1, name=str(seq)))
        first, second = target.sink(), target.sink()
        first.prepare(run)
        with pytest.raises(PublishConflict):  # noqa: PT012 - a server refuses the second one earlier than files
            second.prepare(run)
            first.publish(run)
            before = target.bytes()
            second.publish(run)
        second.discard()
        if target.kind == "postgres":
            first.publish(run)
            continue
        assert target.bytes() == before
    with pytest.raises(PublishConflict, match="already published"):
        target.sink().prepare(run)


def test_a_run_of_another_target_may_skip_numbers(target: Target) -> None:
    """Two sinks share one numbering, so a sink that missed a run continues with a later number."""
    for seq in (2, 5):
        target.publish(target.bring(seq, contact(seq)))
    assert target.sink().open().seq == 5


def test_a_run_that_fails_leaves_every_byte(target: Target) -> None:
    """A part that cannot be read stops the run, and no published byte changes."""
    target.publish(target.bring(1, contact(1)))
    before = target.bytes()
    run = target.bring(2, contact(1), contact(2))
    [part] = run.accounts[0].parts
    part.write_bytes(part.read_bytes()[:-9])
    sink = target.sink()
    with pytest.raises(EtlError):
        sink.prepare(run)
    sink.discard()
    assert target.bytes() == before
    assert target.temporary() == []


_KILL = """
import os, shutil, sys, pathlib
sys.path.insert(0, sys.argv[1])
from tests.support.postgres import Server
from tests.support.publishing import brought, contact, publication, sink_at
kind, home, name, seq = sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])
whole, data = home / "whole", home / "data"
run = publication(brought(home / "parts-of-child", "main", [contact(1), contact(seq)], seq=seq))

def publish_until(stop):
    calls = 0
    def count(event, arguments):
        nonlocal calls
        if event in ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"):
            calls += 1
            if calls > stop:
                os.kill(os.getpid(), 9)
    sys.addaudithook(count)
    sink.publish(run)
    os._exit(0)

stop, code = 0, -9
while code == -9:
    shutil.rmtree(data, ignore_errors=True)
    if whole.exists():
        shutil.copytree(whole, data)
    sink = sink_at(kind, data / name)
    sink.open()
    sink.prepare(run)
    child = os.fork()
    if not child:
        publish_until(stop)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    shutil.copytree(data, home / "ended" / f"{stop:03d}")
    stop += 1
sys.exit(code)
"""


@of_files
@pytest.mark.parametrize("published", [pytest.param(0, marks=pytest.mark.campaign), 1])
def test_a_kill_anywhere_in_publishing_leaves_the_old_state_or_the_new(target: Target, published: int) -> None:
    """After a kill before any file operation of a publication, the next run finds a whole state (P4, S11)."""
    home = target.path.parent.parent
    if published:
        target.publish(target.bring(1, contact(1)))
        shutil.copytree(target.path.parent, home / "whole")
    arguments = [str(Path(__file__).parents[2]), target.kind, str(home), target.path.name, str(published + 1)]
    subprocess.run([sys.executable, "-c", _KILL, *arguments], check=True)  # noqa: S603
    seen = []
    for ended in sorted((home / "ended").iterdir()):
        target.path = ended / target.path.name
        seen.append(target.sink().open().seq)
        assert target.temporary() == []
        assert target.path.exists() == bool(seen[-1])
    assert sorted(seen) == seen
    assert set(seen) == {published, published + 1}
    target.publish(target.bring(published + 2, contact(1), contact(9)))
    assert 9 in target.ids()


_LIMIT = """
import resource, sys, pathlib
sys.path.insert(0, sys.argv[1])
from tests.support.postgres import Server
from tests.support.publishing import brought, contact, publication, sink_at
from etl.errors import SinkError
path = pathlib.Path(sys.argv[3])
rows = [contact(number, extra=str(number) * 99) for number in range(9000)]
run = publication(brought(path.parent.parent / "limited", "main", rows, seq=2))
sink = sink_at(sys.argv[2], path)
sink.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    sink.prepare(run)
except SinkError as error:
    print(error.exit_code)
sink.discard()
"""


@of_files
def test_a_disk_that_takes_no_more_leaves_every_byte(target: Target) -> None:
    """A write that fails halfway is exit 20 and leaves nothing behind, and the next run works (P9, S8)."""
    target.publish(target.bring(1, contact(1)))
    before = target.bytes()
    arguments = [str(Path(__file__).parents[2]), target.kind, str(target.path)]
    ended = subprocess.run([sys.executable, "-c", _LIMIT, *arguments], check=True, capture_output=True, text=True)  # noqa: S603
    assert ended.stdout == "20\n"
    assert target.bytes() == before
    assert target.temporary() == []
    target.publish(target.bring(2, contact(1), contact(2)))


@of_files
@pytest.mark.parametrize("damage", [b"", b"not one of ours", None])
def test_a_damaged_target_is_never_taken_for_a_new_one(target: Target, damage: bytes | None) -> None:
    """Empty, foreign and truncated files are exit 22 and stay as they are (P25, S4, S9)."""
    target.publish(target.bring(1, *(contact(number) for number in range(2000))))
    file = target.path if target.kind == "duckdb" else next(target.path.glob("current/*/*.parquet"))
    manifest = file if target.kind == "duckdb" else next(target.path.glob("manifests/*"))
    for victim in {file, manifest}:
        whole = victim.read_bytes()
        victim.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
        before = target.bytes()
        with pytest.raises(TargetCorrupt):
            target.sink().open()
        assert target.bytes() == before
        victim.write_bytes(whole)
    assert target.sink().open().seq == 1


@without_server
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_fetched(target: Target) -> None:
    """A file in place of a folder is exit 20, with the path and a hint (P12)."""
    target.path.parent.write_text("a file")
    with pytest.raises(SinkError) as caught:
        target.sink().open()
    assert caught.value.where
    assert "choose another path" in caught.value.hint


def test_a_query_cannot_write(target: Target) -> None:
    """Only a single reading statement is accepted, and the engine's message is passed on (X4)."""
    target.publish(target.bring(1, contact(1)))
    outside = target.folder / "out.csv"
    queries = (
        "CREATE TABLE x (a INT)", "DELETE FROM contacts", "SELECT 1; SELECT 2", "", "ATTACH 'x'", "SET threads = 1",
        f"COPY (SELECT 1) TO '{outside}'", f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}'",
        "FROM read_text('/etc/hosts')",
        "WITH x AS (INSERT INTO runs SELECT * FROM runs RETURNING *) FROM x", "SELECT no_such_column FROM contacts",
    )  # fmt: skip
    for query in queries:
        with pytest.raises(UsageError):
            target.sink().select(query)
    with target.sink().reading() as connection:
        for query in queries:
            with pytest.raises(UsageError):
                select(connection, query)
        assert select(connection, "DESCRIBE contacts").num_rows == len(schema.CONTACTS)
    assert not outside.exists()


def test_sql_before_the_first_run_says_so(target: Target) -> None:
    """A query before the first run is an error that says so."""
    with pytest.raises(UsageError, match="nothing was published yet"), target.sink().reading():
        pass


# DuckDB only.


@pytest.fixture
def database(tmp_path: Path) -> Target:
    """A DuckDB target."""
    return Target("duckdb", tmp_path / "data" / "contacts.duckdb", tmp_path / "parts", _read_duckdb)


def _sql(path: Path, *statements: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_database_with_other_tables_gets_ours_and_keeps_its_own(database: Target) -> None:
    """Foreign tables in the database are kept."""
    _sql(database.path, "CREATE TABLE orders AS SELECT 1 AS id")
    assert database.sink().open().seq == 0
    database.publish(database.bring(1, contact(1)))
    assert _read_duckdb(database.path, "orders") == [{"id": 1}]
    assert database.ids() == [1]


@pytest.mark.parametrize("statement", ["CREATE TABLE contacts (id INT)", "CREATE VIEW runs AS SELECT 1 AS seq"])
def test_a_foreign_table_under_our_name_is_refused(database: Target, statement: str) -> None:
    """A foreign table with a reserved name is exit 22 with its name, and the file stays as it is."""
    _sql(database.path, statement)
    before = database.bytes()
    with pytest.raises(TargetCorrupt, match=r"main\.(contacts|runs)") as caught:
        database.sink().open()
    assert "RENAME" in caught.value.hint
    assert database.bytes() == before


def test_columns_and_tables_that_the_user_added_are_kept(database: Target) -> None:
    """A note on a contact survives a change of the contact, and views and indexes do no harm (S6)."""
    database.publish(database.bring(1, contact(1), contact(2)))
    _sql(
        database.path,
        "ALTER TABLE contacts ADD COLUMN note VARCHAR",
        "UPDATE contacts SET note = 'call back'",
        "CREATE VIEW open_contacts AS SELECT * FROM contacts WHERE status = 'OPEN'",
        "CREATE INDEX by_name ON contacts (name)",
    )
    database.publish(database.bring(2, contact(1, name="changed"), contact(2), contact(3)))
    notes = {int(str(row["contact_id"]), 16): row["note"] for row in database.read("open_contacts")}
    assert notes == {1: "call back", 2: "call back", 3: None}


@pytest.mark.parametrize(
    ("statement", "hint"),
    [
        ("ALTER TABLE contacts DROP COLUMN city", 'ALTER TABLE main.contacts ADD COLUMN "city" VARCHAR'),
        ("ALTER TABLE runs ALTER COLUMN windows TYPE VARCHAR", 'ALTER COLUMN "windows" TYPE BIGINT'),
        ("DROP TABLE etl.strikes", "Restore it from a backup"),
        ("UPDATE etl.manifests SET document = replace(document, 'run-1', 'run-7')", "Restore it from a backup"),
        ("DELETE FROM etl.manifests", "Restore it from a backup"),
    ],
)
def test_an_altered_database_is_refused_with_the_mend(database: Target, statement: str, hint: str) -> None:
    """A missing or retyped column, a missing table, and an edited manifest are exit 22 with a hint (S6, P26)."""
    database.publish(database.bring(1, contact(1)))
    _sql(database.path, statement)
    with pytest.raises(TargetCorrupt) as caught:
        database.sink().open()
    assert hint in caught.value.hint


def test_a_write_ahead_log_beside_the_file_is_refused(database: Target) -> None:
    """An unfinished change of another program is never discarded, neither when opening nor when publishing (S3)."""
    database.publish(database.bring(1, contact(1)))
    wal = database.path.with_name("contacts.duckdb.wal")
    run = database.bring(2, contact(1))
    sink = database.sink()
    sink.prepare(run)
    wal.write_bytes(b"wal")
    with pytest.raises(SinkError, match=r"contacts\.duckdb\.wal"):
        sink.publish(run)
    with pytest.raises(SinkError, match=r"contacts\.duckdb\.wal"):
        database.sink().open()
    wal.write_bytes(b"")
    assert database.sink().open().seq == 1


def test_whoever_writes_just_now_is_named_and_their_log_left_alone(database: Target) -> None:
    """If a running program has the file open, the hint does not say to delete its log (S1)."""
    database.publish(database.bring(1, contact(1)))
    program = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); c.execute('create table mine as select 1'); input()"
    command = [sys.executable, "-c", program, str(database.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:  # noqa: S603 - our own program
        wal = database.path.with_name("contacts.duckdb.wal")
        while not (wal.exists() and wal.stat().st_size):
            time.sleep(0.01)
        with pytest.raises(SinkError, match=f"PID {writer.pid}") as caught:
            database.sink().open()
        writer.kill()
    assert "Close the program" in caught.value.hint
    assert "delete" not in caught.value.hint


def test_a_change_of_the_file_during_the_run_is_a_conflict(database: Target) -> None:
    """Changes that the user made during the run are not overwritten (P17)."""
    database.publish(database.bring(1, contact(1)))
    run = database.bring(2, contact(1))
    sink = database.sink()
    sink.prepare(run)
    _sql(database.path, "CREATE TABLE mine AS SELECT 1 AS id")
    with pytest.raises(PublishConflict, match="changed during the run"):
        sink.publish(run)
    sink.discard()
    assert _read_duckdb(database.path, "mine") == [{"id": 1}]


_WRITE = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_database_that_another_program_writes_is_refused(database: Target) -> None:
    """A database open in another program is exit 20 with the engine's message, which has the process id (S1)."""
    database.publish(database.bring(1, contact(1)))
    command = [sys.executable, "-c", _WRITE, str(database.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:  # noqa: S603
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(SinkError, match=str(writer.pid)) as caught:
            database.sink().open()
        writer.kill()
    assert "Close the program" in caught.value.hint


def test_the_macro_is_in_the_file(database: Target) -> None:
    """Any DuckDB client can use `contacts_as_of`."""
    database.publish(database.bring(1, contact(1)))
    assert len(_read_duckdb(database.path, f"contacts_as_of(TIMESTAMPTZ '{day(1)}')")) == 1


def test_a_file_of_an_earlier_version_gets_todays_macro(database: Target) -> None:
    """The next run replaces the macro of an earlier version."""
    database.publish(database.bring(1, contact(1)))
    with duckdb.connect(str(database.path)) as connection:
        connection.execute("CREATE OR REPLACE MACRO contacts_as_of(instant) AS TABLE SELECT instant WHERE false")
    database.publish(database.bring(2, contact(1)))
    assert len(_read_duckdb(database.path, f"contacts_as_of(TIMESTAMPTZ '{day(1)}')")) == 1


# Parquet only.


@pytest.fixture
def folder(tmp_path: Path) -> Target:
    """A Parquet target."""
    return Target("parquet", tmp_path / "data" / "contacts", tmp_path / "parts", _read_parquet)


def test_the_files_have_the_schema_that_is_promised(folder: Target) -> None:
    """Names and types of the columns of contacts and versions are as declared (S10)."""
    folder.publish(folder.bring(1, FULL))
    current = pq.read_schema(next(folder.path.glob("current/seq=00000001/*.parquet")))
    assert current.remove_metadata().equals(schema.CONTACTS_SCHEMA)
    versions = pq.read_schema(next(folder.path.glob("versions/seq=00000001/*.parquet")))
    assert versions.remove_metadata().equals(schema.CONTACTS_SCHEMA.append(pa.field("op", pa.string())))


def test_the_manifest_lists_its_files_and_the_one_before(folder: Target) -> None:
    """The manifest has size, rows and SHA-256 of every file, and the digest of the previous manifest (S11, X19)."""
    for seq in (1, 2):
        folder.publish(folder.bring(seq, contact(1), contact(seq + 1)))
    first, second = sorted(folder.path.glob("manifests/*.json"))
    assert [path.name for path in (first, second)] == ["00000001.json", "00000002.json"]
    manifest: Mapping[str, object] = json.loads(second.read_bytes())
    assert manifest["previous"] == hashlib.sha256(first.read_bytes()).hexdigest()
    assert {file["path"]: file["rows"] for file in manifest["files"]} == {  # type: ignore[attr-defined]
        "current/seq=00000002/part-000001.parquet": 3,
        "versions/seq=00000002/part-000001.parquet": 1,
        "strikes/seq=00000002/part-000001.parquet": 1,
    }
    for file in manifest["files"]:  # type: ignore[attr-defined]
        content = (folder.path / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])


def _many(folder: Target, seq: int, numbers: range, name: str) -> Publication:
    """A run over contacts created an hour apart, and one contact without a creation time."""
    without_created_at = batch("main", [contact(0, created_at=None)]).contacts
    many = pa.concat_tables([without_created_at] * len(numbers)).combine_chunks()
    values = {
        "contact_id": [f"{number:024x}" for number in numbers],
        "created_at": [day(number / 24) if number else None for number in numbers],
        "name": [name] * len(numbers),
        "read_no": list(range(len(numbers))),
    }
    for column, cells in values.items():
        index = many.schema.get_field_index(column)
        many = many.set_column(index, many.schema.field(index), pa.array(cells, many.schema.field(index).type))
    one = brought(folder.folder, "main", [], seq=seq, mode="incremental", coverage=())
    stage = staging.Stage(folder.folder / f"many-{seq}")
    stage.append(NormalizedBatch(many, schema.REJECT_PART_SCHEMA.empty_table()))
    stage.close()
    counts = replace(one.record.counts, received=len(numbers))
    return publication(replace(one, record=replace(one.record, counts=counts), parts=stage.parts))


def _state(folder: Target, seq: int) -> list[Path]:
    return sorted(folder.path.glob(f"current/seq={seq:08d}/*.parquet"))


def test_a_state_is_cut_by_creation_time_and_files_without_a_change_are_linked(folder: Target) -> None:
    """A change in the last range and a contact after it leave the other files unchanged (S21, S22)."""
    folder.publish(_many(folder, 1, range(130_000), "old"))
    times = [pq.read_table(path, columns=["created_at"])["created_at"] for path in _state(folder, 1)]
    assert [len(column) for column in times] == [43_333, 43_333, 43_333, 1]
    spans = [pc.min_max(column).as_py() for column in times]
    assert spans[0]["max"] < spans[1]["min"] <= spans[1]["max"] < spans[2]["min"]
    assert times[-1].to_pylist() == [None]

    folder.publish(_many(folder, 2, range(129_990, 130_005), "new"))
    before, after = ([path.stat().st_ino for path in _state(folder, seq)] for seq in (1, 2))
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    names = ds.dataset(folder.path / "current" / "seq=00000002").to_table(columns=["name"])["name"]
    assert dict(names.value_counts().to_pylist()[index].values() for index in (0, 1)) == {"old": 129_990, "new": 15}
    manifest = json.loads((folder.path / "manifests" / "00000002.json").read_bytes())
    for file in manifest["files"]:
        assert hashlib.sha256((folder.path / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    assert len(_state(folder, 2)) == sum(file["path"].startswith("current/") for file in manifest["files"])


def test_files_without_a_change_are_copied_where_there_are_no_links(
    folder: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If hard links are not supported or a file has too many, the files are copied byte by byte (P13)."""

    def refused(*_: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    folder.publish(_many(folder, 1, range(130_000), "old"))
    monkeypatch.setattr(os, "link", refused)
    folder.publish(_many(folder, 2, range(129_990, 130_005), "new"))
    before, after = ([path.read_bytes() for path in _state(folder, seq)] for seq in (1, 2))
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    assert {path.stat().st_nlink for path in _state(folder, 2)} == {1}
    assert {stat.S_IMODE(path.stat().st_mode) for path in _state(folder, 2)} == {0o600}
    assert folder.sink().open().seq == 2


def test_old_states_are_dropped_and_history_stays(folder: Target) -> None:
    """The last three states are kept, and versions and manifests are never removed (S22)."""
    for seq in range(1, 6):
        folder.publish(folder.bring(seq, contact(1, name=str(seq))))
    names = {
        content: sorted(path.name[-1] for path in (folder.path / content).iterdir())
        for content in ("current", "versions")
    }
    assert names == {"current": ["3", "4", "5"], "versions": ["1", "2", "3", "4", "5"]}
    assert len(folder.read("contact_versions")) == 5


def _drop_manifest(path: Path) -> None:
    max(path.glob("manifests/*")).unlink()


def _swap_manifests(path: Path) -> None:
    first, second = sorted(path.glob("manifests/*"))
    second.write_bytes(first.read_bytes())


def _edit_first_manifest(path: Path) -> None:
    first = min(path.glob("manifests/*"))
    first.write_bytes(first.read_bytes().replace(b"run-1", b"run-7"))


def _drop_version(path: Path) -> None:
    min(path.glob("versions/*/*.parquet")).unlink()


def _add_file(path: Path) -> None:
    shutil.copy(min(path.glob("versions/*/*.parquet")), max(path.glob("current/*")) / "mine.parquet")


@pytest.mark.parametrize("alter", [_drop_manifest, _swap_manifests, _edit_first_manifest, _drop_version, _add_file])
def test_an_altered_folder_is_refused(folder: Target, alter: Callable[[Path], None]) -> None:
    """A missing, replaced, edited or added file is exit 22, and nothing is removed (P26, X19)."""
    for seq in (1, 2):
        folder.publish(folder.bring(seq, contact(seq)))
    alter(folder.path)
    before = folder.bytes()
    with pytest.raises(TargetCorrupt):
        folder.sink().open()
    assert folder.bytes() == before
