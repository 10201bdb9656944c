"""The sections of the configuration, of which files and pages must show every key."""

from __future__ import annotations

from pydantic import BaseModel

from etl.config import (
    Account,
    DeltaTarget,
    DuckDBTarget,
    Extract,
    Guard,
    Http,
    Metrics,
    ParquetTarget,
    PostgresTarget,
    Report,
)
from etl.config.accounts import AccountsFrom

SECTIONS: dict[str, type[BaseModel]] = {
    "accounts": Account,
    "accounts_from": AccountsFrom,
    "extract": Extract,
    "http": Http,
    "guard": Guard,
    "sinks.duckdb": DuckDBTarget,
    "sinks.parquet": ParquetTarget,
    "sinks.postgres": PostgresTarget,
    "sinks.delta": DeltaTarget,
    "metrics": Metrics,
    "report": Report,
}
"""By name, without the sandbox, whose settings have a page of their own."""
