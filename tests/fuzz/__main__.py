"""`python -m tests.fuzz --seconds N` searches for new failures, and keeps the smallest input of each in the corpus."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz.mutation import keep, mutated
from tests.fuzz.readers import READERS, Reader

EXAMPLES = 300


def main() -> int:
    """Return 0 if nothing was found, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    asked = parser.parse_args()
    began, found, rounds = time.monotonic(), 0, 0
    for number in itertools.count(asked.seed):
        for name, reader in READERS.items():
            if time.monotonic() - began > asked.seconds:
                print(f"{rounds * EXAMPLES} inputs from seed {asked.seed}, {found} failures")
                return bool(found)
            found += _sought(name, reader, number)
            rounds += 1
    return 1


def _sought(name: str, reader: Reader, number: int) -> bool:
    """Whether a round found an input on which the reader fails; the smallest is kept."""
    last = b""

    @seed(number)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated(name))
    def probe(data: bytes) -> None:
        nonlocal last
        try:
            reader(data)
        except BaseException:
            last = data
            raise

    try:
        probe()
    except Exception as error:  # noqa: BLE001 - any failure is a find
        print(f"{name}: {type(error).__name__}: {error}\n  kept as {keep(name, last)}", flush=True)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
