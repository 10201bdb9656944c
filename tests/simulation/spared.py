"""TODO: open faults of the exporter. Traits under which one shows are replaced until it is mended; then its line goes.

`python -m tests.simulation --unsparing` plays schedules as they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Traits = Mapping[str, Any]

SPARED: tuple[tuple[str, Callable[[Traits], bool], Traits], ...] = (
    (
        "a passing failure of the probe's page 0 or far page is taken for an answer",
        lambda traits: bool(traits["faults"]) and (traits["page_base"] == 0 or traits["past_end"] == "repeat"),
        {"faults": ()},
    ),
    (
        "a server that ignores `page` is believed to have pages when its list moves between two requests",
        lambda traits: traits["ignore_page"],
        {"ignore_page": False},
    ),
    (
        "a server whose page 0 is page 1 is believed to count from 0 when its list moves between two requests",
        lambda traits: traits["page_zero"] == "first",
        {"page_zero": "error"},
    ),
    (
        "what happened to a contact without createdAt before a later full run is overlooked",
        lambda traits: bool(traits["undated"]) and "f" in traits["chain"],
        {"undated": 0.0},
    ),
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
