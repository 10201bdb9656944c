"""Reading windows: what a second look at a window proves."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count

import pytest

from etl.api.client import Client
from etl.api.request import Body
from etl.api.response import HttpResponse, Page
from etl.extract.capabilities import PageSizes
from etl.extract.checkpoint import NullCheckpoint, Resumption
from etl.extract.fetch import WindowReader
from etl.extract.windows import Accepted, Window
from tests.extract.test_crosscheck_log import START
from tests.simulation.intake import MemoryCheckpoint

SWEPT = 1_748_736_000_000
"""2025-06-01, in milliseconds."""


def second(number: int) -> str:
    """A time in the first minute of 1970."""
    return f"1970-01-01T00:00:{number:02d}.000Z"


class Appearing:
    """A server that lists 16 contacts, and from its second answer on one more."""

    def __init__(self, last_seen: str) -> None:
        """`last_seen` is that of the contact that appears."""
        self._all = [{"_id": f"{n}", "createdAt": second(n), "lastSeenAt": second(n)} for n in range(16)]
        self._late = {"_id": "late", "createdAt": second(5), "lastSeenAt": last_seen}
        self._answers = count()

    async def __call__(self, body: Body) -> HttpResponse:
        """The contacts of the range asked for."""
        dates = body["createdAt"]
        assert isinstance(dates, dict)
        shown = [*self._all, self._late] if next(self._answers) else self._all
        data = [one for one in shown if dates["startAt"] <= one["createdAt"] <= dates["endsAt"]]
        return HttpResponse(200, {}, json.dumps({"success": True, "data": data}).encode())


@pytest.mark.parametrize(
    ("last_seen", "doubted"),
    [(second(30), True), ("2025-05-31T23:59:59.999Z", True), ("2025-06-01T00:00:00.000Z", False)],
)
async def test_a_contact_that_appears_is_a_doubt_unless_the_sweep_reads_it(last_seen: str, doubted: bool) -> None:
    """A page that lacked a contact proves nothing, unless that contact moved to the list just now (A9)."""
    ids = set[bytes]()

    async def receive(page: Page) -> None:
        ids.update(page.ids)

    client = Client(Appearing(last_seen), account="main", concurrency=1)
    capabilities = replace(START.capabilities, page_sizes=PageSizes(50, 50))
    reader = WindowReader(client, capabilities, receive, NullCheckpoint(), known_before=False, swept=SWEPT)
    await reader.read([Window("createdAt", True, 0, 60_000)])
    assert b'"late"' in ids
    assert bool(reader.unproven) is doubted


async def test_a_window_of_few_updates_is_read_twice() -> None:
    """Nothing else of a run shows an update, so one empty or stale answer must not decide; once in a list (A43)."""
    ids, answers = set[bytes](), count()

    async def receive(page: Page) -> None:
        ids.update(page.ids)

    async def server(_: Body) -> HttpResponse:
        data = [{"_id": "touched", "createdAt": second(1), "lastSeenAt": second(5)}] if next(answers) == 1 else []
        return HttpResponse(200, {}, json.dumps({"success": True, "data": data}).encode())

    reader = WindowReader(Client(server, account="main", concurrency=1), START.capabilities, receive, NullCheckpoint())
    await reader.read([Window("lastSeenAt", True, 0, 60_000)])
    assert ids == {b'"touched"'}
    await reader.read([Window("lastSeenAt", True, 60_000, 120_000), Window("createdAt", True, 0, 60_000)])
    assert next(answers) == 4, "the others are read once"


async def test_a_resumed_run_keeps_what_could_not_be_proven() -> None:
    """What a killed run had doubted is accepted and not read again, so it stays unproven (A9, P4)."""

    async def receive(_: Page) -> None:
        raise AssertionError

    resumption = Resumption(START, [Accepted(Window("createdAt", True, 0, 60_000), 3)], unproven=["a page lacked one"])
    checkpoint = MemoryCheckpoint()
    checkpoint.resumed = resumption
    client = Client(Appearing(second(1)), account="main", concurrency=1)
    reader = WindowReader(client, START.capabilities, receive, checkpoint)
    await reader.complete([Window("createdAt", True, 0, 60_000)])
    assert reader.unproven == ["a page lacked one"]
