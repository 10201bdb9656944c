"""The mode of a run, chosen from the last run, the server's capabilities and the user's wishes: one table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl.extract.capabilities import Capabilities, PageSizes
from etl.extract.history import History, choose_mode
from etl.extract.windows import RangeSemantics

CAPABLE = Capabilities(
    t0=0,
    clock="server",
    page_sizes=PageSizes(50, 50),
    page_size_agreed=True,
    first_page=1,
    honours_page=True,
    one_page=False,
    past_end="empty",
    newest_first=True,
    created=RangeSemantics(),
    seen=RangeSemantics(),
    counts_matches=False,
    lists="disjoint",
    total=None,
    empty=False,
)
NO_WINDOWS = replace(CAPABLE, seen=None)
FIRST, KNOWN, UNPROVEN = History(), History(watermark=1), History(watermark=1, proven=False)
FILTERS = {"isContact": True}

MODES = [
    # history, capabilities, full, filters -> mode
    (FIRST, CAPABLE, False, {}, "full"),
    (FIRST, CAPABLE, True, {}, "full"),
    (FIRST, NO_WINDOWS, False, {}, "full"),
    (KNOWN, CAPABLE, False, {}, "incremental"),
    (KNOWN, CAPABLE, True, {}, "full"),
    (KNOWN, NO_WINDOWS, False, {}, "full"),
    (KNOWN, NO_WINDOWS, True, {}, "full"),
    (UNPROVEN, CAPABLE, False, {}, "full"),
    (UNPROVEN, CAPABLE, True, {}, "full"),
    (FIRST, CAPABLE, False, FILTERS, "filtered"),
    (KNOWN, CAPABLE, False, FILTERS, "filtered"),
    (KNOWN, CAPABLE, True, FILTERS, "filtered"),
    (KNOWN, NO_WINDOWS, False, FILTERS, "filtered"),
    (UNPROVEN, NO_WINDOWS, True, FILTERS, "filtered"),
]


@pytest.mark.parametrize(("history", "capabilities", "full", "filters", "mode"), MODES)
def test_the_mode_of_a_run(
    history: History, capabilities: Capabilities, filters: dict[str, object], mode: str, *, full: bool
) -> None:
    """Incremental only after a proven run, on a server that lists contacts by time; filters always scan pages."""
    assert choose_mode(history, capabilities, full=full, filters=filters) == mode


@pytest.mark.parametrize(
    ("history", "full", "due"),
    [
        (History(), False, True),
        (History(cross_checked_at=100), False, False),
        (History(cross_checked_at=90), False, True),
        (History(cross_checked_at=100, without_created_at=True), False, False),
        (History(cross_checked_at=100, without_created_at=True), True, True),
        (History(cross_checked_at=100), True, False),
    ],
)
def test_when_a_run_is_cross_checked(history: History, *, full: bool, due: bool) -> None:
    """On the first run, when the last cross-check is long ago, and in a full run that needs the page scan as data."""
    assert history.cross_check_is_due(100, 10, full=full) is due
