"""Meter of one extraction: its requests and seconds by purpose, and the phase that progress shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import anyio

from etl.api.client import Client
from etl.log import log
from etl.model import Phase

Purpose = Literal["probe", "witness", "windows", "scrub", "sweep", "walk"]
"""Why a request is sent, as published in the detail of a run: `witness` is the cross-check, `walk` a page scan."""
PHASES: Mapping[Purpose, Phase] = {
    "probe": "probe",
    "witness": "cross-check",
    "windows": "windows",
    "scrub": "windows",
    "sweep": "sweep",
    "walk": "windows",
}
"""The phase of each purpose. A page scan that reads the data itself takes the place of the windows."""


class Meter:
    """Counts the attempts and the time of an extraction by purpose; one purpose at a time."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.phase: Phase = "probe"
        """The current phase; between two, the previous one."""
        self.requests: Counter[Purpose] = Counter()
        """Attempts by purpose."""
        self.seconds: defaultdict[Purpose, float] = defaultdict(float)

    @contextmanager
    def counted(self, purpose: Purpose) -> Iterator[None]:
        """Count the requests that are sent inside the block, also on errors."""
        self.phase = PHASES[purpose]
        sent, started = self.client.sent, anyio.current_time()
        try:
            yield
        finally:
            self.requests[purpose] += self.client.sent - sent
            self.seconds[purpose] += anyio.current_time() - started

    def check_deadline(self, requests: int, deadline: int | None) -> None:
        """Log a warning if the probe's response time is too long for so many requests until the deadline (ms)."""
        # The probe sends one request at a time.
        latency = self.seconds["probe"] / max(1, self.requests["probe"])
        seconds = sum(self.seconds.values()) + self.client.seconds(requests, latency)
        if deadline is not None and seconds * 1000 > deadline:
            log.warning(
                "deadline.too_short", requests=requests, seconds=round(seconds), deadline_seconds=deadline // 1000
            )
