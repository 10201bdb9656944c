"""Renders a report in a separate process, which isolates the drawing library: its memory, and its crashes.

It is a browser's JavaScript engine that ends the whole process on input that it cannot draw, and a run that has
published must end as it would without a report. The process gets figures alone: no token, no file, no contact.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from etl.errors import EtlError
from etl.pages.figures import Figures

TIMEOUT = 120.0
"""Seconds."""
_PACKAGE = Path(__file__).parents[2]


def render(figures: Figures) -> bytes:
    """The report as HTML. Raises `EtlError` if the process fails."""
    # -P: the working folder may have modules of the same names.
    command = [sys.executable, "-P", "-m", "etl.pages"]
    # A user of a container may have no home, which the library asks for; nothing of ours is passed on.
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(_PACKAGE)}
    try:
        ended = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            input=msgspec.json.encode(figures),
            env=environment,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EtlError(f"the page was not drawn within {TIMEOUT:.0f} s", where="report") from error
    except OSError as error:
        raise EtlError(f"the process that draws could not start: {error.strerror}", where="report") from error
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise EtlError(f"the page could not be drawn: {last[0]} (it ended with {ended.returncode})", where="report")
    return ended.stdout
