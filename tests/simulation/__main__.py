"""`python -m tests.simulation --count N` replays all earlier failures and N more; `--seed S` plays one in detail."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.campaign import Tally, keep, kept, many, told
from tests.simulation.personality import TRAITS, personality
from tests.simulation.schedule import play


def main() -> int:
    """Return 0 if every promise was kept, 1 if one was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many schedules")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="play this schedule alone")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--unsparing", action="store_true", help="also show faults that are known and open")
    asked = parser.parse_args()
    if asked.seed is not None:
        return _one(asked.seed, unsparing=asked.unsparing)
    return _many(asked.start, asked.count, asked.processes, unsparing=asked.unsparing)


def _one(seed: int, *, unsparing: bool) -> int:
    before = (who for who in kept() if who.seed == seed)
    who = next(before, None) or personality(seed, unsparing=unsparing)
    report = play(who)
    usual = {name: options[0][1] for name, options in TRAITS.items()}
    print(
        f"{who.settings.contacts} contacts,",
        {name: value for name, value in who.traits.items() if value != usual[name]},
    )
    print(f"{report.requests} requests, {report.events} changes, {report.proven} proven runs")
    for reason in (*report.unproven, *report.failed):
        print(f"claimed nothing: {reason}")
    print(told(report) if report.broken else "every promise kept")
    return bool(report.broken)


def _many(start: int, count: int, processes: int, *, unsparing: bool) -> int:
    began, tally = time.monotonic(), Tally()
    for report in map(play, kept()):
        tally.add(report)
        if report.broken:
            print("of those that failed before:", told(report), flush=True)
    for report in many(range(start, start + count), processes=processes, unsparing=unsparing):
        tally.add(report)
        if report.broken:
            print(told(report), flush=True)
            keep(report)
        if tally.schedules % 1000 == 0:
            print(f"{tally.schedules} schedules, {len(tally.failures)} failures", file=sys.stderr)
    _sum_up(tally, time.monotonic() - began)
    return bool(tally.failures)


def _sum_up(tally: Tally, seconds: float) -> None:
    print(
        f"{tally.schedules} schedules in {seconds:.0f} s ({tally.schedules / seconds:.1f} a second): "
        f"{tally.runs} runs, {tally.proven} proven, {tally.requests} requests, {tally.events} changes, "
        f"{len(tally.failures)} failures"
    )
    for reason, count in tally.refused.most_common():
        print(f"{count:7} runs claimed nothing: {reason}")


if __name__ == "__main__":
    sys.exit(main())
