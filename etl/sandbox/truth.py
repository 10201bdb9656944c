"""The truth log: every version of every contact, with the time from which answers could show it."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event of one contact."""

    at: float
    """Seconds since 1970 from which answers show it."""
    kind: str
    """start | insert | touch | delete | flip | edit | presence | restore."""
    id: str
    raw: bytes | None
    """The contact from then on; None from its deletion."""


class Truth:
    """The log of the account and the queries of an oracle; contacts are identified by `_id` as text, else `#serial`.

    Times must be between the start of the account and the last time to which the world was advanced.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        """All events after the start, in the order in which they became visible."""
        self.counts: Counter[str] = Counter()
        """The number of events of each kind, including forgotten ones."""
        self._histories: dict[str, list[tuple[float, bytes | None]]] = {}

    def begin(self, at: float, id: str, raw: bytes) -> None:  # noqa: A002 - the API's own word
        """Record a contact that exists when the account starts, which is no event."""
        self._histories[id] = [(at, raw)]

    def record(self, event: Event) -> None:
        """Add the latest event."""
        self.events.append(event)
        self.counts[event.kind] += 1
        self._histories.setdefault(event.id, []).append((event.at, event.raw))

    def ids(self) -> Iterator[str]:
        """The ids of all contacts that were ever visible."""
        return iter(self._histories)

    def version_at(self, id: str, at: float) -> bytes | None:  # noqa: A002
        """The contact as an answer at that time would show it; None if there was none."""
        history = self._histories.get(id, [])
        position = bisect_right(history, at, key=lambda state: state[0])
        return history[position - 1][1] if position else None

    def versions(self, id: str) -> list[tuple[float, bytes | None]]:  # noqa: A002
        """All states of one contact with the times from which they held."""
        return list(self._histories.get(id, ()))

    def existed_throughout(self, start: float, end: float) -> set[str]:
        """The contacts an answer would have shown at every moment from `start` to `end`, both included."""
        return {id for id in self._histories if self._existed(id, start, end)}  # noqa: A001

    def _existed(self, id: str, start: float, end: float) -> bool:  # noqa: A002
        if self.version_at(id, start) is None:
            return False
        return all(raw is not None for at, raw in self._histories[id] if start < at <= end)

    def deleted(self) -> dict[str, float]:
        """The deleted contacts, with the time of deletion."""
        return {id: states[-1][0] for id, states in self._histories.items() if states[-1][1] is None}  # noqa: A001

    def forget(self) -> None:
        """Keep only the current versions: a past that no oracle queries need not stay in memory."""
        self.events.clear()
        self._histories = {id: states[-1:] for id, states in self._histories.items()}  # noqa: A001
