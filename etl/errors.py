"""The error tree: what went wrong, where, and a hint, each kind with its exit code.

    EtlError
    ├── UsageError            2   fix the command line or the configuration
    ├── AuthError            10   fix the token
    ├── SourceUnavailable    11   wait, or fix the network; run again
    ├── ContractError        12   the server violates its API contract
    ├── UnprovenError        13   completeness could not be proven
    ├── GuardError           14   the result looks wrong; check before overriding
    ├── SinkError            20   disk, permissions or space
    │   ├── Unreachable      20   a sink on another machine does not answer; others can do without it
    │   └── OutcomeUnknown   20   the answer to a publication was lost
    ├── PublishConflict      21   concurrent publish detected
    ├── TargetCorrupt        22   the target is damaged or not made by etl
    ├── TargetLocked         30   another run holds the lock
    ├── Interrupted         130   stopped by SIGINT (Ctrl-C)
    └── Terminated          143   stopped by SIGTERM

A message is built from fields: logs and `--json` carry the fields, people read the sentence.
This module imports nothing else of the package.
"""

from __future__ import annotations

from typing import ClassVar

OK = 0
PUBLISHED_WITH_REJECTS = 40
INTERNAL = 70

OPEN_FILES_HINT = "Raise the limit of open files (ulimit -n), then run again."
"""The hint for EMFILE, which the system, the event loop and DuckDB report each in its own form."""


class EtlError(Exception):
    """A failure that the user can act on: `message` (what), `where`, `hint` (what to do next)."""

    exit_code: ClassVar[int] = INTERNAL
    default_hint: ClassVar[str] = "Report this with the log of the run."

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        self.message = message
        self.where = where
        self.hint = hint or self.default_hint
        super().__init__(message)

    def __str__(self) -> str:
        """What happened, where, and the hint."""
        place = f" ({self.where})" if self.where else ""
        return f"{self.message}{place}. {self.hint}"

    def document(self) -> dict[str, str | int]:
        """The `error` object of every `--json` document."""
        return {
            "code": self.exit_code,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
        }


def first_of(error: EtlError | BaseExceptionGroup[EtlError]) -> EtlError:
    """The first error of a group, which may contain groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class UsageError(EtlError):
    """The command line, the configuration or the environment is wrong; nothing was done."""

    exit_code = 2
    default_hint = "Correct it and run again."


class AuthError(EtlError):
    """The server does not accept the token."""

    exit_code = 10
    default_hint = "Check the token of this account, then run `etl doctor`."


class SourceUnavailable(EtlError):
    """The server cannot be reached, or not within the deadline and the retry budget."""

    exit_code = 11
    default_hint = "Nothing was published; run again when the server answers."


class ContractError(EtlError):
    """The server's responses violate its API contract, and not just once by chance."""

    exit_code = 12
    default_hint = "Nothing was published; run `etl doctor` to check how the server behaves."


class UnprovenError(EtlError):
    """Everything was read, but it cannot be proven that nothing is missing."""

    exit_code = 13
    default_hint = (
        "Nothing was published; run again when the account is less active, or accept it with --allow-unproven."
    )


class GuardError(EtlError):
    """The result looks so wrong that publishing it would do harm."""

    exit_code = 14
    default_hint = "Nothing was published; look at the account before overriding the guard."


class SinkError(EtlError):
    """A file could not be written, read or moved."""

    exit_code = 20
    default_hint = "Nothing was published; free disk space or fix the permissions, then run again."


class Unreachable(SinkError):
    """The target is on another machine that does not answer as it should: the other sinks can do without it."""

    default_hint = "Nothing was published; run again when the server can be reached."


class OutcomeUnknown(SinkError):
    """It is not known whether the publication happened: its answer was lost, and the target cannot be asked."""

    default_hint = "Run again when the target can be reached: the next run starts from what was published."


class PublishConflict(EtlError):
    """Another run published the same sequence number first."""

    exit_code = 21
    default_hint = "Nothing was published; run again, and keep one schedule per target."


class TargetCorrupt(EtlError):
    """The target is damaged, altered, or not made by etl; it is never treated as empty."""

    exit_code = 22
    default_hint = "Restore it from a backup, or move it away and run again for a full export."


class TargetLocked(EtlError):
    """Another run holds the lock on the target."""

    exit_code = 30
    default_hint = "Wait for it to end; nothing was done."


class Interrupted(EtlError):
    """Stopped by SIGINT (Ctrl-C)."""

    exit_code = 130
    default_hint = "Nothing was published unless the run has already reported it; run again."


class Terminated(EtlError):
    """Stopped by SIGTERM."""

    exit_code = 143
    default_hint = "Nothing was published unless the run has already reported it; run again."
