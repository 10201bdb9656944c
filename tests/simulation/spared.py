"""TODO: open faults of the exporter. Traits under which one shows are replaced until it is mended; then its line goes.

`python -m tests.simulation --unsparing` plays schedules as they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Traits = Mapping[str, Any]

SPARED: tuple[tuple[str, Callable[[Traits], bool], Traits], ...] = (
    (
        "a server that counts from 0 and repeats its last page is believed to count from 1 while it has one page",
        lambda traits: traits["page_base"] == 0 and traits["past_end"] == "repeat",
        {"page_base": 1},
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
