"""The files around the package: configurations, Makefile, Dockerfile and lock agree with the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo
from typer.main import get_command
from typer.testing import CliRunner

from etl.cli.app import app
from etl.config import (
    Config,
    Sinks,
    load,
)
from tests.support.sections import SECTIONS

ROOT = Path(__file__).parents[2]
COMMANDS = get_command(app).commands
DEFAULT = (ROOT / "configs" / "default.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

EXAMPLES = {"accounts", "accounts_from", "path", "dsn_env", "dsn_file", "stage"}
"""Entries that default.toml shows by example because they have no default."""


def told(section: str) -> dict[str, tuple[str, str]]:
    """The keys of a section of default.toml, also commented-out ones: value as written, and description."""
    body = re.split(r"^(?:# )?\[+([\w.]+)\]+$", DEFAULT, flags=re.MULTILINE)
    text = dict(zip(body[1::2], body[2::2], strict=True))[section]
    lines = re.findall(r"^(?:# )?(\w+) = (\S.*?)\s+# (.+)$|^(?:# )?(\w+) = (\S.*)$", text, re.MULTILINE)
    return {name or bare: (value or bare_value, comment) for name, value, comment, bare, bare_value in lines}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_configurations_load(path: Path) -> None:
    """Every configuration that is shipped with the project is valid."""
    assert load(path, environ={}).sinks


def test_default_toml_has_every_section() -> None:
    """default.toml has exactly the sections of the configuration."""
    written = set(re.findall(r"^(?:# )?\[+([\w.]+)\]+$", DEFAULT, re.MULTILINE))
    nested = {f"sinks.{name}" for name in Sinks.model_fields}
    assert written == (Config.model_fields.keys() - {"sinks"}) | nested
    assert written == SECTIONS.keys() | {"sandbox"}


@pytest.mark.parametrize("section", SECTIONS)
def test_default_toml_tells_every_key_with_its_default(section: str) -> None:
    """default.toml lists exactly the keys of a section, each with its description and default."""
    fields = {field.alias or name: field for name, field in SECTIONS[section].model_fields.items() if name != "kind"}
    written = told(section)
    assert written.keys() == fields.keys()
    for name, (value, comment) in written.items():
        assert comment or name in EXAMPLES, f"{section}.{name} has no meaning"
        if value[0].isdigit():
            _check_range(f"{section}.{name}", comment, fields[name])
        if not {section, name} & EXAMPLES and not re.search(rf"^# {name} = ", DEFAULT, re.MULTILINE):
            default = SECTIONS[section].model_validate({**_needed(section), name: tomllib.loads(f"x = {value}")["x"]})
            assert getattr(default, name) == fields[name].get_default(call_default_factory=True), f"{section}.{name}"


def _needed(section: str) -> dict[str, str]:
    if not section.startswith("sinks."):
        return {}
    return {"dsn_env": "UNUSED"} if section == "sinks.postgres" else {"path": "unused"}


def _check_range(key: str, comment: str, field: FieldInfo) -> None:
    """Check that the comment on a number with limits mentions them."""
    limits = [getattr(rule, name, None) for rule in field.metadata for name in ("ge", "le")]
    for limit in limits:
        assert limit is None or f"{limit:,}" in comment, f"{key}: the comment does not tell {limit:,}"


def test_what_default_toml_comments_out_can_be_used(tmp_path: Path) -> None:
    """The commented-out lines of default.toml are valid settings."""
    text = re.sub(
        r"^# (?=\w+ = |\[)", "", re.sub('(# dsn_env = ".+"|token_env = ".+") +', "", DEFAULT), flags=re.MULTILINE
    )
    listed, mounted = tmp_path / "accounts.csv", tmp_path / "tokens" / "mounted"
    listed.write_text("name,token_env\nlisted,OTHER_TOKEN\n")
    mounted.parent.mkdir()
    mounted.write_text("token")
    text = text.replace('"accounts.csv"', f'"{listed}"').replace('"/run/secrets/etl"', f'"{mounted.parent}"')
    path = tmp_path / "all.toml"
    path.write_text(text)
    config = load(path, environ={})
    assert {account.name for account in config.accounts} == {"main", "listed", "mounted"}
    assert config.http.ca_bundle is not None
    assert config.accounts[0].token_file is not None
    assert config.sandbox is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_every_option(name: str) -> None:
    """`etl COMMAND --help` describes the command and each of its options."""
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    for option in (option for parameter in COMMANDS[name].params for option in parameter.opts if option[0] == "-"):
        assert re.search(rf"^ +(?:-\w, )?{option}\b.*\w", result.output, re.MULTILINE), option


def test_python_m_etl_is_the_command(tmp_path: Path) -> None:
    """`python -m etl` is the same as the console script, from any folder."""
    for program in ([sys.executable, "-m", "etl"], [str(Path(sys.executable).with_name("etl"))]):
        done = subprocess.run([*program, "columns", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603
        assert json.loads(done.stdout)[0]["name"] == "account"


def test_make_help_lists_every_target() -> None:
    """`make` and `make help` list every target with a description."""
    targets = re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    listed = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [name for name, _ in listed] == targets
    assert phony is not None
    assert phony[1].split() == targets


def test_make_targets_name_what_exists() -> None:
    """Every module and test file that a recipe names exists."""
    for module in re.findall(r"-m (tests[\w.]*)", MAKEFILE):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for path in re.findall(r"tests/[\w/]+\.py", MAKEFILE):
        assert (ROOT / path).is_file(), path


def test_ci_runs_the_checks_and_the_tests() -> None:
    """`.ci/run` is executable and runs `make check`, `make test`, and campaigns and simulated worlds beyond them."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100
    assert re.findall(r"^make (\w+)", script.read_text(), re.MULTILINE) == ["check", "test", "campaigns", "simulate"]


