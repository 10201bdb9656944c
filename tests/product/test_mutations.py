"""The account changes while it is read: one change, placed between every two requests in turn (group M).

A request is instantaneous here, and the world is constant except for the planted change, so every placement is tried
and each is exact. Random worlds are in tests/simulation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from etl.api.client import Client
from etl.api.request import Body
from etl.api.response import HttpResponse, Page, Row, id_text
from etl.errors import ContractError
from etl.extract.checkpoint import Checkpoint, NullCheckpoint
from etl.extract.crosscheck import FirstSeen, UnmatchedContact
from etl.extract.history import History, NoSnapshot, Timing
from etl.extract.meter import Meter
from etl.extract.pages import SavedScan
from etl.extract.strategy import Extraction, extract
from etl.sandbox.answer import envelope
from etl.sandbox.settings import Settings
from etl.sandbox.world import World
from etl.sinks.merge import prepare
from etl.times import milliseconds
from tests.support.publishing import brought, contact, day, publication

START = 1_700_000_000.0
TIMING = Timing(visibility_lag=2_000, lookback=1_800_000, cross_check_every=604_800_000, scrub_every=1)
Change = Callable[[World, float], object]


class Memory:
    """A cross-check log, and the contacts that arrived, in plain dictionaries."""

    def __init__(self) -> None:
        self.seen: dict[str, UnmatchedContact] = {}
        self.also: dict[str, UnmatchedContact] = {}
        self.arrived: dict[str, Row] = {}

    scan = 1

    def next_scan(self) -> None:
        """One scan is enough if every contact has a creation time."""
        raise NotImplementedError

    async def saved_scan(self, is_contact: bool) -> SavedScan:  # noqa: ARG002 - of either list
        """There was no scan before."""
        return SavedScan()

    async def resume(self, is_contact: bool, valid: SavedScan) -> None:
        """There is no scan to resume."""

    async def record(self, page: Page, *, is_contact: bool) -> None:
        """Note the contacts that the page scan saw."""
        for row in page.rows:
            created, name = milliseconds(row.created_at), id_text(bytes(row.contact_id))
            if created is not None and name is not None:
                self.seen[name] = UnmatchedContact(created, is_contact, name, page.number)

    def note(self, rows: Iterable[Row], *, is_contact: bool, after_windows: bool) -> None:
        """Note the contacts that another answer showed."""
        for row in rows:
            created, name = milliseconds(row.created_at), id_text(bytes(row.contact_id))
            if created is not None and name is not None:
                self.also.setdefault(name, UnmatchedContact(created, is_contact, name, 0, after_windows))

    def noted(self) -> int:
        """How many contacts other answers showed."""
        return len(self.also)

    def end(self, is_contact: bool, end: int | None) -> None:
        """The end is not needed here."""

    async def save(self) -> None:
        """Nothing to do: the log is in memory."""

    def created(self, is_contact: bool) -> list[int]:
        """The creation times seen in one list."""
        return sorted(one.created for one in self.seen.values() if one.is_contact is is_contact)

    def without_created_at(self) -> dict[str, FirstSeen]:
        """Every contact here has a creation time."""
        return {}

    async def missing(self, before: int, *, beyond_snapshot: bool = False) -> list[UnmatchedContact]:  # noqa: ARG002
        """Contacts that were seen and did not arrive; the ids of earlier snapshots are not known here."""
        return [
            one for name, one in (self.also | self.seen).items() if name not in self.arrived and one.created < before
        ]

    async def shows_returns(self) -> bool:
        """Whether a contact seen in the list of contacts was received as a lead."""
        leads = {name for name, row in self.arrived.items() if row.is_contact is False}
        return any(one.is_contact and name in leads for name, one in self.seen.items())

    async def receive(self, page: Page) -> None:
        """Take an accepted page."""
        for row in page.rows:
            name = id_text(bytes(row.contact_id))
            if name is not None:
                self.arrived[name] = row


class Account:
    """A small account whose requests take 10 ms each; `change` is applied just before request number `at`."""

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
        self,
        memory: Memory,
        history: History,
        filters: Mapping[str, object],
        *,
        full: bool = True,
        checkpoint: Checkpoint | None = None,
    ) -> Extraction:
        """Extract once."""
        client = Client(self.answer, account="a", concurrency=1, jitter=lambda: 0.0)
        return await extract(
            client,
            history,
            TIMING,
            memory.receive,
            memory,
            checkpoint or NullCheckpoint(),
            Meter(client),
            full=full,
            filters=filters,
            local_now=int(self.now * 1000),
            shrink_share=0.05,
            ordered_from=None,
        )


async def run(account: Account, **filters: object) -> tuple[Extraction, Memory, set[str]]:
    """A first full run: its result, the contacts that arrived, and the ids that existed throughout."""
    memory, begin = Memory(), account.now
    extraction = await account.read(memory, History(), filters)
    account.world.advance(account.now)
    return extraction, memory, account.world.existed_throughout(begin, account.now)


def oldest(world: World, now: float) -> str:
    """The contact created first: its deletion moves the rank of every contact after it in its list."""
    return min(world.contacts(now))


def swap(world: World, now: float) -> None:
    """One contact is deleted and another inserted, so that every count stays the same."""
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
    """M6, M7, M9, M13: wherever the change falls, every contact that existed throughout arrives, or proof is denied."""
    quiet = Account()
    await run(quiet)
    for at in range(len(quiet.sent) + 1):
        account = Account(change, at)
        extraction, memory, throughout = await run(account)
        lost = throughout - memory.arrived.keys()
        assert not lost or extraction.unproven, f"change before request {at}: {len(lost)} lost"


class GoesBack(Account):
    """A deletion hides `hidden` from the page scan; after the scan, the oldest contact goes back to the leads."""

    hidden: str = ""
    oldest: str = ""

    async def answer(self, body: Body) -> HttpResponse:
        """One atomic read."""
        scanned = [each["page"] for each in self.sent if each["isContact"]][-2:] == [1, 2]
        if not self.hidden and scanned:
            newest, *_, self.hidden = sorted(self._contacts(), reverse=True)[: 2 * 6 + 1]
            self.world.delete(newest, self.now)
        elif self.hidden and not self.oldest and body["createdAt"]["endsAt"]:
            self.oldest = min(self._contacts())
            self.world.flip(self.oldest, self.now)
        return await super().answer(body)

    def _contacts(self) -> list[str]:
        return [name for name, raw in self.world.contacts(self.now).items() if b'"isContact":true' in raw]

    def go_back(self, world: World, now: float) -> None:
        """The hidden contact goes back, too."""
        if self.hidden:
            world.flip(self.hidden, now)


async def test_a_contact_that_goes_back_to_the_leads_is_read_although_the_scan_missed_it() -> None:
    """M13: one contact that the scan saw going back shows that others may have, and the leads are read again."""
    quiet = GoesBack()
    extraction, memory, _ = await run(quiet)
    assert (quiet.hidden in memory.seen, extraction.unproven) == (False, [])
    for at in range(len(quiet.sent) + 1):
        account = GoesBack(at=at)
        account._change = account.go_back
        extraction, memory, throughout = await run(account)
        lost = throughout - memory.arrived.keys()
        assert not lost or extraction.unproven, f"change before request {at}: {len(lost)} lost"


def without(reply: HttpResponse, hidden: Callable[[Any], bool]) -> HttpResponse:
    """An answer without the contacts that are `hidden`."""
    if reply.status != HTTPStatus.OK:
        return reply
    rows = (json.dumps(row).encode() for row in json.loads(reply.body)["data"] if not hidden(row))
    return HttpResponse(reply.status, reply.headers, envelope(rows))


class Hides(Account):
    """A server whose wide ranges lack the newest contact."""

    async def answer(self, body: Body) -> HttpResponse:
        """One atomic read."""
        reply, newest, created = await super().answer(body), max(self.world.contacts(self.now)), body["createdAt"]
        wide = created["endsAt"] and created["startAt"] != created["endsAt"]
        return without(reply, lambda row: wide and row["_id"] == newest)


async def test_a_contradiction_is_recorded_before_its_contact_is_received() -> None:
    """A run that is killed in between, and resumed, still knows that windows had lacked a contact."""
    account, memory, seen_by_then = Hides(), Memory(), []

    class Recorder(NullCheckpoint):
        def unproven(self, reason: str) -> None:  # noqa: ARG002 - it is the time that counts
            seen_by_then.append(set(memory.arrived))

    extraction = await account.read(memory, History(), {}, checkpoint=Recorder())
    hidden = max(account.world.contacts(account.now))
    assert extraction.unproven == ["contacts that had been seen were missing from accepted windows"]
    assert hidden in memory.arrived
    assert all(hidden not in arrived for arrived in seen_by_then)
    assert len(seen_by_then) == 1


def replaced(world: World, now: float) -> None:
    """An entirely new page 1: an import larger than a page, of contacts last seen just now."""
    world.import_many(20, now, now)


async def test_a_page_that_is_ignored_is_not_taken_for_one_of_its_own_while_the_first_moves() -> None:
    """M6, A16: a page 1 that is replaced between two requests is not taken for page 2, which would be a false proof."""
    quiet = Account(ignore_page=True)
    await run(quiet)
    for at in range(len(quiet.sent) + 1):
        account = Account(replaced, at, ignore_page=True, page_size=12)
        extraction, memory, throughout = await run(account)
        assert not extraction.capabilities.honours_page, f"import before request {at}"
        assert extraction.unproven or throughout <= memory.arrived.keys()


async def test_contacts_imported_into_the_past_arrive_with_the_next_full_run() -> None:
    """M6, M15: contacts that are imported into windows already accepted are found by the next run."""
    account = Account(backdated, at=30)
    await run(account)
    _, memory, throughout = await run(account)
    assert throughout <= memory.arrived.keys()
    assert len(throughout) > 30


@pytest.mark.parametrize("total", ["wrong", "capped", "zero", "negative", "null", "text", "per_page"])
async def test_a_total_of_another_instant_is_never_relied_on(total: str) -> None:
    """M8, A19: a total that is counted at another instant than the listing changes nothing."""
    extraction, memory, throughout = await run(Account(total=total))
    assert not extraction.unproven
    assert memory.arrived.keys() == throughout


async def test_no_field_that_can_change_is_used_to_part_the_account() -> None:
    """M11, M14: a full run filters by list and time only and starts no export on the server."""
    account = Account()
    await run(account)
    for body in account.sent:
        asked = {name for name, value in body.items() if value not in ("", [], False, {"startAt": "", "endsAt": ""})}
        assert asked <= {"isContact", "createdAt", "lastSeenAt", "hasOrdered", "page", "isExport"}
        assert body["hasOrdered"] == {"status": False, "lastAt": ""}
        assert body["isExport"] == "none"


async def test_a_filtered_run_claims_no_proof_and_no_coverage() -> None:
    """M14: any change can remove a contact from a filtered list, so a filtered export never counts as complete."""
    extraction, _, _ = await run(Account(), status=["OPEN"])
    assert (extraction.mode, extraction.scanned, extraction.coverage) == ("filtered", True, ())


async def test_a_filter_that_is_ignored_later_voids_the_run() -> None:
    """A20, A50: a server that stops honouring its time filter is detected by a response outside the window."""

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
    """A snapshot with known creation times (ms) and lists, and those of contacts with a strike."""

    def __init__(self, contacts: Sequence[tuple[int, bool]], struck: Sequence[int] = ()) -> None:
        self._contacts, self._struck = contacts, struck

    def struck(self) -> Sequence[int]:
        """The creation times of the contacts with a strike, in order."""
        return self._struck

    def created(self, is_contact: bool | None) -> Sequence[int]:
        """The creation times, in order."""
        return [at for at, listed in self._contacts if is_contact in (listed, None)]


class Grown(Account):
    """An account of contacts and few leads, and the leads that were created since an earlier run."""

    struck = 0
    """The contact that has a strike, by its place in the order of creation; 0: none."""

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
        """Read the account after the earlier run; the contacts that must arrive and did not."""
        memory, begin = Memory(), self.now
        rows = [json.loads(raw) for raw in self.world.contacts(self.now).values()]
        known = sorted((milliseconds(row["createdAt"]) or 0, row["isContact"]) for row in rows)
        known = [contact for contact in known if contact[0] < self.watermark]
        snapshot = Known(known, [known[self.struck][0]] if self.struck else [])
        history = History(self.watermark, self.watermark, cross_checked_at=self.watermark, snapshot=snapshot)
        extraction = await self.read(memory, history, {}, full=full)
        assert not extraction.unproven
        return self.world.existed_throughout(begin, self.now) - memory.arrived.keys()


async def test_new_contacts_that_a_stale_replica_hides_from_both_sweeps_are_reported() -> None:
    """The unfiltered lists show them, and they are older than anything may become visible late."""

    class Stale(Grown):
        async def answer(self, body: Body) -> HttpResponse:
            reply, spans = await super().answer(body), [body["createdAt"], body["lastSeenAt"]]
            wide = any(span["startAt"] != span["endsAt"] for span in spans)
            return without(reply, lambda row: wide and (milliseconds(row["createdAt"]) or 0) >= self.watermark)

    account = Stale(3)
    account.now += 3600
    with pytest.raises(AssertionError, match="3 new contacts were listed, but not returned by both sweeps"):
        await account.extracted(full=False)


class Ranged(Grown):
    """A server whose answers to wide ranges lack its newest known contact, as those of a stale replica do."""

    since = 0
    """The request from which the unfiltered lists show it; -1: a server without fault."""

    async def answer(self, body: Body) -> HttpResponse:
        """One atomic read."""
        reply, spans = await super().answer(body), [body["createdAt"], body["lastSeenAt"]]
        hidden = len(self.sent) <= self.since or any(span["startAt"] != span["endsAt"] for span in spans)
        return without(reply, lambda row: hidden and self.since >= 0 and row["_id"] == self.newest)

    @property
    def newest(self) -> str:
        """The newest contact."""
        return max(name for name, raw in self.world.contacts(self.now).items() if b'"isContact":true' in raw)

    async def again(self, *, full: bool) -> tuple[Extraction, Memory]:
        """Read the account an hour after an earlier run, which did not see the newest contact."""
        self.now, memory = self.watermark / 1000 + 3600, Memory()
        rows = [json.loads(raw) for name, raw in self.world.contacts(self.now).items() if name != self.newest]
        known = Known(sorted((milliseconds(row["createdAt"]) or 0, row["isContact"]) for row in rows))
        history = History(self.watermark, self.watermark, cross_checked_at=self.watermark, snapshot=known)
        return await self.read(memory, history, {}, full=full), memory


@pytest.mark.parametrize(("full", "late"), [(False, False), (False, True), (True, False), (True, True)])
async def test_a_contact_that_any_answer_shows_is_received(*, full: bool, late: bool) -> None:
    """A9: whatever it was requested for. A full run doubts its windows if it was shown before they were read."""
    quiet, account = Ranged(0), Ranged(0)
    quiet.since = -1
    await quiet.again(full=full)
    account.since = len(quiet.sent) - 2 if late else 0  # The last requests are those of the unfiltered lists.
    extraction, memory = await account.again(full=full)
    assert account.newest in memory.arrived
    doubts = ["contacts that had been seen were missing from accepted windows"] if full and not late else []
    assert extraction.unproven == doubts


async def test_a_second_strike_needs_two_answers() -> None:
    """A43, A45: an empty answer to the first request for a contact with a strike does not delete it."""

    class Struck(Grown):
        struck, around, shown = 30, None, ()

        async def answer(self, body: Body) -> HttpResponse:
            reply = await super().answer(body)
            if not body["isContact"] and body["createdAt"]["startAt"] and self.around is None:
                self.around = body["createdAt"]
            if not body["isContact"] or body["createdAt"] != self.around:
                return reply
            if not self.shown:
                reply = HttpResponse(200, reply.headers, envelope([]))
            self.shown = (*self.shown, len(json.loads(reply.body)["data"]))
            return reply

    account = Struck(0)
    await account.extracted(full=False)
    assert account.shown[0] == 0
    assert account.shown[1] > 0


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
    """A52: the page size of leads is unknown while there are few, and that of contacts does not imply it.

    New leads cost a few requests at most, the first one included.
    """
    settings = {"leads_page_size": leads_page_size, **SERVERS[server]}
    quiet = Grown(0, few=few, **settings)
    assert not await quiet.extracted(full=full)
    for leads in (1, 2, 3, 10, 30):
        account = Grown(leads, few=few, **settings)
        assert not await account.extracted(full=full), f"{leads} leads"
        assert len(account.sent) - len(quiet.sent) <= 24 + 3 * leads


async def test_the_manifest_tells_the_page_size_of_each_list() -> None:
    """A52: `runs.detail` has both page sizes, and the larger one alone in its older field."""
    extraction, _, _ = await run(Account(contacts=60, page_size=12, leads_page_size=5))
    found = extraction.capabilities.document()
    sizes = {"contacts": 12, "leads": 5, "cut_contacts": 0, "cut_leads": 0}
    assert (found["page_sizes"], found["page_size"]) == (sizes, 12)


@pytest.mark.parametrize("past_end", ["empty", "repeat", "404"])
async def test_leads_of_one_moment_are_a_page_of_unknown_size_and_still_proven(past_end: str) -> None:
    """A52, M5: an indivisible window of leads that may fill a page is proven complete by its page 2."""
    account = Grown(0, few=0, past_end=past_end)
    for _ in range(2):
        account.world.insert(account.now, is_contact=False)
    account.now += 60
    assert not await account.extracted(full=False)


@pytest.mark.parametrize("contacts", [3, 30])
@pytest.mark.parametrize("full", [False, True])
async def test_an_account_that_is_empty_at_the_end_of_a_run_is_told(contacts: int, *, full: bool) -> None:
    """A43: valid empty lists for every request, as in maintenance, are reported and not taken for a quiet account."""

    class Maintained(Grown):
        async def answer(self, body: Body) -> HttpResponse:
            reply = await super().answer(body)
            return reply if len(self.sent) < 25 else HttpResponse(200, reply.headers, envelope([]))

    with pytest.raises(AssertionError, match="a list became empty while it was read"):
        await Maintained(5, contacts=contacts).extracted(full=full)


@pytest.mark.parametrize("full", [False, True])
async def test_a_list_of_few_may_become_empty(*, full: bool) -> None:
    """A43: if the last leads become contacts while the account is read, the run is still proven."""

    def all_flipped(world: World, now: float) -> None:
        for name, raw in world.contacts(now).items():
            if b'"isContact":false' in raw:
                world.flip(name, now)

    account = Grown(1)
    account._change, account._at = all_flipped, 30
    assert not await account.extracted(full=full)


def test_a_contact_whose_creation_time_was_rewritten_is_changed_and_not_struck(tmp_path: Path) -> None:
    """A29: a rewritten `createdAt`, or a `lastSeenAt` that moves backwards, gives a new version and no strike."""
    from etl.sinks import tables  # noqa: PLC0415
    from etl.storage import duck  # noqa: PLC0415

    with duck.connect() as connection:
        connection.execute(tables.create("contacts", tables.CONTACTS))
        connection.execute(tables.create("strikes", tables.STRIKES))
        connection.execute(tables.create("rejects", tables.REJECTS))
        first = publication(brought(tmp_path, "a", [contact(1, last_seen_at=day(9))], seq=10))
        prepare(connection, first, {})
        connection.execute("INSERT INTO contacts BY NAME SELECT * EXCLUDE (verdict, cut_at) FROM upserts")
        row = contact(1, last_seen_at=day(3), created_at=day(2))
        with duck.connect() as second:
            second.register("old", connection.sql("FROM contacts").to_arrow_table())
            second.execute("CREATE TABLE contacts AS FROM old")
            second.execute(tables.create("strikes", tables.STRIKES))
            second.execute(tables.create("rejects", tables.REJECTS))
            merged = prepare(second, publication(brought(tmp_path, "a", [row], seq=11)), {})
    assert (merged.counts["a"].changed, merged.counts["a"].deleted, merged.struck["a"]) == (1, 0, 0)


def test_the_sandbox_itself_sees_the_swap() -> None:
    """Control: the planted change replaces one contact, so the placements above do test a change."""
    account = Account()
    before = set(account.world.contacts(account.now))
    swap(account.world, account.now)
    after = set(account.world.contacts(account.now))
    assert len(before) == len(after) == 30
    assert len(before - after) == 1
    assert json.loads(account.world.contacts(account.now)[max(after)])["_id"]
