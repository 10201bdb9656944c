"""The progress of a run on a terminal: one row per account, redrawn in place, with as much as its width allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TaskID
from rich.progress import Progress as Rows
from rich.table import Column
from rich.text import Text

from etl.model import Progress

RATE_SECONDS = 5.0
"""The rate, and the time left, are those of the last seconds."""
LEAST_FOR_BAR, LEAST_FOR_RATE = 70, 56
"""Columns that a terminal must have for them."""


class Cell(ProgressColumn):
    """A cell with plain text, cut if the terminal is too narrow for it."""

    def __init__(self, text: Callable[[Task], str], *, right: bool = False) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis", justify="right" if right else "left"))
        self._text = text

    def render(self, task: Task) -> Text:
        """The text for one account."""
        return Text(self._text(task))


class AccountRows(Rows):
    """The rows of all accounts; a context manager, which removes them at its end."""

    def __init__(self, console: Console, clock: Callable[[], float] | None = None) -> None:
        """`clock` replaces the monotonic clock of the console."""
        self._screen = console  # Rich asks for the table before it has stored the console.
        super().__init__(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            speed_estimate_period=RATE_SECONDS,
            get_time=clock,
        )
        self._rows: dict[str, TaskID] = {}

    def show(self, progress: Sequence[Progress]) -> None:
        """Redraw: these accounts, and no others."""
        for now in progress:
            if now.account not in self._rows:
                self._rows[now.account] = self.add_task("", total=now.expected, now=now)
            completed, total = (0, 1) if now.failed else (now.contacts, now.expected)
            self.update(self._rows[now.account], completed=completed, total=total, visible=True, now=now)
        for name in self._rows.keys() - {now.account for now in progress}:
            self.update(self._rows[name], visible=False)
        self.refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The table, with the columns for which there is room."""
        width = self._screen.width
        self.columns = (
            Cell(account_cell),
            Cell(phase_cell),
            *([BarColumn(bar_width=width // 5)] if width >= LEAST_FOR_BAR else []),
            Cell(count_cell, right=True),
            *([Cell(rate_cell, right=True)] if width >= LEAST_FOR_RATE else []),
            Cell(left_cell, right=True),
        )
        return super().get_renderables()


def account_rows(stream: TextIO) -> AccountRows:
    """Rows on the terminal that `stream` writes to."""
    return AccountRows(Console(file=stream, highlight=False))


def account_cell(task: Task) -> str:
    """The name of the account, at most as long as the narrowest terminal can show."""
    name: str = task.fields["now"].account
    return name if len(name) <= 16 else f"{name[:15]}…"


def phase_cell(task: Task) -> str:
    """What is being done for the account."""
    now: Progress = task.fields["now"]
    return "failed" if now.failed else now.phase


def count_cell(task: Task) -> str:
    """Contacts received, of how many if that is known."""
    now: Progress = task.fields["now"]
    known = now.expected is not None and now.contacts <= now.expected
    return f"{now.contacts:,} of {now.expected:,}" if known else f"{now.contacts:,}"


def rate_cell(task: Task) -> str:
    """Contacts a second, while they are received."""
    now: Progress = task.fields["now"]
    return f"{task.speed:,.0f}/s" if task.speed and now.is_reading else ""


def left_cell(task: Task) -> str:
    """The time left, if the number of contacts is known and their windows are being read."""
    now: Progress = task.fields["now"]
    if not task.speed or now.expected is None or now.contacts > now.expected or now.phase != "windows" or now.failed:
        return ""
    minutes, seconds = divmod(round((now.expected - now.contacts) / task.speed), 60)
    return f"{minutes}:{seconds:02} left"
