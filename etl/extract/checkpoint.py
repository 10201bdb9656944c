"""What a reading has to remember so that, when it is killed, the next run can go on with it. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from etl.extract.capabilities import Capabilities
from etl.extract.windows import Accepted
from etl.model import Mode


@dataclass(frozen=True, slots=True)
class ExtractionStart:
    """What is fixed once the server was probed: a reading that is resumed keeps its T0 and its watermark."""

    mode: Mode
    capabilities: Capabilities
    watermark: int
    clock_ahead: int
    """Seconds that the server's clock was ahead of ours."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where a reading that was killed had come to."""

    begun: ExtractionStart
    accepted: Sequence[Accepted] = ()
    """Windows that need not be read again."""


class Checkpoint(Protocol):
    """Remembers what was read."""

    @property
    def resumed(self) -> Resumption | None:
        """What this reading goes on with; None when it begins anew."""

    def begin(self, begun: ExtractionStart) -> None:
        """Note what is fixed from now on."""

    def accept(self, done: Accepted) -> None:
        """Note a window that is complete, after all of its contacts were received."""


class NullCheckpoint:
    """A checkpoint for readings that nobody goes on with."""

    resumed: Resumption | None = None

    def begin(self, begun: ExtractionStart) -> None:
        """See `Checkpoint`."""

    def accept(self, done: Accepted) -> None:
        """See `Checkpoint`."""
