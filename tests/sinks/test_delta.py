"""Delta tables: lost and wrong answers, a killed run, competitors, other programs, checkpoints, old files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from etl.errors import OutcomeUnknown, PublishConflict, SinkError, TargetCorrupt, UsageError
from etl.model import Publication
from etl.sinks import ParquetSink, Sink, select
from etl.sinks.delta_commits import DeltaCommits, options
from etl.sinks.manifest import chained
from etl.sinks.parquet_objects import ObjectLog
from etl.storage.local_objects import LocalObjects
from etl.storage.objects import Objects
from tests.support.campaign import campaign
from tests.support.object_store import ObjectStore
from tests.support.publishing import brought, contact, publication

SIDE = ("versions", "runs")


class Target:
    """A new target of Delta tables, in an object store or (without one) in a folder."""

    def __init__(self, folder: Path, store: ObjectStore | None = None) -> None:
        self.folder = folder
        self.path = folder / "data" / "lake"
        self.store = store
        self.url = store.new_url() if store else str(self.path)
        self.options = options(store.endpoint) if store else {}
        self.options |= {"max_retries": "0"}

    def sink(self, path: Path | None = None, retention: timedelta = timedelta(days=7)) -> Sink:
        """A sink as a new process has it, by default on the same machine; its pauses take no time."""
        endpoint = self.store.endpoint if self.store else ""
        objects = Objects(self.url, endpoint, pause=lambda _: None) if self.store else LocalObjects(self.path)
        commits = DeltaCommits(objects, self.options, retention, pause=lambda _: None)
        place = path or self.path
        return ParquetSink(place, keep=1, log=ObjectLog(objects, commits, place), name="delta", kind="delta")

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

    def table(self, name: str) -> DeltaTable:
        """A table, as another program opens it."""
        return DeltaTable(f"{self.url}/{name}", storage_options=self.options)

    def ids(self) -> list[int]:
        """The numbers of the contacts, as the table and as our own reader show them."""
        found = sorted(int(one, 16) for one in self.table("contacts").to_pyarrow_table()["contact_id"].to_pylist())
        with self.sink().reading() as connection:
            rows = select(connection, "SELECT contact_id FROM contacts ORDER BY contact_id").to_pylist()
        assert [int(row["contact_id"], 16) for row in rows] == found
        return found

    def runs(self) -> dict[str, list[int]]:
        """The numbers of the runs that each further table shows."""
        return {name: sorted({*self.table(name).to_pyarrow_table()["seq"].to_pylist()}) for name in SIDE}


@pytest.fixture
def target(object_store: ObjectStore, tmp_path: Path) -> Target:
    """A target in an object store."""
    return Target(tmp_path, object_store)


def _commit(fault: str, table: str = "contacts") -> Callable[[int, str, str], str]:
    """A fault of the first commit of a table."""
    left = [fault]

    def decide(_: int, method: str, path: str) -> str:
        return left.pop() if left and method == "PUT" and f"/{table}/_delta_log/" in path else ""

    return decide


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        *(("contacts", fault) for fault in ("lost", "then 412")),
        *(campaign("contacts", fault) for fault in ("then 503", "unheard", "503")),
        *(campaign("versions", fault) for fault in ("lost", "then 412", "unheard")),
    ],
)
def test_a_commit_that_is_reported_as_failed_is_looked_for(target: Target, table: str, fault: str) -> None:
    """A commit whose answer is lost or wrong is found in the log, and never made twice (S16)."""
    assert target.store is not None
    target.publish(1, 1)
    sink, run = target.prepared(2, 1, 2)
    target.store.reset(_commit(fault, table))
    sink.publish(run)
    target.store.reset()
    assert target.ids() == [1, 2]
    assert target.runs() == {"versions": [1, 2], "runs": [1, 2]}
    assert target.table("contacts").version() == target.table("versions").version() == 2


def test_an_unknown_outcome_is_told_and_found_out_by_the_next_run(target: Target) -> None:
    """If the log cannot be read after a commit, the run exits with 20, and the next one starts from what is there."""
    assert target.store is not None
    target.publish(1, 1)
    sink, run = target.prepared(2, 1, 2)
    committing = _commit("lost")
    dead = [False]

    def fault(number: int, method: str, path: str) -> str:
        found = committing(number, method, path)
        dead[0] = dead[0] or found == "lost"
        return found or ("500" if dead[0] else "")

    target.store.reset(fault)
    with pytest.raises(OutcomeUnknown):
        sink.publish(run)
    sink.discard()
    target.store.reset()
    assert target.sink().open().seq == 2
    target.publish(3, 1, 2, 3)
    assert target.ids() == [1, 2, 3]


def test_what_a_failed_run_committed_is_taken_back(target: Target) -> None:
    """The further tables are committed first; after a run that ended there, the next one takes its rows back (S15)."""
    assert target.store is not None
    target.publish(1, 1)
    sink, run = target.prepared(2, 1, 2)
    target.store.reset(lambda _n, method, path: "403" if method == "PUT" and "/contacts/_delta_log/" in path else "")
    with pytest.raises(SinkError, match="AccessDenied"):
        sink.publish(run)
    sink.discard()
    target.store.reset()
    assert target.ids() == [1]
    assert target.runs() == {"versions": [1, 2], "runs": [1, 2]}
    target.publish(2, 1, 7)
    assert target.ids() == [1, 7]
    versions = target.table("versions").to_pyarrow_table()
    assert sorted(int(one, 16) for one in versions["contact_id"].to_pylist()) == [1, 1, 7]
    assert target.table("runs").to_pyarrow_table()["seq"].to_pylist() in ([1, 2], [2, 1])


def test_of_two_machines_one_publishes_and_the_other_takes_its_rows_back(target: Target, tmp_path: Path) -> None:
    """The log of `contacts` lets one machine commit; the other exits with 21, and no table shows its rows (S15)."""
    target.publish(1, 1)
    run, other = target.bring(2, 1, 2), target.bring(3, 1, 3)
    first, second = target.sink(), target.sink(tmp_path / "elsewhere")
    first.prepare(run)
    second.prepare(other)
    first.publish(run)
    with pytest.raises(PublishConflict):
        second.publish(other)
    second.discard()
    assert target.ids() == [1, 2]
    assert target.runs() == {"versions": [1, 2], "runs": [1, 2]}
    target.publish(3, 1, 2, 4, sink=target.sink(tmp_path / "elsewhere"))
    assert target.ids() == [1, 2, 4]


_PUBLISH = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from tests.support.publishing import brought, contact, delta_at, publication
url, endpoint, home = sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
run = publication(brought(home / "parts-of-child", "main", [contact(1), contact(2)], seq=2))
sink = delta_at(url, endpoint, home / "data" / "lake")
sink.open()
sink.prepare(run)
sink.publish(run)
"""
_STEP = 36
"""A run makes about a hundred requests: it is killed at one in 36, and at more in `make campaigns`."""


