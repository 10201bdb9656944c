"""The log of attempts: entries are read back, the file has limits, and no error in it makes a run fail."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from etl.storage.attempts import KEPT, Attempt, attempts_file, read_attempts, record_attempt
from etl.storage.lock import Lock

BEGIN = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
ERROR = {"code": 11, "message": "the server cannot be reached", "where": "account main", "hint": "Run again."}


def attempt(number: int, **known: object) -> Attempt:
    """An attempt that took `number` seconds."""
    return Attempt(BEGIN, BEGIN + timedelta(seconds=number), 0, number, **known)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target that a run has locked before, so that its temporary folder exists."""
    path = tmp_path / "data" / "contacts.duckdb"
    with Lock(path):
        pass
    return path


def test_attempts_are_read_back_in_order(target: Path) -> None:
    """Attempts are read back in order, with error, options and version, and the file is private."""
    written = [attempt(1), attempt(2, error=ERROR, options={"full": True}, version="0.1.0")]
    for one in written:
        record_attempt(target, one)
    assert read_attempts(target) == written
    assert stat.S_IMODE(attempts_file(target).stat().st_mode) == 0o600


def test_only_the_last_are_kept(target: Path) -> None:
    """Only the last attempts are kept, and the file has a limit."""
    for number in range(5 * KEPT // 2):
        record_attempt(target, attempt(number))
    assert [one.requests for one in read_attempts(target)] == list(range(3 * KEPT // 2, 5 * KEPT // 2))
    assert len(attempts_file(target).read_bytes().splitlines()) <= 2 * KEPT
    assert stat.S_IMODE(attempts_file(target).stat().st_mode) == 0o600
    assert sorted(path.suffix for path in attempts_file(target).parent.iterdir()) == [".jsonl", ".lock"]


@pytest.mark.parametrize(
    "foreign",
    [
        *(b'{"started": "2026-11-23T02:00:00Z", "fini', b"\xff\xfe\n", b"[]\n", b"null\n", b"1e999\n", b"\n\n"),
        *(b'{"started": 1, "finished": 2, "exit": 0, "error": null, "version": "", "options": {}, "requests": 0}\n',),
        *(b'{"error": []}\n', b"[" * 100_000 + b"\n"),
    ],
)
def test_a_torn_or_foreign_line_is_ignored(foreign: bytes, target: Path) -> None:
    """A torn or foreign line is skipped, and those before and after it are read."""
    record_attempt(target, attempt(1))
    with attempts_file(target).open("ab") as file:
        file.write(foreign)
    record_attempt(target, attempt(2))
    assert read_attempts(target) == [attempt(1), attempt(2)]


def test_a_long_message_is_cut(target: Path) -> None:
    """A long message is truncated, as all errors of a configuration are reported together."""
    record_attempt(target, attempt(1, error={**ERROR, "message": "x" * 10**6}))
    assert attempts_file(target).stat().st_size < 10_000
    assert len(read_attempts(target)) == 1


def test_without_a_temporary_folder_nothing_is_written(tmp_path: Path) -> None:
    """A run that fails before its first lock creates no folder."""
    record_attempt(tmp_path / "data" / "contacts", attempt(1))
    assert list(tmp_path.iterdir()) == []
    assert read_attempts(tmp_path / "data" / "contacts") == []


def link(path: Path) -> None:
    """Put a link to a user's file in its place."""
    path.symlink_to(path.parent.parent / "precious")


def pipe(path: Path) -> None:
    """Put a named pipe, which would block, in its place."""
    os.mkfifo(path)


def folder(path: Path) -> None:
    """Put a folder in its place."""
    path.mkdir()


def writable(path: Path) -> None:
    """Put a file that others can write to in its place."""
    path.write_bytes(b"")
    path.chmod(0o666)


@pytest.mark.parametrize("obstacle", [link, pipe, folder, writable])
def test_what_stands_in_the_way_is_left_alone(obstacle: object, target: Path) -> None:
    """An obstacle is not followed or changed: nothing is recorded and nothing is raised."""
    (target.parent / "precious").write_bytes(b"mine")
    obstacle(attempts_file(target))
    record_attempt(target, attempt(1))
    assert read_attempts(target) == []
    assert (target.parent / "precious").read_bytes() == b"mine"
