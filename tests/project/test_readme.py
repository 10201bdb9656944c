"""The README, read from top to bottom by a machine: its commands run, its names exist, its tables are the code's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from etl import errors
from etl.cli.app import app
from etl.config import DuckDBTarget, Extract, Guard, Http, ParquetTarget, load
from tests.support.live import TOKEN, live

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = get_command(app).commands
CODES = {0, errors.PUBLISHED_WITH_REJECTS, errors.INTERNAL} | {
    kind.exit_code for kind in errors.EtlError.__subclasses__()
}
SERVICE = "https://api-v7.express-chat.com"
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Step:
    """A command that the README shows, and the lines that it shows as its output."""

    command: str
    shown: tuple[str, ...] = ()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text under a heading, down to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def steps() -> Iterator[Step]:
    """Every command of the README in order, scripts for other machines excepted."""
    for language, text in re.findall(r"^```(sh|console)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        if language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *shown = part.splitlines()
                yield Step(command, tuple(shown))
        elif not text.startswith("#!"):
            yield from (Step(command) for command in text.splitlines())


@dataclass(slots=True)
class Reader:
    """Somebody with a copy of the project who does what the README says; the vendor's address leads to a sandbox."""

    folder: Path
    environment: dict[str, str]

    def execute(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What the shell makes of a command in the reader's folder."""
        return subprocess.run(  # noqa: S603 - the commands of our own README
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def follow(self, step: Step) -> None:
        """Do one step, and compare what it prints with what the README shows."""
        done = self.execute(self._spelled_out(step.command))
        assert done.returncode == 0, f"{step.command}\n{done.stderr}"
        printed = {label(line) for line in done.stdout.splitlines()}
        assert {label(line) for line in step.shown if line != "..."} <= printed | {label(step.command)}, step.command

    def _spelled_out(self, command: str) -> str:
        if command.startswith("make "):
            return "\n".join(recipe(command))
        if " explain " in command:
            return re.sub(r"\b[0-9a-f]{24}\b", self._somebody(), command)
        return command

    def _somebody(self) -> str:
        asked = "etl sql configs/sandbox.toml 'select min(contact_id) as id from contacts where is_contact' --json"
        return self.execute(asked).stdout.split('"')[-2]


def recipe(command: str) -> list[str]:
    """What `make TARGET` would do, without the set-up before it; the tests do not start themselves."""
    if command == "make help":
        return [f"make -s -C {ROOT} help"]
    planned = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603, S607
    lines = [line for line in planned.stdout.splitlines() if line.startswith(".venv/bin/") and " pip " not in line]
    return [f"echo '{line}'" if "pytest" in line else f"echo '{line}' && {line}" for line in lines]


def label(line: str) -> tuple[str, ...]:
    """The words of a line of output before its first figure; rules are no words."""
    words = re.split(r"\d", line)[0].split()
    return tuple(word for word in words if word.strip("─┌┬┐├┼┤└┴┘="))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader in a fresh copy of what the commands need."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(BIN)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ETL_", "ELEAPI_"))}
    with live(contacts=300, nasty_share=0.0) as service:
        config = tmp_path / "configs" / "eleapi.toml"
        text = config.read_text()
        assert SERVICE in text
        config.write_text(text.replace(SERVICE, service.url))
        yield Reader(tmp_path, {**clean, "PATH": f"{BIN}:{clean['PATH']}", "ELEAPI_TOKEN": TOKEN})


@pytest.mark.timeout(120)
def test_commands_do_what_the_readme_shows(reader: Reader) -> None:
    """Whoever types every command from top to bottom sees what is printed there, figures and times excepted."""
    taken = list(steps())
    assert {step.command for step in taken} >= {"make run", "make test", "etl run configs/eleapi.toml"}
    for step in taken:
        if not step.command.startswith("export "):
            reader.follow(step)
    of_files, of_the_library = (reader.execute('python -c "$PROGRAM"', PROGRAM=program) for program in blocks("python"))
    assert re.fullmatch(r"[\d,]+ contacts, \d+ columns\n", of_files.stdout), of_files.stderr
    assert re.match(r"\d+\n┌", of_the_library.stdout), of_the_library.stderr


