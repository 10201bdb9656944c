"""Unexpected errors as an `EtlError`: memory that ran out, too many open files, a damaged library, a bug."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

from etl.errors import OPEN_FILES_HINT, EtlError, Interrupted, SinkError, UsageError

NO_MEMORY = ("can't start new thread", "Failed to launch worker thread", "annot allocate memory")
"""Messages of Python, Arrow and the loader of libraries when memory ran out: nothing else in the error shows it."""


def as_error(error: BaseException) -> EtlError:
    """The error as an `EtlError`, which names the place in the code, not the message: it could hold a contact's values.

    A cancelled run was interrupted.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, EtlError):
        return error
    if not isinstance(error, Exception):
        return Interrupted("stopped before the end")
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(*Path(place.filename).parts[-2:])}:{place.lineno} in {place.name}"
    if isinstance(error, MemoryError) or any(said in str(error) for said in NO_MEMORY):
        hint = "Lower extract.memory_limit or extract.concurrency, or give it more memory, then run again."
        return SinkError("memory ran out", where=where, hint=hint)
    if isinstance(error, ImportError):
        return UsageError("a library is missing or damaged", where=where, hint="Install it again (make setup).")
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return SinkError("too many files are open", where=where, hint=OPEN_FILES_HINT)
    return EtlError(f"internal error: {type(error).__name__}", where=where)
