"""The configuration: typed, frozen, read once at the edge, and passed down as the smallest section needed.

Precedence: flags (`--set`) > environment (`ETL_SECTION__KEY`) > file > defaults. An unknown key is an error that names
the nearest known one; all errors are reported together. Tokens are never part of it: `read_token` reads them from the
variable or file that the configuration names.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as validated

from etl.config import layers
from etl.config.units import Duration, Rights, Size, TimeLimit
from etl.display import redacted
from etl.errors import UsageError
from etl.sandbox.settings import Settings as SandboxSettings

CONFIG_VARIABLE = "ETL_CONFIG"
DEFAULT_FILE = "etl.toml"
ACCOUNT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _named_path(value: object) -> object:
    """Parse a path and expand `~`. Raises ValueError if it cannot be a path."""
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.fspath(value)
    if not text.strip():
        raise ValueError("the path is empty; is a variable in it not set?")
    if "\0" in text:
        raise ValueError("a path cannot contain a NUL character")
    try:
        text.encode()
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("the path cannot be encoded in UTF-8 or in this locale") from None
    if text.startswith("~"):
        user = text.partition("/")[0]
        text = os.path.expanduser(text) if user != "~" or os.environ.get("HOME") else text  # noqa: PTH111 - no raise
        if not text.startswith("/"):
            unknown = "HOME names no folder" if user == "~" else f"there is no home folder of {user}"
            raise ValueError(f"{unknown}; write the whole path (./~... for a name that begins with ~)")
    return Path(text)


NamedPath = Annotated[Path, BeforeValidator(_named_path)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Account(_Section):
    """One account of the source."""

    name: str = Field("main", pattern=ACCOUNT_NAME)
    """The `account` column; also a folder name, hence the pattern."""
    base_url: str = ""
    """The address of the API; empty: the embedded sandbox."""
    token_env: str = ""
    """Name of the environment variable that holds the token."""
    token_file: NamedPath | None = None
    """A file that holds the token."""

    @field_validator("base_url")
    @classmethod
    def _secure(cls, value: str) -> str:
        """`value` without a trailing slash; https only, except plain http for loopback hosts."""
        if not value:
            return value
        parts = urlsplit(value)
        # Accessing the port raises ValueError if it is invalid.
        _ = parts.port
        if parts.scheme not in {"https", "http"} or not parts.hostname or any(c.isspace() for c in value):
            raise ValueError("expected an address such as https://api-v7.express-chat.com")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("an address cannot contain a user, password, query or fragment")
        try:
            is_loopback = ipaddress.ip_address(parts.hostname).is_loopback
        except ValueError:
            is_loopback = parts.hostname == "localhost"
        if parts.scheme == "http" and not is_loopback:
            raise ValueError("plain http would send the token unprotected; use https (http only for loopback hosts)")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.base_url and bool(self.token_env) == (self.token_file is not None):
            raise ValueError("give exactly one of token_env and token_file")
        return self


class Extract(_Section):
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
    deadline: TimeLimit = timedelta(hours=6)
    memory_limit: Size = Field(1_000_000_000, ge=100_000_000)


class Http(_Section):
    """HTTP client settings."""

    attempt_timeout: TimeLimit = timedelta(seconds=60)
    connect_timeout: TimeLimit = timedelta(seconds=5)
    max_body: Size = 64 * 2**20
    proxy_from_environment: bool = False
    ca_bundle: NamedPath | None = None


class Guard(_Section):
    """Limits beyond which a result looks too wrong to be published."""

    max_shrink_share: float = Field(0.05, ge=0, le=1)
    max_reject_share: float = Field(0.01, ge=0, le=1)


class Target(_Section):
    """Where to publish, and with which permissions."""

    path: NamedPath
    mode: Rights | None = None
    """The mode of published files; None: owner only."""
    group: str | None = Field(None, pattern=r"^[^\x00:\s]+$")
    """The group of published files; None: that of the process."""

    @field_validator("path")
    @classmethod
    def _separate(cls, value: Path) -> Path:
        if value.name in {"", ".."}:
            raise ValueError(f"{value} contains other files; name a separate path in it")
        return value


class DuckDBTarget(Target):
    """One DuckDB file."""

    storage_version: Literal["v1.0.0", "v1.2.0", "v1.3.0", "v1.4.0", "v1.5.0", "v2.0.0"] = "v1.2.0"
    """The oldest version of DuckDB that can open the file."""

    @field_validator("path")
    @classmethod
    def _openable(cls, value: Path) -> Path:
        if set("?\\") & set(str(value)):
            raise ValueError("DuckDB does not open a path with ? or \\")
        if os.path.exists(value) and not os.path.isfile(value):  # noqa: PTH110, PTH113 - these do not raise
            raise ValueError(f"{value} is not a file" + ("; name one in it" if value.is_dir() else ""))
        return value


class ParquetTarget(Target):
    """One folder of Parquet files."""

    keep: int = Field(3, ge=1)
    """Complete states kept under `current/`."""


class Sinks(_Section):
    """Where contacts go; at least one."""

    duckdb: DuckDBTarget | None = None
    parquet: ParquetTarget | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.duckdb is None and self.parquet is None:
            raise ValueError("name at least one sink: [sinks.duckdb] or [sinks.parquet] with a path")
        if self.duckdb and self.parquet and _absolute(self.duckdb.path) == _absolute(self.parquet.path):
            raise ValueError("both sinks have the same path")
        return self


@validated(frozen=True, config=ConfigDict(extra="forbid", coerce_numbers_to_str=True))
class Sandbox(SandboxSettings):
    """The settings of the embedded sandbox, validated like every other section."""


class _SandboxAlone(_Section):
    sandbox: Sandbox


class Config(_Section):
    """The whole configuration."""

    accounts: tuple[Account, ...] = ()
    extract: Extract = Extract()
    http: Http = Http()
    guard: Guard = Guard()
    sinks: Sinks
    sandbox: Sandbox | None = None

    @property
    def read_accounts(self) -> tuple[Account, ...]:
        """The accounts that a run reads; if none is named, the one of the embedded sandbox."""
        return self.accounts or (Account(name="sandbox"),)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.sandbox is None and not self.accounts:
            raise ValueError("name at least one account: [[accounts]] with name, base_url and token_env")
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
            return Path(str(_named_path("" if named == Path() else named)))
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

    Raises UsageError, which reports all errors together.
    """
    raw = layers.read(path)
    layers.lay_environment(raw, environ)
    layers.lay_flags(raw, assignments)
    try:
        return Config.model_validate(raw.document)
    except ValidationError as error:
        raise _usage_error(error, str(path), raw.origins) from None


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
    if account.token_file is None:
        named = account.token_env
        token, name = environ.get(named, ""), redacted(named)
        # Text that looks like a token cannot be the name of a variable.
        if not token and not (named.isascii() and named.isidentifier() and named == name):
            message = f"the value of token_env ({len(named)} characters) is not the name of a variable"
            hint = "Put the token into a variable, and its name into token_env: export ELEAPI_TOKEN=..."
            raise UsageError(message, where=where, hint=hint)
        source, hint = f"the variable {name}", f"Set it: export {name}=..."
    else:
        source, hint = f"the file {layers.shown(account.token_file)}", "Write the token into it, mode 0600."
        try:
            token = layers.text(account.token_file.read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"cannot read the token from {source}: {reason}", where=where, hint=hint) from None
    # A variable set from a file may contain its byte order mark.
    token = token.removeprefix("\ufeff").strip()
    if not token:
        raise UsageError(f"{source} contains no token", where=where, hint=hint)
    if not token.isascii() or not token.isprintable():
        raise UsageError(f"the token in {source} contains characters that no token has", where=where, hint=hint)
    return SecretStr(token)