@pytest.mark.parametrize("first", [0, campaign(9), campaign(18), campaign(27)])
def test_a_kill_at_any_request_leaves_the_old_state_or_the_new(target: Target, first: int) -> None:
    """A run killed after any of its requests leaves a whole state, and the next run takes back what it began (P4)."""
    assert target.store is not None
    target.publish(1, 1)
    whole = {name: target.store.get(target.url, name) for name in target.store.names(target.url)}
    seen = []
    for stop in range(first, 1000, _STEP):
        target.url = target.store.new_url()
        for name, content in whole.items():
            target.store.put(target.url, name, content)
        child = list[subprocess.Popen[bytes]]()

        def kill(number: int, *_: str, at: int = stop, victim: list[subprocess.Popen[bytes]] = child) -> str:
            if number < at:
                return ""
            victim[0].kill()
            return "lost" if number == at else "unheard"

        target.store.reset(kill)
        home = str(target.folder / "killed" / str(stop))
        arguments = [str(Path(__file__).parents[2]), target.url, target.store.endpoint, home]
        child.append(subprocess.Popen([sys.executable, "-c", _PUBLISH, *arguments]))  # noqa: S603 - our own program
        code = child[0].wait()
        target.store.reset()
        assert code in {0, -9}
        seen.append(target.sink().open().seq)
        assert target.ids() == ([1] if seen[-1] == 1 else [1, 2])
        target.publish(seen[-1] + 1, 1, 9)
        assert 9 in target.ids()
        assert all(numbers == list(range(1, seen[-1] + 2)) for numbers in target.runs().values())
        if code == 0:
            break
    assert sorted(seen) == seen
    assert set(seen) == {1, 2}


