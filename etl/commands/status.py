"""The last run of every account, and the run history, as the targets record them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etl.commands.result import unconfigured_hint, unconfigured_line
from etl.commands.sql import rows_of
from etl.config import Config
from etl.display import lines
from etl.sinks import Unpublished
from etl.sinks.targets import reading

HISTORY = 20
_COLUMNS = """seq, run_id, account, mode, observed_at, watermark, seconds, proof_level, windows, unproven,
    received, new, changed, unchanged, deleted, folded, rejected, contacts, requests_sent, requests_retried"""
_QUERY = f"select {_COLUMNS} from runs order by seq desc, account limit {HISTORY}"  # noqa: S608 - constants
_LAST = f"""
    select {_COLUMNS} from runs
    qualify row_number() over (partition by account order by seq desc) = 1 and mode <> 'dropped' order by account
"""  # noqa: S608 - constants

Document = dict[str, Any]
Row = Mapping[str, object]


def read_status(config: Config) -> Document:
    """The `--json` document of `status`; empty lists before the first run. Raises SinkError, TargetCorrupt."""
    try:
        with reading(config) as connection:
            runs = rows_of(connection.sql(_QUERY).to_arrow_table())
            last = rows_of(connection.sql(_LAST).to_arrow_table())
    except Unpublished:
        return {"accounts": [], "runs": []}
    named = {account.name for account in config.read_accounts}
    return {"accounts": [_account(row, configured=row["account"] in named) for row in last], "runs": runs}


def _account(row: Row, *, configured: bool) -> Document:
    account = {"account": row["account"], "watermark": row["watermark"], "seq": row["seq"], "last_run": dict(row)}
    return account | {"configured": configured}


def render_status(document: Document) -> str:
    """The last runs as lines for a person."""
    runs = document["runs"]
    if not runs:
        return "no run has published yet"
    told = [_line(_HEADINGS), *(_line(tuple(_cell(run, name) for name in _HEADINGS)) for run in runs)]
    for account in document["accounts"]:
        if not account["configured"]:
            name, contacts = account["account"], account["last_run"]["contacts"]
            told += [f"notice: {unconfigured_line(name, contacts)}", f"        {unconfigured_hint(name)}"]
    return lines(told)


_HEADINGS = ("seq", "account", "mode", "observed_at", "contacts", "new", "changed", "deleted", "rejected", "proof")


def _cell(run: Row, name: str) -> str:
    if name == "proof":
        return "unproven" if run["unproven"] else str(run["proof_level"])
    return str(run[name])


def _line(cells: Sequence[str]) -> str:
    return "  ".join(
        f"{cell:<{width}}" for cell, width in zip(cells, (4, 12, 11, 24, 10, 8, 8, 8, 8, 10), strict=True)
    ).rstrip()
