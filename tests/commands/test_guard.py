"""The guards refuse suspicious results, tested at the exact limit of each rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.commands.guard import FEWEST, check_identity, check_proof, check_rejects, check_shrink
from etl.errors import GuardError, UnprovenError
from etl.model import Counts, Look, Merged, Mode, Proof, Requests, RunRecord

NOON = datetime(2025, 1, 6, 12, tzinfo=UTC)
RECORD = RunRecord(
    seq=3,
    run_id="r",
    account="main",
    mode="full",
    t0=NOON,
    watermark=NOON,
    proof=Proof("windows", 9),
    requests=Requests(),
    seconds=1.0,
)


def rejecting(rejected: int, received: int) -> RunRecord:
    """A run with these numbers of rejected and received contacts."""
    return replace(RECORD, counts=Counts(received=received, rejected=rejected))


def unproven(*reasons: str, mode: Mode = "full") -> RunRecord:
    """A run with these reasons for being unproven."""
    return replace(RECORD, mode=mode, proof=Proof("pages", 0, reasons))


def losing(deleted: int, struck: int, previous: int) -> Merged:
    """A merge that deletes and strikes these numbers of contacts of one account."""
    return Merged({"main": Counts(deleted=deleted)}, {"main": struck}, {"main": previous})


@pytest.mark.parametrize(("rejected", "received", "share"), [(0, 0, 0.0), (0, 5, 0.0), (1, 100, 0.01), (5, 5, 1.0)])
def test_a_share_of_rejects_is_borne(rejected: int, received: int, share: float) -> None:
    """Rejects up to the allowed share are published with the run (A25)."""
    check_rejects(rejecting(rejected, received), 0, share)


def test_rejects_of_an_incremental_run_are_a_share_of_the_account() -> None:
    """The share of an incremental run is measured against the account, so that known rejects do not stop it (A25)."""
    check_rejects(rejecting(20, 70), 2000, 0.01)
    with pytest.raises(GuardError, match="21 of 2000 contacts"):
        check_rejects(rejecting(21, 70), 2000, 0.01)


@pytest.mark.parametrize(("rejected", "received", "share"), [(1, 99, 0.01), (1, 10**6, 0.0), (2, 100, 0.01)])
def test_too_many_rejects_trip_the_guard(rejected: int, received: int, share: float) -> None:
    """One reject above the share stops the account, and the message has the numbers (A25)."""
    with pytest.raises(GuardError, match=f"{rejected} of {received} contacts") as caught:
        check_rejects(rejecting(rejected, received), 0, share)
    assert (caught.value.exit_code, caught.value.where) == (14, "account main")


def test_a_proven_run_passes() -> None:
    """A fully proven run is published."""
    check_proof(RECORD, allow_unproven=False)


def test_an_unproven_run_is_not_published() -> None:
    """A single unproven part is exit 13; the message has the first reason and the number of others."""
    with pytest.raises(UnprovenError, match="an indivisible window") as caught:
        check_proof(unproven("an indivisible window", "a walk", "a witness"), allow_unproven=False)
    assert caught.value.exit_code == 13
    assert "(and 2 more)" in caught.value.message
    with pytest.raises(UnprovenError) as caught:
        check_proof(unproven("an indivisible window"), allow_unproven=False)
    assert "more)" not in caught.value.message


def test_allowing_it_publishes_an_unproven_run() -> None:
    """`--allow-unproven` publishes an unproven run."""
    check_proof(unproven("an indivisible window"), allow_unproven=True)


def test_a_filtered_export_needs_no_proof() -> None:
    """A filtered export claims no completeness, so no proof is required."""
    check_proof(unproven("pages are all there is", mode="filtered"), allow_unproven=False)


@given(deleted=st.integers(0, 3000), struck=st.integers(0, 3000), previous=st.integers(0, 10**5), share=st.floats(0, 1))
def test_the_shrink_guard_is_the_larger_of_its_two_rules(
    deleted: int, struck: int, previous: int, share: float
) -> None:
    """The guard trips if more than max(100, share) contacts are deleted or struck, and only then (S23, A41, A43)."""
    errors = check_shrink({"main": RECORD}, losing(deleted, struck, previous), share)
    assert bool(errors) == (deleted + struck > max(FEWEST, share * previous))


@pytest.mark.parametrize(
    ("deleted", "struck", "previous", "trips"),
    [(100, 0, 100, False), (0, 101, 101, True), (60, 41, 101, True), (0, 500, 10_000, False), (0, 501, 10_000, True)],
)
def test_a_small_account_may_lose_a_hundred(deleted: int, struck: int, previous: int, *, trips: bool) -> None:
    """Losing a hundred contacts is always allowed; of ten thousand, the limit is five hundred by default (S23)."""
    assert bool(check_shrink({"main": RECORD}, losing(deleted, struck, previous), 0.05)) == trips


def test_a_shrinking_account_is_told_with_its_numbers() -> None:
    """The error has the number of lost contacts, the setting, and the option that overrides it (S23)."""
    error = check_shrink({"main": replace(RECORD, mode="incremental")}, losing(200, 300, 1000), 0.05)["main"]
    assert (error.exit_code, error.where) == (14, "account main")
    assert "500 of 1000 contacts" in error.message
    assert "--allow-shrink" in error.hint


def test_only_the_shrinking_account_is_refused() -> None:
    """The guard refuses only the accounts that shrink, and never a filtered export."""
    merged = Merged(
        {name: Counts(deleted=500) for name in ("small", "large", "view")},
        {},
        {"small": 600, "large": 10**6, "view": 600},
    )
    records = {"small": RECORD, "large": RECORD, "view": replace(RECORD, mode="filtered")}
    assert list(check_shrink(records, merged, 0.05)) == ["small"]


def test_a_run_that_looked_at_everything_tells_why() -> None:
    """If a scrub was escalated, the error says how many of the checked contacts were missing."""
    record = replace(RECORD, mode="incremental", detail={"escalated": {"looked": 49, "absent": 44}})
    error = check_shrink({"main": record}, losing(0, 2700, 3000), 0.05)["main"]
    assert "2700 of 3000 contacts" in error.message
    assert "44 of 49 checked contacts were missing" in error.message


@pytest.mark.parametrize(
    ("looked", "absent", "suspicious"),
    [(0, 0, False), (49, 2, False), (49, 3, True), (60, 3, False), (1, 1, True), (2, 1, False), (1000, 50, False)],
)
def test_a_look_is_measured_against_what_was_looked_at(looked: int, absent: int, *, suspicious: bool) -> None:
    """Missing contacts above the share are suspicious, but one or two only if no checked contact was found (A41)."""
    assert Look(looked, absent).is_suspicious(0.05) == suspicious


@pytest.mark.parametrize(
    ("new", "struck", "previous", "other"),
    [
        (40, 12, 12, True),
        (1, 12, 12, True),
        (0, 12, 12, False),
        (1, 2, 2, False),  # With so few, it may be chance.
        (22, 23, 24, True),  # Both have the demonstration contact of the vendor.
        (69, 69, 71, True),
        (40, 40, 50, False),
        (10, 23, 24, False),
    ],
)
def test_nearly_all_contacts_replaced_is_another_account(new: int, struck: int, previous: int, *, other: bool) -> None:
    """If nearly all contacts published before are gone and others appear, it is another account, however small."""
    merged = Merged({"main": Counts(new=new)}, {"main": struck}, {"main": previous})
    error = check_shrink({"main": RECORD}, merged, 0.05).get("main")
    assert bool(error and error.exit_code == 14 and "another account" in error.message) == other


def owned(customers: Sequence[str], agencies: Sequence[str] = ()) -> RunRecord:
    """A run that received contacts of these customers and agencies."""
    identity = {"base_url": "https://api.example.com", "customers": customers, "agencies": agencies}
    return replace(RECORD, detail={"identity": identity})


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (owned(["c1"]), owned(["c1"])),
        (owned(["c1"]), owned(["c1", "c2"])),
        (owned([]), owned(["c2"])),
        (owned(["c1"]), owned([])),
        (RECORD, owned(["c2"])),
        (None, owned(["c2"])),
        (owned(["c1"]), replace(owned(["c2"]), mode="filtered")),
    ],
)
def test_the_same_account_may_be_read_anywhere(before: RunRecord | None, now: RunRecord) -> None:
    """Several hosts of one backend show the same customer, and unknown identities are accepted."""
    check_identity(now, before)


@pytest.mark.parametrize(
    ("before", "now", "field"),
    [
        (owned(["c1"]), owned(["c2"]), "_customer"),
        (owned(["c1"], ["a1"]), owned(["c2"], ["a1"]), "_customer"),
        (owned([], ["a1"]), owned([], ["a2"]), "_agency"),
    ],
)
def test_contacts_of_another_customer_are_another_account(before: RunRecord, now: RunRecord, field: str) -> None:
    """Contacts of another customer or agency than those published under this name are exit 14."""
    with pytest.raises(GuardError, match=field) as caught:
        check_identity(now, before)
    assert caught.value.exit_code == 14
    assert "etl account drop main" in caught.value.hint
