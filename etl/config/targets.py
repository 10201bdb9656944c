"""The section `sinks`: every target by its name, and what each kind of target needs."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from etl.config.section import OBJECT_STORES, NamedPath, Section, secure_address
from etl.config.units import Rights, TimeLimit

SINK_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


class Place(Section):
    """Where to publish."""

    path: NamedPath

    @field_validator("path")
    @classmethod
    def _separate(cls, value: Path) -> Path:
        if value.name in {"", ".."}:
            raise ValueError(f"{value} contains other files; name a separate path in it")
        return value


class Target(Place):
    """Where to publish, and with which permissions."""

    mode: Rights | None = None
    """The mode of published files; None: owner only."""
    group: str | None = Field(None, pattern=r"^[^\x00:\s]+$")
    """The group of published files; None: that of the process."""


class DuckDBTarget(Target):
    """One DuckDB file."""

    kind: Literal["duckdb"] = "duckdb"
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


class LakeTarget(Place):
    """A folder, or the same in an object store."""

    endpoint: str = ""
    """The address of the object store; empty: that of the environment, or else of AWS or Azure."""
    stage: NamedPath | None = None
    """If `path` is in an object store: see `PostgresTarget.stage`."""

    @property
    def url(self) -> str:
        """The address `s3://bucket/prefix` or `az://container/prefix`; empty if the target is a folder."""
        # A path keeps one of the two slashes.
        scheme, slash, rest = str(self.path).partition(":/")
        return f"{scheme}://{rest}" if slash and scheme in OBJECT_STORES else ""

    @field_validator("endpoint")
    @classmethod
    def _secure(cls, value: str) -> str:
        return secure_address(value, "https://s3.eu-central-1.amazonaws.com") if value else value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.endpoint and not self.url:
            raise ValueError("endpoint is for a path in an object store: s3://bucket/prefix, az://container/prefix")
        if self.url and not re.fullmatch(r"\w\w://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.=-]+)+", self.url, re.ASCII):
            raise ValueError(f"expected an address such as {self.url[:2]}://bucket/prefix, not {self.url}")
        return self


class ParquetTarget(Target, LakeTarget):
    """Parquet files that manifests list."""

    kind: Literal["parquet"] = "parquet"
    keep: int = Field(3, ge=1)
    """Complete states kept under `current/`."""

    @model_validator(mode="after")
    def _no_permissions(self) -> Self:
        if self.url and (self.mode is not None or self.group is not None):
            raise ValueError("mode and group are permissions of files; an object store has its own (policies)")
        return self


class PostgresTarget(Section):
    """One schema of a PostgreSQL database."""

    kind: Literal["postgres"] = "postgres"
    dsn_env: str = Field("", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Name of the environment variable that holds the DSN."""
    dsn_file: NamedPath | None = None
    """A file that holds the DSN."""
    schema_name: str = Field("etl", alias="schema", pattern=r"^[^\x00]+$")
    """The schema that holds the tables; it is created if it is missing."""
    stage: NamedPath | None = None
    """Names the lock and the staged data, in the folder `.etl` next to this path; None: `data/` and the sink's name."""

    @model_validator(mode="after")
    def _one_dsn(self) -> Self:
        if bool(self.dsn_env) == (self.dsn_file is not None):
            raise ValueError("give exactly one of dsn_env and dsn_file")
        if len(self.schema_name.encode()) > 63:
            raise ValueError("the name of the schema is longer than 63 bytes")
        return self


class DeltaTarget(LakeTarget):
    """Tables of Delta Lake."""

    kind: Literal["delta"] = "delta"
    retention: TimeLimit = timedelta(days=7)
    """How long the files of old versions are kept."""

    @field_validator("path")
    @classmethod
    def _openable(cls, value: Path) -> Path:
        if re.search(r"\\|%[0-9A-Fa-f]{2}", str(value)):
            raise ValueError("the library of Delta Lake does not open a path with \\, or with % and two hex digits")
        return value


AnyTarget = DuckDBTarget | ParquetTarget | PostgresTarget | DeltaTarget


class Sinks(Section):
    """Where contacts go: at least one, each under its name; `[sinks.NAME]` needs a kind unless the name is one."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[AnyTarget, Field(discriminator="kind")]] = Field(init=False)

    duckdb: DuckDBTarget | None = None
    parquet: ParquetTarget | None = None
    postgres: PostgresTarget | None = None
    delta: DeltaTarget | None = None

    @property
    def named(self) -> dict[str, AnyTarget]:
        """Every sink by its name, in the order in which they are published."""
        short: dict[str, AnyTarget | None] = {
            "duckdb": self.duckdb,
            "parquet": self.parquet,
            "postgres": self.postgres,
            "delta": self.delta,
        }
        return {name: target for name, target in (short | self.__pydantic_extra__).items() if target is not None}

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.named:
            kinds = "[sinks.duckdb], [sinks.parquet] or [sinks.delta] with a path, [sinks.postgres]"
            raise ValueError(f"name at least one sink: {kinds}")
        places: dict[tuple[str, ...], str] = {}
        for name, target in self.named.items():
            if not re.fullmatch(SINK_NAME, name):
                raise ValueError(f"{name!r} cannot be the name of a sink: letters, digits, _ and -, at most 64")
            for place in _places(name, target):
                if place in places:
                    raise ValueError(f"both sinks have the same {place[0]}: {places[place]} and {name}")
                places[place] = name
        return self


def _places(name: str, target: AnyTarget) -> tuple[tuple[str, ...], ...]:
    """What only one sink may use: its path, that of its stage, and its schema."""
    if isinstance(target, DuckDBTarget) or (isinstance(target, LakeTarget) and not target.url):
        return (("path", _absolute(target.path)),)
    stage = ("path", _absolute(target.stage or default_stage(name)))
    if isinstance(target, LakeTarget):
        return ("path", target.url), stage
    return ("schema", target.dsn_env, str(target.dsn_file), target.schema_name), stage


def default_stage(name: str) -> Path:
    """The path after which the lock and the staged data of a sink on a server are named."""
    return Path("data") / name


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - removes `..` without disk access
