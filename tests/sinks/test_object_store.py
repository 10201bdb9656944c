"""The Parquet sink in an object store: lost and wrong answers, kills, competitors, leftovers, damage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from etl.errors import OutcomeUnknown, PublishConflict, SinkError, TargetCorrupt
from etl.model import Publication
from etl.sinks import ParquetSink, Sink, select
from etl.sinks.parquet_commits import NumberedCommits
from etl.sinks.parquet_objects import ObjectLog
from etl.storage.objects import Objects
from tests.support.campaign import campaign
from tests.support.object_store import SECRET, ObjectStore
from tests.support.publishing import brought, contact, publication

ROOT = Path(__file__).parents[2]


class Target:
    """A new target in an object store."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store = store
        self.url = store.new_url()
        self.path = folder / "data" / "contacts"
        self.folder = folder

    def sink(self, path: Path | None = None, keep: int = 3) -> Sink:
        """A sink as a new process has it, by default on the same machine; its pauses take no time."""
        objects = Objects(self.url, self.store.endpoint, pause=lambda _: None)
        return ParquetSink(
            path or self.path, keep=keep, log=ObjectLog(objects, NumberedCommits(objects), path or self.path)
        )

    def bring(self, seq: int, *numbers: int) -> Publication:
        """A run that reads these contacts."""
        rows = [contact(number, name=f"{seq if number == 1 else 0}") for number in numbers]
        return publication(brought(self.folder / "parts", "main", rows, seq=seq))

    def publish(self, seq: int, *numbers: int, sink: Sink | None = None) -> None:
        """Publish a whole run."""
        sink = sink or self.sink()
        sink.open()
        run = self.bring(seq, *numbers)
        sink.prepare(run)
        sink.publish(run)

    def prepared(self, seq: int, *numbers: int) -> tuple[Sink, Publication]:
        """A sink that only needs to publish."""
        sink, run = self.sink(), self.bring(seq, *numbers)
        sink.open()
        sink.prepare(run)
        return sink, run

    def ids(self) -> list[int]:
        """The numbers of the published contacts."""
        with self.sink().reading() as connection:
            rows = select(connection, "SELECT contact_id FROM contacts ORDER BY contact_id").to_pylist()
        return [int(row["contact_id"], 16) for row in rows]

    def names(self, folder: str = "") -> list[str]:
        """The names of the objects in a folder."""
        return [name for name in self.store.names(self.url) if name.startswith(folder)]

    def listed(self) -> set[str]:
        """The files that any manifest lists."""
        documents = (json.loads(self.store.get(self.url, name)) for name in self.names("manifests/"))
        return {file["path"] for document in documents for file in document["files"]}


@pytest.fixture
def target(object_store: ObjectStore, tmp_path: Path) -> Target:
    """A target in which nothing was published."""
    return Target(object_store, tmp_path)


def _manifest_put(fault: str, times: int = 1) -> Callable[[int, str, str], str]:
    """A fault of the first requests that create a manifest."""
    left = [fault] * times

    def decide(_: int, method: str, path: str) -> str:
        return left.pop() if left and method == "PUT" and "/manifests/" in path else ""

    return decide


@pytest.mark.parametrize("fault", ["lost", "then 412", "then 409", "then 503", "unheard", "503", "409", "cut"])
def test_a_lost_or_wrong_answer_to_the_publishing_request_is_found_out(target: Target, fault: str) -> None:
    """If the answer is lost, 412 or 5xx, the manifest is read and compared: it may be our own success (S13, S14)."""
    target.publish(1, 1)
    sink, run = target.prepared(2, 1, 2)
    target.store.reset(_manifest_put(fault))
    sink.publish(run)
    target.store.reset()
    assert target.ids() == [1, 2]
    assert target.sink().open().seq == 2
    assert target.names("manifests/") == ["manifests/00000001.json", "manifests/00000002.json"]


