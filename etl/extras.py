"""Optional libraries: whatever needs one says so, so that a missing one is a clear error, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from etl.errors import UsageError

LIBRARIES = {"metrics": ("prometheus_client",), "report": ("altair", "vl_convert", "htpy"), "scale": ("distributed",)}
"""What the extras without a sink install."""


def require(extra: str, where: str) -> None:
    """Raise `UsageError`, which names the extra to install, unless all of its libraries are installed."""
    if missing := [library for library in LIBRARIES[extra] if find_spec(library) is None]:
        raise UsageError(f"{', '.join(missing)} is not installed", where=where, hint=_hint(extra))


@contextmanager
def importing(extra: str, what: str, where: str) -> Iterator[None]:
    """Raise `UsageError` if the block imports a library of the extra, which `what` needs, that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "etl").partition(".")[0] == "etl":
            raise
        raise UsageError(f"{what} needs the extra {extra}", where=where, hint=_hint(extra)) from error


def _hint(extra: str) -> str:
    return f"Install etl with its extra {extra}: pip install 'etl[{extra}]'."
