"""The simulated account across processes, and the server as a process."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from etl.sandbox.lifetime import alive
from etl.sandbox.settings import Settings
from etl.sandbox.world import World

START = 1_760_000_000.0
TINY = Settings(contacts=120, small=True, nasty_share=0)


def test_state(tmp_path: Path) -> None:
    """With `state` the account persists: a later process sees the changes made since."""
    settings = replace(TINY, state=str(tmp_path / "deep" / "account.json"), inserts=0.5, touches=1, deletes=0.2)
    first = alive(settings, START)
    later = alive(settings, START + 1000)
    first.advance(START + 1000)
    assert later.start == START
    assert later.contacts(0) == first.contacts(0) != World(settings, START).contacts(0)
    assert oct((tmp_path / "deep" / "account.json").stat().st_mode)[-3:] in ("600", "644")
    with pytest.raises(ValueError, match="another account"):
        alive(replace(settings, seed=9), START)


def test_an_old_account_replays_a_bounded_past(tmp_path: Path) -> None:
    """A year of ten events a second is opened in seconds: the rate falls with age, identically in every process."""
    settings = replace(TINY, contacts=10, state=str(tmp_path / "state"), edits=10_000)
    alive(settings, START)
    world = alive(settings, START + 100)
    assert 25_000 < world.truth.counts["edit"] < 120_000
    assert world.truth.events == []


def test_run_serves_until_it_is_stopped() -> None:
    """`run` prints its URL, serves, and ends silently on SIGTERM."""
    code = (
        "from etl.sandbox.server import run; from etl.sandbox.settings import Settings;"
        "run(Settings(contacts=5), 0, lambda url: print(url, flush=True))"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, b"")
