"""The configuration: typed, frozen, read once at the edge, and passed down as the smallest section needed.

Precedence: flags (`--set`) > environment (`ETL_SECTION__KEY`) > file > defaults. An unknown key is an error that names
the nearest known one; all errors are reported together. Tokens are never part of it: `read_token` reads them from the
variable or file that the configuration names.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass as validated

from etl.config import layers
from etl.config.accounts import Account, AccountsFrom, listed_accounts
from etl.config.secrets import read_secret
from etl.config.section import NamedPath, Section, named_path
from etl.config.section import absolute as absolute
from etl.config.targets import DeltaTarget, DuckDBTarget, ParquetTarget, PostgresTarget, Sinks
from etl.config.units import Duration, Rights, Size, TimeLimit
from etl.display import redacted
from etl.errors import UsageError
from etl.sandbox.settings import Settings as SandboxSettings

CONFIG_VARIABLE = "ETL_CONFIG"
DEFAULT_FILE = "etl.toml"
DEFAULT_NAME = "etl"


class Extract(Section):
    """How contacts are read."""

    concurrency: int = Field(16, ge=1, le=256)
    accounts_at_once: int = Field(16, ge=1, le=1000)
    requests_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    filters: dict[str, Any] = Field(default_factory=dict)
    lookback: Duration = timedelta(minutes=30)
    visibility_lag: Duration = timedelta(seconds=2)
    scrub_every: TimeLimit = timedelta(days=7)
    scrub_runs: int | None = Field(None, ge=1, le=10_000)
    """Deprecated in favour of `scrub_every`, which depends on time, not on the schedule."""
    witness_every: Duration = timedelta(days=7)
    first_run: Literal["ordered", "windows"] = "ordered"
    """Whether the first run may rely on the order of the server's lists, or reads everything twice."""
    deadline: TimeLimit = timedelta(hours=6)
    memory_limit: Size = Field(1_000_000_000, ge=100_000_000)


class Http(Section):
    """HTTP client settings."""

    attempt_timeout: TimeLimit = timedelta(seconds=60)
    connect_timeout: TimeLimit = timedelta(seconds=5)
    max_body: Size = 64 * 2**20
    proxy_from_environment: bool = False
    ca_bundle: NamedPath | None = None


class Guard(Section):
    """Limits beyond which a result looks too wrong to be published."""

    max_shrink_share: float = Field(0.05, ge=0, le=1)
    max_reject_share: float = Field(0.01, ge=0, le=1)


class Metrics(Section):
    """Metrics of every attempt, for Prometheus."""

    textfile: NamedPath | None = None
    """The file; None: no metrics."""


class Report(Section):
    """The report that every run writes."""

    path: NamedPath | None = None
    """The file; None: no report."""
    mode: Rights | None = None
    """Its mode; None: owner only."""


@validated(frozen=True, config=ConfigDict(extra="forbid", coerce_numbers_to_str=True))
class Sandbox(SandboxSettings):
    """The settings of the embedded sandbox, validated like every other section."""


class _SandboxAlone(Section):
    sandbox: Sandbox


class Config(Section):
    """The whole configuration."""

    accounts: tuple[Account, ...] = ()
    """Those of `[[accounts]]`; in a configuration that `load` returns, those of `accounts_from` follow."""
    accounts_from: AccountsFrom | None = None
    extract: Extract = Extract()
    http: Http = Http()
    guard: Guard = Guard()
    sinks: Sinks
    metrics: Metrics = Metrics()
    report: Report = Report()
    sandbox: Sandbox | None = None
    _name: str = PrivateAttr(DEFAULT_NAME)

    def model_post_init(self, context: Any, /) -> None:
        """Keep the name of the file, with which `load` validates."""
        self._name = (context or {}).get("name") or DEFAULT_NAME

    @property
    def name(self) -> str:
        """The name of the configuration: that of its file, without suffix."""
        return self._name

    @property
    def read_accounts(self) -> tuple[Account, ...]:
        """The accounts that a run reads; if none is named, the one of the embedded sandbox."""
        return self.accounts or (Account(name="sandbox"),)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.sandbox is None and not self.accounts and not self.accounts_from:
            hint = "[[accounts]] with name, base_url and token_env, or [accounts_from] with the path of a CSV file"
            raise ValueError(f"name at least one account: {hint}")
        names = [account.name for account in self.accounts]
        if len(set(names)) < len(names):
            raise ValueError("two accounts have the same name")
        for account in self.accounts:
            if not account.base_url and self.sandbox is None:
                raise ValueError(f"account {account.name!r} has no base_url")
        return self

    @property
    def deprecated(self) -> tuple[str, ...]:
        """A hint for every key in use that a later version will not accept."""
        if self.extract.scrub_runs is None:
            return ()
        return ('extract.scrub_runs is deprecated: use extract.scrub_every = "7d", which fits any schedule',)


