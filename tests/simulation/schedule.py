"""One schedule: a world, a full run, the runs after it, and what the oracle says of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import anyio

from etl import guard
from etl.api.client import Client
from etl.api.retry import ATTEMPTS
from etl.errors import EtlError
from etl.extract import Extraction, History, extract
from etl.model import Merged
from etl.sandbox.service import Service
from tests.simulation import loop
from tests.simulation.fold import Fold, Model
from tests.simulation.intake import Diary, Intake, Witness
from tests.simulation.oracle import Oracle, Run
from tests.simulation.personality import Personality
from tests.simulation.weather import Weather, peopled
from tests.simulation.wire import START, Endless, Killed, Wire, let_pass, now

BETWEEN_PROCESSES = 20.0
"""Seconds from the end of a process that is killed to the next one, which goes on with its run."""
SHRINK_SHARE = 0.05
"""The default of `guard.max_shrink_share`."""


@dataclass(slots=True)
class Report:
    """What came of a schedule."""

    seed: int
    broken: list[str] = field(default_factory=list)
    """Promises broken by runs that claimed success, and rules broken by any run."""
    proven: int = 0
    unproven: list[str] = field(default_factory=list)
    """The first reason of every run that could not prove itself."""
    failed: list[str] = field(default_factory=list)
    """The error of every run that ended with one."""
    events: int = 0
    requests: int = 0


@dataclass(slots=True)
class Reading:
    """One run: what it has in memory here, as production has it on disk, so that it outlives a process."""

    intake: Intake
    witness: Witness
    diary: Diary
    full: bool


class Schedule:
    """The runs of one personality against one world."""

    def __init__(self, personality: Personality, fold: Callable[[], Fold] = Model) -> None:
        self.personality = personality
        self.world = peopled(personality, START)
        self.weather = Weather(self.world, personality)
        self.service = Service(self.world)
        self.fold = fold()
        self.oracle = Oracle(self.world, personality.timing)
        self.report = Report(personality.seed)
        self._draw = personality.draw("schedule")
        self._last: Extraction | None = None

    async def play(self) -> None:
        """Every run of the chain, with time passing between them."""
        for kind in "f" + self.personality["chain"]:
            await self._run(full=kind == "f")
            await let_pass(self.personality, self.weather)
        self.report.events = self.weather.happened

    async def _run(self, *, full: bool) -> None:
        intake = Intake()
        witness = Witness(intake.ids, self._known(), sudden=self.personality.draw("sudden").choice((False, True)))
        reading = Reading(intake, witness, Diary(), full)
        if await self._process(reading, killed=self.personality["killed"]):
            reading.diary.reopen()
            reading.witness.killed()
            await anyio.sleep(BETWEEN_PROCESSES)
            await self._process(reading, killed=None)

    async def _process(self, reading: Reading, *, killed: int | None) -> bool:
        """One process, which reads until it is done or killed; whether it was killed."""
        wire = Wire(self.service, self.weather, self.personality["seconds"], Random(self._draw.random()), killed)
        client = Client(
            wire,
            account="main",
            concurrency=self.personality["concurrency"],
            jitter=Random(self._draw.random()).random,
        )
        self.weather.blow(self.personality.rate, now(), self.personality.most)
        ended = False
        try:
            extraction = await self._extract(client, reading)
        except* EtlError as group:
            self.report.failed.append(told(group))
        except* Endless as group:
            self._late(first(group))
        except* Killed:
            ended = True
        else:
            self._judge(extraction, reading.intake)
        self._pace(client, wire)
        return ended

    async def _extract(self, client: Client, reading: Reading) -> Extraction:
        return await extract(
            client,
            self._history(),
            self.personality.timing,
            reading.intake.receive,
            reading.witness,
            reading.diary,
            full=reading.full,
            filters={},
            local_now=int(now() * 1000),
        )

    def _history(self) -> History:
        """What the last good run left, as `account.history_of` tells it from the snapshot."""
        if self._last is None:
            return History()
        return History(
            watermark=self._last.watermark,
            clock_ahead=self._last.clock_ahead,
            witness_at=self._last.witness_at,
            scrub_after=self._last.scrub_after,
            undated=any(row.created is None for row in self.fold.contacts().values()),
            created=self._created,
        )

    def _known(self) -> set[str]:
        """The ids that `Sink.copy_ids` would write."""
        return {*self.fold.contacts(), *(key for key, strikes in self.fold.strikes().items() if strikes > 1)}

    def _created(self, is_contact: bool | None) -> Sequence[int]:
        rows = self.fold.contacts().values()
        listed = (row for row in rows if is_contact is None or row.is_contact is is_contact)
        return sorted(row.created // 1000 for row in listed if row.created is not None)

    def _judge(self, extraction: Extraction, intake: Intake) -> None:
        """Publish what a run brought, as production does and unless production would not, and ask the oracle."""
        if extraction.unproven:
            self.report.unproven.append(extraction.unproven[0])
            return
        t1, before = now(), dict(self.fold.contacts())
        outcome = self.fold.prepare(intake.pages, extraction)
        merged = Merged({"main": outcome.counts}, {"main": outcome.struck}, {"main": outcome.previous})
        if guard.check_shrink({"main": extraction.mode}, merged, SHRINK_SHARE):
            self.report.failed.append("mass shrink")
            if self.fold.contacts() != before:
                self.report.broken.append("CHANGED by a run that failed")
            return
        self.fold.publish()
        self._last = extraction
        self.report.proven += 1
        run = Run(extraction, t1, before, self.fold.contacts(), self.fold.strikes(), intake.latest(), outcome.counts)
        self.report.broken += self.oracle.check(run)

    def _late(self, error: BaseException) -> None:
        """A run that outlasts any deadline fails, which is no lie; one that no stillness would end is broken."""
        still = isinstance(error, Endless) and error.still
        (self.report.broken if still else self.report.failed).append(f"ENDLESS {error}")

    def _pace(self, client: Client, wire: Wire) -> None:
        """The rules that hold for every run, good or bad."""
        seen, broken = client.statistics(), self.report.broken
        self.report.requests += seen.sent
        if wire.peak > self.personality["concurrency"]:
            broken.append(f"IN FLIGHT {wire.peak} requests at once")
        if seen.retried > 10 + 0.1 * seen.sent:
            broken.append(f"RETRIES {seen.retried} of {seen.sent}")
        if wire.most_attempts > max(ATTEMPTS.values()):
            broken.append(f"ATTEMPTS {wire.most_attempts} of one request")
        if self.service.stats.violations:
            broken.append(f"WRITES {dict(self.service.stats.violations)}")


def play(personality: Personality, fold: Callable[[], Fold] = Model) -> Report:
    """Play the schedule of a personality; whatever stops it is a broken promise."""
    schedule = Schedule(personality, fold)
    shuffle = personality.draw("tasks") if personality["shuffled_tasks"] else None
    try:
        loop.run(schedule.play(), shuffle=shuffle)
    except Exception as error:  # noqa: BLE001 - a crash must not hide the seed it came from
        schedule.report.broken.append(f"CRASH {told(error)}")
    finally:
        schedule.fold.close()
    return schedule.report


def first(error: BaseException) -> BaseException:
    """The first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def told(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(first(error)).__name__}: {first(error)}"
