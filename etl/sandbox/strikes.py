"""Decide when a fault strikes.

A fault is a dict: its `kind` (`faults.KINDS`), the conditions under which it strikes (all of them must hold; none means
always) and the parameters of its kind. Requests to the contacts are numbered from 1.

    {"kind": "status", "status": 503, "every": 10}
    {"kind": "reset_mid_body", "nth": 3, "at": 0.5}
    {"kind": "status", "status": 500, "covers": "2025-03-01T00:00:00.000Z"}   a window that always fails
    {"kind": "page_size", "size": 25, "from": 40}
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from types import MappingProxyType
from typing import Any

from etl.sandbox import faults
from etl.sandbox.answer import Answer
from etl.sandbox.faults import Spec
from etl.sandbox.filters import Body
from etl.sandbox.pages import Page
from etl.sandbox.settings import Settings, unknown
from etl.sandbox.times import read


@dataclass(frozen=True, slots=True)
class Call:
    """The data that the conditions of a fault check."""

    number: int
    body: Body
    chance: float
    """Uniform in [0, 1), for this fault and this request."""
    struck: int
    """How often the fault has struck already."""


def _covers(text: str, call: Call) -> bool:
    """Whether the request asks for a window on `createdAt` that contains this time."""
    dates = call.body.get("createdAt") or {}
    start, end = dates.get("startAt"), dates.get("endsAt")
    at, utc = read(text, timedelta()), timedelta()
    return bool(start or end) and (not start or read(start, utc) <= at) and (not end or at <= read(end, utc))


def _is_ranged(call: Call) -> bool:
    """Whether the request asks for a range of time."""
    ranges = (call.body.get(name) or {} for name in ("createdAt", "lastSeenAt"))
    return any(dates.get("startAt") or dates.get("endsAt") for dates in ranges)


CONDITIONS: Mapping[str, Callable[[Any, Call], bool]] = MappingProxyType(
    {
        "nth": lambda nth, call: call.number in (nth if isinstance(nth, list) else [nth]),
        "every": lambda every, call: call.number % every == 0,
        "from": lambda first, call: call.number >= first,
        "until": lambda last, call: call.number <= last,
        "rate": lambda rate, call: call.chance < rate,
        "times": lambda times, call: call.struck < times,
        "page": lambda page, call: call.body.get("page") == page,
        "is_contact": lambda flag, call: call.body.get("isContact") is flag,
        "covers": _covers,
        "ranged": lambda flag, call: _is_ranged(call) is flag,
    }
)


@dataclass(frozen=True, slots=True)
class Strike:
    """The faults that strike one request."""

    specs: tuple[Spec, ...]

    def body(self, body: Body) -> Body:
        """The body as the server reads it."""
        for spec in self._of(faults.REQUESTS):
            body = faults.REQUESTS[spec["kind"]](body, spec)
        return body

    def page(self, page: Page) -> Page:
        """The page as the server makes it."""
        for spec in self._of(faults.PAGES):
            page = faults.PAGES[spec["kind"]](page, spec)
        return page

    def answer(self, answer: Answer) -> Answer:
        """The answer as it arrives."""
        for spec in self._of(faults.ANSWERS):
            answer = faults.ANSWERS[spec["kind"]](answer, spec)
        return answer

    def _of(self, kinds: Container[str]) -> list[Spec]:
        return [spec for spec in self.specs if spec["kind"] in kinds]

    def page_size(self) -> int:
        """Another page size; 0 = that of the settings."""
        return next((spec["size"] for spec in self.specs if spec["kind"] == "page_size"), 0)

    def repeats(self) -> bool:
        """Whether the last good answer is returned once more."""
        return any(spec["kind"] == "duplicate_page" for spec in self.specs)


class Plan:
    """All faults of the settings, and how often each has struck.

    Raises `ValueError` for a kind that does not exist, naming the nearest that does.
    """

    def __init__(self, settings: Settings) -> None:
        self._specs: tuple[Spec, ...] = settings.faults
        self._seed = settings.seed
        self.struck = [0] * len(self._specs)
        for spec in self._specs:
            if spec.get("kind") not in faults.KINDS:
                raise unknown("fault of kind", str(spec.get("kind")), faults.KINDS)

    def strike(self, number: int, body: Body) -> Strike:
        """The faults that strike request `number`; asking counts."""
        hits = [place for place, spec in enumerate(self._specs) if self._hits(place, spec, number, body)]
        for place in hits:
            self.struck[place] += 1
        return Strike(tuple(self._specs[place] for place in hits))

    def _hits(self, place: int, spec: Spec, number: int, body: Body) -> bool:
        chance = Random(f"{self._seed} {place} {number}").random() if "rate" in spec else 0.0  # noqa: S311
        call = Call(number, body, chance, self.struck[place])
        return all(holds(spec[name], call) for name, holds in CONDITIONS.items() if name in spec)
