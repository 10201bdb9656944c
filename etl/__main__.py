"""`python -m etl`, and the console script."""

from __future__ import annotations

import gc

from etl.cli.process import leave_no_core, stop_at_once


def main() -> None:
    """Run a command, and exit with its code."""
    # There is almost no cyclic garbage, and scanning all imported objects for it takes a tenth of the startup time.
    gc.set_threshold(50_000)
    leave_no_core()
    stop_at_once()
    from etl.cli.app import main as command  # noqa: PLC0415 - slow: a signal may arrive during it

    command()


if __name__ == "__main__":
    main()
