"""Unexpected errors: each has a fitting exit code and hint, and no message is quoted."""

from __future__ import annotations

import errno

import anyio
import pyarrow as pa
import pytest

from etl.commands.unexpected import as_error
from etl.errors import AuthError

UNEXPECTED = {
    "memory": (MemoryError(), 20, "memory_limit"),
    "a thread of Python": (RuntimeError("can't start new thread"), 20, "memory_limit"),
    "a thread of Arrow": (
        pa.lib.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
        *(20, "memory_limit"),
    ),
    "memory of Arrow": (pa.lib.ArrowMemoryError("malloc of size 64 failed"), 20, "memory_limit"),
    "memory of the system": (OSError(errno.ENOMEM, "Cannot allocate memory"), 20, "memory_limit"),
    "memory of the loader": (ImportError("libarrow.so: cannot allocate memory in static TLS block"), 20, "memory"),
    "files": (OSError(errno.EMFILE, "Too many open files"), 20, "ulimit -n"),
    "a library": (ImportError("no module"), 2, "make setup"),
    "a bug": (KeyError("a contact's value"), 70, "log of the run"),
    "cancelled": (KeyboardInterrupt(), 130, "run again"),
}


def raised(error: BaseException) -> BaseException:
    """The error with a traceback, raised from a task."""
    try:
        anyio.run(_raising, error)
    except BaseException as caught:  # noqa: BLE001 - that is the test
        return caught
    raise AssertionError


async def _raising(error: BaseException) -> None:
    async with anyio.create_task_group():
        raise error


@pytest.mark.parametrize("name", UNEXPECTED)
def test_an_unexpected_error_has_a_code_and_a_hint(name: str) -> None:
    """The message of an unexpected error is not repeated, as it could contain values of a contact."""
    error, code, hint = UNEXPECTED[name]
    known = as_error(error if name == "cancelled" else raised(error))
    assert (known.exit_code, hint in known.hint) == (code, True)
    assert "contact's value" not in str(known)


def test_an_expected_error_is_passed_on() -> None:
    """An expected error is returned unchanged, also from an exception group."""
    error = AuthError("refused")
    assert as_error(raised(error)) is error
