"""Publishing: merge next to every target, check the result with the guards, then one atomic step per sink.

Synchronous: the run calls it in a worker thread. A failure or a signal before the first step leaves every target
unchanged; after that step, the others follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from etl.commands import guard
from etl.errors import EtlError
from etl.model import Merged, Phase, Publication
from etl.sinks import Sink


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a publication."""

    merged: Merged | None = None
    """As the first sink counts it; None if nothing was published."""
    refused: Mapping[str, EtlError] = field(default_factory=dict)
    """The accounts that a guard refused."""


def publish(
    sinks: Sequence[Sink],
    publication: Publication,
    *,
    shrink_share: float | None,
    published: Callable[[Sink], None],
    check_cancelled: Callable[[], None] = lambda: None,
    entered: Callable[[Phase], None] = lambda _: None,
) -> Outcome:
    """Publish to every sink and call `published` after each; accounts that a guard refuses are left out.

    `shrink_share` None disables the shrink guard. `check_cancelled` raises if the run is to stop: it is called after
    each preparation, and no more once the first sink has published. `entered` is called with `merge` and `publish`.
    Errors of `check_cancelled` and of the sinks are raised; no prepared data is left behind.
    """
    refused: dict[str, EtlError] = {}
    try:
        while publication.accounts:
            entered("merge")
            merged = []
            for sink in sinks:
                merged.append(sink.prepare(publication))
                check_cancelled()
            found: dict[str, EtlError] = {}
            if shrink_share is not None:
                records = {brought.record.account: brought.record for brought in publication.accounts}
                for one in merged:
                    found |= guard.check_shrink(records, one, shrink_share)
            if not found:
                entered("publish")
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
