"""Progress output of a run: structured events on stderr, and one row per account on a terminal.

Events are named `noun.verb`; the run and the account are bound once. Fields hold only counts, times and names from the
configuration, never the token or contact values.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict

import anyio
import structlog

from etl.cli.process import reveal_rich
from etl.cli.streams import steering
from etl.cli.totals import totals
from etl.display import printable
from etl.log import log, logger
from etl.model import Progress

REPORT_SECONDS = 5.0
REFRESH_SECONDS = 0.2


class StderrHandler(logging.Handler):
    """Writes each event to the stderr of that moment: while rows are shown, it prints above them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one event, in one piece."""
        sys.stderr.write(printable(self.format(record), keep="\n") + "\n")


def configure() -> None:
    """Send events to stderr: warnings for people on a terminal, JSON lines elsewhere."""
    terminal = sys.stderr.isatty()
    # No colours: the stream would escape them (`etl.cli.streams`). The renderer escapes line ends in fields itself.
    render: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=False) if terminal else structlog.processors.JSONRenderer()
    )
    handler = StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render]
        )
    )
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if terminal else logging.INFO)
    logger.propagate = False


async def watch(progress: Callable[[], list[Progress]]) -> None:
    """Show progress until cancelled: rows on a terminal, elsewhere periodic events: one per account, and the totals."""
    if sys.stderr.isatty():
        reveal_rich()
        from etl.cli.rows import account_rows  # noqa: PLC0415 - Rich takes 40 ms to import

        with account_rows(steering(sys.stderr)) as rows:
            while True:
                await anyio.sleep(REFRESH_SECONDS)
                rows.show(progress())
    while True:
        await anyio.sleep(REPORT_SECONDS)
        accounts = progress()
        for now in accounts:
            if now.is_reading:
                log.info(
                    "run.progress", account=now.account, contacts=now.contacts, pages=now.pages, in_flight=now.in_flight
                )
        if len(accounts) > 1:
            log.info("run.totals", **asdict(totals(accounts)))
