"""Faults of the process, the clock, the scheduler and the file system (group P).

tests/crash kills a process at every system call; the faults here need no such instrument.
"""

# ruff: noqa: S608 - SQL is made of numbers.

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from etl.errors import PublishConflict, SinkError
from etl.sinks import SinkKind
from etl.storage import files, preflight, staging
from etl.storage.lock import Lock
from tests.support.campaign import campaign
from tests.support.forked import Ended, Harm, Nursery, is_stopped, nursery
from tests.support.live import Account, Job, Live, live
from tests.support.publishing import brought, contact, publication, sink_at

CONTACTS = 60
WORDS = ("run", "CONFIG", "--json")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """One warm process for all tests."""
    with nursery(tmp_path_factory.mktemp("children")) as process:
        yield process


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """A small account without oddities that does not change."""
    return Account(tmp_path_factory.mktemp("account"), {"contacts": CONTACTS, "nasty_share": 0, "small": True})


@pytest.fixture(scope="module")
def server(account: Account) -> Iterator[Live]:
    """The server of that account."""
    with account.served() as running:
        yield running


@pytest.fixture
def job(server: Live, tmp_path: Path) -> Job:
    """A job for that account that was never run."""
    return Job(tmp_path, {"main": server.url})


@pytest.fixture
def published(account: Account, server: Live, tmp_path: Path) -> Job:
    """A job for that account after its first run."""
    return account.job(server, tmp_path, "duckdb", "parquet")


def run(warm: Nursery, job: Job, **options: object) -> Ended:
    """`etl run CONFIG --json` in a forked child."""
    return warm.wait(start(warm, job, **options))


def start(warm: Nursery, job: Job, **options: object) -> int:
    """The same, without waiting."""
    words = [str(job.config()) if word == "CONFIG" else word for word in WORDS]
    return warm.start(*words, cwd=job.folder, environment=job.environment(), **options)


def whole(job: Job, seq: int) -> bool:
    """Whether each target holds run `seq` or the run before it, complete."""
    for query in (
        "select count(*) = (select contacts from runs order by seq desc limit 1) from contacts",
        f"select max(seq) in ({seq - 1}, {seq}) from runs",
        "select max(seq) <= (select max(seq) from runs) from contact_versions",
    ):
        assert job.rows(query) == [(True,)], query
    newest = max(int(path.stem) for path in (job.parquet / "manifests").glob("*.json"))
    assert newest in {seq - 1, seq}
    return len(job.in_parquet(newest)) == CONTACTS


def healed(job: Job) -> None:
    """An undisturbed run succeeds, exports all contacts and leaves no temporary files."""
    report = job.run()
    assert report.exit_code == 0, report.error
    assert len(job.in_duckdb()) == len(job.in_parquet(report.accounts[0].record.seq)) == CONTACTS
    assert {path.suffix for path in job.temporary.iterdir()} == {".lock", ".jsonl"}


# --- signals ---------------------------------------------------------------------------------------------------------

MOMENTS = 12


