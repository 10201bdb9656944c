"""Selects the cases to play: all of them, or a seeded sample that always includes the publishing step."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from tests.crash.case import Fault, publish_apart
from tests.crash.rig import Rig
from tests.crash.syscalls import CHANGING, EIO, ENOSPC, EROFS, FAILING, PUBLISHING, STORING, Syscall
from tests.crash.tracer import Call, trace

Kind = Literal["kill", "error", "twice"]
KINDS: tuple[Kind, ...] = ("kill", "error", "twice")
KINDS_OF: dict[str, tuple[Kind, ...]] = {"delta": ("kill", "twice")}
"""The kinds that are played by default, where not all are: the library of Delta tables does not sync what it writes."""

PAIRS = 14
"""Two kills in succession, in every scenario: PAIRS x PAIRS cases, spread over both runs."""
PER_KILL = {"kill": 1.0, "error": 0.2, "twice": 0.06}
"""Cases of each kind in a sample, per kill."""
_SHARES = (("at the target", 0.4), ("staging", 0.15), ("merging", 0.2), ("beside it", 1.0), ("staging", 1.0))
"""Shares of the remaining room in a sample, in this order; Arrow's many small writes of parts are much alike."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The cases of one kind in one scenario, with the calls at which they occur."""

    faults: tuple[Fault, ...]
    calls: dict[int, Call]
    """By number."""
    certain: frozenset[int]
    """The numbers of the publishing call and the one after it."""
    target: str

    def only(self, name: str, errno: str, at: int) -> Plan:
        """The cases of one system call, one errno, one number; empty or 0 matches any."""
        return replace(self, faults=tuple(each for each in self.faults if self._is(each, name, errno, at)))

    def sample(self, count: int, seed: int) -> tuple[Fault, ...]:
        """Draw `count` cases by the seed, including those at the publishing call."""
        rng = random.Random(seed)
        chosen = [fault for fault in self.faults if fault.n in self.certain][:count]
        room = count - len(chosen)
        for place, share in _SHARES:
            found = [fault for fault in self.faults if fault not in chosen and self._place(fault) == place]
            chosen += rng.sample(found, min(len(found), count - len(chosen), math.ceil(room * share)))
        return tuple(chosen)

    def _is(self, fault: Fault, name: str, errno: str, at: int) -> bool:
        call = self.calls.get(fault.n)
        named = call is not None and call.what.name == name
        return (not name or named) and (not errno or fault.name == errno) and (not at or fault.n == at)

    def _place(self, fault: Fault) -> str:
        call = self.calls.get(fault.n)
        if call is None or ".stage/" in call.path:
            return "staging"
        if ".next-" in call.path and call.what.name in STORING:
            return "merging"
        touched = call.path.startswith(self.target) or call.goal.startswith(self.target)
        return "at the target" if touched and call.what.name != "close" else "beside it"


def plan(rig: Rig, kind: Kind) -> Plan:
    """Every case of a kind, from the calls of an undisturbed publication."""
    calls = undisturbed(rig, FAILING if kind == "error" else CHANGING)
    faults = tuple({"kill": _kills, "error": _errors, "twice": _pairs}[kind](calls))
    steps = {call.n for call in calls if publishes(rig, call)}
    certain = frozenset(step + near for step in steps for near in (0, 1))
    return Plan(faults, {call.n: call for call in calls}, certain, str(rig.scenario.target(Path())))


def undisturbed(rig: Rig, watched: tuple[Syscall, ...]) -> tuple[Call, ...]:
    """The watched calls of an undisturbed publication."""
    folder = rig.fresh()
    ended = trace(lambda: publish_apart(rig.scenario, folder, rig.stderr), watched, folder, lambda _: 0)
    if ended.code:
        message = f"{rig.scenario} fails by itself: {rig.told()}"
        raise RuntimeError(message)
    return ended.calls


def publishes(rig: Rig, call: Call) -> bool:
    """Whether this is the call that makes the run visible: the new file or the manifest gets its name.

    (The files of a trial before a run are named `probe`, and publish nothing.)
    """
    target = rig.scenario.target(Path())
    named = {
        "duckdb": str(target),
        "parquet": str(target / "manifests"),
        "delta": str(target / "contacts" / "_delta_log" / "0"),
    }[rig.scenario.kind]
    trial = Path(call.path).name in {"probe", "probed"}
    return call.what.name in PUBLISHING and call.goal.startswith(named) and not trial


def _kills(calls: Sequence[Call]) -> Iterator[Fault]:
    """A kill before each call, and one after the last."""
    for n in range(1, len(calls) + 2):
        yield Fault(n)


def _errors(calls: Sequence[Call]) -> Iterator[Fault]:
    """Each error of each call; a full, broken or read-only disk stays so."""
    for call in calls:
        for number in call.what.errnos:
            if number != EROFS:
                yield Fault(call.n, number)
            if number in {ENOSPC, EIO, EROFS} and not call.what.reads:
                yield Fault(call.n, number, lasting=True)


def _pairs(calls: Sequence[Call]) -> Iterator[Fault]:
    """A kill, and another while the next run recovers; a recovery makes about the same number of calls as a run."""
    apart = -(-len(calls) // PAIRS)
    for n, then in product(range(1, len(calls) + 1, apart), repeat=2):
        yield Fault(n, then=then)
