"""Unusual file systems: no hard links, mounted targets, and readers that are other users.

Unsupported setups are refused before the first request, and `doctor` finds the same. Mounts are made in a private
namespace, which ends with the command.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.errors import SinkError, UsageError
from etl.sinks import DuckDBSink, ParquetSink
from etl.storage import files, staging
from etl.storage.files import Access
from etl.storage.lock import Lock
from tests.support.campaign import campaign
from tests.support.forked import Nursery, nursery
from tests.support.live import Account, Ended, Job, Live
from tests.support.publishing import brought, contact, publication

ROOT = Path(__file__).parents[2]
CONTACTS = 60
WORDS = ("run", "CONFIG", "--json")
GROUP = "54321"
"""A group without members; root may give files to it."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """A small account that does not change."""
    return Account(tmp_path_factory.mktemp("account"), {"contacts": CONTACTS, "nasty_share": 0, "small": True})


@pytest.fixture(scope="module")
def server(account: Account) -> Iterator[Live]:
    """The server of that account."""
    with account.served() as running:
        yield running


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """One warm process for all tests."""
    with nursery(tmp_path_factory.mktemp("children")) as process:
        yield process


@pytest.fixture
def job(server: Live, tmp_path: Path) -> Job:
    """A job for that account that was never run."""
    return Job(tmp_path, {"main": server.url})


@pytest.fixture
def published(account: Account, server: Live, tmp_path: Path) -> Job:
    """A job for that account after its first run."""
    return account.job(server, tmp_path, "duckdb", "parquet")


# --- no hard links ---------------------------------------------------------------------------------------------------

LINKLESS = """
import json, pathlib, sys
from tests.crash import tracer
from tests.crash.case import publish_apart
from tests.crash.child import Scenario
from tests.crash.rig import Rig
from tests.crash.syscalls import FAILING, PUBLISHING
if reason := tracer.refusal():
    sys.exit(3)
sink, start, kills, link, rename = *sys.argv[1:3], *map(int, sys.argv[4:])
rig = Rig(Scenario(sink, start), pathlib.Path(sys.argv[3]), thorough=False)

def publish(folder, kill):
    steps = 0
    def decide(call):
        nonlocal steps
        if call.what.name in PUBLISHING:
            steps += 1
            if steps == kill:
                return tracer.KILL
        return {"link": link, "linkat": link, "renameat2": rename}.get(call.what.name, 0)
    return tracer.trace(lambda: publish_apart(rig.scenario, folder, rig.stderr), FAILING, folder, decide).code

told, kill = [], 0
while not told or (kills and told[-1][0] == -9):
    folder = rig.fresh()
    kill += kills
    code = publish(folder, kill)
    saw, problems = rig.look(folder)
    told.append([code, saw, problems + rig.heal(folder, saw)])
