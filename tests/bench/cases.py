"""The cases: each is a function from a plan to rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from statistics import median

from tests.bench.compare import Side, compared, interleaved, row_of, spent
from tests.bench.jobs import CONCURRENCY, NAMES, PAGE, PUBLISHED, Etl, Ran, Server, bare, fresh, serving, stored
from tests.bench.loading import load_rows
from tests.bench.measure import PYTHON, Failed, measured
from tests.bench.table import Row
from tests.cluster.speed import ACCOUNTS, CONTACTS, measure

BARE, FIRST, PLANNED = "bare pipeline", "etl, first run", "etl, second full run, planned"
PURPOSES = ("probe", "witness", "windows", "sweep")
LATENCY = 0.2
"""Seconds, in W2."""
FLEET_CONTACTS = 200
"""Per account in FLEET."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a measurement."""

    folder: Path
    """Where targets are written."""
    contacts: int
    runs: int
    """Rounds of a comparison, at most."""
    seconds: float
    """No further round of a comparison starts after this number of seconds."""
    larger: int
    """Contacts of the large account in W3."""
    incremental: int
    """Contacts of the account in INC."""
    slow: int
    """Contacts behind the slow server of W2."""
    planned: int
    """Creation times in PLAN."""
    loaded: int
    """Contacts in LOAD."""
    fleet: int
    """Accounts in FLEET."""


def w1(plan: Plan) -> Iterator[Row]:
    """A server that responds at once: the speed of the exporter, and the requests that its proof costs."""
    return _fast("W1", plan, unknown=False)


def w1x(plan: Plan) -> Iterator[Row]:
    """The same, and every contact has fields of every kind that have no column, as those of real servers."""
    return _fast("W1X", plan, unknown=True)


def _fast(case: str, plan: Plan, *, unknown: bool) -> Iterator[Row]:
    with serving(plan.contacts, unknown=unknown) as server:
        for sink in ("parquet", "duckdb"):
            rounds = interleaved(_sides(server, sink, plan.folder), plan.runs, plan.seconds)
            for what, row in compared(case, sink, server.contacts, rounds).items():
                told = sink == "parquet" and what != BARE
                yield replace(row, facts=_requests(rounds[what][-1], server.contacts)) if told else row


def w2(plan: Plan) -> Iterator[Row]:
    """A slow server: how well waiting overlaps."""
    with serving(plan.slow, latency=LATENCY) as server:
        rounds = interleaved(_sides(server, "parquet", plan.folder), plan.runs, plan.seconds)
    ideal = plan.slow / PAGE * LATENCY / CONCURRENCY
    for what, row in compared("W2", "200 ms, parquet", plan.slow, rounds).items():
        reading = median(_reading_seconds(ran) for ran in rounds[what])
        facts = {"reading s": reading, "ideal s": ideal, "reading / ideal": reading / ideal}
        last = rounds[what][-1]
        yield replace(row, facts=facts | ({**_phases(last), **_requests(last, plan.slow)} if what != BARE else {}))


def w3(plan: Plan) -> Iterator[Row]:
    """An account several times as large: the growth of time and memory."""
    smaller: dict[str, Row] = {}
    for contacts in (plan.contacts, plan.larger):
        with serving(contacts) as server:
            rounds = interleaved(_single_sides(server, plan.folder), 1, 0.0)
            for what, row in compared("W3", "once", contacts, rounds).items():
                fair = row if what.startswith("parquet") else replace(row, speed=None, work=None)
                yield replace(fair, facts=_growth(smaller[what], row)) if what in smaller else fair
                smaller[what] = row


def incremental(plan: Plan) -> Iterator[Row]:
    """One contact in a hundred changed since the last run."""
    with serving(plan.incremental) as server:
        for sink in ("parquet", "duckdb"):
            etl = Etl(server, sink, plan.folder)
            etl.first()
            touched = server.touch(every=100)
            ran = etl.run()
            if ran.counts["changed"] != touched:
                raise Failed(f"incremental into {sink}: {touched} contacts changed, {ran.counts}")
            loading = ran.cost.seconds - ran.read_seconds
            facts = {"changed": touched, "requests": len(ran.log.requests), "after the last page s": loading}
            yield replace(row_of("INC", f"{sink}: etl, 1 % changed", server.contacts, [ran]), facts=facts)


def fleet(plan: Plan) -> Iterator[Row]:
    """Many small accounts in one process: memory, threads and open files must not grow with their number."""
    held = plan.fleet * FLEET_CONTACTS
    with serving(FLEET_CONTACTS) as server:
        for sink in ("parquet", "duckdb"):
            path, config = fresh(plan.folder / NAMES[sink]), _fleet_config(plan, server, sink)
            for seq, what in enumerate(("first run", "incremental run"), start=1):
                command = [PYTHON, "-m", "etl", "run", str(config), "--json"]
                cost = measured(command, {"BENCH_TOKEN": server.token}, well=PUBLISHED, watched=True)
                if (found := stored(sink, path, seq)[0]) != held:
                    raise Failed(f"{plan.fleet} accounts into {sink}, run {seq}: {found} contacts instead of {held}")
                log = server.log()
                # The server takes its share of the same cores.
                busy = (cost.cpu + log.cpu) / (os.cpu_count() or 1)
                facts = {"threads": cost.threads, "files": cost.files, "requests": len(log.requests)}
                facts |= {"seconds / busy": cost.seconds / busy}
                row = spent("FLEET", f"{sink}: {plan.fleet} accounts, {what}", [cost], held)
                yield replace(row, facts=facts)
            fresh(path)


