"""The progress rows of a run on a terminal, at every width, and the log lines above them."""

from __future__ import annotations

import os
import pty
import re
import sys
from dataclasses import replace
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from struct import pack
from subprocess import PIPE, Popen
from termios import TIOCSWINSZ

import pytest
from rich.console import Console

from etl.cli.rows import AccountRows
from etl.model import Progress
from tests.support.live import Job, live

READING = Progress("main", 1200, 30, 5, 4000, "windows")
LONG = Progress("an-account-with-a-very-long-name-indeed", 1_234_567, 30, 5, 2_345_678, "cross-check")


def rows_of(progress: list[Progress], width: int) -> list[str]:
    """The rows after two seconds, with 100 contacts received in each of them."""
    screen, seconds = StringIO(), [0.0]
    console = Console(file=screen, width=width, color_system=None)
    rows = AccountRows(console, clock=lambda: seconds[0])
    for missing in (200, 100, 0):
        rows.show([replace(now, contacts=max(0, now.contacts - missing)) for now in progress])
        seconds[0] += 1
    screen.truncate(0)
    console.print(rows.get_renderable())
    return screen.getvalue().strip("\0\n").splitlines()


def test_a_row_has_phase_count_rate_and_time_left() -> None:
    """The time left follows from the rate of the last seconds: 2,800 contacts at 100/s take 28 s."""
    [row] = rows_of([READING], 100)
    assert re.fullmatch(r"main windows\s+━\S*\s*━*\s+1,200 of 4,000\s+100/s\s+30 requests\s+0:28 left\s*", row), row


@pytest.mark.parametrize(("width", "bar", "rate"), [(110, True, True), (69, False, True), (55, False, False)])
def test_a_narrow_terminal_shows_less(width: int, *, bar: bool, rate: bool) -> None:
    """There is no bar below 70 columns and no rate below 56; count and time left are always shown."""
    [row] = rows_of([READING], width)
    assert ("━" in row, "/s" in row) == (bar, rate)
    assert "1,200 of 4,000" in row
    assert "0:28 left" in row


@pytest.mark.parametrize("width", range(30, 130, 7))
def test_each_account_has_one_line(width: int) -> None:
    """Each account has one line at any width, however long its name and numbers are."""
    rows = rows_of([READING, LONG, replace(READING, account="third", phase="merge")], width)
    assert len(rows) == 3
    assert all(len(row) <= width for row in rows)


def test_what_is_not_known_is_not_shown() -> None:
    """Total and time left are omitted if the total is unknown, and the rate is omitted while nothing is read."""
    [row] = rows_of([replace(READING, expected=None)], 100)
    assert " of " not in row
    assert "left" not in row
    [row] = rows_of([replace(READING, contacts=5000)], 100)
    assert "5,000 " in row
    assert " of " not in row
    [row] = rows_of([replace(READING, phase="publish")], 100)
    assert "publish" in row
    assert "/s" not in row


def test_a_failed_account_is_shown_as_failed() -> None:
    """A failed account is shown as failed next to accounts that are still being read."""
    failed, _ = rows_of([replace(READING, failed=True), replace(READING, account="second")], 100)
    assert failed.split()[:2] == ["main", "failed"]
    assert "left" not in failed


def test_an_account_that_is_shown_no_more_has_no_row() -> None:
    """An account that is no longer reported has no row."""
    screen = StringIO()
    rows = AccountRows(Console(file=screen, width=100))
    rows.show([READING, replace(READING, account="second")])
    rows.show([READING])
    assert [task.fields["now"].account for task in rows.tasks] == ["main"]


def test_of_many_accounts_a_few_have_a_row() -> None:
    """Of 500 accounts, those that are being read and some that failed have a row, and the last row has the totals."""
    read = [Progress(f"r{number}", 100, 20, 0, 100, "read") for number in range(300)]
    failed = [Progress(f"f{number}", 1, 5, 0, None, "windows", failed=True) for number in range(40)]
    reading = [Progress(f"n{number}", 50, 10, 2, 100, "windows") for number in range(10)]
    waiting = [Progress(f"w{number}", 0, 0, 0, None, "waiting") for number in range(150)]
    screen = StringIO()
    console = Console(file=screen, width=100, color_system=None)
    rows = AccountRows(console)
    rows.show([*failed, *read, *reading, *waiting])
    console.print(rows.get_renderable())
    *shown, last = screen.getvalue().splitlines()
    assert [row.split()[0] for row in shown] == [f"n{number}" for number in range(10)] + [f"f{n}" for n in range(6)]
    assert last == "300 of 500 accounts read, 40 failed, 30,540 contacts, 6,300 requests"
    screen.truncate(0)
    rows.show([replace(now, phase="merge") for now in read])
    console.print(rows.get_renderable())
    assert screen.getvalue().strip("\0\n") == "300 of 300 accounts read, 30,000 contacts, 6,000 requests, merge"


def on_a_terminal(job: Job, columns: int, *words: str) -> tuple[int, str]:
    """Exit code and screen of a command on a terminal of this width; stdout is a pipe."""
    master, terminal = pty.openpty()
    ioctl(terminal, TIOCSWINSZ, pack("HHHH", 24, columns, 0, 0))
    environment = {**job.environment(), "TERM": "xterm", "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "etl", *words, str(job.config())]
    with Popen(command, stdin=terminal, stdout=PIPE, stderr=terminal, env=environment, cwd=job.folder) as process:  # noqa: S603
        os.close(terminal)
        screen = b""
        try:
            while more := os.read(master, 65_536):
                screen += more
        except OSError:  # the terminal is closed: the command has ended
            pass
        process.communicate(timeout=60)
    os.close(master)
    return process.returncode, screen.decode()


@pytest.mark.parametrize("columns", [110, 48])
def test_a_run_on_a_terminal(columns: int, tmp_path: Path) -> None:
    """A run shows rows with phases; a failed account, an unbroken warning and the error stay on the screen."""
    with live(contacts=400, nasty_share=0, small=True, latency=0.1) as server, live(contacts=1) as other:
        job = Job(tmp_path, {"main": server.url, "bad": other.url}, {"bad": "0" * 24}, "[extract]\nconcurrency = 2\n")
        server.ahead = 3600.0
        code, screen = on_a_terminal(job, columns, "run")
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen).replace("\r", "\n")
    assert code == 10
    assert re.search(r"^main +(probe|cross-check|windows|sweep) ", text, re.MULTILINE)
    assert re.search(r"^bad +failed", text, re.MULTILINE)
    assert ("━" in text) is (columns >= 70)
    assert "account.failed" in text
    assert len(re.findall("clocks.differ", text)) == 1
    assert "error 10: " in text
    assert text.isprintable() or not {one for one in text if not one.isprintable()} - {"\n"}
