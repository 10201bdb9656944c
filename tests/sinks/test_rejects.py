"""`rejects` in both sinks: each contact once over all runs, also in targets of an older format."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from etl.errors import TargetCorrupt
from etl.model import Publication
from etl.sinks import SinkKind, open_readonly, select
from etl.sinks.manifest import FORMAT, decode
from tests.support.old_targets import age
from tests.support.publishing import Row, brought, contact, day, publication, sink_at

NAMELESS: Row = {"contact_id": None, "reason": "null_id", "path": "_id", "raw": '{"_id":null,"name":"a"}'}
OTHER: Row = {**NAMELESS, "raw": '{"_id":null,"name":"b"}'}
LARGE: Row = {"contact_id": "large", "reason": "too_large", "path": None, "raw": '{"_id":"large"}'}
DEEP: Row = {**LARGE, "reason": "too_deep", "raw": '{"_id":"large","n":[]}'}
FIRST_COLUMNS = ["account", "seq", "observed_at", "contact_id", "reason", "path", "raw"]


class Target:
    """A sink on a path, with runs of one account."""

    def __init__(self, kind: SinkKind, folder: Path) -> None:
        self.kind: SinkKind = kind
        self.path = folder / "data" / ("contacts.duckdb" if kind == "duckdb" else "contacts")
        self._folder = folder / "parts"

    def publish(self, seq: int, *rejects: Row, account: str = "main") -> None:
        """Publish a run that read two contacts and rejected these."""
        self.publish_all(publication(brought(self._folder, account, _rows(seq), seq=seq, rejects=rejects)))

    def publish_all(self, run: Publication) -> None:
        """Publish a whole run, as a new process would."""
        sink = sink_at(self.kind, self.path)
        sink.open()
        sink.prepare(run)
        sink.publish(run)

    def rows(self, query: str = "FROM rejects") -> list[Row]:
        """The result of `etl sql`."""
        with open_readonly(self.kind, self.path) as connection:
            return select(connection, query).to_pylist()

    def seen(self) -> set[tuple[object, ...]]:
        """Raw JSON, reason, first and last run, and count of every row of `rejects`."""
        found = self.rows()
        assert all(row["seq"] == row["last_seq"] and row["observed_at"] == day(row["seq"]) for row in found)  # type: ignore[arg-type]
        names = ("raw", "reason", "first_seq", "last_seq", "seen")
        rows = [tuple(row[name] for name in names) for row in found]
        assert len(rows) == len(set(rows))
        return set(rows)

    def bytes(self) -> dict[str, bytes]:
        """The content of every published file."""
        found = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return {str(file): file.read_bytes() for file in found}

    def folders(self) -> list[str]:
        """The folders of rejects in a Parquet target."""
        return sorted(path.name for path in (self.path / "rejects").iterdir())


def _rows(seq: int) -> list[Row]:
    return [contact(1, name=f"{seq}"), contact(2)]


def row(reject: Row, first: int, last: int, seen: int) -> tuple[object, ...]:
    """A row as `Target.seen` shows it."""
    return reject["raw"], reject["reason"], first, last, seen


@pytest.fixture(params=["duckdb", "parquet"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """A target of each kind that does not exist yet."""
    return Target(request.param, tmp_path)


@pytest.fixture
def old(target: Target) -> Target:
    """A target of format 2 after three runs that rejected three contacts."""
    for seq in (1, 2, 3):
        target.publish(seq)
    sightings = [(1, NAMELESS), (1, LARGE), (2, OTHER), (2, DEEP), (3, NAMELESS)]
    age(target.path, [{**reject, "account": "main", "seq": seq, "observed_at": day(seq)} for seq, reject in sightings])
    return target


OLD = {row(NAMELESS, 1, 3, 2), row(DEEP, 1, 2, 2), row(OTHER, 2, 2, 1)}


def test_a_contact_that_runs_reject_again_has_one_row(target: Target) -> None:
    """The row counts the runs that rejected the contact, and other runs leave it unchanged."""
    target.publish(1, NAMELESS)
    target.publish(2, NAMELESS, OTHER)
    target.publish(3)
    target.publish(4, NAMELESS)
    assert target.seen() == {row(NAMELESS, 1, 4, 3), row(OTHER, 2, 2, 1)}
    assert list(target.rows()[0]) == [*FIRST_COLUMNS, "first_seq", "last_seq", "seen"]


def test_the_newest_reason_of_a_contact_is_kept(target: Target) -> None:
    """An id identifies a contact, whatever its fault and content, and the newest reason is kept."""
    target.publish(1, LARGE)
    target.publish(2, DEEP)
    assert target.seen() == {row(DEEP, 1, 2, 2)}


def test_one_run_that_rejects_two_contents_of_a_contact_counts_once(target: Target) -> None:
    """A contact that one run rejects twice is counted once in its row and twice in `runs`."""
    target.publish(1, LARGE, DEEP)
    [(*_, first, last, seen)] = target.seen()
    assert (first, last, seen) == (1, 1, 1)
    assert target.rows("SELECT received, rejected FROM runs") == [{"received": 4, "rejected": 2}]


def test_accounts_have_rows_of_their_own(target: Target) -> None:
    """The same id in two accounts is two contacts."""
    runs = [brought(target.path.parent / "p", name, [], seq=1, rejects=[LARGE]) for name in ("one", "two")]
    target.publish_all(publication(*runs))
    target.publish(2, LARGE, account="two")
    found = target.rows("SELECT account, seen FROM rejects ORDER BY account")
    assert found == [{"account": "one", "seen": 1}, {"account": "two", "seen": 2}]


def test_a_contact_that_is_read_without_fault_later_keeps_its_row(target: Target) -> None:
    """A contact keeps its row after it was read without fault, and the row has the last run with the fault."""
    reject = {**LARGE, "contact_id": contact(1)["contact_id"]}
    target.publish(1, reject)
    target.publish(2)
    assert target.seen() == {row(reject, 1, 1, 1)}


def test_an_id_that_looks_like_a_hash_is_an_id(target: Target) -> None:
    """A contact without an id is not confused with one whose id is the hash of its content."""
    [[digest]] = duckdb.execute("SELECT sha256(?)", [NAMELESS["raw"]]).fetchall()
    target.publish(1, NAMELESS, {**LARGE, "contact_id": digest})
    assert target.seen() == {row(NAMELESS, 1, 1, 1), row(LARGE, 1, 1, 1)}


def test_an_old_target_is_read_as_if_it_were_new(old: Target) -> None:
    """A target of format 2 shows each contact once, with the number of its rows, and reading does not change it."""
    before = old.bytes()
    assert old.seen() == OLD
    assert sink_at(old.kind, old.path).open().seq == 3
    assert old.bytes() == before


def test_the_next_publication_upgrades_an_old_target(old: Target) -> None:
    """The upgrade is published in one step with the data of the run."""
    before = old.bytes()
    sink = sink_at(old.kind, old.path)
    sink.open()
    run = publication(brought(old.path.parent / "p", "main", _rows(4), seq=4, rejects=[LARGE]))
    sink.prepare(run)
    assert old.bytes() == before
    sink.publish(run)
    assert old.seen() == OLD - {row(DEEP, 1, 2, 2)} | {row(LARGE, 1, 4, 3)}
    _assert_new(old, 4)


def test_a_run_without_rejects_upgrades_an_old_target_too(old: Target) -> None:
    """A run without rejects upgrades the target, and the next run keeps the upgraded rows."""
    old.publish(4)
    assert old.seen() == OLD
    _assert_new(old, 4)
    old.publish(5)
    assert old.seen() == OLD
    _assert_new(old, 5)


def _assert_new(target: Target, seq: int) -> None:
    """Check that the files themselves hold each contact once, in the new format."""
    if target.kind == "duckdb":
        with duckdb.connect(str(target.path), read_only=True) as connection:
            found = connection.sql("SELECT * FROM rejects").to_arrow_table().to_pylist()
    else:
        found = pq.read_table(target.path / "rejects" / f"seq={seq:08d}", partitioning=None).to_pylist()
        assert decode((target.path / "manifests" / f"{seq:08d}.json").read_bytes()).format == FORMAT
    assert len(found) == len(OLD)
    assert list(found[0]) == [*FIRST_COLUMNS, "first_seq", "last_seq", "seen"]


def test_what_the_user_added_to_an_old_table_is_kept(tmp_path: Path) -> None:
    """A column, its values and an index of the user survive the upgrade and later runs."""
    target = Target("duckdb", tmp_path)
    target.publish(1)
    age(target.path, [{**LARGE, "account": "main", "seq": 1, "observed_at": day(1)}])
    with duckdb.connect(str(target.path)) as connection:
        connection.execute("ALTER TABLE rejects ADD COLUMN note VARCHAR DEFAULT 'mine'")
        connection.execute("CREATE INDEX reasons ON rejects (reason)")
    target.publish(2)
    target.publish(3, DEEP)
    assert target.rows("SELECT reason, seen, note FROM rejects") == [{"reason": "too_deep", "seen": 2, "note": "mine"}]
    with duckdb.connect(str(target.path), read_only=True) as connection:
        assert connection.sql("SELECT index_name FROM duckdb_indexes()").fetchall() == [("reasons",)]


def test_some_but_not_all_new_columns_are_damage(tmp_path: Path) -> None:
    """A table that lacks some of the new columns is damage, as an old table has none of them."""
    target = Target("duckdb", tmp_path)
    target.publish(1, LARGE)
    with duckdb.connect(str(target.path)) as connection:
        connection.execute("ALTER TABLE rejects DROP COLUMN seen")
    with pytest.raises(TargetCorrupt, match="the column seen of main"):
        sink_at("duckdb", target.path).open()


def test_rejects_of_an_old_state_stay_as_long_as_it_does(tmp_path: Path) -> None:
    """The files of an old state are kept as long as a slow reader may need that state."""
    target = Target("parquet", tmp_path)
    for seq in (1, 2, 3):
        target.publish(seq)
    age(target.path, [{**LARGE, "account": "main", "seq": seq, "observed_at": day(seq)} for seq in (1, 2, 3)])
    for seq in (4, 5):
        target.publish(seq)
        assert target.folders()[:3] == [f"seq={each:08d}" for each in (1, 2, 3)]
    target.publish(6)
    assert target.folders() == [f"seq={each:08d}" for each in (4, 5, 6)]
    assert target.seen() == {row(LARGE, 1, 3, 3)}


def test_unchanged_rejects_are_the_same_file(tmp_path: Path) -> None:
    """A run without rejects links the file of the last state."""
    target = Target("parquet", tmp_path)
    target.publish(1, LARGE)
    target.publish(2)
    first, second = (target.path / f"rejects/seq={seq:08d}/part-000001.parquet" for seq in (1, 2))
    assert first.samefile(second)


def test_an_altered_file_of_rejects_stops_the_next_run(tmp_path: Path) -> None:
    """The next run stops at a file that was altered, because the next state is built from it."""
    target = Target("parquet", tmp_path)
    target.publish(1, LARGE)
    part = target.path / "rejects/seq=00000001/part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(TargetCorrupt, match="SHA-256"):
        target.publish(2, LARGE)
