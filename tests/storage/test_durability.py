"""Power loss (P6): unsynced writes may be lost in any order, so a name is published only after all its data is synced.

The system calls of real publications are recorded (tests/crash) and replayed on a model of a disk that keeps only
synced data. Any subset of unsynced writes may be lost, so none may exist at the time of publication.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.campaign import campaign

ROOT = Path(__file__).parents[2]
RECORD = """
import json, pathlib, sys
from tests.crash import syscalls, tracer
from tests.crash.campaign import publishes, undisturbed
from tests.crash.child import Scenario
from tests.crash.rig import Rig
if reason := tracer.refusal():
    sys.exit(3)
scenario = Scenario(sys.argv[1], sys.argv[2])
rig = Rig(scenario, pathlib.Path(sys.argv[3]), thorough=False)
calls = undisturbed(rig, syscalls.CHANGING)
told = [[call.what.name, call.path, call.goal, publishes(rig, call)] for call in calls]
print(json.dumps({"target": str(scenario.target(pathlib.Path())), "calls": told}))
"""
Calls = Sequence[tuple[str, str, str, bool]]
"""Name, path, new path, and whether the call publishes."""

SYNCS = ("fsync", "fdatasync")
REMOVALS = ("unlink", "unlinkat", "rmdir")
ENTRIES = ("openat", "open", "creat", "mkdir", "mkdirat")
NAMES = ("rename", "renameat", "renameat2", "link", "linkat")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "truncate", "sendfile", "copy_file_range")


def unsafe(target: str, calls: Calls) -> list[str]:
    """Published data that a power loss could remove; empty if the order is safe."""
    files: set[str] = set()
    folders: set[str] = set()
    wrong: list[str] = []
    named = ""
    for name, path, goal, publishes in calls:
        if publishes:
            named = goal
            wrong += [f"written and not synced: {one}" for one in files if one == path or _within(one, target)]
            wrong += [f"entries not synced: {one}" for one in folders if _within(one, target)]
        if name in WRITES:
            files.add(path)
        elif name in SYNCS or name in REMOVALS:  # removed data cannot be lost
            files.discard(path)
            folders.discard(path)
        elif name in ENTRIES:
            folders.add(str(Path(path).parent))
        elif name in NAMES:
            files = {_moved(one, path, goal) for one in files}
            folders = {_moved(one, path, goal) for one in folders} | {str(Path(goal).parent)}
    assert named, "nothing was published"
    if str(Path(named).parent) in folders:
        wrong.append(f"the name itself is not synced: {named}")
    return wrong


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _moved(path: str, source: str, goal: str) -> str:
    return goal + path.removeprefix(source) if _within(path, source) else path


@pytest.mark.parametrize("start", [campaign("nothing"), "snapshot"])
@pytest.mark.parametrize("sink", ["duckdb", "parquet"])
def test_nothing_gets_its_name_before_all_of_it_is_on_the_disk(sink: str, start: str, tmp_path: Path) -> None:
    """Files, folders, the name and its folder are synced in this order, and any missing sync is detected (P6)."""
    command = [sys.executable, "-c", RECORD, sink, start, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)  # noqa: S603
    if ended.returncode == 3:
        pytest.skip("needs the right to trace")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    target, calls = told["target"], [tuple(call) for call in told["calls"]]
    assert unsafe(target, calls) == []
    assert unsafe(target, [call for call in calls if call[0] not in SYNCS])
    step = next(number for number, call in enumerate(calls) if call[3])
    assert unsafe(target, [call for number, call in enumerate(calls) if number < step or call[0] not in SYNCS])