print(json.dumps(told))
"""


def linkless(
    tmp_path: Path, sink: str, start: str, link: int, rename: int, *, kills: bool = False
) -> list[list[object]]:
    """[exit code, state seen, problems] of a publication in which links and no-replace renames fail with these errors.

    With `kills`, there is one for each call that gives a name, killed right before it, and a last one without a kill.
    """
    command = [sys.executable, "-c", LINKLESS, sink, start, str(tmp_path), str(int(kills)), str(link), str(rename)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    if ended.returncode == 3:
        pytest.skip("needs the right to trace")
    assert ended.returncode == 0, ended.stderr
    return list(json.loads(ended.stdout))


@pytest.mark.parametrize(("link", "rename"), [campaign(errno.EOPNOTSUPP, 0), (errno.EPERM, errno.EINVAL)])
@pytest.mark.parametrize("sink", ["duckdb", "parquet"])
def test_a_file_system_without_links_is_published_to(sink: str, link: int, rename: int, tmp_path: Path) -> None:
    """P13: a target on SMB, exFAT or FUSE, even without no-replace renames, is published and found by the next run."""
    assert linkless(tmp_path, sink, "nothing", link, rename) == [[0, "new", []]]


@pytest.mark.parametrize("sink", ["duckdb", campaign("parquet")])
def test_a_kill_without_links_leaves_the_old_state_or_the_new(sink: str, tmp_path: Path) -> None:
    """P4, P13: a kill at any rename, trial ones included, leaves the old or new state; the next run cleans up."""
    *killed, last = linkless(tmp_path, sink, "nothing", errno.EPERM, 0, kills=True)
    assert len(killed) >= 4
    assert [told for told in killed if told[:2] not in ([-9, "old"], [-9, "new"]) or told[2]] == []
    assert last == [0, "new", []]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS, errno.EMLINK, errno.EXDEV])
def test_a_name_that_is_taken_is_never_replaced(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P17: without hard links, no existing name is replaced, and an unchanged file becomes a private copy."""

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.write_text("mine")
    theirs.write_text("theirs")
    with pytest.raises(FileExistsError):
        files.put(mine, theirs)
    assert (mine.read_text(), theirs.read_text()) == ("mine", "theirs")
    assert not files.link_or_copy(theirs, tmp_path / "copy")
    assert ((tmp_path / "copy").read_text(), stat.S_IMODE((tmp_path / "copy").stat().st_mode)) == ("theirs", 0o600)
    files.put(mine, tmp_path / "new")
    assert (tmp_path / "new").read_text() == "mine"


