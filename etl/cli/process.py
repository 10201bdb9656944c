"""How a command that fails ends: one line for people, with `--json` one document for programs, and its exit code.

It imports next to nothing, so that a signal is heard while everything else is still being imported.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import NoReturn

from etl.display import printable
from etl.errors import EtlError, Interrupted, Terminated

_KEYS: dict[str, dict[str, object]] = {
    "run": {"seconds": 0.0, "accounts": [], "sinks": {}},
    "account": {"account": None, "renamed_to": None, "contacts": 0, "seq": None, "sinks": {}},
}
"""See `RunResult.document` and `accounts.ChangeResult.document`."""
_STOPS: dict[int, type[EtlError]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}


def fail(error: EtlError, *, as_json: bool) -> int:
    """Tell of `error`, and return its exit code."""
    complain(error)
    if as_json:
        print(json.dumps(_document(error), ensure_ascii=False), flush=True)
    return error.exit_code


def complain(error: EtlError) -> None:
    """The line for people, on stderr."""
    print(printable(f"error {error.exit_code}: {error}"), file=sys.stderr, flush=True)


def leave_no_core() -> None:
    """Keep what a crash would write of our memory, and of that of our children, off the disk: it holds the token."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _document(error: EtlError) -> dict[str, object]:
    """The document of a command that failed; those of commands that publish have all their keys even then."""
    known = next((keys for command, keys in _KEYS.items() if command in sys.argv[1:2]), {})
    return {"exit": error.exit_code, **known, "error": error.document()}


def stop_at_once() -> None:
    """Let SIGINT and SIGTERM end the program where it stands, until a run that has begun takes them over (`signals`).

    Before that, and in commands that only read, nothing is in hand. An exception would do worse: raised in the middle
    of an import it can come out as another one.
    """

    def stop(number: int, _frame: object) -> NoReturn:
        error = _STOPS[number](f"stopped by {signal.Signals(number).name}")
        os._exit(fail(error, as_json="--json" in sys.argv))

    for number in _STOPS:
        signal.signal(number, stop)
