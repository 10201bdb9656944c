"""Publishing: merge beside every target, guard what came of it, then one atomic step per sink.

Synchronous: the run calls it in a worker thread. What goes wrong before the first step leaves every target as it was,
and so does a signal; once that step is made, the others follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from etl.commands import guard
from etl.errors import EtlError
from etl.model import Merged, Publication
from etl.sinks import Sink


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a publication."""

    merged: Merged | None = None
    """As the first sink counts it; None when nothing was published."""
    refused: Mapping[str, EtlError] = field(default_factory=dict)
    """The accounts that a guard kept out."""


def publish(
    sinks: Sequence[Sink],
    publication: Publication,
    *,
    shrink_share: float | None,
    published: Callable[[Sink], None],
    go_on: Callable[[], None] = lambda: None,
) -> Outcome:
    """Publish to every sink and tell `published` of each; accounts that a guard refuses stay out.

    `shrink_share` None switches the shrink guard off. `go_on` raises when the run is to stop: it is asked after each
    preparation, and no more once the first sink has published. Raises what it and the sinks raise; nothing prepared is
    left behind.
    """
    refused: dict[str, EtlError] = {}
    try:
        while publication.accounts:
            merged = []
            for sink in sinks:
                merged.append(sink.prepare(publication))
                go_on()
            found = {} if shrink_share is None else _shrunk(publication, merged, shrink_share)
            if not found:
                for sink in sinks:
                    sink.publish(publication)
                    published(sink)
                return Outcome(merged[0], refused)
            refused |= found
            kept = tuple(brought for brought in publication.accounts if brought.record.account not in found)
            publication = replace(publication, accounts=kept)
        return Outcome(None, refused)
    finally:
        for sink in sinks:
            sink.discard()


def _shrunk(publication: Publication, merged: Sequence[Merged], share: float) -> dict[str, EtlError]:
    records = {brought.record.account: brought.record for brought in publication.accounts}
    return {name: error for one in merged for name, error in guard.check_shrink(records, one, share).items()}
