"""stdout and stderr that never stop the work: they tolerate closed pipes and full disks.

Nor do they control a terminal: of all control characters, only line ends are written unescaped (`etl.display`).
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import TextIO, cast

from etl.display import printable


def harden() -> None:
    """Drop text that cannot be written, now and at interpreter exit, instead of ending the program.

    The encoding is UTF-8 whatever the locale: JSON is UTF-8, and people's names fit no other encoding.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdout = _Lossy(sys.stdout)
    sys.stderr = _Lossy(sys.stderr)


def steering(stream: TextIO) -> TextIO:
    """The stream for code that moves the cursor itself; external text it shows must already be `printable`."""
    return cast("TextIO", _Lossy(stream.stream, safe=False)) if isinstance(stream, _Lossy) else stream


class _Lossy:
    """A text stream whose errors are ignored; a closed one is replaced by the null device."""

    def __init__(self, stream: TextIO | None, *, safe: bool = True) -> None:
        self._safe = safe
        self.stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115

    def write(self, text: str) -> int:
        """Write and flush at once, so that an error occurs here and not later."""
        try:
            self.stream.write(printable(text, keep="\n") if self._safe else text)
            self.stream.flush()
        except (OSError, ValueError):
            # Flushing the buffered text would fail again at exit: switch to the null device.
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` has flushed."""

    def __getattr__(self, name: str) -> object:
        """Delegate everything else to the stream."""
        return getattr(self.stream, name)
