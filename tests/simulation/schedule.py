"""One schedule: a world, a full run, further runs, and the oracle's verdict on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from random import Random

import anyio

from etl.api.client import Client
from etl.api.retry import ATTEMPTS
from etl.commands import guard
from etl.errors import EtlError
from etl.extract.history import History
from etl.extract.meter import Meter
from etl.extract.strategy import Extraction, extract
from etl.model import Look, Merged, Proof, Requests, RunRecord
from etl.sandbox.service import Service
from tests.simulation import loop
from tests.simulation.contact import versions
from tests.simulation.fold import Fold, Model
from tests.simulation.intake import Intake, MemoryCheckpoint, ScanLog
from tests.simulation.oracle import FEWEST_HIDDEN, Oracle, Run
from tests.simulation.personality import NARROWINGS, Personality
from tests.simulation.weather import Weather, peopled
from tests.simulation.wire import START, Endless, Killed, Wire, let_pass, now

BETWEEN_PROCESSES = 20.0
"""Seconds from the end of a killed process to the start of the next, which resumes its run."""
SHRINK_SHARE = 0.05
"""The default of `guard.max_shrink_share`."""
NARROWED_FEWEST = 0
"""Replaces the hundred contacts that any account may lose: these accounts have about a hundred, many of them hidden."""


@dataclass(slots=True)
class Report:
    """The result of a schedule."""

    seed: int
    broken: list[str] = field(default_factory=list)
    """Promises broken by runs that claimed success, and rules broken by any run."""
    proven: int = 0
    unproven: list[str] = field(default_factory=list)
    """The first reason of every run that could not prove completeness."""
    failed: list[str] = field(default_factory=list)
    """The error of every run that failed."""
    events: int = 0
    requests: int = 0
    ordered: int = 0
    """First runs that relied on the order of the lists."""


@dataclass(slots=True)
class Reading:
    """The state of one run, which outlives a process: in memory here, on disk in production."""

    intake: Intake
    log: ScanLog
    checkpoint: MemoryCheckpoint
    full: bool
    changes: Mapping[int, Callable[[], None]]
    """Changes to the server, by the number of the request."""


class Schedule:
    """The runs of one personality against one world."""

    def __init__(self, personality: Personality, fold: Callable[[], Fold] = Model) -> None:
        self.personality = personality
        self.world = peopled(personality, START)
        self.weather = Weather(self.world, personality)
        self.service = Service(self.world)
        self.fold = fold()
        fewest_without = 2 if personality["mixed_pages"] is None else 1
        self.oracle = Oracle(self.world, personality.timing, fewest_without=fewest_without)
        self.report = Report(personality.seed)
        self._draw = personality.draw("schedule")
        self._last: Extraction | None = None

    async def play(self) -> None:
        """Play every run of the chain, with time passing between them."""
        for number, kind in enumerate("f" + self.personality["chain"]):
            if number == self.personality["swapped"] and self._last is not None:
                self._swap()
            await self._run(number, full=kind == "f")
            await let_pass(self.personality, self.weather)
        self.report.events = self.weather.happened

    def _swap(self) -> None:
        """From now on another account responds: no later run may claim success."""
        other = replace(self.personality, settings=replace(self.personality.settings, seed=self.personality.seed + 1))
        self.weather = Weather(peopled(other, now()), other)
        self.service = Service(self.weather.world)
        self.oracle.swapped = True

    def _narrow(self) -> None:
        """From now on some living contacts are no longer listed; a resuming process finds them hidden, too."""
        if self.oracle.listed is not None:
            return
        account, (who, *_) = self.world.account, self.personality["narrowed"]
        times = sorted(contact.created or 0 for contact in account.living().values()) or [0]
        shown, median = NARROWINGS[who], times[len(times) // 2]
        hidden = [contact for contact in account.living().values() if not shown(contact, median)]
        if len(hidden) < FEWEST_HIDDEN * len(times):
            shown = NARROWINGS["half"]
        self.oracle.listed = lambda contact: shown(contact, median)
        account.narrow(self.oracle.listed)

    def _changes(self, number: int) -> dict[int, Callable[[], None]]:
        """The changes of a run, by the number of the request."""
        narrowed = self.personality["narrowed"]
        return {narrowed[2]: self._narrow} if narrowed and narrowed[1] == number else {}

    async def _run(self, number: int, *, full: bool) -> None:
        intake = Intake()
        log = ScanLog(intake, self._known(), sudden=self.personality.draw("sudden").choice((False, True)))
        reading = Reading(intake, log, MemoryCheckpoint(), full, self._changes(number))
        if await self._process(reading, killed=self.personality["killed"]):
            reading.checkpoint.reopen()
            reading.log.killed()
            await anyio.sleep(BETWEEN_PROCESSES)
            await self._process(reading, killed=None)

    async def _process(self, reading: Reading, *, killed: int | None) -> bool:
        """Read in one process until it is done or killed; return whether it was killed."""
        wire = Wire(
            self.service,
            self.weather,
            self.personality["seconds"],
            Random(self._draw.random()),
            killed,
            reading.changes,
        )
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
            self._history(reading.intake),
            self.personality.timing,
            reading.intake.receive,
            reading.log,
            reading.checkpoint,
            Meter(client),
            full=reading.full,
            filters={},
            local_now=int(now() * 1000),
            shrink_share=SHRINK_SHARE,
            ordered_from=self.personality["ordered_from"],
        )

    def _history(self, intake: Intake) -> History:
        """The history that `account.history_of` takes from the snapshot of the last good run."""
        if self._last is None:
            return History()
        return History(
            watermark=self._last.watermark,
            t0=self._last.capabilities.t0,
            clock_ahead=self._last.clock_ahead,
            cross_checked_at=self._last.cross_checked_at,
            scrub_after=self._last.scrub_after,
            by_windows=self._last.by_windows,
            without_created_at=any(row.created is None for row in self.fold.contacts().values()),
            look=self._last.look,
            cuts=self._last.cuts,
            snapshot=Held(self.fold, intake),
        )

    def _known(self) -> set[str]:
        """The ids that `Sink.copy_ids` would write, but for contacts with one strike."""
        strikes = self.fold.strikes()
        return {key for key in self.fold.contacts().keys() | strikes.keys() if strikes.get(key) != 1}

    def _judge(self, extraction: Extraction, intake: Intake) -> None:
        """Publish a run unless the production guards refuse it, and check it with the oracle."""
        if extraction.unproven:
            self.report.unproven.append(extraction.unproven[0])
            return
        t1, before = now(), dict(self.fold.contacts())
        outcome = self.fold.prepare(intake.pages, extraction)
        merged = Merged({"main": outcome.counts}, {"main": outcome.struck}, {"main": outcome.previous})
        fewest = NARROWED_FEWEST if self.personality["narrowed"] else guard.FEWEST
        if refused := guard.check_shrink({"main": _record(extraction)}, merged, SHRINK_SHARE, fewest=fewest):
            self.report.failed.append(refused["main"].message)
            if self.fold.contacts() != before:
                self.report.broken.append("CHANGED by a run that failed")
            return
        self.fold.publish()
        self._last = extraction
        self.report.proven += 1
        self.report.ordered += any(done.level == "ordered" for done in extraction.accepted)
        run = Run(extraction, t1, before, self.fold.contacts(), self.fold.strikes(), intake.latest(), outcome.counts)
        self.report.broken += self.oracle.check(run)

    def _late(self, error: BaseException) -> None:
        """A run that outlasts any deadline fails; one that does not end in an unchanging account breaks a promise."""
        still = isinstance(error, Endless) and error.still
        (self.report.broken if still else self.report.failed).append(f"ENDLESS {error}")

    def _pace(self, client: Client, wire: Wire) -> None:
        """Check the rules that hold for every run, good or bad."""
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


@dataclass(frozen=True, slots=True)
class Held:
    """The snapshot in memory (see `history.Snapshot`)."""

    fold: Fold
    intake: Intake
    _created: dict[bool | None, Sequence[int]] = field(default_factory=dict)

    def created(self, is_contact: bool | None) -> Sequence[int]:
        """The sorted creation times (ms) of one list or both; nothing is published while they are in use."""
        if is_contact not in self._created:
            rows = self.fold.contacts().values()
            listed = (row for row in rows if is_contact is None or row.is_contact is is_contact)
            self._created[is_contact] = sorted(row.created // 1000 for row in listed if row.created is not None)
        return self._created[is_contact]

    def struck(self) -> Sequence[int]:
        """The sorted creation times (ms) of the contacts with one strike."""
        contacts = self.fold.contacts()
        struck = (contacts[key].created for key, strikes in self.fold.strikes().items() if strikes == 1)
        return sorted(created // 1000 for created in struck if created is not None)

    async def look(self, start: int | None, end: int) -> Look:
        """The number of contacts in a range, and of those not received or received only as deleted."""
        here = {row.id for page in self.intake.pages for row in versions(page) if not row.deleted}
        known = [
            key
            for key, row in self.fold.contacts().items()
            if row.created is not None and (start is None or row.created >= start * 1000) and row.created < end * 1000
        ]
        return Look(len(known), sum(key not in here for key in known))

    async def unknown(self, start: int | None, end: int, seen_before: int) -> int:
        """The number of contacts received in a range that the snapshot lacks, not seen since `seen_before`."""
        held = self.fold.contacts().keys() | self.fold.strikes().keys()
        return len(
            {
                row.id
                for page in self.intake.pages
                for row in versions(page)
                if row.id not in held and row.created is not None and row.seen is not None
                if (start or 0) * 1000 <= row.created < end * 1000 and row.seen < seen_before * 1000
            }
        )


def _record(extraction: Extraction) -> RunRecord:
    """The part of a run's record that the guards read."""
    moment = datetime.fromtimestamp(extraction.watermark / 1000, UTC)
    proof = Proof("windows", len(extraction.accepted))
    detail = {"escalated": extraction.escalated and asdict(extraction.escalated)}
    return RunRecord(1, "run", "main", extraction.mode, moment, moment, proof, Requests(), 0.0, detail=detail)


def play(personality: Personality, fold: Callable[[], Fold] = Model) -> Report:
    """Play the schedule of a personality; an exception counts as a broken promise."""
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
    """An error in one line."""
    return f"{type(first(error)).__name__}: {first(error)}"
