"""Checkpoint interface: the progress from which the next run resumes a killed extraction. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from etl.extract.capabilities import Capabilities
from etl.extract.windows import Accepted
from etl.model import Mode


@dataclass(frozen=True, slots=True)
class ExtractionStart:
    """The values fixed after the probe: a resumed extraction keeps its T0 and its watermark."""

    mode: Mode
    capabilities: Capabilities
    watermark: int
    clock_ahead: int
    """Seconds by which the server's clock was ahead of ours."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """The progress of a killed extraction."""

    begun: ExtractionStart
    accepted: Sequence[Accepted] = ()
    """Windows that need not be read again."""


class Checkpoint(Protocol):
    """Records the progress of an extraction."""

    @property
    def resumed(self) -> Resumption | None:
        """The progress to resume from; None to start from the beginning."""

    def begin(self, begun: ExtractionStart) -> None:
        """Record the values fixed after the probe."""

    def accept(self, done: Accepted) -> None:
        """Record a complete window, after all of its contacts were received."""


class NullCheckpoint:
    """A checkpoint that records nothing, for extractions that are never resumed."""

    resumed: Resumption | None = None

    def begin(self, begun: ExtractionStart) -> None:
        """See `Checkpoint`."""

    def accept(self, done: Accepted) -> None:
        """See `Checkpoint`."""