def test_dockerfile_copies_what_exists() -> None:
    """Every file that the Dockerfile copies exists and is in the build context."""
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    sources = re.findall(r"^COPY (?!--from)(?:--\S+ )*(\S+) ", DOCKERFILE, re.MULTILINE)
    assert {"requirements.lock", "configs", "."} == set(sources)
    assert all((ROOT / name).exists() for name in {*sources, *allowed})
    wanted = {"etl", "configs", "pyproject.toml", "requirements.lock", PROJECT["project"]["readme"], "LICENSE"}
    assert allowed == wanted


def test_image_is_small_and_without_rights() -> None:
    """The image has a slim base with a full tag, runs as a numeric user, and starts `etl`."""
    base = re.search(r"^ARG BASE=python:(\d+\.\d+)\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    assert f">={base[1]}" == PROJECT["project"]["requires-python"]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", DOCKERFILE, re.MULTILINE)
    assert 'ENTRYPOINT ["etl"]' in DOCKERFILE
    assert "etl" in PROJECT["project"]["scripts"]
    assert DOCKERFILE.count("--require-hashes") == 1
    assert "--no-index" in DOCKERFILE


def test_lock_pins_everything_with_hashes_and_names_no_registry() -> None:
    """Each package in the lock has one exact version and hashes, and the lock contains no URL."""
    lock = (ROOT / "requirements.lock").read_text()
    packages = re.findall(r"^(\S.*?)(?: ;.*)?\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)*)", lock, re.MULTILINE)
    pinned = {re.split(r"==", pin)[0] for pin, hashes in packages if hashes and "==" in pin}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    assert {re.split(r"[\[>=<]", name)[0].replace("_", "-") for name in wanted} <= pinned
    assert "://" not in lock
    assert "--index" not in lock


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_no_file_names_a_machine_or_a_registry() -> None:
    """The files around the package contain no path of a developer's machine and no address of a registry."""
    for name in ("README.md", "CHANGELOG.md", "Dockerfile", "Makefile", "pyproject.toml", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"/root/|/home/|/work/|/tmp/|pypi|pythonhosted", text), name