@pytest.mark.parametrize("fault", ["lost", "unheard"])
def test_an_unknown_outcome_is_told_and_nothing_is_removed(target: Target, fault: str) -> None:
    """If the store cannot be asked, the run exits with 20, and a request that still arrives finds its files (S13)."""
    target.publish(1, 1)
    sink, run = target.prepared(2, 1, 2)
    publishing = _manifest_put(fault)

    def dead(number: int, method: str, path: str) -> str:
        return publishing(number, method, path) or ("500" if "/manifests/" in path else "")

    target.store.reset(dead)
    with pytest.raises(OutcomeUnknown, match="not known whether"):
        sink.publish(run)
    sink.discard()
    target.store.reset()
    seen = target.sink().open().seq
    assert seen == (2 if fault == "lost" else 1)
    target.publish(seen + 1, 1, 3)
    assert target.ids() == ([1, 2, 3] if fault == "lost" else [1, 3])
    assert set(target.names("current/")) <= target.listed()
    assert target.names("preparing/") == []


def test_a_refusal_is_no_unknown_outcome(target: Target) -> None:
    """If the store refuses the publishing request at once, the uploaded files are removed (exit 20)."""
    target.publish(1, 1)
    sink, run = target.prepared(2, 1, 2)
    target.store.reset(_manifest_put("403"))
    with pytest.raises(SinkError, match="AccessDenied") as caught:
        sink.publish(run)
    sink.discard()
    assert not isinstance(caught.value, OutcomeUnknown)
    assert "s3:PutObject" in caught.value.hint
    assert {*target.names("current/"), *target.names("versions/")} == target.listed()
    target.publish(2, 1, 2)
    assert target.ids() == [1, 2]


def test_of_two_machines_one_publishes_and_the_other_removes_its_files(target: Target, tmp_path: Path) -> None:
    """Machines share no lock: the store lets one create the manifest, and the other exits with 21 (S14, P17)."""
    target.publish(1, 1)
    run, other = target.bring(2, 1, 2), target.bring(3, 1, 3)
    first, second, third = target.sink(), target.sink(tmp_path / "elsewhere"), target.sink(tmp_path / "third")
    first.prepare(run)
    second.prepare(run)
    third.prepare(other)  # Its other sink is ahead, so its run has another number.
    first.publish(run)
    for late, its in ((second, run), (third, other)):
        with pytest.raises(PublishConflict):
            late.publish(its)
        late.discard()
    assert target.ids() == [1, 2]
    assert set(target.names("current/")) | set(target.names("versions/")) == target.listed()
    target.publish(3, 1, 2, 3, sink=target.sink(tmp_path / "elsewhere"))
    assert target.ids() == [1, 2, 3]


def test_a_list_that_is_out_of_date_does_no_harm(target: Target, tmp_path: Path) -> None:
    """A store whose lists lag shows a reader an older state, and a run that starts from it exits with 21 (S14)."""
    target.publish(1, 1)
    assert target.ids() == [1]
    elsewhere = target.sink(tmp_path / "elsewhere")
    elsewhere.open()
    late = target.bring(2, 1, 2)
    elsewhere.prepare(late)
    sink, run = target.sink(), target.bring(2, 1, 3)
    sink.state()
    target.store.reset(lambda _number, _method, path: "stale" if "list-type" in path else "")
    elsewhere.publish(late)
    assert target.ids() == [1]
    sink.prepare(run)
    with pytest.raises(PublishConflict):
        sink.publish(run)
    sink.discard()
    target.store.reset()
    assert target.ids() == [1, 2]


