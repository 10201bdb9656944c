"""When to retry: the arithmetic of waits, attempts and the retry budget."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.api.response import FailureKind
from etl.api.retry import ATTEMPTS, BASE_SECONDS, CAP_SECONDS, Budget, backoff, retry_after

NOON = 1_736_164_800.0
"""The server's clock in these tests: 2025-01-06 12:00:00 UTC."""


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (6, 16.0), (7, CAP_SECONDS), (60, CAP_SECONDS)]
)
def test_waits_double_up_to_the_cap(attempt: int, longest: float) -> None:
    """The longest wait doubles from half a second to the cap of thirty (N1)."""
    assert backoff(attempt, 1.0) == longest


@given(attempt=st.integers(1, 200), jitter=st.floats(0, 1, exclude_max=True))
def test_jitter_is_full(attempt: int, jitter: float) -> None:
    """A wait is random between zero and the longest wait, so that clients do not retry in step."""
    longest = min(CAP_SECONDS, BASE_SECONDS * 2 ** (attempt - 1))
    assert backoff(attempt, jitter) == pytest.approx(jitter * longest)


def test_hopeless_refusals_are_not_repeated() -> None:
    """Permanent failures are tried once, garbled responses three times, everything else five times (A1, A4, N2, N7)."""
    assert ATTEMPTS == {
        FailureKind.AUTH: 1,
        FailureKind.BLOCKED: 5,
        FailureKind.CONTRACT: 1,
        FailureKind.GARBLED: 3,
        FailureKind.THROTTLED: 5,
        FailureKind.UNAVAILABLE: 5,
        FailureKind.UNREACHABLE: 1,
        FailureKind.STALE: 5,
    }


@given(st.lists(st.booleans(), max_size=400))
def test_retries_stay_within_a_tenth_and_ten(failures: list[bool]) -> None:
    """Retries never exceed ten plus ten percent of the requests sent (A8)."""
    budget = Budget()
    for fails in failures:
        budget.sent += 1
        if fails and budget.allows_retry():
            budget.retried += 1
        assert budget.retried <= 10 + 0.1 * budget.sent


def test_the_budget_grows_with_the_requests() -> None:
    """Ten retries are free, then one more for every ten requests (A8)."""
    assert Budget(sent=0, retried=9).allows_retry()
    assert not Budget(sent=9, retried=10).allows_retry()
    assert Budget(sent=10, retried=10).allows_retry()
    assert Budget(sent=1000, retried=109).allows_retry()
    assert not Budget(sent=1000, retried=110).allows_retry()


WAITS = [
    (None, None),
    ("0", 0.0),
    ("7", 7.0),
    (" 7 ", 7.0),
    ("1.5", 1.5),
    ("-3", 0.0),
    ("1000000000", 1e9),
    ("1e3", 1000.0),
    ("nan", None),
    ("inf", None),
    ("-inf", None),
    ("soon", None),
    ("", None),
    ("7 seconds", None),
    ("Mon, 06 Jan 2025 12:00:30 GMT", 30.0),
    ("Mon, 06 Jan 2025 12:00:30 -0000", 30.0),
    ("Mon, 06 Jan 2025 13:00:30 +0100", 30.0),
    ("Mon, 06 Jan 2025 11:00:00 GMT", 0.0),
    ("Mon, 06 Jan 99999999999999999999 12:00:00 GMT", None),
]


@pytest.mark.parametrize(("header", "seconds"), WAITS)
def test_a_wait_is_read_in_every_spelling(header: str | None, seconds: float | None) -> None:
    """Seconds are read, and dates relative to the server's clock; the past is no wait, garbage is ignored (A6)."""
    assert retry_after(header, NOON) == seconds


def test_a_date_without_the_servers_clock_says_nothing() -> None:
    """The local clock never replaces the server's: without `Date`, a date is not a wait (A6, N25)."""
    assert retry_after(formatdate(NOON, usegmt=True), None) is None
    assert retry_after("5", None) == 5.0


@given(st.text(max_size=30) | st.floats().map(str) | st.integers().map(str), st.none() | st.floats(0, 4e9))
def test_no_header_breaks_the_reading(header: str, now: float | None) -> None:
    """Any text is a wait of zero seconds or more, or none (A6)."""
    seconds = retry_after(header, now)
    assert seconds is None or 0 <= seconds < float("inf")
