"""Faults of the targets, caused by users, disks and other programs (group S and P25, P26)."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from etl.errors import EtlError, PublishConflict, SinkError, TargetCorrupt
from etl.model import Publication
from etl.sinks import ParquetSink, Sink, SinkKind, manifest, open_readonly, select
from etl.sinks.readback import ReadBackError, read_back
from etl.storage import staging
from tests.support.live import Job, Live, live
from tests.support.publishing import Row, brought, contact, day, publication, sink_at

ROWS = tuple(contact(number, name=f"name {number}", tags=["a", str(number)]) for number in range(1, 41))


@dataclass(frozen=True, slots=True)
class Target:
    """A target of one kind, and a place for the parts of its runs."""

    kind: SinkKind
    path: Path
    parts: Path

    def sink(self, memory_limit: int = 500_000_000) -> Sink:
        """The sink as a new process would open it."""
        return sink_at(self.kind, self.path, memory_limit)

    def bring(self, seq: int, *rows: Row) -> Publication:
        """A run of one account."""
        return publication(brought(self.parts, "main", rows or ROWS, seq=seq))

    def publish(self, seq: int, *rows: Row) -> None:
        """A whole run."""
        sink, run = self.sink(), self.bring(seq, *rows)
        sink.open()
        sink.prepare(run)
        sink.publish(run)

    def files(self) -> dict[Path, bytes]:
        """Every published byte."""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files}

    def names(self) -> dict[str, str]:
        """Name by id, as our reader shows them."""
        with open_readonly(self.kind, self.path) as connection:
            rows = select(connection, "SELECT contact_id, name FROM contacts").to_pylist()
        assert len(rows) == len({row["contact_id"] for row in rows})
        return {row["contact_id"]: row["name"] for row in rows}


@pytest.fixture(params=["duckdb", "parquet"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """A target that was never published to, of each kind."""
    return Target(request.param, tmp_path / "data" / "contacts", tmp_path / "parts")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target of each kind that has one run, to be copied."""
    home = tmp_path_factory.mktemp("first")
    Target("duckdb", home / "data" / "contacts.duckdb", home / "parts").publish(1)
    Target("parquet", home / "data" / "contacts", home / "parts").publish(1)
    return home / "data"


@pytest.fixture
def database(first_run: Path, tmp_path: Path) -> Target:
    """A DuckDB file with one run."""
    shutil.copytree(first_run, tmp_path / "data", ignore=shutil.ignore_patterns("contacts"))
    return Target("duckdb", tmp_path / "data" / "contacts.duckdb", tmp_path / "parts")


@pytest.fixture
def folder(first_run: Path, tmp_path: Path) -> Target:
    """A Parquet folder with one run."""
    shutil.copytree(first_run, tmp_path / "data", ignore=shutil.ignore_patterns("contacts.duckdb"))
    return Target("parquet", tmp_path / "data" / "contacts", tmp_path / "parts")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """A small account without oddities that does not change."""
    with live(contacts=60, nasty_share=0, small=True) as running:
        yield running


def sql(path: Path, *statements: str) -> None:
    """Run a user's statements on the file."""
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)


# --- the state: P25 --------------------------------------------------------------------------------------------------


def test_no_byte_of_a_manifest_can_fall_over_unseen(folder: Target) -> None:
    """P25: a flipped bit in the newest or an older manifest is exit 22 with a hint, never a first run."""
    folder.publish(2)
    for path in sorted(folder.path.glob("manifests/*")):
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            with pytest.raises(TargetCorrupt) as caught:
                folder.sink().state()
            assert caught.value.hint
        path.write_bytes(whole)
    assert folder.sink().state().seq == 2


def cuts(document: bytes, theirs: bytes) -> Iterator[bytes]:
    """Damaged states: cut off, empty, garbage, of a newer version, of another account or target."""
    yield from (document[:length] for length in range(0, len(document), 97))
    yield from (b"", b"{}", b"null", b"[]", b"0", b"\0" * len(document), document + b"}", document * 2, theirs)
    yield document.replace(*(f'"format":{manifest.FORMAT + newer}'.encode() for newer in (0, 1)))
    yield manifest.encode(manifest.Manifest(seq=9, run_id="r", previous="", runs=(), state={}))
    yield random.Random(1).randbytes(500)


