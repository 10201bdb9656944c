"""The transport of a simulated world: requests take time, and the server answers each at one instant in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import formatdate
from functools import lru_cache
from random import Random
from types import MappingProxyType

import anyio
import msgspec

from etl.api.client import TransportError
from etl.api.request import PATH, Body
from etl.api.response import HttpResponse
from etl.sandbox.answer import JSON_TYPE, Answer
from etl.sandbox.pages import Page, render
from etl.sandbox.service import Request, Service
from etl.sandbox.settings import Settings
from tests.simulation.personality import Personality
from tests.simulation.weather import Weather

START = 1_760_000_000.0
"""Start of the virtual clock, in seconds since 1970."""
MOST_REQUESTS = 10_000
"""Requests of one run after which it counts as endless."""
_HEADERS = {"Authorization": f"Bearer {Settings.token}", "authtype": "Key", "Content-Type": "application/json"}
_encode = msgspec.json.Encoder().encode


class Endless(Exception):
    """A run sent more requests than any deadline would allow."""

    def __init__(self, *, still: bool) -> None:
        self.still = still
        """Whether the account did not change during the second half of them: the run would never end by itself."""
        super().__init__(
            f"more than {MOST_REQUESTS} requests in one run" + (", though nothing happens any more" if still else "")
        )


class Killed(Exception):
    """The end of a process."""


def now() -> float:
    """The virtual time, in seconds since 1970."""
    return START + anyio.current_time()


async def let_pass(personality: Personality, weather: Weather) -> None:
    """Let the time between two runs pass, with its changes."""
    seconds = personality["gap_seconds"]
    weather.blow(personality["gap_events"] / seconds, now(), 2 * personality["gap_events"])
    await anyio.sleep(seconds)
    weather.advance(now())


class Wire:
    """Carries the requests of one run to the simulated server, and counts the quantities that a client must limit."""

    def __init__(
        self,
        service: Service,
        weather: Weather,
        latency: float,
        draw: Random,
        killed: int | None = None,
        changes: Mapping[int, Callable[[], None]] = MappingProxyType({}),
    ) -> None:
        """`killed` is the request at which the process ends; `changes` are made to the server, each at one request."""
        self.in_flight = self.peak = self.sent = 0
        self.most_attempts = 0
        self._service = service
        self._weather = weather
        self._latency = latency
        self._draw = draw
        self._killed = killed
        self._changes = changes
        self._failed: Counter[tuple[object, bytes]] = Counter()
        self._happened = weather.happened

    async def __call__(self, body: Body) -> HttpResponse:
        """Send one request; raises `TransportError` if the simulated connection breaks, and `Killed`."""
        self._count_request()
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[Answer] = loop.create_future()
        loop.call_later(self._pause(), self._arrive, body, arrived)
        try:
            answer = await arrived
        finally:
            self.in_flight -= 1
        whole = not answer.wire.headless and answer.wire.cut is None
        self._count_attempt(body, failed=not whole or answer.status not in (200, 400, 404))
        if not whole:
            raise TransportError("the simulated connection broke")
        return HttpResponse(answer.status, answer.headers, answer.body)

    def _arrive(self, body: Body, arrived: asyncio.Future[Answer]) -> None:
        """The instant at which the server reads the account; the response then takes time to arrive."""
        at = now()
        try:
            self._weather.advance(at)
            answer = self._answered(body, at)
            self._weather.strike(answer.body, at)
        except Exception as error:  # noqa: BLE001 - an error of the simulated world must not look like a silent server
            arrived.set_exception(error)
            return
        asyncio.get_running_loop().call_later(self._pause() + answer.wire.delay, _deliver, arrived, answer)

    def _answered(self, body: Body, at: float) -> Answer:
        """The server's response; if no faults are set, without the checks that take half of its time."""
        if self._service.settings.faults or body["isExport"] != "none":
            return self._service.handle(Request("POST", PATH, _HEADERS, _encode(body)), at, self.in_flight)
        found = self._service.world.select(body, at)
        answer = render(found, self._service.settings) if isinstance(found, Page) else found
        return replace(answer, headers=_dated(int(at)))

    def _pause(self) -> float:
        """Half of a latency: mostly similar, sometimes ten times as long, so that responses overtake each other."""
        return self._latency * self._draw.uniform(0.2, 1.0) * (10 if self._draw.random() < 0.07 else 1)

    def _count_request(self) -> None:
        if self.sent == self._killed:
            raise Killed
        if self.sent in self._changes:
            self._changes[self.sent]()
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self.sent += 1
        if self.sent == MOST_REQUESTS // 2:
            self._happened = self._weather.happened
        if self.sent > MOST_REQUESTS:
            raise Endless(still=self._weather.happened == self._happened)

    def _count_attempt(self, body: Body, *, failed: bool) -> None:
        if not self._service.settings.faults:
            return
        key = (asyncio.current_task(), _encode(body))
        self._failed[key] += 1
        self.most_attempts = max(self.most_attempts, self._failed[key])
        if not failed:
            del self._failed[key]


@lru_cache
def _dated(second: int) -> Mapping[str, str]:
    """The headers of a response."""
    return {"Content-Type": JSON_TYPE, "Date": formatdate(second, usegmt=True)}


def _deliver(arrived: asyncio.Future[Answer], answer: Answer) -> None:
    if not arrived.done():
        arrived.set_result(answer)