def _usage_error(error: ValidationError, where: str, origins: Mapping[str, str]) -> UsageError:
    """All errors as one; `origins` has, by key, the source of each value that is not from the file at `where`."""
    messages = []
    for fault in error.errors(include_url=False, include_input=False):
        key = ".".join(map(str, fault["loc"]))
        shown = ".".join(redacted(str(part)) for part in fault["loc"])
        if fault["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            nearest = difflib.get_close_matches(str(fault["loc"][-1]), _known_keys(fault["loc"][:-1]), n=1, cutoff=0.0)
            message = f"unknown key {shown}" + (f"; did you mean {nearest[0]}?" if nearest else "")
        else:
            message = f"{shown or 'configuration'}: {fault['msg'].removeprefix('Value error, ')}"
        messages.append(message + (f" (from {origins[key]})" if key in origins else ""))
    return UsageError("; ".join(messages), where=where)


def _known_keys(place: Sequence[object]) -> list[str]:
    """The valid keys of the section at `place`."""
    section: Any = Config
    for name in (part for part in place if isinstance(part, str)):
        section = _SECTIONS.get(name, section)
    return list(getattr(section, "model_fields", None) or section.__dataclass_fields__)


_SECTIONS: dict[str, Any] = {
    "accounts": Account,
    "extract": Extract,
    "http": Http,
    "guard": Guard,
    "sinks": Sinks,
    "duckdb": DuckDBTarget,
    "parquet": ParquetTarget,
    "sandbox": SandboxSettings,
}


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - removes `..` without disk access
