"""Changes in the account while it is read and between runs: events at virtual times, drawn from the seed.

A lead becomes a contact and never the other way round; the exporter promises to handle that direction.
"""

from __future__ import annotations

import math
from dataclasses import replace

from etl.sandbox.contacts import Contact
from etl.sandbox.world import World
from tests.simulation.personality import MIXES, Personality

BACKDATED = 40 * 86_400.0
"""Maximum age in seconds of the `createdAt` of a backdated import."""
MORTALS = 2
"""One contact in this many can be deleted; the others stay, and the oracle detects losses among them."""
CHANGES = ("touch", "edit", "delete", "presence")
"""Events that change one living contact; most others add contacts."""


def peopled(personality: Personality, start: float) -> World:
    """The account at the start: one contact in five is a lead, plus the share that the personality adds."""
    world, draw = World(personality.settings, start), personality.draw("leads")
    for contact in world.account.living().values():
        if draw.random() < personality["leads"]:
            world.account.put("flip", replace(contact, is_contact=False), start)
    return world


class Weather:
    """Creates events in a world; times are seconds since 1970 and never go back."""

    def __init__(self, world: World, personality: Personality) -> None:
        self.world = world
        self.happened = 0
        self._draw = personality.draw("weather")
        self._malice: float = personality["malice"]
        self._import_size = max(2, int(personality["page_size"] * self._draw.choice((0.4, 0.9, 1.5, 2.5))))
        self._crowded = personality.settings.contacts * 1.3 + 10
        mix = MIXES[personality["mix"]]
        self._kinds, self._weights = list(mix), list(mix.values())
        self._flipped: set[str] = set()
        self._rate = 0.0
        self._next = math.inf
        self._lull = 0

    def blow(self, rate: float, now: float, most: int) -> None:
        """From `now` on, create `rate` events a second, and none after `most` of them."""
        self.advance(now)
        self._rate = rate
        self._lull = self.happened + most
        self._next = now + self._pause()

    def advance(self, now: float) -> None:
        """Create all events that are due."""
        while self._next <= now:
            at = self._next
            self._next += self._pause()
            self._happen(self._kind(), self.world.account.pick(self._draw.random()), at)
        self.world.advance(now)

    def strike(self, body: bytes, now: float) -> None:
        """With the personality's probability of malice, change a contact shown in the response, at that very moment."""
        if self.happened < self._lull and self._draw.random() < self._malice:
            start = body.find(b'"_id":"', self._draw.randrange(max(1, len(body))))
            if start > 0:
                shown = body[start + 7 : body.find(b'"', start + 7)].decode()
                self._happen(self._kind(), self.world.account.find(shown), now)

    def _pause(self) -> float:
        return self._draw.expovariate(self._rate) if self._rate and self.happened < self._lull else math.inf

    def _kind(self) -> str:
        return self._draw.choices(self._kinds, self._weights)[0]

    def _happen(self, kind: str, whom: Contact | None, at: float) -> None:
        self.happened += 1
        if kind == "flip":
            self._flip(at)
        elif kind == "restore":
            self._restore(at)
        elif kind not in CHANGES and len(self.world.account.living()) < self._crowded:
            self._arrive(kind, at)
        elif whom is not None:
            self._change(kind, whom, at)

    def _change(self, kind: str, whom: Contact, at: float) -> None:
        """Change a contact; touch it if it must not be deleted, or if the account is too crowded for a new one."""
        if kind == "delete" and whom.serial % MORTALS == 0:
            self.world.delete(whom.id, at)
        elif kind in ("edit", "presence"):
            self.world.change(kind, whom.id, at)
        else:
            self.world.touch(whom.id, at)

    def _flip(self, at: float) -> None:
        living = self.world.account.living().items()
        if leads := [key for key, contact in living if not contact.is_contact and key not in self._flipped]:
            chosen = self._draw.choice(leads)
            self._flipped.add(chosen)
            self.world.flip(chosen, at)

    def _restore(self, at: float) -> None:
        if deleted := list(self.world.account.deleted):
            self.world.restore(self._draw.choice(deleted), at)

    def _arrive(self, kind: str, at: float) -> None:
        if kind in ("insert", "lead"):
            self.world.insert(at, is_contact=False if kind == "lead" else None)
            return
        created = at - self._draw.random() * BACKDATED if kind == "backdated" else at
        self.happened += len(self.world.import_many(self._import_size, created, at)) - 1