_PUBLISH = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from tests.support.publishing import brought, contact, objects_at, publication
url, endpoint, home, seq = sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4]), int(sys.argv[5])
run = publication(brought(home / "parts-of-child", "main", [contact(1), contact(seq)], seq=seq))
sink = objects_at(url, endpoint, home / "data" / "contacts")
sink.open()
sink.prepare(run)
sink.publish(run)
"""


@pytest.mark.parametrize("done", [campaign(False), campaign(True)], ids=["before", "after"])
def test_a_kill_at_any_request_leaves_the_old_state_or_the_new(target: Target, *, done: bool) -> None:
    """A run killed before or after any of its requests leaves a whole state, and the next run works (P4, S11)."""
    target.publish(1, 1)
    whole = {name: target.store.get(target.url, name) for name in target.names()}
    seen = []
    for stop in count():
        target.url = target.store.new_url()
        for name, content in whole.items():
            target.store.put(target.url, name, content)
        child = list[subprocess.Popen[bytes]]()

        def kill(number: int, *_: str, at: int = stop, victim: list[subprocess.Popen[bytes]] = child) -> str:
            if number < at:
                return ""
            victim[0].kill()
            return "lost" if done and number == at else "unheard"

        target.store.reset(kill)
        home = str(target.folder / "killed" / str(stop))
        arguments = [str(ROOT), target.url, target.store.endpoint, home, "2"]
        child.append(subprocess.Popen([sys.executable, "-c", _PUBLISH, *arguments]))  # noqa: S603 - our own program
        code = child[0].wait()
        target.store.reset()
        assert code in {0, -9}
        seen.append(target.sink().open().seq)
        assert target.ids() == ([1] if seen[-1] == 1 else [1, 2])
        target.publish(3, 1, 9)
        assert 9 in target.ids()
        assert set(target.names("current/")) | set(target.names("versions/")) <= target.listed()
        assert target.names("preparing/seq") == []
        if code == 0:
            break
    assert sorted(seen) == seen
    assert set(seen) == {1, 2}


@pytest.mark.parametrize("fault", ["503", *map(campaign, ("unheard", "lost", "cut", "500"))])
def test_every_other_request_is_repeated(target: Target, fault: str) -> None:
    """Any single failure of a request during a run changes nothing (S13)."""
    target.publish(1, 1)
    target.store.reset()
    target.publish(2, 1, 2, sink=target.sink(target.folder / "elsewhere"))
    requests = len(target.store.requests)
    for at in range(requests):
        target.url = target.store.new_url()
        target.store.reset()
        target.publish(1, 1)
        target.store.reset(lambda number, _method, _path, at=at: fault if number == at else "")
        try:
            target.publish(2, 1, 2, sink=target.sink(target.folder / "elsewhere"))
        except SinkError:
            assert fault == "cut"
            target.store.reset()
            target.publish(2, 1, 2)
        target.store.reset()
        assert target.ids() == [1, 2]


def test_unchanged_files_are_listed_and_not_uploaded_again(target: Target) -> None:
    """A later manifest lists the files that did not change, and readers find them."""
    for seq in (1, 2, 3):
        target.publish(seq, 2, 3)
    [current] = target.names("current/")
    last = json.loads(target.store.get(target.url, "manifests/00000003.json"))
    assert current in [file["path"] for file in last["files"]]
    assert target.ids() == [2, 3]


def test_old_states_are_dropped_after_a_grace(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of states before the last `keep` are removed once their successor is an hour old; history stays (S22)."""
    for seq in range(1, 5):
        target.publish(seq, 1, sink=target.sink(keep=2))
    assert len(target.names("current/")) == 4
    monkeypatch.setattr(NumberedCommits, "retention", timedelta(0))
    target.publish(5, 1, sink=target.sink(keep=2))
    assert [name[8:20] for name in target.names("current/")] == ["seq=00000004", "seq=00000005"]
    assert len(target.names("versions/")) == len(target.names("manifests/")) == 5
    assert target.sink().state().seq == 5


def test_a_lost_copy_is_fetched_again_and_an_altered_one_too(target: Target) -> None:
    """Copies on this machine are checked before a run builds on them, and fetched again if they differ."""
    target.publish(1, 1, 2)
    [copy] = (path for path in target.path.parent.rglob("current/*/*.parquet"))
    whole = copy.read_bytes()
    for content in (b"", whole[:-1] + b"x"):
        copy.write_bytes(content)
        sink = target.sink()
        sink.open()
        assert sink.created_at("main").num_rows == 2
        assert copy.read_bytes() == whole


