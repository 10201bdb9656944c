"""stdout and stderr that never stop the work: whoever reads them may have gone, and a log disk may be full.

Nor do they steer a terminal: whatever is written, only its line ends get through as they are (`etl.display`).
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import TextIO, cast

from etl.display import printable


def harden() -> None:
    """Let text that cannot be written be lost, now and when the interpreter ends, instead of ending the program.

    It is written as UTF-8 whatever the locale says: JSON is, and names of people fit nothing else.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdout = _Lossy(sys.stdout)
    sys.stderr = _Lossy(sys.stderr)


def steering(stream: TextIO) -> TextIO:
    """The stream for a program that moves the cursor itself: what it shows of others must be `printable` already."""
    return cast("TextIO", _Lossy(stream.stream, safe=False)) if isinstance(stream, _Lossy) else stream


class _Lossy:
    """A text stream whose errors are nobody's business; a closed one is replaced by nothing."""

    def __init__(self, stream: TextIO | None, *, safe: bool = True) -> None:
        self._safe = safe
        self.stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115

    def write(self, text: str) -> int:
        """Write and flush at once, so that an error shows here and not later."""
        try:
            self.stream.write(printable(text, keep="\n") if self._safe else text)
            self.stream.flush()
        except (OSError, ValueError):
            # What is still buffered would fail again at exit: let it go to where everything fits.
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return len(text)

    def flush(self) -> None:
        """Nothing is ever kept back."""

    def __getattr__(self, name: str) -> object:
        """Everything else is the stream's own."""
        return getattr(self.stream, name)