def find_config(path: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The configuration file: `path`, else `$ETL_CONFIG`, else `etl.toml` in the working directory."""
    named, where = (path, "command line") if path else (environ.get(CONFIG_VARIABLE), CONFIG_VARIABLE)
    if named:
        try:
            return Path(str(named_path("" if named == Path() else named)))
        except ValueError as error:
            raise UsageError(f"cannot read the configuration: {error}", where=where) from None
    if Path(DEFAULT_FILE).is_file():
        return Path(DEFAULT_FILE)
    raise UsageError(
        "no configuration named",
        where="command line",
        hint=f"Name one (etl run configs/eleapi.toml), set {CONFIG_VARIABLE}, or create {DEFAULT_FILE} here.",
    )


def load(path: Path, assignments: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration in `path`, overridden by the environment, then `assignments` ("section.key=value").

    The files that `accounts_from` names are read again by each call. Raises UsageError, which reports all errors
    together: those of the configuration, or else those of these files.
    """
    raw = layers.read(path)
    layers.lay_environment(raw, environ)
    layers.lay_flags(raw, assignments)
    try:
        config = Config.model_validate(raw.document, context={"name": path.stem})
    except ValidationError as error:
        raise _usage_error(error, str(path), raw.origins) from None
    if config.accounts_from is None:
        return config
    listed = listed_accounts(config.accounts_from, config.accounts, environ, embedded=config.sandbox is not None)
    return config.model_copy(update={"accounts": (*config.accounts, *listed)})


def load_named(path: Path | None, assignments: Sequence[str] | None) -> Config:
    """Load the configuration that `find_config` finds for `path`."""
    return load(find_config(path), assignments or ())


def sandbox_settings(assignments: Sequence[str]) -> SandboxSettings:
    """The settings of a standalone sandbox from `assignments` ("key=value"). Raises UsageError."""
    raw = layers.Raw({"sandbox": {}})
    layers.lay_flags(raw, [f"sandbox.{assignment}" for assignment in assignments])
    try:
        return _SandboxAlone.model_validate(raw.document).sandbox
    except ValidationError as error:
        raise _usage_error(error, "command line", {}) from None


def read_token(account: Account, environ: Mapping[str, str] = os.environ) -> SecretStr:
    """The account's token, from the variable or file that its configuration names. Raises UsageError."""
    where = f"account {account.name}"
    token = read_secret("token", account.token_env, account.token_file, where, environ)
    if not token.isascii() or not token.isprintable():
        source = "variable" if account.token_file is None else "file"
        raise UsageError(f"the token in its {source} contains characters that no token has", where=where)
    return SecretStr(token)


def read_dsn(target: PostgresTarget, name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The DSN of the sink `name`, from the variable or file that its configuration names. Raises UsageError."""
    return read_secret("DSN", target.dsn_env, target.dsn_file, f"sinks.{name}", environ)


def _usage_error(error: ValidationError, where: str, origins: Mapping[str, str]) -> UsageError:
    """All errors as one; `origins` has, by key, the source of each value that is not from the file at `where`."""
    messages = []
    for fault in error.errors(include_url=False, include_input=False):
        place = _place(fault["loc"])
        key = ".".join(map(str, place))
        shown = ".".join(redacted(str(part)) for part in place)
        if fault["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            nearest = difflib.get_close_matches(str(fault["loc"][-1]), _known_keys(fault["loc"][:-1]), n=1, cutoff=0.0)
            message = f"unknown key {shown}" + (f"; did you mean {nearest[0]}?" if nearest else "")
        elif fault["type"].startswith("union_tag"):
            kinds = list(Sinks.model_fields)
            nearest = difflib.get_close_matches(str(place[-1]), kinds, n=1, cutoff=0.0)
            message = f"unknown key {shown}; did you mean {nearest[0]}? Other names need a kind: {', '.join(kinds)}"
        else:
            message = f"{shown or 'configuration'}: {fault['msg'].removeprefix('Value error, ')}"
        messages.append(message + (f" (from {origins[key]})" if key in origins else ""))
    return UsageError("; ".join(messages), where=where)


def _place(loc: Sequence[object]) -> Sequence[object]:
    """The place of an error without the kind of a named sink, which is not a section."""
    return (*loc[:2], *loc[3:]) if loc[:1] == ("sinks",) and loc[1:2] and loc[1] not in Sinks.model_fields else loc


def _known_keys(place: Sequence[object]) -> list[str]:
    """The valid keys of the section at `place`."""
    section: Any = Config
    for name in (part for part in place if isinstance(part, str)):
        section = _SECTIONS.get(name, section)
    fields = getattr(section, "model_fields", None)
    return [field.alias or name for name, field in fields.items()] if fields else list(section.__dataclass_fields__)


_SECTIONS: dict[str, Any] = {
    "accounts": Account,
    "accounts_from": AccountsFrom,
    "extract": Extract,
    "http": Http,
    "guard": Guard,
    "sinks": Sinks,
    "metrics": Metrics,
    "report": Report,
    "duckdb": DuckDBTarget,
    "parquet": ParquetTarget,
    "postgres": PostgresTarget,
    "delta": DeltaTarget,
    "sandbox": SandboxSettings,
}
