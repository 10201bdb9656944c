"""`etl docs`: the pages that come with the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.pages import PAGES


def docs(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `etl docs` in a folder that has nothing to do with the package."""
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "etl", "docs", *words], cwd=folder, capture_output=True, text=True, check=False
    )


def test_topics_are_listed_with_one_line_each(tmp_path: Path) -> None:
    """Without a topic, every page is listed on one line that fits a terminal."""
    done = docs(folder=tmp_path)
    listed = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert (done.returncode, [name for name, _ in listed]) == (0, sorted(PAGES))
    assert max(map(len, done.stdout.splitlines())) <= 100
    document = json.loads(docs("--json", folder=tmp_path).stdout)
    assert [[page["topic"], page["title"]] for page in document["topics"]] == listed


def test_a_page_is_printed_as_it_is(tmp_path: Path) -> None:
    """With a topic, the page is printed unchanged."""
    assert docs("tables", folder=tmp_path).stdout == PAGES["tables"]
    assert json.loads(docs("tables", "--json", folder=tmp_path).stdout)["text"] == PAGES["tables"]


def test_an_unknown_topic_is_a_usage_error(tmp_path: Path) -> None:
    """An unknown topic exits with 2 and names the nearest topic and all others; a misplaced token is not repeated."""
    done = docs("tabels", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean tables?" in done.stderr
    assert all(name in done.stderr for name in PAGES)
    assert "5eed5eed5eed5eed5eed5eed" not in docs("5eed5eed5eed5eed5eed5eed", folder=tmp_path).stderr
