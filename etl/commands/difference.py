"""The difference between two published states (`etl diff`): frozen values, and the document that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from etl.commands.result import Document, instant

Change = Literal["new", "changed", "deleted"]


@dataclass(frozen=True, slots=True)
class State:
    """A published state: what the runs up to `seq` left."""

    seq: int
    """The newest of these runs; 0 before the first."""
    observed_at: datetime | None
    """T0 of that run, by the server's clock; None before the first."""

    def document(self) -> Document:
        """The state as a JSON object."""
        return {"seq": self.seq, "observed_at": instant(self.observed_at) if self.observed_at else None}


@dataclass(frozen=True, slots=True)
class ContactChange:
    """How one contact differs between the two states."""

    account: str
    contact_id: str
    change: Change
    columns: tuple[str, ...] = ()
    """The columns whose values differ, of a contact that is in both states."""
    values: Mapping[str, tuple[object, object]] | None = None
    """These columns' values before and after, as JSON values; None unless asked for."""

    def document(self) -> Document:
        """The contact as a JSON object."""
        known: Document = {"account": self.account, "contact_id": self.contact_id, "change": self.change}
        known["columns"] = list(self.columns)
        if self.values is not None:
            pairs = self.values.items()
            known["values"] = {name: {"before": before, "after": after} for name, (before, after) in pairs}
        return known


@dataclass(frozen=True, slots=True)
class Difference:
    """The net difference between two states; columns of presence do not count."""

    before: State
    after: State
    new: int
    changed: int
    deleted: int
    changed_back: int
    """Contacts with versions in between that are the same in both states."""
    came_and_went: int
    """Contacts with versions in between that are in neither state."""
    columns: Mapping[str, int] = field(default_factory=dict)
    """The number of changed contacts by column, the most frequent first; only columns that differ."""
    rows: Sequence[ContactChange] = ()
    """As many as were asked for, by account and id."""

    def document(self) -> Document:
        """The `--json` document of `diff`."""
        return {
            "before": self.before.document(),
            "after": self.after.document(),
            "new": self.new,
            "changed": self.changed,
            "deleted": self.deleted,
            "changed_back": self.changed_back,
            "came_and_went": self.came_and_went,
            "columns": dict(self.columns),
            "rows": [row.document() for row in self.rows],
        }
