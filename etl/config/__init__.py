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
from etl.display import discreet
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
    fault = ""
    if not text.strip():
        fault = "an empty path; is a variable not set that it is made of?"
    elif "\0" in text:
        fault = "no path holds a zero character"
    elif not _is_encodable(text):
        fault = "a path that is no text in UTF-8, or not in this locale"
    elif text.startswith("~"):
        user = text.partition("/")[0]
        text = os.path.expanduser(text) if user != "~" or os.environ.get("HOME") else text  # noqa: PTH111 - no raise
        if not text.startswith("/"):
            unknown = "HOME names no folder" if user == "~" else f"there is no home folder of {user}"
            fault = f"{unknown}; write the whole path (./~... for a name that begins with ~)"
    if fault:
        raise ValueError(fault)
    return Path(text)


def _is_encodable(text: str) -> bool:
    try:
        return bool(text.encode() and os.fsencode(text))
    except UnicodeEncodeError:
        return False


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
        return _checked_url(value) if value else value

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.base_url and bool(self.token_env) == (self.token_file is not None):
            message = "give exactly one of token_env and token_file"
            raise ValueError(message)
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
    """Deprecated in favour of `scrub_every`, which goes by time, whatever the schedule."""
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
    def _of_its_own(cls, value: Path) -> Path:
        if value.name in {"", ".."}:
            message = f"{value} holds other things; name a place of its own in it"
            raise ValueError(message)
        return value


class DuckDBTarget(Target):
    """One DuckDB file."""

    storage_version: Literal["v1.0.0", "v1.2.0", "v1.3.0", "v1.4.0", "v1.5.0", "v2.0.0"] = "v1.2.0"
    """The oldest version of DuckDB that can open the file."""

    @field_validator("path")
    @classmethod
    def _known_to_the_engine(cls, value: Path) -> Path:
        if set("?\\") & set(str(value)):
            message = "DuckDB does not take ? and \\ in a path as they are"
            raise ValueError(message)
        if os.path.exists(value) and not os.path.isfile(value):  # noqa: PTH110, PTH113 - these do not raise
            message = f"{value} is no file; name one in it" if value.is_dir() else f"{value} is no file"
            raise ValueError(message)
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
            message = "name at least one sink: [sinks.duckdb] or [sinks.parquet] with a path"
            raise ValueError(message)
        if self.duckdb and self.parquet and _absolute(self.duckdb.path) == _absolute(self.parquet.path):
            message = "both sinks have the same path"
            raise ValueError(message)
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
            message = "name at least one account: [[accounts]] with name, base_url and token_env"
            raise ValueError(message)
        names = [account.name for account in self.accounts]
        if len(set(names)) < len(names):
            message = "two accounts have the same name"
            raise ValueError(message)
        for account in self.accounts:
            if not account.base_url and self.sandbox is None:
                message = f"account {account.name!r} has no base_url"
                raise ValueError(message)
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
        "no configuration was named",
        where="command line",
        hint=f"Name one (etl run configs/eleapi.toml), set {CONFIG_VARIABLE}, or make {DEFAULT_FILE} here.",
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
        token = environ.get(account.token_env, "")
        if not token and not _is_name(account.token_env):
            message = f"the value of token_env ({len(account.token_env)} characters) is no name of a variable"
            hint = "Put the token into a variable, and its name into token_env: export ELEAPI_TOKEN=..."
            raise UsageError(message, where=where, hint=hint)
        name = discreet(account.token_env)
        source, hint = f"the variable {name}", f"export {name}=..."
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
        raise UsageError(f"{source} holds no token", where=where, hint=hint)
    if not token.isascii() or not token.isprintable():
        raise UsageError(f"the token in {source} holds characters that no token has", where=where, hint=hint)
    return SecretStr(token)


def _is_name(text: str) -> bool:
    """Whether `text` can be the name of an environment variable; text that looks like a token cannot."""
    return text.isascii() and text.isidentifier() and discreet(text) == text


def _usage_error(error: ValidationError, where: str, origins: Mapping[str, str]) -> UsageError:
    """All errors as one; `origins` has, by key, the source of each value that is not from the file at `where`."""
    faults = [_fault(dict(fault), origins) for fault in error.errors(include_url=False, include_input=False)]
    return UsageError("; ".join(faults), where=where)


def _fault(fault: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    origin = f" (from {origins[key]})" if key in origins else ""
    return _said(fault, ".".join(discreet(str(part)) for part in fault["loc"])) + origin


def _said(fault: Mapping[str, Any], place: str) -> str:
    if fault["type"] not in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"{place or 'configuration'}: {fault['msg'].removeprefix('Value error, ')}"
    known = _known_keys(fault["loc"][:-1])
    nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.0)
    return f"unknown key {place}" + (f"; did you mean {nearest[0]}?" if nearest else "")


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


def _checked_url(value: str) -> str:
    """`value` without a trailing slash; https only, except plain http for loopback hosts."""
    parts = urlsplit(value)
    # Accessing the port raises ValueError if it is invalid.
    _ = parts.port
    if parts.scheme not in {"https", "http"} or not parts.hostname or any(c.isspace() for c in value):
        message = "expected an address such as https://api-v7.express-chat.com"
        raise ValueError(message)
    if parts.username or parts.password or parts.query or parts.fragment:
        message = "an address holds no user, password, query or fragment"
        raise ValueError(message)
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        message = "plain http would send the token unprotected; use https (http is for loopback hosts alone)"
        raise ValueError(message)
    return value.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
