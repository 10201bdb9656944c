"""stdout and stderr that never stop the work: whoever reads them may have gone, and a log disk may be full."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import TextIO


def harden() -> None:
    """Let text that cannot be written be lost, now and when the interpreter ends, instead of ending the program.

    It is written as UTF-8 whatever the locale says: JSON is, and names of people fit nothing else.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdout = _Lossy(sys.stdout)
    sys.stderr = _Lossy(sys.stderr)


class _Lossy:
    """A text stream whose errors are nobody's business; a closed one is replaced by nothing."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115

    def write(self, text: str) -> int:
        """Write and flush at once, so that an error shows here and not later."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # What is still buffered would fail again at exit: let it go to where everything fits.
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return len(text)

    def flush(self) -> None:
        """Nothing is ever kept back."""

    def __getattr__(self, name: str) -> object:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)
