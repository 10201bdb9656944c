"""The commands that show what the targets hold: diff, report, explore."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from etl.cli.arguments import AsJson, Assignments, ConfigPath, OneSink, operands, show
from etl.display import redacted
from etl.errors import OK, UsageError


def diff(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[CONFIG] A B", help="Run numbers (-1: the newest, 0: before the first) or times."),
    ],
    rows: Annotated[
        int, typer.Option("--rows", min=0, metavar="N", help="Also list N contacts and their columns.")
    ] = 0,
    values: Annotated[bool, typer.Option("--values", help="With --rows: also show values before and after.")] = False,
    sink: OneSink = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Show what changed between two published states: contacts, and their columns."""
    from etl.cli.render import render_difference  # noqa: PLC0415
    from etl.commands import library  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    if unknown := next((word for word in words if re.match(r"-+[a-z]", word)), None):
        raise UsageError(f"there is no option {redacted(unknown)}", where="command line", hint="See etl diff --help.")
    config, (before, after) = operands(words, 2)
    found = library.diff(load_named(config, assignments), before, after, rows=rows, values=values, sink=sink)
    show(found.document(), render_difference(found), as_json=as_json)
    return OK


def report(
    config: ConfigPath = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: report.path, else report.html.")
    ] = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Write one HTML page: runs, contacts, proof and data quality; no contact value is on it."""
    from etl.cli.render import render_report  # noqa: PLC0415
    from etl.commands import library  # noqa: PLC0415
    from etl.config import load_named  # noqa: PLC0415

    written = library.report(load_named(config, assignments), output)
    show(written.document(), render_report(written), as_json=as_json)
    return OK


def explore(
    config: ConfigPath = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 0,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Browse the contacts in a web browser on this machine, until interrupted."""
    from etl.config import load_named  # noqa: PLC0415
    from etl.extras import require  # noqa: PLC0415

    settings = load_named(config, assignments)
    require("report", where="explore")
    from etl.explore.server import run as serve  # noqa: PLC0415

    def ready(address: str) -> None:
        show({"url": address}, f"explore {settings.name} at {address}\nCtrl-C ends it", as_json=as_json)

    try:
        serve(settings, port, ready)
    except OSError as error:
        raise UsageError(f"cannot listen on port {port}: {error.strerror}", hint="Name another --port.") from None
    return OK
