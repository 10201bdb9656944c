"""`make crash` kills at, or fails, every system call of every publication; `--sample N --seed S` draws some of them.

One case is repeated with `--sink`, `--start`, `--kind` and `--at N` (with `--errno NAME`). With `--json` the result is
one document, for the tests.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

from tests.crash.campaign import KINDS, KINDS_OF, PER_KILL, plan
from tests.crash.case import Fault, Verdict, play
from tests.crash.child import BEFORE, SINKS, Scenario
from tests.crash.forked import ForkFailed
from tests.crash.rig import Rig
from tests.crash.tracer import refusal

CANNOT_TRACE = 3
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a place for private folders, which `tempfile` makes


def main() -> int:
    """Return 0 if everything held, 1 if something did not, 3 if tracing is not possible."""
    asked = _asked()
    if reason := refusal():
        print(reason)
        return CANNOT_TRACE
    began = time.monotonic()
    verdicts = _play(asked) if asked.part else _play_in_parts()
    print(json.dumps([asdict(verdict) for verdict in verdicts])) if asked.json else _table(verdicts)
    failures = [verdict for verdict in verdicts if verdict.problems]
    for failure in failures:
        print(f"seed {asked.seed}: {failure}", file=sys.stderr)
    print(f"{len(verdicts)} cases in {time.monotonic() - began:.0f} s, {len(failures)} failures", file=sys.stderr)
    return bool(failures)


def _play_in_parts() -> list[Verdict]:
    """Play everything, with one process for each processor."""
    parts = len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "tests.crash", *sys.argv[1:], "--json", "--part"]
    running = [
        subprocess.Popen([*command, f"{part}/{parts}"], stdout=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
        for part in range(parts)
    ]
    told = [process.communicate()[0] for process in running]
    return [Verdict(**verdict) for part in told for verdict in json.loads(part)]


def _play(asked: argparse.Namespace) -> list[Verdict]:
    # One processor: the engine then uses one thread, and the n-th call is the same call each time.
    os.sched_setaffinity(0, {_processor(asked.part)})
    scenarios = [
        Scenario(*each) for each in product(asked.sink or ("duckdb", "parquet", "delta"), asked.start or BEFORE)
    ]
    return [verdict for scenario in scenarios for verdict in _play_one(scenario, asked)]


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--sink", choices=SINKS, action="append", help="a name with more words is a planted bug")
    parser.add_argument("--start", choices=BEFORE, action="append")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--sample", type=int, default=0, help="so many kills in each scenario, and some of the rest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="", help="I/N: the I-th of N equal shares, counted from 0")
    parser.add_argument("--at", type=int, default=0, help="only the cases at this call")
    parser.add_argument("--call", default="", help="only the cases at this system call, such as fsync")
    parser.add_argument("--errno", default="", help="only the cases with this error, such as ENOSPC")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _processor(part: str) -> int:
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[int(part.partition("/")[0]) % len(allowed)]


def _play_one(scenario: Scenario, asked: argparse.Namespace) -> Iterator[Verdict]:
    # Memory instead of a disk, if possible: a killed process leaves the same data there, and syncing is fast.
    home = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    part, parts = map(int, asked.part.split("/"))
    with tempfile.TemporaryDirectory(dir=home) as work:
        rig = Rig(scenario, Path(work), thorough=not asked.sample)
        for kind in asked.kind or KINDS_OF.get(scenario.kind, KINDS):
            found = plan(rig, kind).only(asked.call, asked.errno, asked.at)
            count = math.ceil(asked.sample * PER_KILL[kind])
            faults = (found.sample(count, asked.seed) if asked.sample else found.faults)[part % parts :: parts]
            for done, fault in enumerate(faults):
                if done % 100 == 0:
                    print(f"{scenario}, {kind}: {done} of {len(faults)}", file=sys.stderr, flush=True)
                yield _judged(rig, fault)


def _judged(rig: Rig, fault: Fault) -> Verdict:
    try:
        return play(rig, fault)
    except ForkFailed as failed:
        return Verdict(
            str(rig.scenario), fault.kind, str(fault), "", "", "neither", 70, [f"the harness failed: {failed}"]
        )


def _table(verdicts: list[Verdict]) -> None:
    rows = Counter((one.scenario, one.kind, one.saw, one.code, bool(one.problems)) for one in verdicts)
    print(f"{'scenario':24} {'fault':16} {'then seen':10} {'exit':>5} {'cases':>6}")
    for (scenario, kind, saw, code, failed), count in sorted(rows.items()):
        print(f"{scenario:24} {kind:16} {saw:10} {code:5} {count:6}{'  FAILED' if failed else ''}")


if __name__ == "__main__":
    sys.exit(main())
