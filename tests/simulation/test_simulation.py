"""The promises in simulated worlds: production code in virtual time, checked by an oracle that knows the true history.

`make simulate N=25000` plays more schedules; `python -m tests.simulation --seed S` replays one in detail.
"""

from __future__ import annotations

import pytest

from tests.simulation.campaign import Tally, kept, many, told
from tests.simulation.control import control
from tests.simulation.personality import TRAITS, personality
from tests.simulation.planted import PLANTS, Plant
from tests.simulation.schedule import play
from tests.simulation.warehouse import Both

BATCHES, BATCH = 6, 25
"""150 schedules, in batches that two processes share; `.ci/run` plays thousands of others."""
FOLDED, BATCH_FOLDED = 20, 5
"""Schedules that use the production merge."""
WALKED = 200
"""Schedules of the control arm."""
DRAWN = 1000
"""Seeds whose traits are drawn, without playing them."""
MOST_SEEDS = 120
"""Schedules within which a planted bug must be caught."""


def _hold(tally: Tally) -> None:
    assert not tally.failures, "\n".join(told(report) for report in tally.failures)


def _played(seeds: list[int]) -> Tally:
    tally = Tally()
    for report in many(seeds):
        tally.add(report)
    return tally


def test_what_ever_failed_does_not_fail_again() -> None:
    """Every seed that once broke a promise keeps it now (fault groups A and M)."""
    for who in kept():
        report = play(who)
        assert not report.broken, told(report)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_promise_is_broken_in_silence(batch: int) -> None:
    """Every run that claims success is complete, fresh, conserved and bounded, and deletes only after two strikes.

    Drawn per seed: A13-A22 (pages, page size, totals, filters, bounds, order), A26-A30 (times), A44, A50-A54 (spelling,
    page size, lateness, soft deletion), M1-M6, M10, M12-M15 (inserts, deletes, touches, imports, edits, flips).
    """
    tally = _played(list(range(batch * BATCH, (batch + 1) * BATCH)))
    _hold(tally)
    assert tally.proven > tally.runs // 2, tally.refused


@pytest.mark.parametrize("batch", range(FOLDED // BATCH_FOLDED))
def test_the_production_fold_keeps_the_promises_too(batch: int) -> None:
    """Normalizer and merge SQL produce the same snapshot, strikes and counts as the model that replaces them."""
    for seed in range(batch * BATCH_FOLDED, (batch + 1) * BATCH_FOLDED):
        report = play(personality(seed), Both)
        assert not report.broken, told(report)


def test_plain_paging_loses_contacts_under_the_same_schedules() -> None:
    """A plain page scan is lossy in most of the schedules whose rows move more than once a second (M1)."""
    walks = [control(personality(seed, faults=(), past_end="empty", ignore_page=False)) for seed in range(WALKED)]
    lively = [walked for walked in walks if walked.lively]
    lossy = sum(walked.lost > 0 for walked in lively)
    print(f"plain paging: {lossy} of {len(lively)} lively schedules are lossy")
    assert len(lively) > WALKED // 4
    assert lossy > len(lively) / 2


@pytest.mark.campaign
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_bug_is_caught(plant: Plant) -> None:
    """A wrong protocol breaks a promise in a schedule that the sound one passes."""
    assert plant.catch(MOST_SEEDS) is not None


def test_a_schedule_follows_from_its_seed() -> None:
    """The same seed gives the same requests, changes and findings."""
    for seed in range(3):
        first, second = play(personality(seed)), play(personality(seed))
        assert first == second


def test_every_value_of_every_trait_is_drawn() -> None:
    """1,000 seeds draw every value of every trait."""
    drawn: dict[str, set[object]] = {name: set() for name in TRAITS}
    for seed in range(DRAWN):
        for name, value in personality(seed, unsparing=True).traits.items():
            drawn[name].add(str(value))
    for name, options in TRAITS.items():
        assert drawn[name] == {str(value) for _, value in options}, name
