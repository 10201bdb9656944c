"""The account changes while it is read, and the change is put between every two requests in turn (FAULTS.md, group M).

One request is one instant here, and the world stands still but for the planted change, so every placement is tried and
each is exact. What random worlds find beside it is in tests/simulation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from etl.api.client import Client
from etl.api.request import Body
from etl.api.response import HttpResponse, Page, Row, id_text
from etl.errors import ContractError
from etl.extract.checkpoint import NullCheckpoint
from etl.extract.crosscheck import FirstSeen, UnmatchedContact
from etl.extract.history import History, NoSnapshot, Timing
from etl.extract.meter import Meter
from etl.extract.pages import SavedScan
from etl.extract.strategy import Extraction, extract
from etl.extract.windows import milliseconds
from etl.sandbox.answer import envelope
from etl.sandbox.settings import Settings
from etl.sandbox.world import World
from etl.sinks.merge import prepare
from tests.support.publishing import brought, contact, day, publication

START = 1_700_000_000.0
TIMING = Timing(visibility_lag=2_000, lookback=1_800_000, cross_check_every=604_800_000, scrub_every=1)
Change = Callable[[World, float], object]


class Memory:
    """A witness log, and everything that arrived, in plain sets."""

    def __init__(self) -> None:
        self.seen: dict[str, UnmatchedContact] = {}
        self.arrived: dict[str, Row] = {}

    scan = 1

    def next_scan(self) -> None:
        """One is enough where everybody has a creation time."""
        raise NotImplementedError

    async def saved_scan(self, is_contact: bool) -> SavedScan:  # noqa: ARG002 - of either list
        """Nobody has walked before."""
        return SavedScan()

    async def resume(self, is_contact: bool, valid: SavedScan) -> None:
        """There is nothing to go on with."""

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """Note what the walk saw."""
        for row in page.rows:
            created, name = milliseconds(row.created_at), id_text(bytes(row.contact_id))
            if created is not None and name is not None:
                self.seen[name] = UnmatchedContact(created, is_contact)

    def end(self, is_contact: bool, end: int | None) -> None:
        """Nobody will ask where."""

    async def save(self) -> None:
        """It is kept anyway."""

    def created(self, is_contact: bool) -> list[int]:
        """The creation times seen in one list."""
        return sorted(one.created for one in self.seen.values() if one.is_contact is is_contact)

    def without_created_at(self) -> dict[str, FirstSeen]:
        """Everybody here has a creation time."""
        return {}

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> list[UnmatchedContact]:
        """What was seen and did not arrive; there is no earlier snapshot here."""
        assert not beyond_snapshot
        return [one for name, one in self.seen.items() if name not in self.arrived and one.created < before]

    async def receive(self, page: Page) -> None:
        """Take an accepted page."""
        for row in page.rows:
            name = id_text(bytes(row.contact_id))
            if name is not None:
                self.arrived[name] = row


class Account:
    """A small account whose requests take 10 ms each; `change` strikes just before request number `at`."""

    def __init__(self, change: Change | None = None, at: int = -1, **settings: object) -> None:
        self.world = World(Settings(**{"contacts": 30, "small": True, "page_size": 6, **settings}), START)  # type: ignore[arg-type]
        self.now = START + 60
        self.world.advance(self.now)
        self.sent: list[Body] = []
        self._change, self._at = change, at

    async def answer(self, body: Body) -> HttpResponse:
        """One atomic read."""
        if len(self.sent) == self._at and self._change is not None:
            self._change(self.world, self.now)
        self.sent.append(body)
        self.now += 0.01
        answer = self.world.answer(body, self.now)
        return HttpResponse(answer.status, answer.headers, answer.body)

    async def read(
        self, memory: Memory, history: History, filters: Mapping[str, object], *, full: bool = True
    ) -> Extraction:
        """Extract once."""
        client = Client(self.answer, account="a", concurrency=1, jitter=lambda: 0.0)
        return await extract(
            client,
            history,
            TIMING,
            memory.receive,
            memory,
            NullCheckpoint(),
            Meter(client),
            full=full,
            filters=filters,
            local_now=int(self.now * 1000),
            shrink_share=0.05,
        )


async def run(account: Account, **filters: object) -> tuple[Extraction, Memory, set[str]]:
    """A first full run: what it says, what it brought, and who was there all the time."""
    memory, begin = Memory(), account.now
    extraction = await account.read(memory, History(), filters)
    account.world.advance(account.now)
    return extraction, memory, account.world.existed_throughout(begin, account.now)


def oldest(world: World, now: float) -> str:
    """The contact created first: a deletion there moves every rank before it in no list, and all after it in one."""
    return min(world.contacts(now))


def swap(world: World, now: float) -> None:
    """One contact goes and another comes in its place, so that every count stays the same."""
    world.delete(oldest(world, now), now)
    world.insert(now)


def backdated(world: World, now: float) -> None:
    """An import whose creation times lie inside windows already read."""
    world.import_many(8, START - 40 * 86_400, now)


def flipped(world: World, now: float) -> None:
    """Five leads become contacts."""
    leads = [name for name, raw in world.contacts(now).items() if b'"isContact":false' in raw]
    for name in sorted(leads)[:5]:
        world.flip(name, now)


def returned(world: World, now: float) -> None:
    """A contact is deleted and at once restored with its old times."""
    name = oldest(world, now)
    world.delete(name, now)
    world.restore(name, now)


@pytest.mark.parametrize("change", [swap, backdated, flipped, returned], ids=lambda change: change.__name__)
async def test_a_change_between_any_two_requests_loses_nobody(change: Change) -> None:
    """M6, M7, M9, M13: whoever was there throughout arrives, wherever the change falls, or the run says otherwise."""
    quiet = Account()
    await run(quiet)
    for at in range(len(quiet.sent) + 1):
        account = Account(change, at)
        extraction, memory, throughout = await run(account)
        lost = throughout - memory.arrived.keys()
        assert not lost or extraction.unproven, f"change before request {at}: {len(lost)} lost"


def replaced(world: World, now: float) -> None:
    """A whole new page 1: an import that is larger than a page, of contacts that are seen just now."""
    world.import_many(20, now, now)


async def test_a_page_that_is_ignored_is_not_taken_for_one_of_its_own_while_the_first_moves() -> None:
    """M6, A16: page 1 replaced between two looks at it differs as page 2 would; believed, it would be a false proof."""
    quiet = Account(ignore_page=True)
    await run(quiet)
    for at in range(len(quiet.sent) + 1):
        account = Account(replaced, at, ignore_page=True, page_size=12)
        extraction, memory, throughout = await run(account)
        assert not extraction.capabilities.honours_page, f"import before request {at}"
        assert extraction.unproven or throughout <= memory.arrived.keys()


async def test_contacts_imported_into_the_past_arrive_with_the_next_full_run() -> None:
    """M6, M15: what an import puts into windows already accepted is found by the run after."""
    account = Account(backdated, at=30)
    await run(account)
    _, memory, throughout = await run(account)
    assert throughout <= memory.arrived.keys()
    assert len(throughout) > 30


@pytest.mark.parametrize("total", ["wrong", "capped", "zero", "negative", "null", "text", "per_page"])
async def test_a_total_of_another_instant_is_never_relied_on(total: str) -> None:
    """M8, A19: the count of a server that counts at another instant than it lists changes nothing."""
    extraction, memory, throughout = await run(Account(total=total))
    assert not extraction.unproven
    assert memory.arrived.keys() == throughout


async def test_no_field_that_can_change_is_used_to_part_the_account() -> None:
    """M11, M14: a full run asks by list and time alone, sets no other filter, and starts no export on the server."""
    account = Account()
    await run(account)
    for body in account.sent:
        asked = {name for name, value in body.items() if value not in ("", [], False, {"startAt": "", "endsAt": ""})}
        assert asked <= {"isContact", "createdAt", "lastSeenAt", "hasOrdered", "page", "isExport"}
        assert body["hasOrdered"] == {"status": False, "lastAt": ""}
        assert body["isExport"] == "none"


async def test_a_filtered_run_claims_no_proof_and_no_coverage() -> None:
    """M14: contacts leave a filtered list by any change, so a filtered export is never taken for the whole account."""
    extraction, _, _ = await run(Account(), status=["OPEN"])
    assert (extraction.mode, extraction.scanned, extraction.coverage) == ("filtered", True, ())


async def test_a_filter_that_is_ignored_later_voids_the_run() -> None:
    """A20, A50: a server that stops honouring its time filter in mid-run is told from an answer outside the window."""

    class NullCheckpoint(Account):
        async def answer(self, body: Body) -> HttpResponse:
            forgotten = {**body, "createdAt": {"startAt": "", "endsAt": ""}}
            return await super().answer(forgotten if len(self.sent) > 40 else body)

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - groups of groups, taken apart below
        await run(NullCheckpoint(contacts=60))
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ContractError)
    assert "does not honour" in error.message


class Known(NoSnapshot):
    """A snapshot of which the creation times (ms) and the lists are known."""

    def __init__(self, contacts: Sequence[tuple[int, bool]]) -> None:
        self._contacts = contacts

    def created(self, is_contact: bool | None) -> Sequence[int]:
        """The creation times, in order."""
        return [at for at, listed in self._contacts if is_contact in (listed, None)]


class Grown(Account):
    """An account of contacts and few leads, as an earlier run left it, with leads that came since then."""

    def __init__(self, leads: int, *, few: int = 2, **settings: object) -> None:
        super().__init__(**{"contacts": 60, "page_size": 12, **settings})
        listed = self.world.contacts(self.now)
        for name in [name for name, raw in listed.items() if b'"isContact":false' in raw][few:]:
            self.world.delete(name, self.now)
        self.watermark = int(self.now * 1000)
        for _ in range(leads):
            self.now += 7.013
            self.world.insert(self.now, is_contact=False)
        self.now += 60

    async def extracted(self, *, full: bool) -> set[str]:
        """Read on from the earlier run; who did not arrive of those that must."""
        memory, begin = Memory(), self.now
        rows = [json.loads(raw) for raw in self.world.contacts(self.now).values()]
        known = sorted((milliseconds(row["createdAt"]) or 0, row["isContact"]) for row in rows)
        snapshot = Known([contact for contact in known if contact[0] < self.watermark])
        history = History(self.watermark, self.watermark, cross_checked_at=self.watermark, snapshot=snapshot)
        extraction = await self.read(memory, history, {}, full=full)
        assert not extraction.unproven
        return self.world.existed_throughout(begin, self.now) - memory.arrived.keys()


SERVERS: dict[str, dict[str, object]] = {
    "nothing past the end": {},
    "the last page again": {"past_end": "repeat"},
    "404": {"past_end": "404"},
    "page ignored": {"ignore_page": True},
    "seconds": {"granularity": "s", "end_bound": "exclusive"},
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("leads_page_size", [5, 12, 40])
@pytest.mark.parametrize("few", [0, 2])
@pytest.mark.parametrize("full", [False, True])
async def test_leads_that_come_in_pages_of_their_own_size_are_all_read(
    server: str, leads_page_size: int, few: int, *, full: bool
) -> None:
    """A52: what a page of leads holds was not to be seen while there were few, and that of contacts says nothing of it.

    They cost a few requests at most, the first as well.
    """
    settings = {"leads_page_size": leads_page_size, **SERVERS[server]}
    quiet = Grown(0, few=few, **settings)
    assert not await quiet.extracted(full=full)
    for leads in (1, 2, 3, 10, 30):
        account = Grown(leads, few=few, **settings)
        assert not await account.extracted(full=full), f"{leads} leads"
        assert len(account.sent) - len(quiet.sent) <= 24 + 3 * leads


async def test_the_manifest_tells_the_page_size_of_each_list() -> None:
    """A52: both sizes stand in `runs.detail`, and the larger one alone, as before there were two."""
    extraction, _, _ = await run(Account(contacts=60, page_size=12, leads_page_size=5))
    found = extraction.capabilities.document()
    sizes = {"contacts": 12, "leads": 5, "cut_contacts": 0, "cut_leads": 0}
    assert (found["page_sizes"], found["page_size"]) == (sizes, 12)


@pytest.mark.parametrize("past_end", ["empty", "repeat", "404"])
async def test_leads_of_one_moment_are_a_page_of_unknown_size_and_still_proven(past_end: str) -> None:
    """A52, M5: as many as were ever seen on a page, and not to be parted: their page 2 shows that they are all."""
    account = Grown(0, few=0, past_end=past_end)
    for _ in range(2):
        account.world.insert(account.now, is_contact=False)
    account.now += 60
    assert not await account.extracted(full=False)


@pytest.mark.parametrize("contacts", [3, 30])
@pytest.mark.parametrize("full", [False, True])
async def test_an_account_that_is_empty_at_the_end_of_a_run_is_told(contacts: int, *, full: bool) -> None:
    """A43: maintenance answers with valid empty lists, whatever is asked; that is no quiet hour."""

    class Maintained(Grown):
        async def answer(self, body: Body) -> HttpResponse:
            reply = await super().answer(body)
            return reply if len(self.sent) < 25 else HttpResponse(200, reply.headers, envelope([]))

    with pytest.raises(AssertionError, match="a list became empty while it was read"):
        await Maintained(5, contacts=contacts).extracted(full=full)


@pytest.mark.parametrize("full", [False, True])
async def test_a_list_of_few_may_become_empty(*, full: bool) -> None:
    """A43: the last leads become contacts while the account is read, and the run is as good as any."""

    def all_flipped(world: World, now: float) -> None:
        for name, raw in world.contacts(now).items():
            if b'"isContact":false' in raw:
                world.flip(name, now)

    account = Grown(1)
    account._change, account._at = all_flipped, 30
    assert not await account.extracted(full=full)


def test_a_contact_whose_creation_time_was_rewritten_is_changed_and_not_struck(tmp_path: Path) -> None:
    """A29: a vendor that moves `createdAt`, or `lastSeenAt` backwards, makes a new version and no deletion."""
    from etl.sinks import tables  # noqa: PLC0415
    from etl.storage import engine  # noqa: PLC0415

    with engine.connect() as connection:
        connection.execute(tables.create("contacts", tables.CONTACTS))
        connection.execute(tables.create("strikes", tables.STRIKES))
        first = publication(brought(tmp_path, "a", [contact(1, last_seen_at=day(9))], seq=10))
        prepare(connection, first, {})
        connection.execute("INSERT INTO contacts BY NAME SELECT * EXCLUDE (verdict, cut_at) FROM upserts")
        row = contact(1, last_seen_at=day(3), created_at=day(2))
        with engine.connect() as second:
            second.register("old", connection.sql("FROM contacts").to_arrow_table())
            second.execute("CREATE TABLE contacts AS FROM old")
            second.execute(tables.create("strikes", tables.STRIKES))
            merged = prepare(second, publication(brought(tmp_path, "a", [row], seq=11)), {})
    assert (merged.counts["a"].changed, merged.counts["a"].deleted, merged.struck["a"]) == (1, 0, 0)


def test_the_sandbox_itself_sees_the_swap() -> None:
    """The control: after the planted change another contact stands there, so the placements above mean something."""
    account = Account()
    before = set(account.world.contacts(account.now))
    swap(account.world, account.now)
    after = set(account.world.contacts(account.now))
    assert len(before) == len(after) == 30
    assert len(before - after) == 1
    assert json.loads(account.world.contacts(account.now)[max(after)])["_id"]