def test_a_signal_at_any_moment_ends_the_run_in_order(warm: Nursery, published: Job) -> None:
    """P1, P2: SIGTERM at any of 12 moments gives exit 143 or 0 and the old or new state, and the next run recovers."""
    calls = run(warm, published, harm=Harm((), at=-1)).calls
    assert calls > 1000
    codes = set()
    for moment in range(MOMENTS):
        seq = max(seq for (seq,) in published.rows("select max(seq) from runs"))
        before = published.fingerprint()
        harm = Harm([("signal", signal.SIGTERM)], at=1 + calls * moment // MOMENTS)
        ended = run(warm, published, harm=harm)
        codes.add(ended.code)
        assert ended.code in {143, 0}, ended.err
        assert ended.seconds < 10
        assert "Traceback" not in ended.err
        if published.fingerprint() != before:
            assert whole(published, seq + 1)
    assert 143 in codes
    healed(published)


def test_a_signal_before_publishing_changes_no_byte(warm: Nursery, published: Job) -> None:
    """P1: SIGTERM while a run reads and stages changes no byte of the target; the hint is to run again."""
    before = published.fingerprint()
    for function in ("Lock.__enter__", "DuckDBSink.open", "probe", "Stage.append"):
        ended = run(warm, published, harm=Harm([("signal", signal.SIGTERM)], function=function))
        assert (ended.code, ended.document["error"]["code"]) == (143, 143), function
        assert "again" in ended.document["error"]["hint"]
        assert published.fingerprint() == before, function
    healed(published)


SOON = 0.3
"""Seconds for the process to notice a signal."""


@pytest.mark.parametrize("number", [signal.SIGTERM, campaign(signal.SIGINT)])
def test_a_signal_after_the_work_changes_nothing(number: int, warm: Nursery, job: Job) -> None:
    """P2: after publishing, the whole document is printed and the exit code is the one in it."""
    for function in ("RunResult.document", "_print"):
        ended = run(warm, job, harm=Harm([("signal", number), ("sleep", SOON)], function=function))
        assert (ended.code, ended.document["exit"]) == (0, 0), function
        assert ended.document["sinks"].keys() == {"duckdb", "parquet"}


@pytest.mark.parametrize(
    ("function", "number", "code"),
    [
        ("DuckDBSink.prepare", signal.SIGTERM, 143),
        ("ParquetSink.prepare", signal.SIGINT, 130),
        campaign("DuckDBSink.prepare", signal.SIGINT, 130),
        campaign("ParquetSink.prepare", signal.SIGTERM, 143),
    ],
)
def test_a_signal_before_the_first_sink_has_published_stops_the_run(
    function: str, number: int, code: int, warm: Nursery, published: Job
) -> None:
    """P1, P2: a signal before or during a merge publishes nothing, and the next run resumes from the windows read."""
    before = published.fingerprint()
    ended = run(warm, published, harm=Harm([("signal", number), ("sleep", SOON)], function=function))
    assert (ended.code, ended.document["error"]["code"]) == (code, code), ended.err
    assert ended.seconds < 10
    assert ended.document["sinks"] == {}
    sent = ended.document["accounts"][0]["requests"]["sent"]
    assert published.fingerprint() == before
    assert {path.suffix for path in published.temporary.iterdir()} == {".lock", ".jsonl", ".stage"}
    record = published.run().accounts[0].record
    assert record.seq == 2
    assert record.detail["resumed"] > 0
    assert record.requests.sent < sent / 2
    healed(published)


@pytest.mark.parametrize("function", ["DuckDBSink.publish", "ParquetSink.publish", "Outcome.__init__"])
def test_a_signal_after_the_first_step_of_publishing_lets_the_others_follow(
    function: str, warm: Nursery, published: Job
) -> None:
    """P2: both targets hold the run, and exit code 0 and the document say so."""
    ended = run(warm, published, harm=Harm([("signal", signal.SIGTERM), ("sleep", SOON)], function=function))
    assert (ended.code, ended.document["error"]) == (0, None), ended.err
    assert {name: sink["seq"] for name, sink in ended.document["sinks"].items()} == {"duckdb": 2, "parquet": 2}
    assert published.rows("select max(seq) from runs") == [(2,)]
    assert len(published.in_parquet(2)) == CONTACTS
    healed(published)


def test_publishing_that_does_not_end_tells_what_is_published(warm: Nursery, published: Job) -> None:
    """P1, P2: if the disk hangs between two targets, exit 143 comes within 5 s and the document names the first."""
    hang = [("signal", signal.SIGTERM), ("sleep", 30.0)]
    ended = run(warm, published, harm=Harm(hang, function="ParquetSink.publish"))
    assert (ended.code, ended.document["exit"]) == (143, 143)
    assert ended.seconds < 10  # 4 s of grace, and the run itself, which other tests slow down
    assert {name: sink["seq"] for name, sink in ended.document["sinks"].items()} == {"duckdb": 2}
    assert published.rows("select max(seq) from runs") == [(2,)]
    assert whole(published, 2)
    healed(published)


def test_work_that_does_not_end_is_ended(warm: Nursery, published: Job) -> None:
    """P1: if the disk hangs for 30 s during the merge, SIGTERM still gives exit 143 within 5 s."""
    before = published.fingerprint()
    hang = [("signal", signal.SIGTERM), ("sleep", 30.0)]
    ended = run(warm, published, harm=Harm(hang, function="DuckDBSink.prepare"))
    assert ended.code == 143
    assert ended.seconds < 10  # 4 s of grace, and the run itself, which other tests slow down
    assert "stopped by SIGTERM" in ended.err.strip().splitlines()[-1]
    assert (ended.document["exit"], ended.document["error"]["code"]) == (143, 143)
    assert published.fingerprint() == before
    healed(published)


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_the_second_signal_ends_the_run_at_once(first: int, second: int, warm: Nursery, published: Job) -> None:
    """P3: a second signal ends the run at once with that signal's exit code, even if a worker hangs on the disk."""
    before = published.fingerprint()
    hang = [("signal", first), ("sleep", 0.2), ("signal", second), ("sleep", 30.0)]
    ended = run(warm, published, harm=Harm(hang, function="DuckDBSink.prepare"))
    assert ended.code == 128 + second
    assert ended.seconds < 10
    assert "Traceback" not in ended.err
    assert published.fingerprint() == before
    healed(published)


# --- locks, two runs, two hosts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [f"{os.getpid()}\n", "1\n", "", "\0" * 100_000, "no process id"],
    ids=["our own", "another", "none", "zeros", "no number"],
)
def test_a_stale_lock_file_stops_nobody(text: str, job: Job) -> None:
    """P7: a lock file that a crash left does not block a run, even if its process id belongs to another process now."""
    job.temporary.mkdir(parents=True)
    locks = [job.temporary / name for name in ("contacts.duckdb.lock", "contacts.lock")]
    for lock in locks:
        lock.write_text(text)
    assert job.run().exit_code == 0
    assert {lock.read_text() for lock in locks} == {f"{os.getpid()}\n"}


