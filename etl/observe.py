"""What a run tells while it goes: structured events on stderr, and on a terminal a progress line.

One event per thing that happened, named `noun.verb`; the run and the account are bound once. The token and contact
values are never among the fields: only counts, times and names from the configuration are.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import anyio
import structlog

from etl.streams import steering

log: structlog.stdlib.BoundLogger = structlog.get_logger()

REPORT_SECONDS = 5.0
REFRESH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Glance:
    """A run at one moment."""

    account: str
    contacts: int
    pages: int
    in_flight: int
    expected: int | None
    """Contacts the last snapshot had: what the time left is reckoned from."""


def configure(*, quiet: bool = False) -> None:
    """Send events to stderr: readable on a terminal, JSON lines elsewhere, errors alone when `quiet`."""
    terminal = sys.stderr.isatty()
    # Without its colours, which the stream would spell out (`etl.streams`); line ends in a field it spells itself.
    render: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=False) if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if quiet or terminal else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


async def watch(glance: Callable[[], list[Glance]]) -> None:
    """Show progress until cancelled: a line that renews itself on a terminal, an event now and then elsewhere."""
    if sys.stderr.isatty():
        await _watch_terminal(glance)
    while True:
        await anyio.sleep(REPORT_SECONDS)
        for now in glance():
            log.info(
                "run.progress", account=now.account, contacts=now.contacts, pages=now.pages, in_flight=now.in_flight
            )


async def _watch_terminal(glance: Callable[[], list[Glance]]) -> None:
    # Rich costs 40 ms to import: only a person at a terminal pays for it.
    from rich.console import Console  # noqa: PLC0415
    from rich.status import Status  # noqa: PLC0415

    started = monotonic()
    with Status("reading", console=Console(file=steering(sys.stderr))) as status:
        while True:
            await anyio.sleep(REFRESH_SECONDS)
            seconds = monotonic() - started
            status.update("   ".join(_line(now, seconds) for now in glance()) or "reading")


def _line(now: Glance, seconds: float) -> str:
    rate = now.contacts / seconds if seconds else 0.0
    left = ""
    if now.expected and rate and now.expected > now.contacts:
        left = f", about {(now.expected - now.contacts) / rate:,.0f} s left"
    done = f"{now.account}: {now.contacts:,} contacts, {now.pages:,} requests"
    return f"{done}, {rate:,.0f}/s, {now.in_flight} in flight{left}"


@contextmanager
def bound(**context: str) -> Iterator[None]:
    """Bind context to every event inside the block."""
    with structlog.contextvars.bound_contextvars(**context):
        yield
