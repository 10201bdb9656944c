"""The report (`etl report`): one HTML file that needs nothing else, from the newest published state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import time

from etl.commands.figures import gather
from etl.commands.result import WrittenReport
from etl.config import Config
from etl.extras import require
from etl.pages.process import render
from etl.sinks import Unpublished
from etl.sinks.targets import first_path, reading
from etl.storage import files
from etl.storage.attempts import read_attempts

DEFAULT = Path("report.html")

Drawn = tuple[object, bytes]
"""What a page was drawn from, and the page."""


def write_report(config: Config, path: Path | None = None) -> WrittenReport:
    """Write the report to `path`, by default `report.path`, else `report.html`, replacing the file in one step.

    Raises UsageError without the extra `report`, SinkError, TargetCorrupt.
    """
    require("report", where="report")
    figures = gather(config, _now())
    page = render(figures)
    target = path or config.report.path or DEFAULT
    files.replace_file(target, page, config.report.mode or files.FILE_MODE)
    seq = figures.runs[-1].seq if figures.runs else 0
    return WrittenReport(target, len(page), seq, figures.contacts.total)


def live_report(config: Config, links: Sequence[tuple[str, str]], last: Drawn | None) -> Drawn:
    """The report with further links; `last` if nothing was published or attempted since, and it is fresh."""
    seq, now = 0, _now()
    with suppress(Unpublished), reading(config) as connection:
        [(seq,)] = connection.execute("select max(seq) from runs").fetchall()
    state = (seq, read_attempts(first_path(config))[-1:], now.replace(second=0, microsecond=0))
    if last is not None and last[0] == state:
        return last
    return state, render(replace(gather(config, now), links=links))


def _now() -> datetime:
    return datetime.fromtimestamp(time(), UTC)
