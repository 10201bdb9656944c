"""Publishing: merge next to every target, check the result with the guards, then one atomic step per sink.

Synchronous: the run calls it in a worker thread. A signal before the first step leaves every target unchanged; after
that step, the others follow. A sink that fails is left out, and the next run brings it what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from etl.commands import guard
from etl.errors import EtlError, PublishConflict, SinkError
from etl.model import Merged, Phase, Publication
from etl.sinks import Sink


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a publication."""

    merged: Merged | None = None
    """As the first sink counts it; None if nothing was published."""
    refused: Mapping[str, EtlError] = field(default_factory=dict)
    """The accounts that a guard refused."""
    failed: Mapping[Sink, EtlError] = field(default_factory=dict)
    """The sinks that could not publish; never all of them."""

    def raise_for_failure(self) -> None:
        """Raise the error of the first sink that could not publish."""
        for error in self.failed.values():
            raise error


FAILURES = (SinkError, PublishConflict)
"""Errors of one sink that do not keep the others from publishing."""


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

    A sink that fails is left out, unless all of them do: then the first error is raised. `shrink_share` None disables
    the shrink guard. `check_cancelled` raises if the run is to stop: it is called after each preparation, and no more
    once the first sink has published. `entered` is called with `merge` and `publish`. Other errors of the sinks, and
    those of `check_cancelled`, are raised; no prepared data is left behind.
    """
    refused: dict[str, EtlError] = {}
    failed: dict[Sink, EtlError] = {}
    try:
        while publication.accounts:
            entered("merge")
            merged: dict[Sink, Merged] = {}
            for sink in (sink for sink in sinks if sink not in failed):
                with _noted(failed, sink, len(sinks)):
                    merged[sink] = sink.prepare(publication)
                check_cancelled()
            found: dict[str, EtlError] = {}
            if shrink_share is not None:
                records = {brought.record.account: brought.record for brought in publication.accounts}
                for one in merged.values():
                    found |= guard.check_shrink(records, one, shrink_share)
            if not found:
                entered("publish")
                for sink in merged:
                    with _noted(failed, sink, len(sinks)):
                        sink.publish(publication)
                        published(sink)
                return Outcome(next(one for sink, one in merged.items() if sink not in failed), refused, failed)
            refused |= found
            kept = tuple(brought for brought in publication.accounts if brought.record.account not in found)
            publication = replace(publication, accounts=kept)
        return Outcome(None, refused, failed)
    finally:
        for sink in sinks:
            sink.discard()


@contextmanager
def _noted(failed: dict[Sink, EtlError], sink: Sink, sinks: int) -> Iterator[None]:
    """Note the failure of one sink; raise the first one when all of them have failed."""
    try:
        yield
    except FAILURES as error:
        failed[sink] = error
        if len(failed) == sinks:
            raise next(iter(failed.values())) from None
