"""Calls in a separate process: the caller stays without threads, so that it can continue to fork."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable


class ForkFailed(Exception):
    """The process failed or ended without a result."""


def apart(work: Callable[[], object]) -> object:
    """The result of `work`, which must be serializable as JSON; raises `ForkFailed` for any failure of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _answer(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if not told:
        message = f"no answer, ended with {os.waitstatus_to_exitcode(status)}"
        raise ForkFailed(message)
    answer = json.loads(told)
    if "failed" in answer:
        raise ForkFailed(answer["failed"])
    return answer["answer"]


def _answer(work: Callable[[], object], writing: int) -> None:
    try:
        told: dict[str, object] = {"answer": work()}
    except BaseException:  # noqa: BLE001 - after any error, this process must not continue as its parent
        told = {"failed": traceback.format_exc()}
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(json.dumps(told).encode())
    sys.stderr.flush()
    os._exit(0)