def _cut(target: Target) -> None:
    name = target.names("current/")[-1]
    target.store.put(target.url, name, target.store.get(target.url, name)[:-1])


def _alter(target: Target) -> None:
    name = target.names("current/")[-1]
    target.store.put(target.url, name, target.store.get(target.url, name)[:-1] + b"x")
    for path in target.path.parent.rglob("*.parquet"):
        path.unlink()


def _drop(target: Target) -> None:
    target.store.delete(target.url, target.names("versions/")[0])


def _drop_manifest(target: Target) -> None:
    target.store.delete(target.url, target.names("manifests/")[-1])


def _drop_first_manifest(target: Target) -> None:
    target.store.delete(target.url, target.names("manifests/")[0])


def _edit_manifest(target: Target) -> None:
    name = target.names("manifests/")[-1]
    target.store.put(target.url, name, target.store.get(target.url, name).replace(b"run-2", b"run-7"))


def _lead_elsewhere(target: Target) -> None:
    """A valid manifest that lists a file outside the target."""
    from etl.sinks import manifest  # noqa: PLC0415

    name = target.names("manifests/")[-1]
    found = manifest.decode(target.store.get(target.url, name))
    files = tuple(replace(file, path=f"current/../../{Path(file.path).name}") for file in found.files)
    target.store.put(target.url, name, manifest.encode(replace(found, files=files)))


@pytest.mark.parametrize(
    "damage", [_cut, _alter, _drop, _drop_manifest, _drop_first_manifest, _edit_manifest, _lead_elsewhere]
)
def test_a_damaged_target_is_refused(target: Target, damage: Callable[[Target], None]) -> None:
    """A missing, shortened, altered or foreign file or manifest is exit 22, and nothing is changed (P26, X19, X6)."""
    target.publish(1, 1)
    target.publish(2, 1)
    damage(target)
    before = {name: target.store.get(target.url, name) for name in target.names()}
    sink = target.sink()
    with pytest.raises(TargetCorrupt):
        sink.prepare(target.bring(3, 1))
    sink.discard()
    with pytest.raises(TargetCorrupt):
        target.sink().verify()  # type: ignore[attr-defined]
    assert {name: target.store.get(target.url, name) for name in target.names()} == before


def test_a_store_that_replaces_objects_is_refused(target: Target) -> None:
    """A store that ignores If-None-Match cannot keep two machines apart: exit 20 before anything is read."""
    target.store.reset(lambda *_: "careless")
    with pytest.raises(SinkError, match="If-None-Match"):
        target.sink().open()


@pytest.mark.parametrize(
    ("fault", "hint"), [("403", "s3:ListBucket"), ("404", "Create the bucket"), ("503", "Run again later")]
)
def test_a_store_that_refuses_is_told_in_one_message(target: Target, fault: str, hint: str) -> None:
    """A missing bucket, missing rights and a store that is overloaded are exit 20 with a hint and without secrets."""
    target.store.reset(lambda *_: fault)
    for work in (target.sink().open, target.sink().state, target.sink().exists):
        with pytest.raises(SinkError) as caught:
            work()
        assert hint in caught.value.hint
        assert "\n" not in str(caught.value)
        assert SECRET not in str(caught.value)


def test_a_query_that_loses_the_store_is_exit_20(target: Target) -> None:
    """An error of the store during a query is reported as such, not as damage or as an error of the query."""
    target.publish(1, 1)
    with target.sink().reading() as connection:
        assert select(connection, "SELECT name FROM contacts").num_rows == 1
    target.store.reset(lambda _number, method, path: "503" if method == "GET" and "/current/" in path else "")
    with pytest.raises(SinkError, match="SlowDown") as caught, target.sink().reading() as connection:
        select(connection, "SELECT name FROM contacts")
    assert not isinstance(caught.value, TargetCorrupt)
