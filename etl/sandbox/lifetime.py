"""How an account lives on between processes: a small file with the moment it began."""

import json
import os
from pathlib import Path

from etl.sandbox.settings import Settings
from etl.sandbox.world import World

HALVINGS = 20


def started(settings: Settings, now: float) -> float:
    """When the account began, in seconds since 1970: as the state file says, else now, which is then written there.

    What happened since follows from seed and clock alone. Raises `ValueError` where the file is of another account, or
    none that can be used.
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
    """The account as it is now, without the memory of what happened before; raises what `started` raises."""
    world = World(settings, started(settings, now))
    age = now - world.start
    if not age:
        return world
    # Each step holds about as many events as the next (churn.Tide), so that the log never grows long.
    for halvings in range(HALVINGS, -1, -1):
        world.advance(world.start + age / 2**halvings)
        world.truth.forget()
    return world


def _write(path: Path, known: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(known))
    draft.replace(path)
