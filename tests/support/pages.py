"""The README and the pages of `etl docs` as data: their code blocks, and a folder in which they are followed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "etl" / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = {"README": README, **PAGES}
"""All of them by name, in the order in which a reader reads them."""
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Step:
    """A command that a page shows, and the lines that it shows as its output."""

    command: str
    shown: tuple[str, ...] = ()


def blocks(language: str, text: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(title: str, text: str) -> str:
    """The text under a heading, down to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their headings."""
    lines = re.findall(r"^(\|.*\|)$", re.sub(r"^\|.*\|\n\|[-:| ]+\|$", "", text, flags=re.MULTILINE), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def numbers(text: str) -> set[int]:
    """The whole numbers in a text."""
    return {int(number) for number in re.findall(r"\d+", text)}


def steps(text: str) -> Iterator[Step]:
    """Every command of a page in order."""
    for language, block in re.findall(r"^```(sh|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "console":
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, *shown = part.splitlines()
                yield Step(command, tuple(shown))
        else:
            yield from (Step(command) for command in block.splitlines())


@dataclass(frozen=True, slots=True)
class Reader:
    """A folder with what the commands need; the vendor's address in its configuration leads to a sandbox."""

    folder: Path
    environment: dict[str, str]

    def execute(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the reader's folder."""
        return subprocess.run(  # noqa: S603 - the commands of our own pages
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def program(self, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program in the reader's folder."""
        return self.execute('python -c "$PROGRAM"', PROGRAM=text, **environment)

    def follow(self, step: Step) -> None:
        """Do one step, and compare its output with what the page shows."""
        done = self.execute(self._spelled_out(step.command))
        assert done.returncode == 0, f"{step.command}\n{done.stderr}"
        printed = {label(line) for line in done.stdout.splitlines()}
        assert {label(line) for line in step.shown if line != "..."} <= printed | {label(step.command)}, step.command

    def _spelled_out(self, command: str) -> str:
        if command.startswith("make "):
            return "\n".join(recipe(command))
        if " explain " not in command:
            return command
        asked = "etl sql configs/sandbox.toml 'select min(contact_id) as id from contacts where is_contact' --json"
        return re.sub(r"\b[0-9a-f]{24}\b", self.execute(asked).stdout.split('"')[-2], command)


def recipe(command: str) -> list[str]:
    """The commands of `make TARGET`, without the set-up before them; the tests do not start themselves."""
    if command == "make help":
        return [f"make -s -C {ROOT} help"]
    planned = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603, S607
    lines = [line for line in planned.stdout.splitlines() if line.startswith(".venv/bin/") and " pip " not in line]
    return [f"echo '{line}'" if "pytest" in line else f"echo '{line}' && {line}" for line in lines]


def label(line: str) -> tuple[str, ...]:
    """The words of a line of output before its first figure; rules are no words."""
    words = re.split(r"\d", line)[0].split()
    return tuple(word for word in words if word.strip("─┌┬┐├┼┤└┴┘="))
