"""The transport of a simulated world: every request is under way for a while and is answered at one instant of it."""

from __future__ import annotations

import asyncio
from collections import Counter

import anyio
import msgspec

from etl.api.answer import Reply
from etl.api.client import Broken
from etl.api.request import PATH, Body
from etl.sandbox.service import Request, Service
from etl.sandbox.settings import Settings
from tests.simulation.personality import Personality
from tests.simulation.weather import Weather

START = 1_760_000_000.0
"""When the virtual clock begins, in seconds since 1970."""
MOST_REQUESTS = 4000
"""Requests of one run, after which it counts as endless."""
_HEADERS = {"Authorization": f"Bearer {Settings.token}", "authtype": "Key", "Content-Type": "application/json"}
_encode = msgspec.json.Encoder().encode


class Endless(Exception):
    """A run asked so often that it would never end."""


def now() -> float:
    """The virtual time, in seconds since 1970."""
    return START + anyio.current_time()


class Wire:
    """Carries requests of one account to its simulated server, and counts what a client must keep."""

    def __init__(self, service: Service, weather: Weather, personality: Personality) -> None:
        self.service = service
        self.in_flight = self.peak = self.sent = 0
        self.most_attempts = 0
        self._weather = weather
        self._draw = personality.draw("latency")
        self._latency: float = personality["latency"]
        self._failed: Counter[tuple[object, bytes]] = Counter()

    async def __call__(self, body: Body) -> Reply:
        """Send one request. Raises `Broken` where the simulated connection breaks."""
        self.sent += 1
        if self.sent > MOST_REQUESTS:
            raise Endless(f"{self.sent} requests in one run")
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        payload = _encode(body)
        try:
            reply = await self._answered(payload)
        except Broken:
            self._count(payload, failed=True)
            raise
        finally:
            self.in_flight -= 1
        self._count(payload, failed=reply.status != 200)
        return reply

    async def _answered(self, payload: bytes) -> Reply:
        await anyio.sleep(self._pause())
        at = now()
        self._weather.advance(at)
        answer = self.service.handle(Request("POST", PATH, _HEADERS, payload), at, self.in_flight)
        self._weather.strike(answer.body, at)
        await anyio.sleep(self._pause() + answer.wire.delay)
        if answer.wire.headless or answer.wire.cut is not None:
            raise Broken("the simulated connection broke")
        return Reply(answer.status, answer.headers, answer.body)

    def _pause(self) -> float:
        """Half of a latency: mostly alike, sometimes ten times as long, so that answers overtake each other."""
        return self._latency * self._draw.uniform(0.2, 1.0) * (10 if self._draw.random() < 0.07 else 1)

    def _count(self, payload: bytes, *, failed: bool) -> None:
        key = (asyncio.current_task(), payload)
        self._failed[key] += 1
        self.most_attempts = max(self.most_attempts, self._failed[key])
        if not failed:
            del self._failed[key]