def test_a_damaged_state_is_never_a_first_run_in_parquet(folder: Target, tmp_path: Path) -> None:
    """P25: any damage to the manifest is exit 22 with a hint, and no byte changes."""
    other = Target("parquet", tmp_path / "other" / "contacts", tmp_path / "parts")
    other.publish(1, contact(99))
    [path] = folder.path.glob("manifests/*")
    theirs = next(other.path.glob("manifests/*")).read_bytes()
    for damaged in cuts(path.read_bytes(), theirs):
        path.write_bytes(damaged)
        before = folder.files()
        with pytest.raises(TargetCorrupt) as caught:
            folder.sink().open()
        assert caught.value.hint
        assert folder.files() == before


def test_a_damaged_state_is_never_a_first_run_in_duckdb(database: Target) -> None:
    """P25: any damage to the document in the database is exit 22 with a hint, even if its digest matches."""
    with duckdb.connect(str(database.path)) as connection:
        [(text,)] = connection.execute("select document from etl.manifests").fetchall()
    whole = database.path.read_bytes()
    newer = text.replace(f'"format":{manifest.FORMAT}', f'"format":{manifest.FORMAT + 1}')
    chosen = ("", "{}", text[:100], text[:-1], newer, text.replace("2026", "2027"))
    for damaged in chosen:
        for digest in (None, manifest.digest(damaged.encode())):
            with duckdb.connect(str(database.path)) as connection:
                connection.execute("update etl.manifests set document = ?", [damaged])
                if digest:
                    connection.execute("update etl.manifests set digest = ?", [digest])
            with pytest.raises(TargetCorrupt) as caught:
                database.sink().open()
            assert caught.value.hint
            database.path.write_bytes(whole)
    assert database.sink().open().seq == 1


# --- damage found by verify: P26, S9, S11 ----------------------------------------------------------------------------


def flip(path: Path) -> None:
    """One bit in the middle."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def edit_parquet(job: Job) -> None:
    """A data file of the state with one bit changed."""
    flip(next((job.parquet / "current").rglob("*.parquet")))


def edit_history(job: Job) -> None:
    """The same in the history."""
    flip(next((job.parquet / "versions").rglob("*.parquet")))


def rewrite_parquet(job: Job) -> None:
    """A data file rewritten by another program, with one row less."""
    path = next((job.parquet / "current").rglob("*.parquet"))
    pq.write_table(pq.ParquetFile(path).read().slice(1), path)


def move_parquet(job: Job) -> None:
    """A data file moved out of its folder."""
    path = next((job.parquet / "current").rglob("*.parquet"))
    path.rename(job.parquet / path.name)


def delete_versions(job: Job) -> None:
    """The history removed."""
    shutil.rmtree(job.parquet / "versions")


def delete_rows(job: Job) -> None:
    """Rows deleted by hand."""
    sql(job.duckdb, "delete from contacts where contact_id = (select min(contact_id) from contacts)")


def edit_rows(job: Job) -> None:
    """Rows edited by hand, including their hashes."""
    sql(
        job.duckdb,
        "update contacts set name = 'x', row_hash = 'x' where contact_id = (select min(contact_id) from contacts)",
    )


def edit_cell(job: Job) -> None:
    """A name edited by hand, and nothing else."""
    sql(job.duckdb, "update contacts set name = 'x' where contact_id = (select min(contact_id) from contacts)")


def edit_version(job: Job) -> None:
    """The same in the history."""
    sql(
        job.duckdb, "update contact_versions set extra = '{}' where contact_id = (select min(contact_id) from contacts)"
    )


def delete_runs(job: Job) -> None:
    """The runs deleted by hand."""
    sql(job.duckdb, "delete from runs")


def lose_manifest(job: Job) -> None:
    """The newest manifest of the folder removed."""
    max((job.parquet / "manifests").iterdir()).unlink()


def double_rows(job: Job) -> None:
    """A row inserted twice."""
    sql(job.duckdb, "insert into contacts by name select * from contacts limit 1")


def delete_history(job: Job) -> None:
    """Versions deleted by hand."""
    sql(job.duckdb, "delete from contact_versions where contact_id = (select min(contact_id) from contacts)")


def edit_manifest(job: Job) -> None:
    """The document of the last run edited."""
    sql(job.duckdb, "update etl.manifests set document = replace(document, 'full', 'fool')")


TAMPERING = (
    edit_parquet,
    edit_history,
    rewrite_parquet,
    move_parquet,
    delete_versions,
    delete_rows,
    edit_rows,
    edit_cell,
    edit_version,
    delete_runs,
    lose_manifest,
    double_rows,
    delete_history,
    edit_manifest,
)


@pytest.fixture(scope="module")
def published(server: Live, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that ran once."""
    job = Job(tmp_path_factory.mktemp("published"), {"main": server.url})
    assert job.run().exit_code == 0
    return job


