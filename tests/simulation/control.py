"""The control arm: plain paging under the same schedules, which must lose contacts (otherwise the oracle is blind)."""

from __future__ import annotations

from dataclasses import dataclass

from etl.api.client import Client
from etl.api.request import Query
from etl.api.response import Page
from etl.extract.pages import PageScan, scan_pages
from etl.sandbox.service import Service
from etl.sandbox.world import World
from tests.simulation import loop
from tests.simulation.contact import versions
from tests.simulation.personality import Personality
from tests.simulation.weather import Weather, peopled
from tests.simulation.wire import START, Wire, let_pass, now


@dataclass(slots=True)
class Walked:
    """Results of plain page scans of both lists, one for every run of the schedule."""

    contacts: int = 0
    """Contacts that existed throughout a scan, summed over the scans."""
    lost: int = 0
    """Those of them that were on no page."""
    changes: int = 0
    """Changes during the scans that moved rows of the lists."""
    seconds: float = 0.0

    @property
    def lively(self) -> bool:
        """Whether rows moved more often than once a second."""
        return self.changes > self.seconds


def control(personality: Personality) -> Walked:
    """Export a personality's account by plain paging, once for each run of its schedule."""
    shuffle = personality.draw("tasks") if personality["shuffled_tasks"] else None
    return loop.run(_schedule(peopled(personality, START), personality), shuffle=shuffle)


async def _schedule(world: World, personality: Personality) -> Walked:
    weather, walked, moving = Weather(world, personality), Walked(), _moving(personality)
    wire = Wire(Service(world), weather, personality["seconds"], personality.draw("control"))
    client = Client(wire, account="main", concurrency=personality["concurrency"])
    client.adopt(first_page=personality["page_base"])
    for _ in range(1 + len(personality["chain"])):
        began, before = now(), len(world.truth.events)
        weather.blow(personality.rate, began, personality.most)
        seen = await _walk(client, repeats=personality["past_end"] == "repeat")
        weather.advance(now())
        stayed = {key for key in world.existed_throughout(began, now()) if not key.startswith("#")}
        walked.contacts += len(stayed)
        walked.lost += len(stayed - seen)
        walked.changes += sum(event.kind in moving for event in world.truth.events[before:])
        walked.seconds += now() - began
        await let_pass(personality, weather)
    return walked


def _moving(personality: Personality) -> set[str]:
    """The events that move rows in this server's lists: not edits, nor deletions that stay listed."""
    kinds = {"insert"}
    if personality["soft_delete"] != "listed":
        kinds.add("delete")
    if personality["is_contact"] != "same":
        kinds.add("flip")
    if personality["sort"] == "last_seen_desc":
        kinds.add("touch")
    return kinds


async def _walk(client: Client, *, repeats: bool) -> set[str | None]:
    """The ids that a page scan of both lists shows."""
    seen: set[str | None] = set()

    async def receive(page: Page) -> None:
        seen.update(row.id for row in versions(page))

    for is_contact in (False, True):
        await scan_pages(client, Query(is_contact), receive, PageScan(repeats))
    return seen
