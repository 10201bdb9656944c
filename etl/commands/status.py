"""The last run of every account and the run history, as the targets record them, and the last attempts to run."""

from __future__ import annotations

from datetime import UTC, datetime
from time import time

from etl.commands.result import AccountStatus, PublishedRun, Status
from etl.config import Config
from etl.sinks import Unpublished
from etl.sinks.targets import first_path, reading
from etl.storage.attempts import read_attempts

HISTORY = 20
_BY_WINDOWS = "coalesce((detail ->> 'by_windows')::double, 1.0) as by_windows"
_COLUMNS = ", ".join(_BY_WINDOWS if name == "by_windows" else name for name in PublishedRun.__dataclass_fields__)
_QUERY = f"select {_COLUMNS} from runs order by seq desc, account limit {HISTORY}"  # noqa: S608 - constants
_LAST = f"""
    select {_COLUMNS} from runs
    qualify row_number() over (partition by account order by seq desc) = 1 and mode <> 'dropped' order by account
"""  # noqa: S608 - constants


def read_status(config: Config, sink: str | None = None) -> Status:
    """The status of one sink, by default of the first one that exists; no accounts and runs before the first run.

    Raises UsageError, SinkError, TargetCorrupt.
    """
    attempts, at = tuple(reversed(read_attempts(first_path(config))[-HISTORY:])), datetime.fromtimestamp(time(), UTC)
    try:
        with reading(config, sink) as connection:
            runs, last = (
                [PublishedRun(**row) for row in connection.sql(query).to_arrow_table().to_pylist()]
                for query in (_QUERY, _LAST)
            )
    except Unpublished:
        return Status(at, attempts=attempts)
    named = {account.name for account in config.read_accounts}
    return Status(at, tuple(AccountStatus(run, run.account in named) for run in last), tuple(runs), attempts)