@pytest.mark.parametrize("tamper", TAMPERING)
def test_verify_tells_what_was_done_to_the_data(tamper: Callable[[Job], None], published: Job, tmp_path: Path) -> None:
    """P26, S9, S11: files edited, rewritten, moved or deleted, and rows changed by hand, are exit 22 with a hint."""
    job = Job(tmp_path, published.urls)
    shutil.copytree(published.folder / "data", tmp_path / "data")
    assert job.call("verify", "CONFIG").code == 0
    tamper(job)
    ended = job.call("verify", "CONFIG", "--json")
    assert ended.code == 22, ended
    assert any(check["hint"] for check in ended.document["checks"])
    assert "Traceback" not in ended.err


# --- DuckDB: S1-S6, S8 -----------------------------------------------------------------------------------------------

FLIPS = """
import json, os, pathlib, random, sys
from etl.errors import SinkError, TargetCorrupt
from etl.sinks import DuckDBSink, open_readonly, select
path, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
whole = path.read_bytes()

def look():
    with open_readonly("duckdb", path) as connection:
        return sorted(map(repr, select(connection, "from contacts").to_pylist()))

right, places, codes = look(), random.Random(7), []
for number in range(count):
    place = places.choice([places.randrange(12288), places.randrange(len(whole))])
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([whole[place] ^ 1 << places.randrange(8)]))
    child = os.fork()
    if not child:
        code = 70
        try:
            state = DuckDBSink(path).state()
            code = 0 if state.seq == 1 and look() == right else 1
        except (SinkError, TargetCorrupt) as error:
            code = error.exit_code
        except Exception as error:
            print(place, repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    with path.open("r+b") as file:
        file.seek(place)
        file.write(whole[place : place + 1])
assert path.read_bytes() == whole
print(json.dumps(codes))
"""