@pytest.fixture
def folder(tmp_path: Path) -> Target:
    """A target on this disk."""
    return Target(tmp_path)


def test_another_program_that_changes_the_table_is_told(folder: Target) -> None:
    """Properties may be changed; rows and files may not: exit 22 (S17)."""
    folder.publish(1, 1, 2)
    folder.table("contacts").alter.set_table_properties({"delta.logRetentionDuration": "interval 90 days"})
    folder.publish(2, 1, 2)
    assert folder.ids() == [1, 2]
    folder.table("contacts").delete(f"contact_id = '{1:024x}'")
    with pytest.raises(TargetCorrupt, match="another program"):
        folder.sink().open()


def test_what_a_killed_copy_committed_is_taken_back_by_a_first_run(
    folder: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of run 5 that is killed before its last commit leaves no row behind the runs of another start (S17)."""
    other = Target(tmp_path / "other")
    other.publish(5, 1, 2)
    sink, history = folder.sink(), chained({5: [other.bring(5, 1).accounts[0].record]}, {})
    with other.sink().reading() as connection:
        sink.restore(connection, history)
    monkeypatch.setattr(DeltaCommits, "_commit_contacts", killed)
    with pytest.raises(KeyboardInterrupt):
        sink.publish(Publication(5, history[-1].run_id, ()))
    assert folder.runs() == {"versions": [5], "runs": [5]}
    monkeypatch.undo()
    folder.publish(1, 1)
    assert folder.ids() == [1]
    assert folder.runs() == {"versions": [1], "runs": [1]}


def killed(*_: object) -> bool:
    """The process ends here."""
    raise KeyboardInterrupt


def test_folders_of_other_kinds_are_refused(folder: Target) -> None:
    """A Delta sink at the path of a Parquet target, or the other way round, would damage it: exit 2."""
    folder.publish(1, 1)
    with pytest.raises(UsageError, match="of the kind delta"):
        ParquetSink(folder.path).open()
    (folder.path / "manifests" / f"{1:08d}.json").touch()
    with pytest.raises(UsageError, match="of the kind parquet"):
        folder.sink().open()


def test_a_gap_in_the_log_is_told(folder: Target) -> None:
    """If the commit of the last run is gone from the log, that is exit 20 or 22, and nothing is changed (S17)."""
    folder.publish(1, 1)
    folder.publish(2, 1)
    (folder.path / "contacts" / "_delta_log" / f"{2:020d}.json").unlink()
    with pytest.raises((TargetCorrupt, SinkError)):
        folder.publish(3, 1)


def test_checkpoints_are_written_and_old_files_removed(folder: Target) -> None:
    """After ten commits there is a checkpoint; files beyond the retention are removed, those of the table stay."""
    for seq in range(1, 13):
        folder.publish(seq, 1, sink=folder.sink(retention=timedelta(0)))
    checkpoint = json.loads((folder.path / "contacts" / "_delta_log" / "_last_checkpoint").read_bytes())
    assert checkpoint["version"] in {9, 10}
    assert len(list(folder.path.glob("contacts/seq=*/*.parquet"))) == 1
    assert folder.ids() == [1]
    assert folder.runs() == {"versions": [*range(1, 13)], "runs": [*range(1, 13)]}
    table = folder.table("contacts")
    assert table.transaction_version("etl") == 12
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    folder.publish(13, 1, 2)
    assert folder.ids() == [1, 2]
