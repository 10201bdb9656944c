"""Combinations of traits outside the API contract, and the traits that replace them.

`python -m tests.simulation --unsparing` plays schedules as drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from etl.extract.capabilities import SMALLEST_PAGE

Traits = Mapping[str, Any]

SPARED: tuple[tuple[str, Callable[[Traits], bool], Traits], ...] = (
    (
        # The first page of the API is 1. A server that counts from 0 is detected, except while it has a single page
        # and repeats it for every other number.
        "a server that counts from 0 and repeats its last page",
        lambda traits: traits["page_base"] == 0 and traits["past_end"] == "repeat",
        {"page_base": 1},
    ),
    (
        # A page holds at least 14. With one contact on each, every contact is an indivisible window, read page by page.
        "a server that comes down to one contact on a page",
        lambda traits: traits["page_size_drop"] is not None and traits["page_size_drop"][0] * traits["page_size"] < 2,
        {"page_size_drop": None},
    ),
    (
        # A page holds at least 14 contacts, also the smallest of several sizes.
        "pages of several sizes on a server whose largest is as small as the smallest may be",
        lambda traits: traits["mixed_pages"] is not None,
        {"page_size": 50, "page_size_drop": None, "leads_page": 1.0},
    ),
    (
        # A scrub reads at least one page of contacts; a few missing out of two or three prove nothing.
        "an account that is shown in part, in pages smaller than any",
        lambda traits: traits["narrowed"] is not None and traits["page_size"] < SMALLEST_PAGE,
        {"page_size": 20},
    ),
    (
        # Nothing shows the end of such a list: a run reads pages until its deadline, and fails.
        "a list in no order that repeats its last page, where pages become smaller",
        lambda traits: (traits["sort"], traits["past_end"]) == ("shuffled", "repeat") and traits["page_size_drop"],
        {"page_size_drop": None},
    ),
    (
        # Another account is detected by its contacts; with one or two of them it may be chance.
        "an account of hardly anybody that is swapped",
        lambda traits: traits["swapped"] is not None,
        {"pages": 6, "without_created_at": 0.0},
    ),
)
"""Name of the combination, its condition, the traits that replace it."""


def spared(traits: Traits) -> dict[str, Any]:
    """The traits, with combinations outside the contract replaced."""
    kept = dict(traits)
    for _, shows, instead in SPARED:
        if shows(kept):
            kept |= instead
    return kept
