"""TODO: open faults of the exporter. Traits under which they show are replaced until each is mended; then its line goes.

`python -m tests.simulation --unsparing` plays schedules as they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Traits = Mapping[str, Any]

SPARED: tuple[tuple[str, Callable[[Traits], bool], Traits], ...] = (
    (
        "a server that ignores `page` is believed to have pages when its list moves between two requests",
        lambda traits: traits["ignore_page"],
        {"ignore_page": False},
    ),
    (
        "a last page that is repeated in another order, or that changes, is never recognised",
        lambda traits: traits["past_end"] == "repeat",
        {"past_end": "empty"},
    ),
    (
        "a second or a day whose both bounds are exclusive is taken for a granule of a millisecond",
        lambda traits: traits["granularity"] != "ms"
        and "exclusive" in (traits["start_bound"], traits["end_bound"]),
        {"start_bound": "inclusive", "end_bound": "inclusive"},
    ),
    (
        "a list of less than one page on a server that counts from 0 is taken for empty",
        lambda traits: traits["page_base"] == 0,
        {"page_base": 1},
    ),
    (
        "windows that a lowered page size made doubtful are read again out of order",
        lambda traits: traits["page_size_drop"] is not None,
        {"page_size_drop": None},
    ),
)
"""What is wrong, where it shows, and what stands in for it."""


def spared(traits: Traits) -> dict[str, Any]:
    """The traits without those that show an open fault."""
    kept = dict(traits)
    for _, shows, instead in SPARED:
        if shows(kept):
            kept |= instead
    return kept
