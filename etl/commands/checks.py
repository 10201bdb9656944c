"""Results of checks (`etl doctor`, `etl verify`): one value per check, each with its hint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl.errors import OK, EtlError


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    where: str
    detail: str
    hint: str = ""
    exit_code: int = OK

    @property
    def ok(self) -> bool:
        """Whether nothing needs to be done."""
        return self.exit_code == OK

    def document(self) -> dict[str, object]:
        """The finding's entry in the `--json` document."""
        return {"check": self.check, "where": self.where, "ok": self.ok, "detail": self.detail, "hint": self.hint}


def failure(check: str, error: EtlError, *, where: str = "") -> Finding:
    """An error as a finding."""
    return Finding(check, where or error.where, error.message, error.hint, error.exit_code)


def worst(findings: Sequence[Finding]) -> int:
    """The exit code of the first failed finding; 0 if there is none."""
    return next((finding.exit_code for finding in findings if not finding.ok), OK)
