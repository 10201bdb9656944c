"""What an attempt to run leaves besides the targets: metrics and a report, if they are configured.

What could not work is refused before the run. Afterwards they never fail it: what is published stays published.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from etl.commands.unexpected import as_error
from etl.config import Config
from etl.errors import EtlError, Interrupted, Terminated, UsageError
from etl.extras import require
from etl.log import log
from etl.storage.attempts import Attempt

FAILED = "output.failed"


def check(config: Config) -> None:
    """Raise `UsageError` if a configured output cannot be written: its library or its folder is missing."""
    wanted = (
        (config.metrics.textfile, "metrics.textfile", "metrics"),
        (config.report.path, "report.path", "report"),
    )
    for path, key, extra in wanted:
        if path is None:
            continue
        require(extra, where=key)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            hint = "Create this folder, writable by the user of the run, or name another one."
            raise UsageError(f"the folder {path.parent} cannot be written to", where=key, hint=hint)


def write(config: Config, attempt: Attempt, error: EtlError | None) -> None:
    """Write the configured outputs after an attempt that ended with `error`; a failure is logged.

    A stopped run ends without a report, because the signal asked for an end at once.
    """
    # Most runs have neither, and start faster without them.
    if config.metrics.textfile is not None:
        with _tried("metrics"):
            check(config)
            from etl.commands import metrics  # noqa: PLC0415

            metrics.write(config, config.metrics.textfile, attempt)
    if config.report.path is not None and not isinstance(error, Interrupted | Terminated):
        with _tried("report"):
            check(config)
            from etl.commands.report import write_report  # noqa: PLC0415

            write_report(config, config.report.path)


@contextmanager
def _tried(output: str) -> Iterator[None]:
    try:
        yield
    except Exception as caught:  # noqa: BLE001 - not even a bug may fail a run that has published
        error = as_error(caught)
        log.warning(FAILED, output=output, message=error.message, where=error.where)
