"""`python -m tests.cluster --rounds 30 --seed 0` prints each round."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.cluster.chaos import Played, play


def main() -> int:
    """Return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    played = Played(1, ())
    with tempfile.TemporaryDirectory() as folder:
        for played in play(Path(folder), asked.rounds, asked.seed):
            print(played.rounds[-1], flush=True)
    print(
        f"{len(played.rounds)} rounds of {played.undisturbed} requests, {played.repeated:+.1%}, {played.missing} lost"
    )
    return bool(played.missing)


if __name__ == "__main__":
    raise SystemExit(main())