def load(plan: Plan) -> Iterator[Row]:
    """Every sink alone, from a large account that was read to its publication, beside its bare engine."""
    return load_rows(plan.folder / "load", plan.loaded)


def cluster(plan: Plan) -> Iterator[Row]:
    """Accounts on the workers of a cluster, which wait for slow servers at the same time."""
    seconds = measure(plan.folder)
    for workers, taken in seconds.items():
        facts = {"times one worker": seconds[1] / taken}
        yield Row("CLUSTER", f"{workers} workers", 1, ACCOUNTS * CONTACTS, taken, facts=facts)


def odd(plan: Plan) -> Iterator[Row]:
    """Real accounts have oddities: the cost of one odd contact in a hundred."""
    with serving(plan.contacts, odd=0.01) as server:
        ran = Etl(server, "parquet", plan.folder).first()
    row = row_of("ODD", f"parquet: {FIRST}, 1 % odd", plan.contacts, [ran])
    yield replace(row, facts={"rejected": ran.counts["rejected"]})


def normalizer(plan: Plan) -> Iterator[Row]:
    """The normalizer alone, on one core."""
    return _alone("NORM", "normalizer", plan.contacts // 4)


def planner(plan: Plan) -> Iterator[Row]:
    """The planner alone."""
    return _alone("PLAN", "planner", plan.planned)


def start(plan: Plan) -> Iterator[Row]:
    """The time until the first output or request."""
    yield spent("START", "etl --help", [measured([PYTHON, "-m", "etl", "--help"]) for _ in range(2 * plan.runs)])
    with serving(PAGE) as server:
        rans = [Etl(server, "parquet", plan.folder).first() for _ in range(plan.runs)]
    waits = [ran.log.requests[0][0] - ran.cost.started for ran in rans]
    yield Row("START", "etl run, to its first request", len(rans), seconds=median(waits))


CASES: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "W1": w1,
    "W1X": w1x,
    "W2": w2,
    "W3": w3,
    "INC": incremental,
    "FLEET": fleet,
    "CLUSTER": cluster,
    "LOAD": load,
    "ODD": odd,
    "NORM": normalizer,
    "PLAN": planner,
    "START": start,
}


def _fleet_config(plan: Plan, server: Server, sink: str) -> Path:
    """All accounts are the same one under different names, which makes no difference to the exporter."""
    accounts = (
        f'[[accounts]]\nname = "a{number:04}"\nbase_url = "{server.url}"\ntoken_env = "BENCH_TOKEN"\n'
        for number in range(plan.fleet)
    )
    config = plan.folder / "fleet.toml"
    config.write_text("".join(accounts) + f'[sinks.{sink}]\npath = "{plan.folder / NAMES[sink]}"\n')
    return config


def _sides(server: Server, sink: str, folder: Path) -> dict[str, Side]:
    etl = Etl(server, sink, folder)
    return {BARE: lambda: bare(server, sink, folder), FIRST: etl.first, PLANNED: lambda: etl.run("--full")}


def _single_sides(server: Server, folder: Path) -> dict[str, Side]:
    return {
        f"parquet: {BARE}": lambda: bare(server, "parquet", folder),
        f"parquet: {FIRST}": Etl(server, "parquet", folder).first,
        f"duckdb: {FIRST}": Etl(server, "duckdb", folder).first,
    }


def _requests(ran: Ran, contacts: int) -> dict[str, float]:
    """Requests by purpose, and as multiples of the pages that hold all contacts."""
    pages, known = contacts / PAGE, {name: ran.purposes.get(name, 0) for name in PURPOSES}
    return known | {"windows / pages": known["windows"] / pages, "all / pages": sum(ran.purposes.values()) / pages}


def _phases(ran: Ran) -> dict[str, float]:
    """Seconds by purpose: probe, cross-check and sweep apart from the windows."""
    return {f"{name} s": ran.phases[name] for name in PURPOSES if name in ran.phases}


def _reading_seconds(ran: Ran) -> float:
    """Seconds from the first request for data to the last response, without probe, cross-check and sweep.

    In the bare pipeline that is everything; in `etl`, the windows on `createdAt` between the cross-check and the sweep.
    """
    before = ran.purposes.get("probe", 0) + ran.purposes.get("witness", 0)
    asked = ran.log.requests[before:]
    times = [at for at, kind in takewhile(lambda request: request[1] == asked[0][1], asked)]
    return times[-1] - times[0] + LATENCY


def _growth(small: Row, large: Row) -> dict[str, float]:
    peak = (large.peak_mb or 0) / (small.peak_mb or 1)
    return {"peak / smaller": peak, "contacts/s / smaller": (large.rate or 0) / (small.rate or 1)}


def _alone(case: str, part: str, contacts: int) -> Iterator[Row]:
    """The seconds of these rows are CPU seconds of one core."""
    cost = measured([PYTHON, "-m", "tests.bench.alone", part, str(contacts)])
    for done in json.loads(cost.out):
        facts = {"windows": done["windows"]} if done["windows"] else {}
        cpu = done["cpu"]
        yield Row(case, done["what"], 1, done["contacts"], cpu, cpu, cost.peak_mb, facts=facts)