def test_of_runs_that_begin_together_one_works(warm: Nursery, tmp_path: Path) -> None:
    """P16: of four runs that start together, one publishes and three report the lock holder in less than a second."""
    with live(contacts=CONTACTS, nasty_share=0, small=True, latency=0.1) as slow:
        job = Job(tmp_path, {"main": slow.url}, settings="[extract]\nconcurrency = 2\n")
        pids = [start(warm, job) for _ in range(4)]
        ended = dict(zip(pids, map(warm.wait, pids), strict=True))
        sent = slow.stats()["requests"]
    [winner] = [pid for pid, one in ended.items() if one.code == 0]
    assert sent == ended[winner].document["accounts"][0]["requests"]["sent"]
    for loser in (one for one in ended.values() if one.code):
        assert (loser.code, loser.document["error"]["code"]) == (30, 30)
        assert f"process {winner}" in loser.document["error"]["message"]
        assert loser.document["seconds"] < 1
    assert job.rows("select count(*), max(seq) from contacts") == [(CONTACTS, 1)]


STEPS = ("prepare a", "publish a", "prepare b", "publish b")
INTERLEAVINGS = [
    steps
    for steps in itertools.permutations(STEPS)
    if steps[0] == "prepare a" and steps.index("prepare b") < steps.index("publish b")
]


@pytest.mark.parametrize("kind", ["duckdb", "parquet"])
@pytest.mark.parametrize("steps", INTERLEAVINGS, ids=", ".join)
def test_two_hosts_never_publish_the_same_number(steps: Sequence[str], kind: SinkKind, tmp_path: Path) -> None:
    """P13, P17: if hosts do not share the lock, the run number decides, and every interleaving has one winner."""
    target = tmp_path / "data" / "contacts"
    for seq in (1, 2):
        runs = {who: publication(brought(tmp_path, "main", [contact(1, name=who + str(seq))], seq=seq)) for who in "ab"}
        sinks = {who: sink_at(kind, target) for who in "ab"}
        lost: set[str] = set()
        for step in steps:
            what, who = step.split()
            if who not in lost:
                try:
                    getattr(sinks[who], what)(runs[who])
                except PublishConflict:
                    sinks[who].discard()
                    lost.add(who)
        assert len(lost) == 1
        [winner] = {"a", "b"} - lost
        state = sinks[winner].open()
        assert state.seq == seq
        assert not [path for path in staging.temporary(target).iterdir() if path.suffix != ".lock"]
        held = duckdb_names(target) if kind == "duckdb" else parquet_names(target, seq)
        assert held == [winner + str(seq)]


def duckdb_names(target: Path) -> list[object]:
    """The names of all contacts."""
    with duckdb.connect(str(target), read_only=True) as connection:
        return [name for (name,) in connection.sql("select name from contacts").fetchall()]


def parquet_names(target: Path, seq: int) -> list[object]:
    """The same from the Parquet files."""
    files = (target / "current" / f"seq={seq:08d}").glob("*.parquet")
    return [name for file in files for name in pq.ParquetFile(file).read(["name"])["name"].to_pylist()]


