"""What is measured: each case is a function from a plan to rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median

from tests.bench.jobs import CONCURRENCY, PAGE, Etl, Ran, Server, bare, serving
from tests.bench.measure import PYTHON, Cost, Failed, measured
from tests.bench.table import Row

BARE, FIRST, PLANNED = "bare pipeline", "etl, first run, with witness", "etl, second full run, planned"
LATENCY = 0.2
"""Seconds, in W2."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    folder: Path
    """Where targets are written."""
    contacts: int
    runs: int
    """Rounds of a comparison, at most."""
    seconds: float
    """After so many no further round of a comparison begins."""
    larger: int
    """Contacts of the large account in W3."""
    incremental: int
    """Contacts of the account in INC."""
    slow: int
    """Contacts behind the slow server of W2."""
    planned: int
    """Creation times in PLAN."""


Side = Callable[[], Ran]


def w1(plan: Plan) -> Iterator[Row]:
    """A server that answers at once: how fast the exporter is."""
    with serving(plan.contacts) as server:
        for sink in ("parquet", "duckdb"):
            rounds = _interleaved(plan, _sides(server, sink, plan.folder))
            yield from _compared("W1", sink, server.contacts, rounds)
            if sink == "parquet":
                requests = [_requests(what, server.contacts, rounds[what][-1]) for what in (FIRST, PLANNED)]
    yield from requests


def w2(plan: Plan) -> Iterator[Row]:
    """A server that takes its time: how well the waiting overlaps."""
    with serving(plan.slow, latency=LATENCY) as server:
        rounds = _interleaved(plan, _sides(server, "parquet", plan.folder))
        ideal = server.contacts / PAGE * LATENCY / CONCURRENCY
        for row in _compared("W2", "200 ms", server.contacts, rounds):
            yield _with_facts(row, _waiting(rounds[row.what.partition(":")[2].strip()], ideal))


def w3(plan: Plan) -> Iterator[Row]:
    """An account several times as large: what grows with it."""
    smaller: dict[str, Ran] = {}
    for contacts in (plan.contacts, plan.larger):
        with serving(contacts) as server:
            sides = {
                f"parquet: {BARE}": lambda: bare(server, "parquet", plan.folder),  # noqa: B023 - called here
                f"parquet: {FIRST}": Etl(server, "parquet", plan.folder).first,
                f"duckdb: {FIRST}": Etl(server, "duckdb", plan.folder).first,
            }
            for what, side in sides.items():
                ran = side()
                smaller.setdefault(what, ran)
                yield _with_facts(_row("W3", what, contacts, [ran]), _growth(smaller[what], ran, contacts / plan.contacts))


def incremental(plan: Plan) -> Iterator[Row]:
    """One contact in a hundred has changed since the last run."""
    with serving(plan.incremental) as server:
        for sink in ("parquet", "duckdb"):
            etl = Etl(server, sink, plan.folder)
            etl.first()
            touched = server.touch(every=100)
            ran = etl.run()
            if ran.counts["changed"] != touched:
                raise Failed(f"incremental into {sink}: {touched} contacts changed, {ran.counts}")
            facts = {"load s": ran.cost.seconds - ran.read_seconds, "requests": len(ran.log.requests), "changed": touched}
            yield _with_facts(_row("INC", f"{sink}: etl, 1 % changed", server.contacts, [ran]), facts)


def odd(plan: Plan) -> Iterator[Row]:
    """Real accounts hold oddities: what one contact in a hundred costs."""
    with serving(plan.contacts, odd=0.01) as server:
        ran = Etl(server, "parquet", plan.folder).first()
        row = _row("ODD", f"parquet: {FIRST}, 1 % odd", server.contacts, [ran])
        yield _with_facts(row, {"rejected": ran.counts["rejected"]})


def normalizer(plan: Plan) -> Iterator[Row]:
    """The normalizer alone, on one core."""
    return _alone("NORM", "normalizer", plan.contacts // 4)


def planner(plan: Plan) -> Iterator[Row]:
    """The planner alone."""
    return _alone("PLAN", "planner", plan.planned)


def start(plan: Plan) -> Iterator[Row]:
    """How long it takes until something happens."""
    helps = [measured([PYTHON, "-m", "etl", "--help"]) for _ in range(2 * plan.runs)]
    yield _spent("START", "etl --help", helps)
    with serving(PAGE) as server:
        rans = [Etl(server, "parquet", plan.folder).first() for _ in range(plan.runs)]
    waits = [ran.log.requests[0][0] - ran.cost.started for ran in rans]
    yield Row("START", "etl run, to its first request", len(rans), seconds=median(waits))


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "W1": w1,
    "W2": w2,
    "W3": w3,
    "INC": incremental,
    "ODD": odd,
    "NORM": normalizer,
    "PLAN": planner,
    "START": start,
}


def _sides(server: Server, sink: str, folder: Path) -> dict[str, Side]:
    etl = Etl(server, sink, folder)
    return {BARE: lambda: bare(server, sink, folder), FIRST: etl.first, PLANNED: lambda: etl.run("--full")}


def _interleaved(plan: Plan, sides: Mapping[str, Side]) -> dict[str, list[Ran]]:
    """A B C A B C: what slows the machine down for a while slows all of them down."""
    rounds: dict[str, list[Ran]] = {what: [] for what in sides}
    began = time.monotonic()
    for done in range(plan.runs):
        if done and (time.monotonic() - began) * (done + 1) / done > plan.seconds:
            break
        for what, side in sides.items():
            rounds[what].append(side())
    return rounds


def _compared(case: str, label: str, contacts: int, rounds: Mapping[str, Sequence[Ran]]) -> Iterator[Row]:
    """Medians; the ratio is the median of the ratios within each round."""
    for what, rans in rounds.items():
        pairs = zip(rounds[BARE], rans, strict=True)
        speed = median(base.cost.seconds / ran.cost.seconds for base, ran in pairs)
        yield _row(case, f"{label}: {what}", contacts, rans, speed)


def _row(case: str, what: str, contacts: int, rans: Sequence[Ran], speed: float | None = None) -> Row:
    return _spent(case, what, [ran.cost for ran in rans], contacts, speed)


def _spent(case: str, what: str, costs: Sequence[Cost], contacts: int = 0, speed: float | None = None) -> Row:
    return Row(
        case,
        what,
        len(costs),
        contacts,
        seconds=median(cost.seconds for cost in costs),
        cpu=median(cost.cpu for cost in costs),
        peak_mb=median(cost.peak_mb for cost in costs),
        speed=speed,
    )
