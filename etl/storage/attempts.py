"""The last attempts to run, successful or not, in `<target>.attempts.jsonl` next to the lock: one JSON line each.

A log for people: no run depends on it, so a failure to read or write it is ignored, and so is a line that is torn or
not ours. It holds times, counts, and errors as they are printed, never a token or a contact's values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from etl.errors import SinkError
from etl.storage import files
from etl.storage.staging import temporary

KEPT = 100
"""Attempts that are kept; older ones are removed whenever there are twice as many."""
LONGEST = 4000
"""Characters of a message that are kept, and of its place and its hint."""
MOST_BYTES = 4 * 2**20
"""Bytes at the end of the file that are read: more than the attempts that are kept need."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to run, by our clock."""

    started: datetime
    finished: datetime
    exit_code: int
    requests: int
    """Requests sent, for all accounts."""
    error: Mapping[str, str | int] | None = None
    """The `error` object of the `--json` document."""
    options: Mapping[str, bool] = field(default_factory=dict)
    version: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.finished - self.started).total_seconds()

    def document(self) -> dict[str, object]:
        """The attempt as a JSON object: a line of the file, and its entry in the `--json` document of `status`."""
        return {
            "started": self.started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "finished": self.finished.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "exit": self.exit_code,
            "error": self.error and {n: v[:LONGEST] if isinstance(v, str) else v for n, v in self.error.items()},
            "version": self.version,
            "options": dict(self.options),
            "requests": self.requests,
        }

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """The attempt in a line of the file; for any other line, see the errors that `read_attempts` ignores."""
        found = json.loads(line)
        error = found["error"]
        known = error and {name: str(error[name]) for name in ("message", "where", "hint")}
        return cls(
            started=datetime.fromisoformat(found["started"]).astimezone(UTC),
            finished=datetime.fromisoformat(found["finished"]).astimezone(UTC),
            exit_code=int(found["exit"]),
            requests=int(found["requests"]),
            error=known and {"code": int(error["code"]), **known},
            options={str(name): bool(given) for name, given in found["options"].items()},
            version=str(found["version"]),
        )


def attempts_file(target: Path) -> Path:
    """The file of this target's attempts."""
    return temporary(target) / f"{target.name}.attempts.jsonl"


def read_attempts(target: Path) -> list[Attempt]:
    """The last attempts to run on this target, the oldest first; none if there is no such file of this user."""
    attempts: list[Attempt] = []
    with suppress(SinkError, OSError):
        for line in _tail(attempts_file(target)):
            with suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                attempts.append(Attempt.parse(line))
    return attempts[-KEPT:]


def record_attempt(target: Path, attempt: Attempt) -> None:
    """Append an attempt; without a temporary folder of this user, or if it cannot be written, do nothing.

    While old attempts are removed, one that another process appends at the same moment may be lost.
    """
    with suppress(SinkError, OSError, MemoryError):
        path = attempts_file(target)
        if not path.parent.is_dir():
            return
        files.refuse_stranger(path.parent)
        line = json.dumps(attempt.document()).encode() + b"\n"
        held = _tail(path) if path.exists() else []
        if len(held) > 2 * KEPT:
            fresh = path.with_suffix(".new")
            files.remove(fresh)
            files.private_file(fresh, b"\n".join([*filter(None, held[-KEPT:]), line])).replace(path)
            return
        with closing(files.Appended(path)) as file:
            # A torn line is ended first.
            file.add(line if held[-1:] in ([], [b""]) else b"\n" + line)


def _tail(path: Path) -> list[bytes]:
    """The last lines of the file; the very last is empty unless it is torn."""
    with files.own_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - MOST_BYTES))
        return file.read(min(size, MOST_BYTES)).split(b"\n")