def test_cron_script_is_quiet_when_all_is_well(reader: Reader) -> None:
    """The script for cron prints nothing after a complete run, tells what went wrong otherwise, and keeps the code."""
    (script,) = (text for text in blocks("sh") if text.startswith("#!"))
    (reader.folder / "token").write_text(TOKEN)
    here = script.replace("cd /srv/etl", f"cd '{reader.folder}'").replace("/etc/etl/eleapi.token", "token")
    well = reader.execute(here)
    assert (well.returncode, well.stdout, well.stderr) == (0, "", "")
    (reader.folder / "token").write_text("0" * 24)
    badly = reader.execute(here)
    assert badly.returncode == errors.AuthError.exit_code
    assert "ended with exit code 10" in badly.stdout


def test_systemd_units_name_what_exists() -> None:
    """The service runs a command of ours with a configuration of ours, and its exit codes are ours."""
    service, timer = (ConfigParser(strict=False, interpolation=None) for _ in range(2))
    for unit, text in zip((service, timer), blocks("ini"), strict=True):
        unit.read_string(text)
    assert _runs(service["Service"]["ExecStart"].split()[1:])
    assert _numbers(service["Service"]["RestartPreventExitStatus"]) <= CODES
    assert _numbers(service["Service"]["SuccessExitStatus"]) <= CODES
    assert timer["Timer"]["Persistent"] == "true"


def test_cronjob_fits_the_image() -> None:
    """The CronJob forbids overlap, and its user, volume, arguments and exit codes are those of the image."""
    (text,) = blocks("yaml")
    image = (ROOT / "Dockerfile").read_text()
    value = dict(re.findall(r"^\s*(\w+): (.+)$", text, re.MULTILINE))
    assert value["concurrencyPolicy"] == "Forbid"
    assert _runs(re.findall(r"[^\[\], ]+", value["args"]))
    assert _numbers(value["values"]) <= CODES
    assert f"USER {value['runAsUser']}:{value['runAsGroup']}\n" in image
    assert "VOLUME /data\n" in image
    assert "mountPath: /data}" in text


def _runs(words: list[str]) -> bool:
    command, config = words
    return command in COMMANDS and (ROOT / config).is_file()


def _numbers(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", text)}


def test_configurations_of_the_readme_load(tmp_path: Path) -> None:
    """Every configuration shown is one that `etl` accepts."""
    shown = blocks("toml")
    assert len(shown) == 2
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert load(path, environ={}).accounts


def test_keys_named_in_the_readme_exist() -> None:
    """Every `section.key` is a key of the configuration."""
    sections: Mapping[str, type] = {
        "extract": Extract,
        "http": Http,
        "guard": Guard,
        "sinks.duckdb": DuckDBTarget,
        "sinks.parquet": ParquetTarget,
    }
    known = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    named = set(re.findall(rf"(?<![\w.])(?:{'|'.join(sections)})\.[a-z_]+", README))
    assert named - {"sinks.duckdb", "sinks.parquet"} <= known
    assert len(named) > 5


def test_exit_codes_are_those_of_the_code() -> None:
    """The table has one row for each exit code, and no other."""
    told = [int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)]
    assert told == sorted(CODES)


def test_every_command_and_option_is_told() -> None:
    """The table of commands has a row for each command, which names its options; no command or option is invented."""
    rows = dict(re.findall(r"^\| `etl (\w+)[^`]*` \| (.*) \|$", section("Commands"), re.MULTILINE))
    assert rows.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for option in options - {"--json", "--help", "--set"}:
            assert option in rows[name], f"etl {name} {option}"
        used = re.findall(rf"\betl {name}\b([^`\n|]*)", README)
        assert {option for words in used for option in re.findall(r"--[a-z-]+", words)} <= options


def test_map_names_every_folder() -> None:
    """The map of the package has every folder and every single module once, and none that is gone."""
    (text,) = re.findall(r"```text\n(.*?)```", section("Map of the package"), re.DOTALL)
    found = {path.stem for path in (ROOT / "etl").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(line.split()[0] for line in text.splitlines()) == sorted(found - {"__init__", "__main__"})


def test_links_lead_somewhere() -> None:
    """Every link of the README leads to a heading or to a file."""
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.removeprefix("#") in headings if target.startswith("#") else (ROOT / target).is_file(), target


def test_version_is_one() -> None:
    """The package, the changelog and the image of the README have one version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"image: etl:{version}\n" in README
