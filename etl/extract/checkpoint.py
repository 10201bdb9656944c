"""The interface of a checkpoint: what an extraction records, and what a resumed one starts from.

`checkpoint_file` keeps it on files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from etl.extract.capabilities import Capabilities
from etl.extract.landmarks import Landmarks
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
    landmarks: Landmarks | None = None
    """Where the lists are cut, if they are read in their order."""
    doubt: str = ""
    """Why their order cannot be relied on, as far as the landmarks show."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """The progress of a killed extraction."""

    start: ExtractionStart
    accepted: Sequence[Accepted] = ()
    """Windows that need not be read again."""
    doubt: str = ""
    """Why the order of the lists cannot be relied on, if it was."""
    unproven: Sequence[str] = ()
    """What could not be proven, although it was read."""


class Checkpoint(Protocol):
    """Records the progress of an extraction."""

    @property
    def resumed(self) -> Resumption | None:
        """The progress to resume from; None to start from the beginning."""

    def begin(self, start: ExtractionStart) -> None:
        """Record the values fixed after the probe."""

    def accept(self, done: Accepted) -> None:
        """Record a complete window, after all of its contacts were received."""

    def doubt(self, reason: str) -> None:
        """Record that the order of the lists cannot be relied on, and forget what the windows so far have proven."""

    def unproven(self, reason: str) -> None:
        """Record something that could not be proven, so that the run that resumes this one does not prove it either."""


class NullCheckpoint:
    """A checkpoint that records nothing, for extractions that are never resumed."""

    resumed: Resumption | None = None

    def begin(self, start: ExtractionStart) -> None:
        """See `Checkpoint`."""

    def accept(self, done: Accepted) -> None:
        """See `Checkpoint`."""

    def doubt(self, reason: str) -> None:
        """See `Checkpoint`."""

    def unproven(self, reason: str) -> None:
        """See `Checkpoint`."""
