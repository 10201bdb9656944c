"""The progress of a run on a terminal: rows that are redrawn in place, with as much as its width allows.

Each account has one. Of many, only those that are being read or have failed do, and a last row has the totals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID
from rich.progress import Progress as Rows
from rich.table import Table
from rich.text import Text

from etl.cli.totals import totals
from etl.model import Progress

RATE_SECONDS = 5.0
"""The rate, and the time left, are those of the last seconds."""
LONGEST_NAME = 16
MOST_ROWS = 16
"""As many as are read at once by default."""
LEAST_FOR_REQUESTS, LEAST_FOR_BAR, LEAST_FOR_RATE = 90, 70, 56
"""Columns that a terminal must have for them."""


class AccountRows(Rows):
    """The rows of all accounts; a context manager, which removes them at its end."""

    def __init__(self, console: Console, clock: Callable[[], float] | None = None) -> None:
        """`clock` replaces the monotonic clock of the console."""
        # Rich asks for the table before it has stored the console.
        self._screen, self._sum = console, ""
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
        """Redraw; of more than `MOST_ROWS` accounts, at most that many have a row, those that are read now first."""
        chosen = [now for now in progress if now.failed or now.phase not in {"waiting", "read"}]
        self._sum = ""
        if len(progress) > MOST_ROWS:
            chosen = sorted((now for now in chosen if now.failed or now.is_reading), key=lambda now: now.failed)
            chosen = chosen[:MOST_ROWS]
            self._sum = _sum(progress)
        for now in chosen:
            if now.account not in self._rows:
                self._rows[now.account] = self.add_task("", total=now.expected, now=now)
            completed, total = (0, 1) if now.failed else (now.contacts, now.expected)
            self.update(self._rows[now.account], completed=completed, total=total, now=now)
        for name in self._rows.keys() - {now.account for now in chosen}:
            self.remove_task(self._rows.pop(name))
        self.refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The table, with the columns for which there is room."""
        width, table = self._screen.width, Table.grid(padding=(0, 1))
        for name in ("account", "phase"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        least = {"bar": LEAST_FOR_BAR, "count": 0, "rate": LEAST_FOR_RATE, "requests": LEAST_FOR_REQUESTS, "left": 0}
        for name, columns in least.items():
            if width >= columns:
                table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right")
        for task in self.tasks:
            now: Progress = task.fields["now"]
            name = now.account if len(now.account) <= LONGEST_NAME else f"{now.account[: LONGEST_NAME - 1]}…"
            speed = (now.is_reading and task.speed) or 0.0
            known = now.expected is not None and now.contacts <= now.expected
            left = ""
            if known and speed and now.phase == "windows":
                minutes, seconds = divmod(round(((now.expected or 0) - now.contacts) / speed), 60)
                left = f"{minutes}:{seconds:02} left"
            cells: dict[str, RenderableType] = {
                "account": Text(name),
                "phase": "failed" if now.failed else now.phase,
                "bar": BarColumn(bar_width=width // 5).render(task),
                "count": f"{now.contacts:,} of {now.expected:,}" if known else f"{now.contacts:,}",
                "rate": f"{speed:,.0f}/s" if speed else "",
                "requests": f"{now.pages:,} requests",
                "left": left,
            }
            table.add_row(*(cells[str(column.header)] for column in table.columns))
        yield table
        if self._sum:
            yield Text(self._sum, no_wrap=True, overflow="ellipsis")


def _sum(progress: Sequence[Progress]) -> str:
    """One line for all accounts, the most important numbers first."""
    found = totals(progress)
    parts = [f"{found.read:,} of {found.accounts:,} accounts read"]
    parts += [f"{found.failed:,} failed"] if found.failed else []
    parts += [f"{found.contacts:,} contacts", f"{found.requests:,} requests"]
    return ", ".join(parts + [now.phase for now in progress[-1:] if now.phase in {"merge", "publish"}])


def account_rows(stream: TextIO) -> AccountRows:
    """Rows on the terminal that `stream` writes to."""
    return AccountRows(Console(file=stream, highlight=False))
