"""Publications that are killed, or fail, at any of their system calls: a sample of the cases of `make crash`.

Each batch is a separate process (`python -m tests.crash`), because a tracer must have no threads.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.syscalls import PUBLISHING, REMOVING, STORING, SYNCING
from tests.support.campaign import campaign

ROOT = Path(__file__).parents[2]
SEED = 4
KILLS = (40, campaign(100))
"""In each of the four scenarios of two sinks, plus 20 errors and 6 kills of a recovery for every 100."""
CANNOT_TRACE = 3
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
"""Each test process keeps its campaigns on a separate processor."""
Verdicts = list[dict[str, object]]


def played(*asked: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a campaign."""
    command = [sys.executable, "-m", "tests.crash", "--seed", str(SEED), "--json", "--part", f"{WORKER}/1", *asked]
    ended = subprocess.run(  # noqa: S603 - our own interpreter and module
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    if ended.returncode == CANNOT_TRACE:
        pytest.skip(ended.stdout.strip())
    return ended.returncode, ended.stdout, ended.stderr


def tally(found: Verdicts, name: str) -> Counter[str]:
    """The number of cases with each value of a field."""
    return Counter(str(each[name]) for each in found)


def number(verdict: dict[str, object]) -> int:
    """The number of the call that a case hit."""
    return int(str(verdict["call"]).split()[0][1:])


@pytest.mark.parametrize("start", ["nothing", "snapshot"])
@pytest.mark.parametrize("sink", ["duckdb", "parquet"])
@pytest.mark.parametrize("kills", KILLS)
def test_whatever_befalls_a_publication_it_is_old_or_new_and_the_next_run_heals(
    kills: int, sink: str, start: str
) -> None:
    """P2, P4, P5, P9, P10, P11, P12, P14, P27, S2, S9, S11, S12: the target is old or new, and recovers.

    Publications are killed, fail, and are killed again while the next run recovers. Nothing is left over, and nothing
    is ever open to other users. A failure names the seed, the call and its number.
    """
    code, out, err = played("--sink", sink, "--start", start, "--sample", str(kills))
    assert code == 0, err
    found: Verdicts = json.loads(out)
    _hold_of_kills([each for each in found if each["kind"] == "SIGKILL"], kills)
    _hold_of_errors([each for each in found if not str(each["kind"]).startswith("SIGKILL")], kills // 5)
    assert tally(found, "kind")["SIGKILL twice"] == math.ceil(kills * 0.06)


@pytest.mark.parametrize("start", [campaign("nothing"), "snapshot"])
@pytest.mark.parametrize("kills", [10, campaign(60)])
def test_delta_tables_are_old_or_new_wherever_a_run_is_killed(kills: int, start: str) -> None:
    """P2, P9, P14, S11: the commit of `contacts` decides what a reader sees, and the next run recovers.

    The library works in threads, so the same number may denote a call next to it in another run: which call publishes
    is not checked.
    """
    code, out, err = played("--sink=delta", "--start", start, "--kind=kill", "--kind=twice", "--sample", str(kills))
    assert code == 0, err
    found: Verdicts = json.loads(out)
    assert tally(found, "kind") == {"SIGKILL": kills, "SIGKILL twice": math.ceil(kills * 0.06)}
    assert tally(found, "saw").keys() <= {"old", "new"}
    if kills > 10:  # Few calls come after the commit.
        assert tally(found, "saw").keys() == {"old", "new"}
    assert any("contacts/_delta_log" in str(each["call"]) for each in found)


@pytest.mark.campaign
def test_an_error_after_the_commit_of_delta_tables_is_told_as_published() -> None:
    """P9: if what the library has committed cannot be made private or durable, the exit code is 21, not 20."""
    code, out, err = played("--sink=delta", "--start=snapshot", "--kind=error", "--call=chmod", "--sample=60")
    assert code == 0, err
    found: Verdicts = json.loads(out)
    assert {each["code"] for each in found if each["saw"] == "old"} <= {20, 22}
    assert {each["code"] for each in found if each["saw"] == "new"} <= {0, 21}


def _hold_of_kills(found: Verdicts, count: int) -> None:
    """The sample hit all required calls, and exactly one system call publishes (P2)."""
    assert len(found) == count
    assert tally(found, "code").keys() <= {"-9", "0"}
    assert tally(found, "code")["-9"] >= count - 1
    calls = tally(found, "syscall").keys()
    assert calls & PUBLISHING
    assert calls & SYNCING
    assert calls & REMOVING
    inner = [each for each in found if ".next-" in str(each["call"]) and each["syscall"] in STORING]
    assert len(inner) >= 5, "the engine's own writes were not hit"
    hit = [each for each in found if each["call"]]
    last_old = max((each for each in hit if each["saw"] == "old"), key=number)
    first_new = min((each for each in hit if each["saw"] == "new"), key=number)
    assert last_old["syscall"] in PUBLISHING
    assert number(first_new) == number(last_old) + 1


def _hold_of_errors(found: Verdicts, count: int) -> None:
    """An error exits with 20 or 22 and the old state, or with 21 if the run is published but perhaps not durable."""
    assert len(found) == count
    assert {each["code"] for each in found if each["saw"] == "old"} <= {20, 22}
    assert {each["code"] for each in found if each["saw"] == "new"} <= {0, 21}
    assert tally(found, "saw").keys() == {"old", "new"}


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("sink", "call"),
    [("duckdb", "pwrite64"), ("duckdb", "fdatasync"), ("duckdb", "pread64"), ("parquet", "write")],
)
def test_an_interrupted_call_of_a_library_is_got_over(sink: str, call: str) -> None:
    """P11: if the system interrupts a library, its result is discarded and made again, and the exit code is 0."""
    which = ("--kind=error", "--errno=EINTR", f"--call={call}", "--sample=40")
    code, out, err = played("--sink", sink, "--start", "snapshot", *which)
    assert code == 0, err
    # Threads take turns, so a number may denote the call next to it.
    found = [each for each in json.loads(out) if each["syscall"] == call]
    assert len(found) >= 2
    assert {(each["code"], each["saw"]) for each in found} == {(0, "new")}


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("sink", "which", "shown"),
    [
        ("duckdb written in place", "--kind=kill --call=sendfile", "torn"),
        ("parquet manifest first", "--kind=kill --call=rename", "torn"),
        ("parquet left lying", "--kind=error --call=fsync --errno=EIO --sample=30", "nobody was told"),
    ],
)
def test_a_planted_bug_is_found(sink: str, which: str, shown: str) -> None:
    """The harness finds a publisher that writes in place, publishes too early, or ignores a failed sync."""
    code, _, err = played("--sink", sink, "--start", "snapshot", *which.split())
    assert code == 1, "the planted bug was not found"
    assert shown in err
    assert f"seed {SEED}: {sink}" in err