def test_a_bit_that_fell_over_is_told_or_harmless(database: Target) -> None:
    """S4: a flipped bit anywhere in the file gives 22 (or 20) or exactly the right rows, and never a crash."""
    count = int(os.environ.get("ETL_TEST_FLIPS", "25"))
    command = [sys.executable, "-c", FLIPS, str(database.path), str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    codes = json.loads(ended.stdout)
    assert set(codes) <= {0, 20, 22}, (codes, ended.stderr)
    assert {0, 22} <= set(codes)


def test_an_engine_that_dies_over_a_file_does_not_take_us_along() -> None:
    """S2, S5: a file is read in a separate process, and if that dies, the message states how it ended."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = set(children.read_text().split())
    caught: list[Exception] = []

    def kill() -> None:
        while not (born := set(children.read_text().split()) - before):
            time.sleep(0.01)
        os.kill(int(born.pop()), 6)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        read_back([], ["select sum(hash(a.range, b.range)) from range(1000000) a, range(1000000) b"])
    except ReadBackError as error:
        caught.append(error)
    killer.join()
    assert "ended with -6" in str(caught[0])


@pytest.mark.parametrize("content", [b"\0" * 16, b"WAL", bytes(range(256)) * 64])
def test_a_foreign_log_is_neither_replayed_nor_thrown_away(content: bytes, database: Target) -> None:
    """S3, S5: a `.wal` next to the file stops a run before it begins, and replaying it is left to the user."""
    wal = database.path.with_name(database.path.name + ".wal")
    wal.write_bytes(content)
    before = database.path.read_bytes()
    with pytest.raises(SinkError) as caught:
        database.sink().open()
    assert (caught.value.exit_code, caught.value.where) == (20, str(wal))
    assert (wal.read_bytes(), database.path.read_bytes()) == (content, before)


def test_a_reader_in_another_process_keeps_what_it_opened(database: Target) -> None:
    """S1: a reader keeps the old file while two runs replace it, until it opens the file again."""
    with duckdb.connect(str(database.path), read_only=True) as reader:
        for seq in (2, 3):
            database.publish(seq, *ROWS, contact(100 + seq))
            assert reader.sql("select count(*), max(seq) from contacts").fetchall() == [(len(ROWS), 1)]
    assert len(database.names()) == len(ROWS) + 2


KEPT = {
    "a column": ("alter table contacts add column note varchar default 'mine'",),
    "a view on top": ("create view mine as select name from contacts",),
    "a macro": ("create macro mine() as table select name from contacts",),
    "an index": ("create index mine on contacts (name)",),
    "a table of theirs": ("create table mine as select * from contacts",),
    "a schema of theirs": ("create schema mine", "create table mine.contacts (id int)"),
    "a primary key": ("alter table contacts add primary key (account, contact_id)",),
    "a comment": ("comment on table contacts is 'mine'",),
    "a default": ("alter table contacts alter column status set default 'OPEN'",),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_the_user_added_is_kept(what: str, database: Target) -> None:
    """S6: a user's objects next to our columns or on top of our tables survive runs that insert, change and delete."""
    sql(database.path, *KEPT[what])
    changed = [contact(1, name="changed"), *ROWS[1:-1], contact(50)]
    database.publish(2, *changed)
    database.publish(3, *changed)
    names = database.names()
    assert len(names) == len(ROWS)
    assert names[f"{1:024x}"] == "changed"
    with duckdb.connect(str(database.path), read_only=True) as connection:
        if what == "a column":
            assert connection.sql("select count(*) from contacts where note = 'mine'").fetchall() == [(len(ROWS),)]
        if what in {"a view on top", "a table of theirs"}:
            assert connection.sql("select count(*) from mine").fetchall() == [(len(ROWS),)]


REFUSED = {
    "a column dropped": ("alter table contacts drop column city",),
    "a column renamed": ("alter table contacts rename column city to town",),
    "a type changed": ("alter table contacts alter column website_visits type varchar",),
    "a table dropped": ("drop table rejects",),
    "a table renamed": ("alter table contact_versions rename to history",),
    "a table replaced": ("drop table contacts", "create table contacts as select 1 as id"),
    "a view in its place": ("alter table contacts rename to mine", "create view contacts as select * from mine"),
    "the state dropped": ("drop schema etl cascade",),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_user_changed_is_refused_with_a_mend(what: str, database: Target) -> None:
    """S6: a changed schema is exit 22 before any request, and the file stays as the user made it."""
    sql(database.path, *REFUSED[what])
    before = database.path.read_bytes()
    with pytest.raises(TargetCorrupt) as caught:
        database.sink().open()
    assert caught.value.hint
    assert database.path.read_bytes() == before


def test_too_little_memory_for_the_merge_is_told_and_nothing_is_left(target: Target) -> None:
    """S8: too little memory is exit 20 naming the limit; the private spill folder goes, and the same run then works."""
    target.publish(1)
    before = target.files()
    rows = [contact(number, extra=json.dumps({"a": "x" * 500, "n": number})) for number in range(6000)]
    run = target.bring(2, *rows)
    starved = target.sink(3_000_000)
    starved.open()
    with pytest.raises(SinkError) as caught:
        starved.prepare(run)
    assert caught.value.exit_code == 20
    assert "memory" in caught.value.hint
    starved.discard()
    assert target.files() == before
    assert not [path for path in staging.temporary(target.path).iterdir() if path.suffix != ".lock"]
    sink = target.sink()
    sink.open()
    sink.prepare(run)
    sink.publish(run)


# --- both: S7, S10, S12, S21, S22 ------------------------------------------------------------------------------------


def test_a_contact_answered_many_times_is_one_row(target: Target) -> None:
    """S7: a contact that is returned many times, in any order, is one row with its newest content and one version."""
    answers = [contact(number, name=str(age), updated_at=day(age)) for number in range(5) for age in range(1, 30)]
    random.Random(3).shuffle(answers)
    target.publish(1, *answers)
    assert set(target.names().values()) == {"29"}
    with open_readonly(target.kind, target.path) as connection:
        assert select(connection, "select count(*) as n from contact_versions").to_pylist() == [{"n": 5}]
        [run] = select(connection, "from runs").to_pylist()
    assert (run["received"], run["folded"], run["new"]) == (145, 140, 5)


ODD = (
    "",
    " ",
    "\u00e9",
    "e\u0301",
    "\U0001f600" * 50,
    "a" * 5000,
    "a" * 4999 + "b",
    "\x7f",
    "'; --",
    "\u202e",
    "\uffff",
    "NaN",
    "-0",
    "null",
    "\u0130",
    "\U0010ffff" * 20,
)


def test_odd_values_are_found_by_what_they_are(target: Target) -> None:
    """S10: filters find all rows; truncated, case-folded or misordered statistics or dictionaries would hide some."""
    rows = [contact(number, name=text, website_visits=(-1) ** number * 2**62) for number, text in enumerate(ODD * 20)]
    target.publish(1, *rows)
    with open_readonly(target.kind, target.path) as connection:
        for text in ODD:
            found = connection.execute("select count(*) from contacts where name = ?", [text]).fetchall()
            assert found == [(20,)], text
        assert connection.execute("select count(*) from contacts where website_visits < 0").fetchall() == [(160,)]
    if target.kind == "parquet":
        table = ds.dataset(target.path / "current")
        assert [table.count_rows(filter=ds.field("name") == text) for text in ODD] == [20] * len(ODD)


def test_whoever_polls_while_runs_are_published_sees_whole_states(target: Target) -> None:
    """S12: a reader that polls during three runs sees only states whose tables have the same run and contacts."""
    target.publish(1)
    seen: list[int] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def poll() -> None:
        try:
            while not done.is_set():
                with open_readonly(target.kind, target.path) as connection:
                    query = """select max(seq) as seq, (select count(*) from contacts) as held,
                        (select contacts from runs order by seq desc limit 1) as told from runs"""
                    [row] = select(connection, query).to_pylist()
                assert row["held"] == row["told"] == len(ROWS) + row["seq"] - 1
                seen.append(row["seq"])
        except BaseException as error:  # noqa: BLE001 - the test gets it
            failures.append(error)

    reader = threading.Thread(target=poll)
    reader.start()
    for seq in (2, 3, 4):
        target.publish(seq, *ROWS, *(contact(100 + number) for number in range(1, seq)))
    done.set()
    reader.join()
    assert failures == []
    assert seen == sorted(seen)
    assert len(seen) > 3


@pytest.mark.parametrize("keep", [1, 2])
def test_retention_never_touches_what_is_current(keep: int, tmp_path: Path) -> None:
    """S22: the configured number of complete states and all history are kept, and the target opens after every run."""
    path = tmp_path / "data" / "contacts"
    for seq in range(1, 5):
        sink = ParquetSink(path, keep=keep)
        assert sink.open().seq == seq - 1
        run = publication(brought(tmp_path / "parts", "main", [*ROWS, contact(200, name=str(seq))], seq=seq))
        sink.prepare(run)
        sink.publish(run)
        kept = sorted(int(found.name[4:]) for found in (path / "current").iterdir())
        assert kept == list(range(max(1, seq - keep + 1), seq + 1))
        assert len(list((path / "versions").iterdir())) == len(list((path / "manifests").iterdir())) == seq


@pytest.mark.parametrize("share", [0.5])
def test_a_target_that_would_shrink_is_left_alone(share: float, tmp_path: Path) -> None:
    """S23: if half of the account vanishes, the run exits with 14 and changes no byte; with the flag it publishes."""
    with live(contacts=400, nasty_share=0, small=True) as account:
        job = Job(tmp_path, {"main": account.url}, settings=f"[guard]\nmax_shrink_share = {share}\n")
        assert job.run().exit_code == 0
        before = job.fingerprint()
        gone = account.ids()[: int(400 * share) + 110]
        account.change(lambda world, now: [world.delete(identity, now) for identity in gone])
        assert job.run(full=True).exit_code == 14
        assert job.fingerprint() == before
        assert job.run(full=True, allow_shrink=True).exit_code == 0


def test_both_sinks_say_no_to_a_number_that_is_taken(target: Target) -> None:
    """P17: both sinks refuse a run number that is not above the published one."""
    target.publish(3)
    for seq in (1, 2, 3):
        with pytest.raises(PublishConflict):
            target.sink().prepare(target.bring(seq))


def test_a_bit_that_fell_over_does_not_get_into_the_next_state(folder: Target) -> None:
    """S9, P26: a flipped bit that keeps the size and may be readable is found by the SHA-256, exit 22."""
    [path] = (folder.path / "current").rglob("*.parquet")
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 15):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        sink = folder.sink()
        assert sink.state().seq == 1
        with pytest.raises(TargetCorrupt, match="SHA-256"):
            sink.prepare(folder.bring(2))
    path.write_bytes(whole)
    folder.publish(2)


def test_a_part_that_was_damaged_on_the_way_is_never_published(target: Target) -> None:
    """S9, S11: truncated, empty or overwritten parts abort the merge; the old snapshot and the next run are intact."""
    target.publish(1)
    before = target.files()
    for damage in (
        lambda _: b"",
        lambda b: b[:-4],
        lambda b: b[: len(b) // 2],
        lambda b: b[:4] + b"\xff" * (len(b) - 4),
    ):
        run = target.bring(2)
        [part] = run.accounts[0].parts
        part.write_bytes(damage(part.read_bytes()))
        sink = target.sink()
        sink.open()
        with pytest.raises(EtlError) as caught:
            sink.prepare(run)
        assert caught.value.exit_code in {20, 22}
        sink.discard()
        assert target.files() == before
    target.publish(2)
