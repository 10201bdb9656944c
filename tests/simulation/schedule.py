"""One schedule: a world, a full run, the runs after it, and what the oracle says of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from etl import guard
from etl.api.answer import Page, Row
from etl.api.client import Client
from etl.api.retry import ATTEMPTS
from etl.errors import EtlError
from etl.extract import Extraction, History, Suspect, extract
from etl.model import Merged
from etl.sandbox.service import Service
from etl.window import milliseconds
from tests.simulation import loop
from tests.simulation.contact import versions
from tests.simulation.fold import Fold, Model
from tests.simulation.oracle import Oracle, Run
from tests.simulation.personality import Personality
from tests.simulation.weather import Weather, peopled
from tests.simulation.wire import START, Endless, Wire, let_pass, now

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
    failed: list[str] = field(default_factory=list)
    events: int = 0
    requests: int = 0


class Witness:
    """A witness log in memory (see `extract.WitnessLog`)."""

    def __init__(self, received: set[bytes]) -> None:
        self._received = received
        self._seen: dict[bytes, Suspect] = {}
        self._created: dict[bool, list[int]] = {False: [], True: []}

    async def record(self, rows: Sequence[Row], *, is_contact: bool) -> None:
        """Note contacts that the walk saw."""
        for row in rows:
            created = milliseconds(row.created_at)
            if created is not None:
                self._seen[bytes(row.contact_id)] = Suspect(created, is_contact)
                self._created[is_contact].append(created)

    def created(self, is_contact: bool) -> Sequence[int]:
        """The sorted creation times (ms)."""
        return sorted(self._created[is_contact])

    async def missing(self, before: int) -> Sequence[Suspect]:
        """Those created before `before` (ms) that were not received."""
        return [
            suspect
            for id, suspect in self._seen.items()
            if suspect.created < before and id not in self._received
        ]


class Intake:
    """Takes the accepted pages of one run."""

    def __init__(self) -> None:
        self.pages: list[Page] = []
        self.ids: set[bytes] = set()

    async def receive(self, page: Page) -> None:
        """Keep a page."""
        self.pages.append(page)
        self.ids.update(bytes(row.contact_id) for row in page.rows)


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
        wire = Wire(self.service, self.weather, self.personality["seconds"], Random(self._draw.random()))
        client = Client(
            wire,
            account="main",
            concurrency=self.personality["concurrency"],
            jitter=Random(self._draw.random()).random,
        )
        self.weather.blow(self.personality.rate, now(), self.personality.most)
        try:
            extraction = await self._extract(client, intake, full=full)
        except* EtlError as group:
            self.report.failed.append(_first(group))
        except* Endless as group:
            self._late(group)
        else:
            self._judge(extraction, intake, full=full)
        self._pace(client, wire)

    async def _extract(self, client: Client, intake: Intake, *, full: bool) -> Extraction:
        return await extract(
            client,
            self._history(),
            self.personality.timing,
            intake.receive,
            Witness(intake.ids),
            full=full,
            filters={},
            local_now=int(now() * 1000),
        )

    def _history(self) -> History:
        if self._last is None:
            return History()
        return History(
            watermark=self._last.watermark,
            witness_at=self._last.witness_at,
            scrub_after=self._last.scrub_after,
            undated=any(row.created is None for row in self.fold.contacts().values()),
            created=self._created,
        )

    def _created(self, is_contact: bool | None) -> Sequence[int]:
        rows = self.fold.contacts().values()
        return sorted(
            row.created // 1000
            for row in rows
            if row.created is not None and (is_contact is None or row.is_contact is is_contact)
        )

    def _judge(self, extraction: Extraction, intake: Intake, *, full: bool) -> None:
        if extraction.unproven:
            self.report.unproven.append(extraction.unproven[0])
            return
        t1, before = now(), dict(self.fold.contacts())
        outcome = self.fold.prepare(intake.pages, extraction)
        merged = Merged({"main": outcome.counts}, {"main": outcome.struck}, {"main": outcome.previous})
        if guard.check_shrink({"main": extraction.mode}, merged, SHRINK_SHARE):
            self.report.failed.append("mass shrink")
            return
        self.fold.publish()
        self.fold.strikes()
        self._last = extraction
        self.report.proven += 1
        rows = (row for page in intake.pages for row in versions(page))
        received: dict[str, int] = {}
        for row in rows:
            if row.id is not None:
                received[row.id] = max(received.get(row.id, 0), row.updated or 0)
        is_full = extraction.mode == "full"
        run = Run(extraction, is_full, t1, before, self.fold.contacts(), received, outcome.counts)
        self.report.broken += self.oracle.check(run)
        if full and not is_full:
            self.report.broken.append("MODE a full run was asked for")

    def _late(self, group: BaseException) -> None:
        """A run that outlasts any deadline fails, which is no lie; one that no stillness would end is broken."""
        while isinstance(group, BaseExceptionGroup):
            group = group.exceptions[0]
        still = isinstance(group, Endless) and group.still
        (self.report.broken if still else self.report.failed).append(f"ENDLESS {group}")

    def _pace(self, client: Client, wire: Wire) -> None:
        """The rules that hold for every run, good or bad."""
        seen = client.statistics()
        self.report.requests += seen.sent
        if wire.peak > self.personality["concurrency"]:
            self.report.broken.append(f"IN FLIGHT {wire.peak} requests at once")
        if seen.retried > 10 + 0.1 * seen.sent:
            self.report.broken.append(f"RETRIES {seen.retried} of {seen.sent}")
        if wire.most_attempts > max(ATTEMPTS.values()):
            self.report.broken.append(f"ATTEMPTS {wire.most_attempts} of one request")
        if self.service.stats.violations:
            self.report.broken.append(f"WRITES {dict(self.service.stats.violations)}")


def play(personality: Personality, fold: Callable[[], Fold] = Model) -> Report:
    """Play the schedule of a personality."""
    schedule = Schedule(personality, fold)
    shuffle = personality.draw("tasks") if personality["shuffled_tasks"] else None
    try:
        loop.run(schedule.play(), shuffle=shuffle)
    except Exception as error:
        schedule.report.broken.append(f"CRASH {type(error).__name__}: {_first(error)}")
    finally:
        schedule.fold.close()
    return schedule.report


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
