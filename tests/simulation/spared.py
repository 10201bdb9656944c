"""What lies beyond the contract: combinations of traits that docs/api.md rules out, and what stands in for them.

`python -m tests.simulation --unsparing` plays schedules as they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from etl.extract.capabilities import SMALLEST_PAGE

Traits = Mapping[str, Any]

SPARED: tuple[tuple[str, Callable[[Traits], bool], Traits], ...] = (
    (
        # KNOWN is that the first page is 1. One that counts from 0 is noticed, but not while it has a single page and
        # repeats that for every other number.
        "a server that counts from 0 and repeats its last page",
        lambda traits: traits["page_base"] == 0 and traits["past_end"] == "repeat",
        {"page_base": 1},
    ),
    (
        # docs/api.md: a page holds at least 14. With one on each a contact is an indivisible window, read page by page.
        "a server that comes down to one contact on a page",
        lambda traits: traits["page_size_drop"] is not None and traits["page_size_drop"][0] * traits["page_size"] < 2,
        {"page_size_drop": None},
    ),
    (
        # docs/api.md: a page holds 14 at least, and so does the smallest of several.
        "pages of several sizes on a server whose largest is as small as the smallest may be",
        lambda traits: traits["mixed_pages"] is not None,
        {"page_size": 50, "page_size_drop": None, "leads_page": 1.0},
    ),
    (
        # A scrub looks at a page's worth of contacts at least, and of two or three a few tell nothing.
        "an account that is shown in part, in pages smaller than any",
        lambda traits: traits["narrowed"] is not None and traits["page_size"] < SMALLEST_PAGE,
        {"page_size": 20},
    ),
    (
        # Another account is known by its contacts: of one or two that may be chance.
        "an account of hardly anybody that is swapped",
        lambda traits: traits["swapped"] is not None,
        {"pages": 6, "without_created_at": 0.0},
    ),
)
"""What is wrong, where it shows, and what stands in for it."""


def spared(traits: Traits) -> dict[str, Any]:
    """The traits without what is beyond the contract."""
    kept = dict(traits)
    for _, shows, instead in SPARED:
        if shows(kept):
            kept |= instead
    return kept
