"""Staged parts, leftovers and the lock."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl import schema
from etl.errors import SinkError, TargetLocked
from etl.model import NormalizedBatch
from etl.storage import files, staging
from etl.storage.lock import Lock
from tests.support.publishing import batch, contact


def test_parts_hold_what_was_appended_in_the_part_schema(tmp_path: Path) -> None:
    """Small batches become one part, and contacts and rejects are read back unchanged."""
    stage = staging.Stage(tmp_path / "stage" / "main")
    stage.append(batch("main", [contact(1, tags=["a"], attributes=[("k", "v")])]))
    stage.append(batch("main", [contact(2)], [{"reason": "no id", "raw": "{}"}], read_no=1))
    assert stage.parts == ()
    stage.close()
    (part,), (rejects,) = stage.parts, stage.rejects
    assert (part.name, rejects.name) == ("part-000001.parquet", "rejects-000001.parquet")
    table = pq.read_table(part)
    assert table.schema.equals(schema.PART_SCHEMA)
    assert table["read_no"].to_pylist() == [0, 1]
    assert pq.read_table(rejects)["reason"].to_pylist() == ["no id"]


def test_memory_is_bounded_by_writing_parts_on_the_way(tmp_path: Path) -> None:
    """A part is written as soon as 50,000 rows are buffered (S21)."""
    stage = staging.Stage(tmp_path / "stage")
    empty = batch("main", [contact(1)])
    many = pa.concat_tables([empty.contacts] * 30_000).combine_chunks()
    for _ in range(4):
        stage.append(NormalizedBatch(many, empty.rejects))
    assert len(stage.parts) == 2
    stage.close()
    assert [pq.read_metadata(part).num_rows for part in stage.parts] == [60_000, 60_000]


def test_nothing_staged_is_readable_by_others_whatever_the_umask(tmp_path: Path) -> None:
    """Folders are 0700 and files 0600 (X3)."""
    before = os.umask(0)
    try:
        stage = staging.Stage(staging.stage_folder(tmp_path / "data" / "c.duckdb") / "main")
        stage.append(batch("main", [contact(1)], [{"reason": "no id"}]))
        stage.close()
    finally:
        os.umask(before)
    for path in (tmp_path / "data").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_stage_can_be_removed(tmp_path: Path) -> None:
    """Removing a stage deletes everything, and removing it again is no error."""
    stage = staging.Stage(tmp_path / "stage")
    stage.append(batch("main", [contact(1)]))
    stage.close()
    stage.remove()
    stage.remove()
    assert not (tmp_path / "stage").exists()


def test_a_path_that_cannot_be_a_folder_is_a_sink_error_with_a_mend(tmp_path: Path) -> None:
    """A file in place of the folder is exit 20, with the path and a hint (P12)."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError) as caught:
        staging.Stage(tmp_path / "file" / "stage")
    assert str(tmp_path / "file") in caught.value.where
    assert "choose another path" in caught.value.hint


def test_leftovers_are_collected_by_our_names_only(tmp_path: Path) -> None:
    """Leftovers of killed runs are removed; the lock, staged data, other targets and users' files stay (P27)."""
    target, other = tmp_path / "contacts", tmp_path / "contacts.duckdb"
    home = staging.temporary(target)
    staging.Stage(staging.stage_folder(target) / "main")
    for _ in range(20):
        staging.next_folder(target)
    staging.Stage(staging.stage_folder(other) / "main")
    (home / "notes.txt").write_text("mine")
    with Lock(target):
        staging.collect_leftovers(target)
    assert sorted(path.name for path in home.iterdir()) == [
        *("contacts.duckdb.stage", "contacts.lock", "contacts.stage", "notes.txt"),
    ]


def test_a_target_named_like_a_pattern_collects_only_its_own(tmp_path: Path) -> None:
    """Stars and brackets in a target's name are literal."""
    other, odd = staging.next_folder(tmp_path / "ab"), staging.next_folder(tmp_path / "a[b]*")
    staging.collect_leftovers(tmp_path / "a*")
    assert odd.exists()
    staging.collect_leftovers(tmp_path / "a[b]*")
    assert list(staging.temporary(tmp_path / "ab").iterdir()) == [other]


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    """The target of a link in a leftover is never deleted (X4)."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    target = tmp_path / "contacts"
    folder = staging.next_folder(target)
    (folder / "link").symlink_to(tmp_path / "mine")
    folder.with_name("contacts.next-link").symlink_to(tmp_path / "mine")
    staging.collect_leftovers(target)
    assert list(staging.temporary(target).iterdir()) == []
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_a_folder_that_somebody_makes_at_the_same_time_keeps_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the path becomes a link after it was checked, the permissions of the link's target do not change (X4)."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o755)  # Independent of the process's umask.
    monkeypatch.setattr(Path, "exists", lambda path: path == tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    files.private_folder(tmp_path / "link")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o755


_HOLD = """
import sys, pathlib
from etl.storage.lock import Lock
with Lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_at_once_with_the_holders_pid(tmp_path: Path) -> None:
    """The lock reports its holder within a second, and is free again after the holder is killed (P7, P16)."""
    target = tmp_path / "contacts"
    command = [sys.executable, "-c", _HOLD, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:  # noqa: S603
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        start = time.monotonic()
        with pytest.raises(TargetLocked, match=f"process {holder.pid}"), Lock(target):
            pass
        assert time.monotonic() - start < 1
        holder.kill()
    with Lock(target), Lock(tmp_path / "other"):
        assert (staging.temporary(target) / "contacts.lock").read_text() == f"{os.getpid()}\n"
