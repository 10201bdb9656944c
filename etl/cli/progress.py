"""Progress output of a run: structured events on stderr, and a progress line on a terminal.

Events are named `noun.verb`; the run and the account are bound once. Fields hold only counts, times and names from the
configuration, never the token or contact values.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from time import monotonic

import anyio
import structlog

from etl.cli.streams import steering
from etl.log import log, logger
from etl.model import Progress

REPORT_SECONDS = 5.0
REFRESH_SECONDS = 0.2


def configure() -> None:
    """Send events to stderr: warnings for people on a terminal, JSON lines elsewhere."""
    terminal = sys.stderr.isatty()
    # No colours: the stream would escape them (`etl.cli.streams`). The renderer escapes line ends in fields itself.
    render: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=False) if terminal else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render]
        )
    )
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if terminal else logging.INFO)
    logger.propagate = False


async def watch(progress: Callable[[], list[Progress]]) -> None:
    """Show progress until cancelled: a self-updating line on a terminal, periodic events elsewhere."""
    if sys.stderr.isatty():
        await _watch_terminal(progress)
    while True:
        await anyio.sleep(REPORT_SECONDS)
        for now in progress():
            log.info(
                "run.progress", account=now.account, contacts=now.contacts, pages=now.pages, in_flight=now.in_flight
            )


async def _watch_terminal(progress: Callable[[], list[Progress]]) -> None:
    # Rich takes 40 ms to import: only needed on a terminal.
    from rich.console import Console  # noqa: PLC0415
    from rich.status import Status  # noqa: PLC0415

    started = monotonic()
    with Status("reading", console=Console(file=steering(sys.stderr))) as status:
        while True:
            await anyio.sleep(REFRESH_SECONDS)
            seconds = monotonic() - started
            status.update("   ".join(_line(now, seconds) for now in progress()) or "reading")


def _line(now: Progress, seconds: float) -> str:
    rate = now.contacts / seconds if seconds else 0.0
    left = ""
    if now.expected and rate and now.expected > now.contacts:
        left = f", about {(now.expected - now.contacts) / rate:,.0f} s left"
    done = f"{now.account}: {now.contacts:,} contacts, {now.pages:,} requests"
    return f"{done}, {rate:,.0f}/s, {now.in_flight} in flight{left}"
