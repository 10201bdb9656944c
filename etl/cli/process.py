"""How a command starts and fails: signals, core dumps; one line for people, one document for programs (`--json`).

It imports almost nothing, so that signals are handled while everything else is still being imported.
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
"""See `RunResult.document` and `ChangeResult.document`."""
_STOPS: dict[signal.Signals, type[EtlError]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}
SIGNALS = tuple(_STOPS)
"""The signals that stop a command."""


def stopped_by(number: int, when: str = "") -> EtlError:
    """The error of a command that this signal stopped."""
    return _STOPS[signal.Signals(number)](f"stopped by {signal.Signals(number).name}{when}")


def fail(error: EtlError, *, as_json: bool) -> int:
    """Report `error`, and return its exit code."""
    complain(error)
    if as_json:
        # For commands that publish, the document has all their keys even then.
        known = next((keys for command, keys in _KEYS.items() if command in sys.argv[1:2]), {})
        document = {"exit": error.exit_code, **known, "error": error.document()}
        print(json.dumps(document, ensure_ascii=False), flush=True)
    return error.exit_code


def complain(error: EtlError) -> None:
    """Print the error as one line on stderr."""
    print(printable(f"error {error.exit_code}: {error}"), file=sys.stderr, flush=True)


def leave_no_core() -> None:
    """Disable core dumps for this process and its children: a dump would contain the token."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide_rich() -> None:
    """Keep structlog from importing Rich for tracebacks, which no command prints: a sixth of the CPU of a start."""
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # to the import system: not there


def reveal_rich() -> None:
    """Let Rich be imported again."""
    if sys.modules.get("rich", sys) is None:
        del sys.modules["rich"]


def stop_at_once() -> None:
    """Make SIGINT and SIGTERM exit immediately, until a started run installs its own handlers (`signals`).

    Before that, and in commands that only read, there is no work to lose. An exception would be worse: raised during an
    import, it can surface as a different one.
    """

    def stop(number: int, _frame: object) -> NoReturn:
        os._exit(fail(stopped_by(number), as_json="--json" in sys.argv))

    for number in SIGNALS:
        signal.signal(number, stop)
