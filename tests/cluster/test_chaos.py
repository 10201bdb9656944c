"""Whatever dies, nothing is lost and little is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.chaos import IN_FLIGHT, play

ROUNDS = 3
"""`python -m tests.cluster --rounds 30` plays more."""


@pytest.mark.campaign
def test_nothing_is_lost(tmp_path: Path) -> None:
    """P1, P4: workers killed, stopped or cut off at random moments, and the coordinator in every third round."""
    *_, played = play(tmp_path, ROUNDS, seed=1)
    assert played.missing == 0
    assert played.repeated <= 0.05
    assert max(one.in_flight for one in played.rounds) <= IN_FLIGHT
