"""A call in a process of its own: the caller stays without threads, so that it can go on forking."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable


class ForkFailed(Exception):
    """The process ended without an answer."""


def apart(work: Callable[[], object]) -> object:
    """The answer of `work`, which must be JSON-able; raises `ForkFailed` for any failure in there."""
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
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as its parent
        told = {"failed": traceback.format_exc()}
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(json.dumps(told).encode())
    sys.stderr.flush()
    os._exit(0)