@pytest.mark.parametrize("sink", ["duckdb", "parquet"])
def test_a_holder_that_slept_while_another_host_published_loses(
    sink: SinkKind, warm: Nursery, account: Account, server: Live, tmp_path: Path
) -> None:
    """P18: a run that is stopped before publishing and continued much later exits with 21 and overwrites nothing."""
    job = account.job(server, tmp_path, sink)
    kind = "DuckDBSink" if sink == "duckdb" else "ParquetSink"
    pid = start(warm, job, harm=Harm([("signal", signal.SIGSTOP), ("sleep", 0.5)], function=f"{kind}.publish"))
    deadline = time.monotonic() + 20
    while not is_stopped(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    other = sink_at(sink, job.duckdb if sink == "duckdb" else job.parquet)
    theirs = publication(brought(tmp_path / "theirs", "other", [contact(1)], seq=2))
    other.prepare(theirs)
    other.publish(theirs)
    before = job.fingerprint()
    os.kill(pid, signal.SIGCONT)
    ended = warm.wait(pid)
    assert (ended.code, ended.document["error"]["code"]) == (21, 21), ended.err
    assert job.fingerprint() == before
    assert job.run().exit_code == 0


def test_a_lock_that_cannot_be_given_back_harms_nothing(tmp_path: Path) -> None:
    """P10, P11: an error on unlocking does no harm: everything is published, and the system has released the lock."""
    with Lock(tmp_path / "contacts") as held:
        os.close(held._handle)
    with Lock(tmp_path / "contacts"):
        pass


# --- memory and limits -----------------------------------------------------------------------------------------------


CLEAN_OR_KILLED = {0, 2, 11, 20, 22, 127, 128 + signal.SIGABRT, 128 + signal.SIGSEGV}
"""If memory runs out: 2 if a library could not be loaded, 11 if a socket got none, 22 if the process that reads the
target died; 127 and signals if a C library got none."""


def test_memory_that_runs_out_never_leaves_half_a_state(warm: Nursery, published: Job) -> None:
    """P8: with memory raised in steps until it suffices, every failure is clean, and the last run succeeds.

    One sink may publish, and memory run out for the other.
    """
    codes: dict[int, int] = {}
    for headroom in (4, 16, 48, 96, 144, 192, 256, 384, 512, 768, 1024, 2048, 4096):
        before = published.fingerprint()
        ended = run(warm, published, headroom=headroom * 2**20)
        codes[headroom] = ended.code
        changed = {
            path.partition(f"{published.parquet}/")[1] for path, _ in published.fingerprint().items() ^ before.items()
        }
        sinks = {"parquet" if found else "duckdb" for found in changed}
        if ended.code < 127:
            done = {name for name, sink in (ended.document["sinks"] if sinks else {}).items() if sink["seq"]}
            assert sinks == done, (headroom, ended.code)
        if ended.code == 0:
            break
    assert (ended.code, sinks) == (0, {"duckdb", "parquet"}), codes
    assert set(codes.values()) <= CLEAN_OR_KILLED, codes
    healed(published)


@pytest.mark.parametrize("files", [8, 12, 24])
def test_too_few_open_files_are_told_before_the_first_request(
    files: int, warm: Nursery, server: Live, published: Job
) -> None:
    """P12: a low `ulimit -n` gives exit 20 before the first request, even if no event loop can be created."""
    before, sent = published.fingerprint(), server.stats()["requests"]
    ended = run(warm, published, limits={"NOFILE": files})
    assert (ended.code, ended.document["error"]["code"]) == (20, 20), ended.err
    assert "ulimit -n" in ended.document["error"]["hint"]
    assert "Traceback" not in ended.err
    assert server.stats()["requests"] == sent
    assert published.fingerprint() == before
    healed(published)


@pytest.mark.parametrize("files", [32, 36, 48])
def test_open_files_that_run_out_on_the_way_are_told(files: int, warm: Nursery, tmp_path: Path) -> None:
    """P12: with more requests at once than files allowed open, a run fails cleanly or succeeds."""
    with live(contacts=900, nasty_share=0, small=True, latency=0.05) as slow:
        job = Job(tmp_path, {"main": slow.url}, settings="[extract]\nconcurrency = 64\n")
        ended = run(warm, job, limits={"NOFILE": files})
    assert ended.code in {0, 11, 20}, (ended.code, ended.err)
    assert "Traceback" not in ended.err
    assert job.duckdb.exists() == job.parquet.exists() == (ended.code == 0)


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_files_that_may_not_grow_are_refused_before_the_first_request(
    size: int, warm: Nursery, server: Live, job: Job
) -> None:
    """P12: a low `ulimit -f` is refused for a first run and for one with a snapshot, which stays unchanged."""
    for first in (True, False):
        before = job.fingerprint() if not first else {}
        sent = server.stats()["requests"]
        ended = run(warm, job, limits={"FSIZE": size})
        assert server.stats()["requests"] == sent
        assert ended.code == 20
        if size > 10_000:  # a smaller limit also truncates the output
            assert "again" in ended.document["error"]["hint"]
        if first:
            assert not job.duckdb.exists()
            assert not job.parquet.exists()
            healed(job)
        else:
            assert job.fingerprint() == before
    healed(job)


# --- unwritable paths ------------------------------------------------------------------------------------------------

UNREADABLE = {
    "the folder is read-only": ("data", 0o555, 20),
    "the temporary folder is read-only": ("data/.etl", 0o555, 20),
    "the folder is closed": ("data", 0o000, 20),
    "the database is unreadable": ("data/contacts.duckdb", 0o000, 20),
    "the Parquet folder is read-only": ("data/contacts", 0o555, 20),
    "the manifests are unreadable": ("data/contacts/manifests", 0o000, 20),
    "a manifest is unreadable": ("data/contacts/manifests/00000001.json", 0o000, 20),
    "the lock is unwritable": ("data/.etl/contacts.lock", 0o400, 20),
    "the configuration is unreadable": ("job.toml", 0o000, 2),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_missing_rights_are_told_before_the_first_request(
    what: str, warm: Nursery, server: Live, published: Job
) -> None:
    """P12: missing rights of a non-root user are reported with path and hint; no byte changes, no request is sent."""
    name, mode, code = UNREADABLE[what]
    before, sent = published.fingerprint(), server.stats()["requests"]
    config, place = published.config(), published.folder / name
    kept = place.stat().st_mode
    place.chmod(mode)
    try:
        words = ("run", str(config), "--json")
        ended = warm.run(*words, cwd=published.folder, environment=published.environment(), unprivileged=True)
    finally:
        place.chmod(kept)
    assert ended.code == code, ended.err
    assert ended.document["error"]["where"]
    assert ended.document["error"]["hint"]
    assert server.stats()["requests"] == sent
    assert published.fingerprint() == before


@pytest.mark.parametrize("letters", [*range(228, 257, 4), 255, 300, 5000])
def test_a_name_too_long_is_told_before_the_first_request(letters: int, server: Live, tmp_path: Path) -> None:
    """P12: a name is also too long if it fits but leaves no room for the names of temporary files."""
    for sink in ("duckdb", "parquet"):
        job = Job(tmp_path / sink, {"main": server.url}, sinks=(sink,))
        job.folder.mkdir()
        sent = server.stats()["requests"]
        path = job.folder / "data" / ("x" * letters)
        ended = job.call(*WORDS, "--set", f"sinks.{sink}.path={path}")
        if ended.code:
            assert (ended.code, server.stats()["requests"]) == (20, sent), ended.err
            assert "shorter" in ended.document["error"]["hint"]
        else:
            assert path.exists()


def in_the_way(job: Job) -> None:
    """A file in place of the targets' folder."""
    (job.folder / "data").write_text("mine")


def temporary_in_the_way(job: Job) -> None:
    """A file in place of the temporary folder."""
    (job.folder / "data").mkdir()
    job.temporary.write_text("mine")


def lock_is_a_folder(job: Job) -> None:
    """A folder in place of the lock."""
    (job.temporary / "contacts.duckdb.lock").mkdir(parents=True)


def lock_is_a_link(job: Job) -> None:
    """A link, possibly created by another user, in place of the lock."""
    job.temporary.mkdir(parents=True)
    (job.folder / "precious").write_text("mine")
    (job.temporary / "contacts.duckdb.lock").symlink_to(job.folder / "precious")


def target_is_a_folder(job: Job) -> None:
    """A folder in place of the database."""
    job.duckdb.mkdir(parents=True)


def target_is_a_file(job: Job) -> None:
    """A file in place of the Parquet folder."""
    job.parquet.parent.mkdir()
    job.parquet.write_text("mine")


def link_to_nothing(job: Job) -> None:
    """A dangling link in place of the database."""
    job.duckdb.parent.mkdir()
    job.duckdb.symlink_to(job.folder / "nowhere")


def link_in_a_circle(job: Job) -> None:
    """A folder that is a link to itself."""
    (job.folder / "data").symlink_to(job.folder / "data")


# Files that another user could have written, or can still write, and from which a run would resume.


def staged(job: Job) -> Path:
    """The stage folder of an account with a journal, as a killed run leaves it."""
    folder = job.temporary / "contacts.duckdb.stage" / "main"
    for made in (job.temporary, folder.parent, folder):
        made.mkdir(0o700, parents=True)
    files.private_file(folder / "journal.jsonl", b"{}\n")
    return folder


def linked(path: Path) -> None:
    """Move a folder or file of ours and replace it by a link to it."""
    elsewhere = path.with_name(f"{path.name}-elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def temporary_is_a_link(job: Job) -> None:
    """The temporary folder is a link to a folder of ours on the same disk."""
    staged(job)
    linked(job.temporary)


def stage_is_a_link(job: Job) -> None:
    """The stage folder of all accounts is a link."""
    linked(staged(job).parent)


def stage_of_an_account_is_a_link(job: Job) -> None:
    """The stage folder of an account is a link."""
    linked(staged(job))


def journal_is_a_link(job: Job) -> None:
    """The journal from which a run resumes is a link."""
    linked(staged(job) / "journal.jsonl")


def journal_has_a_second_name(job: Job) -> None:
    """The journal has a hard link by which others might reach it."""
    (job.folder / "data" / "mine").hardlink_to(staged(job) / "journal.jsonl")


def lock_has_a_second_name(job: Job) -> None:
    """The lock is a hard link to another file, which would be emptied."""
    staged(job)
    (job.folder / "data" / "precious").write_text("mine")
    (job.temporary / "contacts.duckdb.lock").hardlink_to(job.folder / "data" / "precious")


def journal_is_a_pipe(job: Job) -> None:
    """A file of pages is a named pipe, and opening it would block."""
    os.mkfifo(staged(job) / "pages-000001.jsonl", 0o600)


def temporary_is_open_to_the_group(job: Job) -> None:
    """The temporary folder is group-writable, as another tool with umask 002 creates it."""
    staged(job)
    job.temporary.chmod(0o770)


def temporary_is_open_to_all(job: Job) -> None:
    """The temporary folder is world-writable with the sticky bit, as a shared scratch folder is."""
    staged(job)
    job.temporary.chmod(0o1777)


def stage_is_open_to_the_group(job: Job) -> None:
    """The stage folder of all accounts is group-writable."""
    staged(job).parent.chmod(0o770)


def stage_of_an_account_is_open_to_all(job: Job) -> None:
    """The stage folder of an account is world-writable."""
    staged(job).chmod(0o703)


def journal_is_open_to_the_group(job: Job) -> None:
    """The journal is group-writable."""
    (staged(job) / "journal.jsonl").chmod(0o620)


def given_away(path: Path) -> None:
    """Change the owner to another user, which only root can do."""
    if os.geteuid():
        pytest.skip("needs root")
    os.chown(path, 4711, -1)


def temporary_is_foreign(job: Job) -> None:
    """The temporary folder belongs to another user, and root runs the job."""
    staged(job)
    given_away(job.temporary)


def stage_of_an_account_is_foreign(job: Job) -> None:
    """Another user created the stage folder of an account before we did."""
    given_away(staged(job))


def journal_is_foreign(job: Job) -> None:
    """The journal belongs to another user."""
    given_away(staged(job) / "journal.jsonl")


def lock_is_foreign(job: Job) -> None:
    """The lock belongs to another user and would be taken over."""
    staged(job)
    lock = job.temporary / "contacts.duckdb.lock"
    lock.write_text("")
    given_away(lock)


STRANGERS = [
    temporary_is_a_link,
    stage_is_a_link,
    stage_of_an_account_is_a_link,
    journal_is_a_link,
    journal_has_a_second_name,
    lock_has_a_second_name,
    journal_is_a_pipe,
    temporary_is_open_to_the_group,
    temporary_is_open_to_all,
    stage_is_open_to_the_group,
    stage_of_an_account_is_open_to_all,
    journal_is_open_to_the_group,
    temporary_is_foreign,
    stage_of_an_account_is_foreign,
    journal_is_foreign,
    lock_is_foreign,
]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_may_be_a_strangers_is_refused_until_the_hint_is_followed(
    stranger: Callable[[Job], None], server: Live, job: Job
) -> None:
    """X4, P12: run (before any request), plan and doctor refuse such files; the hint's deletion is enough and safe."""
    job.sinks = ("duckdb",)
    stranger(job)
    sent = server.stats()["requests"]
    ended = job.call(*WORDS)
    assert (ended.code, server.stats()["requests"]) == (20, sent), ended
    error = ended.document["error"]
    assert error["where"].startswith(str(job.temporary))
    assert job.call("doctor", "CONFIG").code == 20
    if "lock" not in stranger.__name__:  # a plan takes none
        assert job.call("plan", "CONFIG").code == 20
    assert server.stats()["requests"] < sent + 60  # the doctor's
    hint = re.search(r"\((rm -r [^)]*)\)", error["hint"])
    assert hint
    kept = {path: path.read_bytes() for path in job.folder.rglob("*") if path.is_file() and path.name != "job.toml"}
    subprocess.run(["/bin/sh", "-c", hint[1]], check=True)  # noqa: S603 - as a person would
    assert job.call(*WORDS).code in (0, 40)
    if precious := kept.get(job.folder / "data" / "precious"):
        assert (job.folder / "data" / "precious").read_bytes() == precious


def test_a_temporary_folder_that_others_may_read_is_ours(job: Job) -> None:
    """X3: only write access counts; the parent folder may be writable for all users, as /tmp is."""
    job.sinks = ("duckdb",)
    staged(job)
    job.temporary.chmod(0o755)
    job.temporary.parent.chmod(0o1777)
    assert job.call(*WORDS).code in (0, 40)


@pytest.mark.parametrize(
    "obstacle",
    [
        in_the_way,
        temporary_in_the_way,
        lock_is_a_folder,
        lock_is_a_link,
        target_is_a_folder,
        target_is_a_file,
        link_to_nothing,
        link_in_a_circle,
    ],
)
def test_what_stands_in_the_way_is_told_before_the_first_request(obstacle: object, server: Live, job: Job) -> None:
    """P12: an obstacle gives exit 20, or 2 if the path is a folder, with path and hint, and is left as it is."""
    obstacle(job)  # type: ignore[operator]
    mine = {path: path.read_text() for path in job.folder.rglob("*") if path.is_file()}
    sent = server.stats()["requests"]
    ended = job.call(*WORDS)
    assert ended.code == (2 if obstacle is target_is_a_folder else 20), ended
    assert str(job.folder / "data") in ended.document["error"]["message"] + ended.document["error"]["where"]
    assert ended.document["error"]["hint"]
    assert server.stats()["requests"] == sent
    assert {path: path.read_text() for path in mine} == mine


def test_missing_folders_are_made_and_private(server: Live, tmp_path: Path) -> None:
    """P12: missing parent folders are created at any depth, with mode 0700."""
    job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
    path = tmp_path / "a" / "b" / "c" / "contacts.duckdb"
    assert job.call(*WORDS, "--set", f"sinks.duckdb.path={path}").code == 0
    assert path.exists()
    assert {folder.stat().st_mode & 0o777 for folder in (path.parent, path.parent.parent)} == {0o700}


# --- unusual file systems --------------------------------------------------------------------------------------------


def test_what_is_renamed_into_place_was_made_on_the_same_disk(tmp_path: Path) -> None:
    """P14: all temporary folders are next to their target and on the same disk."""
    for target in (tmp_path / "data" / "contacts.duckdb", tmp_path / "data" / "contacts"):
        for folder in (staging.temporary(target), staging.next_folder(target), staging.stage_folder(target)):
            assert files.private_folder(folder).stat().st_dev == target.parent.stat().st_dev
            assert folder.is_relative_to(target.parent)


def test_a_temporary_folder_on_another_disk_is_refused_before_the_first_request(server: Live, job: Job) -> None:
    """P14: a link to another disk in place of the temporary folder is refused, as any link is (see `STRANGERS`)."""
    elsewhere = Path("/dev/shm")  # noqa: S108 - the one other file system that every Linux has
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == job.folder.stat().st_dev:
        pytest.skip("needs two file systems")
    scratch = elsewhere / f"etl-test-{os.getpid()}"
    scratch.mkdir()
    try:
        job.temporary.parent.mkdir()
        job.temporary.symlink_to(scratch)
        sent = server.stats()["requests"]
        ended = job.call(*WORDS)
    finally:
        shutil.rmtree(scratch)
    assert ended.code == 20
    assert "same disk" in ended.document["error"]["hint"]
    assert server.stats()["requests"] == sent


def test_a_folder_that_cannot_be_synced_is_tolerated_and_a_file_is_not() -> None:
    """P15: on /proc, a failed sync of a folder is ignored; for a file, which may not be on disk, it is an error."""
    handle = os.open("/proc", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            os.fsync(handle)
    finally:
        os.close(handle)
    files.sync(Path("/proc"))
    with pytest.raises(SinkError, match="sync"):
        files.sync(Path("/proc/version"))


def test_the_lock_locks_on_this_file_system(tmp_path: Path) -> None:
    """P13: a second handle on the file, even of the same process, is refused while the first is held."""
    with Lock(tmp_path / "contacts") as held:
        handle = os.open(held.path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)


# --- clocks, time zones, locales, hash seeds -------------------------------------------------------------------------

PUBLISH = """
import hashlib, json, pathlib, sys
sys.path.insert(0, sys.argv[1])
from tests.support.publishing import day, sink_at
from etl.model import AccountYield, Counts, Proof, Publication, RawPage, Requests, RunRecord
from etl.normalize.normalizer import Normalizer
from etl.sandbox.settings import Settings
from etl.sandbox.world import World
from etl import schema
from etl.sinks import open_readonly
from etl.storage.staging import Stage

home = pathlib.Path(sys.argv[2])
world = World(Settings(contacts=150, nasty_share=0.4, seed=8), 1_700_000_000.0)
raws = [raw for raw in world.contacts(1_700_000_000.0).values()]
raws = [raw if isinstance(raw, bytes) else raw.raw for raw in raws]
page = RawPage(b'{"data":[' + b",".join(raws) + b"]}", len(raws), 0)
batch = Normalizer("main")([page])
stage = Stage(home / "parts")
stage.append(batch)
stage.close()
record = RunRecord(seq=1, run_id="r", account="main", mode="full", t0=day(1), watermark=day(1),
    proof=Proof("windows", 1), requests=Requests(1), seconds=0.0,
    counts=Counts(received=len(raws), rejected=batch.rejects.num_rows), detail={})
windows = schema.WINDOWS_SCHEMA.empty_table()
run = Publication(1, "r", (AccountYield(record, stage.parts, stage.rejects, (), windows),))
told = [dict(batch.counts)]
for kind in ("duckdb", "parquet"):
    sink = sink_at(kind, home / kind)
    sink.open()
    sink.prepare(run)
    sink.publish(run)
    with open_readonly(kind, sink.path) as connection:
        for table in ("contacts", "contact_versions", "rejects", "runs"):
            rows = connection.sql(f"from {table} order by all").to_arrow_table()
            told.append(hashlib.sha256(repr(rows.to_pylist()).encode()).hexdigest())
(home / "told.json").write_text(json.dumps(told, sort_keys=True), encoding="ascii")
"""

ENVIRONMENTS = [
    {"PYTHONHASHSEED": "0", "TZ": "UTC+27", "PYTHONUTF8": "1"},
    {"PYTHONHASHSEED": "4242", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu"},
    {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Apia", "PYTHONOPTIMIZE": "2"},
    {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1", "TZ": ":/no/such/zone", "LANG": "xx_YY", "HOME": "/nonexistent"},
]


def test_the_environment_does_not_change_a_cell(tmp_path: Path) -> None:
    """P20, P29: time zone, locale, UTF-8 mode and hash seed do not change the rows of unusual contacts in any sink."""
    told = set()
    for number, odd in enumerate(ENVIRONMENTS):
        home = tmp_path / str(number)
        home.mkdir()
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), **odd}
        command = [sys.executable, "-c", PUBLISH, str(Path(__file__).parents[2]), str(home)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        assert ended.returncode == 0, (odd, ended.stderr)
        told.add((home / "told.json").read_text())
    assert len(told) == 1


def test_a_clock_that_jumps_between_runs_harms_nothing(tmp_path: Path) -> None:
    """P19: if our clock and the server's differ, by up to decades, the watermark is behind both; no name has a time."""
    with live(contacts=CONTACTS, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        for seq, ahead in enumerate((0.0, 240.0, -240.0, 0.0), start=1):
            server.ahead = ahead
            report = job.run()
            assert report.exit_code == 0, report.error
            watermark = report.accounts[0].record.watermark.timestamp()
            assert 0 < min(server.clock(), time.time()) - watermark < 30
            assert report.accounts[0].record.seq == seq
        assert len(job.in_duckdb()) == CONTACTS
        before = job.fingerprint()
        for ahead in (3600.0, -86_400.0, -1_700_000_000.0):
            server.ahead = ahead
            report = job.run()
            if report.exit_code:
                assert report.exit_code in {12, 13}
                assert job.fingerprint() == before
            else:
                watermark = report.accounts[0].record.watermark.timestamp()
                assert watermark < min(server.clock(), time.time())
                assert len(job.in_duckdb()) == CONTACTS
                before = job.fingerprint()
        names = {path.name for path in (job.folder / "data").rglob("*")} - {"data"}
        assert not [name for name in names if re.search(r"20\d\d|\d{10}", name)]


# --- streams ---------------------------------------------------------------------------------------------------------

STREAMS = {
    "stdout closed": ">&-",
    "stderr closed": "2>&-",
    "everything closed": "<&- >&- 2>&-",
    "stdout on a full disk": ">/dev/full",
    "everything on a full disk": ">/dev/full 2>/dev/full",
}


@pytest.mark.parametrize("streams", STREAMS)
def test_streams_that_take_nothing_do_not_harm_the_run(streams: str, job: Job) -> None:
    """P21: with closed streams or a full disk behind them, data are published and exit codes are right."""
    job.sinks = ("duckdb",)
    config = job.config()

    def code(*words: str) -> int:
        command = " ".join(["exec", sys.executable, "-m", "etl", *words, STREAMS[streams]])
        return subprocess.run(["/bin/sh", "-c", command], env=job.environment(), check=False).returncode  # noqa: S603

    assert code("run", str(config)) == 0
    assert job.rows("select count(*) from contacts") == [(CONTACTS,)]
    assert code("run", str(config) + "x", "--json") == 2


# --- the program itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["duckdb", "pyarrow", "msgspec", "aiohttp", "pydantic"])
def test_a_damaged_library_is_told(module: str, job: Job) -> None:
    """P24: a library that cannot be imported gives exit 2 with its name and a hint, and nothing is written."""
    broken = job.folder / "broken"
    broken.mkdir()
    (broken / f"{module}.py").write_text("raise ImportError('libsomething.so.1: cannot open shared object file')\n")
    ended = job.command(*WORDS, PYTHONPATH=os.pathsep.join((str(broken), os.environ.get("PYTHONPATH", ""))))
    assert ended.code == 2, ended
    assert module in ended.err
    assert "Traceback" not in ended.err
    assert not (job.folder / "data").exists()


@pytest.mark.parametrize(
    ("version", "told"), [("1.4.2", "duckdb 1.4.2 is older than 2.0"), ("2.0.0rc1", ""), ("10.0", "")]
)
def test_a_library_that_is_too_old_is_found(version: str, told: str, job: Job) -> None:
    """P24: `doctor` compares the installed versions with those that our metadata require, and gives a hint."""
    older = job.folder / "older"
    (older / "duckdb-0.dist-info").mkdir(parents=True)
    (older / "duckdb-0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: duckdb\nVersion: {version}\n")
    path = os.pathsep.join((str(older), os.environ.get("PYTHONPATH", "")))
    ended = job.command("doctor", "CONFIG", "--json", PYTHONPATH=path)
    [found] = [check for check in ended.document["checks"] if check["check"] == "packages"]
    assert (ended.code, found["ok"]) == ((2, False) if told else (0, True)), ended
    assert told in found["detail"]
    assert bool(found["hint"]) == bool(told)


# --- leftovers -------------------------------------------------------------------------------------------------------


def test_the_leftovers_of_a_thousand_killed_runs_are_collected(published: Job) -> None:
    """P27: the next run removes leftovers; published data, users' files and other targets' files stay."""
    ours = ("contacts.duckdb.next-{:08x}", "contacts.next-{:08x}")
    for number in range(1000):
        left = published.temporary / ours[number % 2].format(number)
        left.mkdir()
        (left / "part-000001.parquet").write_bytes(b"cut")
    theirs = ("contacts2.stage-1", "other.duckdb.next-1", "notes", "contacts.duckdb", "mycontacts.next-1")
    for name in theirs:
        (published.temporary / name).mkdir()
        (published.temporary / name / "mine").write_text("mine")
    assert published.run().exit_code == 0
    kept = {"contacts.duckdb.lock", "contacts.lock", "contacts.duckdb.attempts.jsonl"}
    assert {path.name for path in published.temporary.iterdir()} == {*theirs, *kept}
    assert {(published.temporary / name / "mine").read_text() for name in theirs} == {"mine"}
    assert published.rows("select max(seq) from runs") == [(2,)]


def test_a_schedule_tighter_than_a_run_skips_and_tells(warm: Nursery, tmp_path: Path) -> None:
    """P28: runs that start during another run exit with 30 and change nothing; a run after it succeeds."""
    with live(contacts=CONTACTS, nasty_share=0, small=True, latency=0.1) as slow:
        job = Job(tmp_path, {"main": slow.url}, settings="[extract]\nconcurrency = 1\n")
        pid = start(warm, job)
        deadline = time.monotonic() + 20
        while not slow.stats()["requests"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        skipped = [job.run().exit_code for _ in range(3)]
        assert warm.wait(pid).code == 0
        assert skipped == [30, 30, 30]
        assert job.run().exit_code == 0
    status = job.call("status", "CONFIG", "--json").document
    assert [account["seq"] for account in status["accounts"]] == [2]


# --- space -----------------------------------------------------------------------------------------------------------


def test_a_shortage_tells_how_many_bytes_are_needed() -> None:
    """P9: a shortage is reported in bytes, and space that just suffices is no shortage."""
    assert preflight.shortage(100, free=100, largest=None) is None
    assert preflight.shortage(100, free=100, largest=100) is None
    message, hint = preflight.shortage(5000, free=1000, largest=None) or ("", "")
    assert "1,000" in message
    assert "5,000" in message
    assert hint == "Free space: 4,000 bytes"
    assert "ulimit" in (preflight.shortage(100, free=1000, largest=99) or ("", ""))[1]


def test_a_disk_too_small_for_the_copy_is_refused_before_the_first_request(server: Live, published: Job) -> None:
    """P9: a copy that does not fit is exit 20 with the bytes needed; one that fits is accepted."""
    sent = server.stats()["requests"]
    with pytest.raises(SinkError, match="bytes left and a run needs"):
        preflight.check_room(published.duckdb.parent, copied=2**60)
    preflight.check_room(published.duckdb.parent, copied=published.duckdb.stat().st_size)
    assert server.stats()["requests"] == sent
