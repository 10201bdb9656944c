"""Persists an account between processes: a small file with the time at which it started."""

import json
import os
from pathlib import Path

from etl.sandbox.settings import Settings
from etl.sandbox.world import World

HALVINGS = 20


def started(settings: Settings, now: float) -> float:
    """The start of the account, in seconds since 1970: from the state file, else now, which is then written to it.

    All later events follow from seed and clock. Raises `ValueError` if the file belongs to another account or is
    unusable.
    """
    if not settings.state:
        return now
    path, account = Path(settings.state), {"seed": settings.seed, "contacts": settings.contacts}
    try:
        if not path.exists():
            _write(path, {**account, "start": now})
        known = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be the state file: {error}") from error
    if {name: known.get(name) for name in account} != account:
        raise ValueError(f"{path} is of another account ({known}); delete it to begin a new one")
    return float(known["start"])


def alive(settings: Settings, now: float) -> World:
    """The account as of now, without the log of earlier events; raises as `started` does."""
    world = World(settings, started(settings, now))
    age = now - world.start
    if not age:
        return world
    # Each step holds about as many events as the next (churn.Tide), so the log stays short.
    for halvings in range(HALVINGS, -1, -1):
        world.advance(world.start + age / 2**halvings)
        world.truth.forget()
    return world


def _write(path: Path, known: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(known))
    draft.replace(path)