def test_an_error_of_the_disk_is_no_missing_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P10: a link that fails for another reason is not retried in other ways."""

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", broken)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.put(tmp_path / "mine", tmp_path / "new")
    with pytest.raises(SinkError):
        files.link_or_copy(tmp_path / "mine", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- mounts ----------------------------------------------------------------------------------------------------------


def mounted(job: Job, mounts: str, *words: str) -> Ended:
    """Run a command with private mounts, which a shell script makes in the job's folder."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:  # noqa: S607
        pytest.skip("needs the right to mount")
    script = f'{mounts} && exec "{sys.executable}" -m etl "$@"'
    command = ["unshare", "-m", "sh", "-ec", script, "sh", *(str(job.config()) if w == "CONFIG" else w for w in words)]
    environment = {**job.environment(), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(  # noqa: S603 - our own program
        command, cwd=job.folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


REFUSED = {
    "the DuckDB file": ("cp -p data/contacts.duckdb file && mount --bind file data/contacts.duckdb", "the folder"),
    "a folder of the Parquet target": (
        "cp -a data/contacts/current volume && mount --bind volume data/contacts/current",
        "as a whole",
    ),
    "the Parquet target, read-only": (
        "cp -a data/contacts volume && mount --bind volume data/contacts && mount -o remount,bind,ro data/contacts",
        "read-only",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_mount_that_cannot_be_published_to_is_refused_before_the_first_request(
    what: str, server: Live, published: Job
) -> None:
    """P12, P14: a bind mount of the same disk is another disk for a rename; run and doctor give the same hint."""
    mounts, hint = REFUSED[what]
    before, sent = published.fingerprint(), server.stats()["requests"]
    ended = mounted(
        published, mounts.replace("cp -p", "rm -rf file volume; cp -p").replace("cp -a", "rm -rf volume; cp -a"), *WORDS
    )
    assert ended.code == 20, ended
    assert hint in ended.document["error"]["hint"]
    assert server.stats()["requests"] == sent
    assert published.fingerprint() == before
    examined = mounted(published, mounts.replace("cp ", "true "), "doctor", "CONFIG", "--json")
    assert examined.code == 20
    assert [check["hint"] for check in examined.document["checks"] if not check["ok"]] == [
        ended.document["error"]["hint"]
    ]
    assert {path.suffix for path in published.temporary.iterdir()} == {".lock", ".jsonl"}
    assert not list(published.folder.rglob(".etl-*"))


WORKING = {
    "on the same disk": "mount --bind volume data/contacts",
    "on another disk": "mount -t tmpfs none volume && mount --bind volume data/contacts",
    "in a folder that is read-only": (
        "mount --bind data data && mount --bind volume data/contacts && mount -o remount,bind,ro data"
    ),
    "as a link to another disk": ("rmdir data/contacts && mount -t tmpfs none volume && ln -s ../volume data/contacts"),
}


@pytest.mark.parametrize(
    "how",
    [
        campaign("on the same disk"),
        "on another disk",
        "in a folder that is read-only",
        campaign("as a link to another disk"),
    ],
)
def test_a_parquet_target_that_is_mounted_is_staged_into_from_inside(how: str, server: Live, tmp_path: Path) -> None:
    """P14: two runs move nothing across the mount, and leave only a lock in the volume and nothing next to it."""
    job = Job(tmp_path, {"main": server.url}, sinks=("parquet",))
    (tmp_path / "data" / "contacts").mkdir(parents=True)
    (tmp_path / "volume").mkdir()
    again = f'{WORKING[how]} && "{sys.executable}" -m etl run "{job.config()}" >&2'
    ended = mounted(job, f"{again} && ls -A volume/.etl >&2 && ls -A data >&2", *WORDS)
    assert ended.code == 0, ended
    [account] = ended.document["accounts"]
    assert (account["seq"], account["counts"]["contacts"]) == (2, CONTACTS)
    assert ended.err.splitlines().count("contacts.lock") == 1
    assert not job.temporary.exists()


def test_a_target_in_a_folder_that_is_closed_is_staged_into_from_inside(
    warm: Nursery, server: Live, tmp_path: Path
) -> None:
    """P12: without write access to the target's parent, a run stages inside, as does a later run with more rights."""
    job = Job(tmp_path, {"main": server.url}, sinks=("parquet",))
    job.parquet.mkdir(parents=True)
    words = ("run", str(job.config()), "--json")
    job.parquet.parent.chmod(0o555)
    ended = warm.run(*words, cwd=job.folder, environment=job.environment(), unprivileged=True)
    job.parquet.parent.chmod(0o755)
    assert ended.code == 0, ended.err
    assert job.run().exit_code == 0
    left = sorted(path.name for path in (job.parquet / ".etl").iterdir())
    assert left == ["contacts.attempts.jsonl", "contacts.lock"]
    assert not job.temporary.exists()


def test_what_a_killed_probe_left_is_collected_and_nothing_else(tmp_path: Path) -> None:
    """P27: a probe file is ours only if the folder with the same suffix exists; a matching name alone is not enough."""
    target = tmp_path / "contacts"
    folder = staging.next_folder(target)
    left, mine = tmp_path / f".etl-{folder.name[-8:]}", tmp_path / ".etl-abcd1234"
    for path in (left, mine):
        path.write_text("probe")
    staging.collect_leftovers(target, [tmp_path])
    assert (left.exists(), folder.exists(), mine.exists()) == (False, False, True)


# --- readers ---------------------------------------------------------------------------------------------------------


def rights(folder: Path) -> set[tuple[bool, int, int]]:
    """(is a folder, mode, group) of a folder and everything published below it."""
    paths = [folder, *(path for path in folder.rglob("*") if ".etl" not in path.parts)]
    found = [path.stat() for path in paths]
    return {(stat.S_ISDIR(one.st_mode), stat.S_IMODE(one.st_mode), one.st_gid) for one in found}


@needs_root
@pytest.mark.parametrize("kind", [DuckDBSink, ParquetSink])
def test_what_is_published_is_for_its_readers(kind: type[DuckDBSink | ParquetSink], tmp_path: Path) -> None:
    """X3: access set after two runs applies to older files too, linked ones included; temporary files stay private."""
    path = tmp_path / "data" / "contacts"

    def publish(seq: int, access: Access | None) -> None:
        with Lock(path):
            sink = kind(path, access=access)
            sink.open()
            run = publication(brought(tmp_path / "parts", "main", [contact(1), contact(2)], seq=seq))
            sink.prepare(run)
            sink.publish(run)

    publish(1, None)
    publish(2, None)
    assert rights(path.parent) <= {(True, 0o700, 0), (False, 0o600, 0)}
    publish(3, Access(0o640, GROUP))
    assert rights(path.parent) == {(True, 0o750, int(GROUP)), (False, 0o640, int(GROUP))}
    home = staging.temporary(path)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (home, *home.iterdir())] == [0o700, 0o600]
    publish(4, Access(0o600, "0"))
    assert {mode for is_folder, mode, _ in rights(path) if not is_folder} == {0o600}
    fresh = tmp_path / "fresh" / "contacts"
    path = fresh
    publish(1, Access(0o644))
    assert {mode for _, mode, _ in rights(fresh.parent)} == {0o755, 0o644}


@needs_root
def test_a_run_that_fails_leaves_the_rights_as_they_were(published: Job) -> None:
    """X3: a run that fails before publishing changes no rights."""
    before = rights(published.duckdb.parent)
    ended = published.call(*WORDS, "--set", 'sinks.parquet.mode="0644"', "--set", "extract.deadline=1ms")
    assert ended.code == 11
    assert rights(published.duckdb.parent) == before


def test_a_folder_that_is_not_ours_keeps_its_rights_and_is_told(server: Live, tmp_path: Path) -> None:
    """X3: a folder with other files may belong to others, so it keeps its rights, and the log names it as closed."""
    job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
    job.duckdb.parent.mkdir(mode=0o700)
    (job.duckdb.parent / "diary").write_text("mine")
    ended = job.command(*WORDS, "--set", 'sinks.duckdb.mode="0644"')
    assert ended.code == 0
    assert stat.S_IMODE(job.duckdb.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(job.duckdb.stat().st_mode) == 0o644
    closed = [json.loads(line) for line in ended.err.splitlines() if "sink.closed" in line]
    assert str(job.duckdb.parent) in {event["folder"] for event in closed}


def test_a_group_that_does_not_exist_is_found_by_run_and_doctor(server: Live, job: Job) -> None:
    """An unknown group gives exit 2 before the first request, with its name."""
    sent = server.stats()["requests"]
    words = ("--set", "sinks.duckdb.group=no-such-group", "--set", 'sinks.duckdb.mode="0640"')
    ended = job.call(*WORDS, *words)
    assert (ended.code, server.stats()["requests"]) == (2, sent)
    assert "no-such-group" in ended.document["error"]["where"]
    examined = job.call("doctor", "CONFIG", "--json", *words)
    assert examined.code == 2
    assert [check["check"] for check in examined.document["checks"] if not check["ok"]] == ["sink"]
    with pytest.raises(UsageError):
        Access(0o640, str(2**32)).gid()


AS_NOBODY = """
import os, pathlib, sys
from etl.storage.files import Access
from etl.errors import SinkError
folder = pathlib.Path(sys.argv[1])
(folder / "theirs").touch(0o600)
os.chown(folder, 65534, 65534)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
(folder / "mine").touch(0o600)
for act, name in ((Access(0o640, "54321").give, "mine"), (Access(0o640).check, "theirs"), (Access(0o640).give, "mine")):
    try:
        act(folder / name)
    except SinkError as error:
        print(error)
"""


@needs_root
def test_a_group_that_files_cannot_be_given_to_is_told() -> None:
    """A group that the user is not in gives exit 20 with its name and a fix, and so do files of another user."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", AS_NOBODY, folder]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
        assert stat.S_IMODE((Path(folder) / "mine").stat().st_mode) == 0o640
    first, second = ended.stdout.splitlines()
    assert "group 54321" in first
    assert "usermod" in first
    assert "chown" in second
