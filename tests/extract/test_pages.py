"""The page scan: it finds the end of a list without a total, and bounds how far concurrent requests go beyond it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.api.client import Client, PageRefused, TransportError
from etl.api.request import Body, Query
from etl.api.response import HttpResponse, Page, Row
from etl.errors import AuthError, ContractError, EtlError, SourceUnavailable
from etl.extract.pages import LEAPS, PageScan, SavedScan, scan_pages, still_holds
from tests.simulation.loop import run

QUERY = Query(is_contact=True)
PastEnd = Literal["empty", "repeats", "refused"]
PAST_ENDS: tuple[PastEnd, ...] = ("empty", "repeats", "refused")


def page_of(*ids: str) -> Page:
    """A page with these ids."""
    return Page(b"", [Row(msgspec.Raw(json.dumps(one).encode())) for one in ids])


def numbered(number: int, size: int) -> list[str]:
    """The ids of page `number`."""
    return [f"{number}-{place}" for place in range(size)]


# --- page numbers and ends, without I/O -----------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 3), max_size=12),
    workers=st.integers(1, 9),
    repeats=st.booleans(),
    chance=st.randoms(use_true_random=False),
)
def test_a_walk_finds_the_end_whatever_arrives_first(
    sizes: list[int], workers: int, repeats: bool, chance: Random
) -> None:
    """In any order of responses all contacts are delivered, with at most `workers` requests past the end (A13, N23)."""
    progress, waiting, handed_on = PageScan(repeats), list[int](), set[bytes]()

    def answer(number: int) -> Page:
        shown = min(number, len(sizes)) if repeats else number
        return page_of(*numbered(shown, sizes[shown - 1])) if 0 < shown <= len(sizes) else page_of()

    def ask() -> None:
        while len(waiting) < workers and (number := progress.next()) is not None:
            waiting.append(number)

    ask()
    while waiting:
        number = waiting.pop(chance.randrange(len(waiting)))
        page = answer(number)
        if progress.take(number, page):
            handed_on |= page.ids
        ask()
    everything = page_of(*(one for number, size in enumerate(sizes, 1) for one in numbered(number, size)))
    assert handed_on == everything.ids
    assert progress.asked <= len(sizes) + workers
    assert progress.end is not None
    assert progress.next() is None


def test_a_walk_asks_pages_in_order() -> None:
    """Pages are requested in order from 1 until the end is known."""
    progress = PageScan(repeats=False)
    assert [progress.next() for _ in range(3)] == [1, 2, 3]
    assert progress.take(1, page_of("a"))
    assert not progress.take(3, page_of())
    assert progress.next() is None
    assert progress.end == 3


def test_the_first_end_counts() -> None:
    """Of several pages past the end, the lowest is the end."""
    progress = PageScan(repeats=False)
    for number in (9, 7, 8):
        progress.ends_before(number)
    assert progress.end == 7


def test_contacts_seen_twice_end_only_a_server_that_repeats() -> None:
    """If a server does not repeat pages, a page with the same contacts again is delivered and ends nothing (A23)."""
    honest, repeating = PageScan(repeats=False), PageScan(repeats=True)
    for progress in (honest, repeating):
        assert progress.take(1, page_of("a", "b"))
    assert honest.take(2, page_of("b", "a"))
    assert honest.end is None
    assert not repeating.take(2, page_of("b", "a"))
    assert repeating.end == 2


# --- the scan over a transport --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Listing:
    """A server with some full pages and a shorter last one; every request takes a random time."""

    pages: int
    past_end: PastEnd = "empty"
    size: int = 3
    rest: int = 3
    broken: dict[int, HttpResponse | TransportError] = field(default_factory=dict)
    """The response that the server sends instead of a page."""
    chance: Random = field(default_factory=lambda: Random(1))
    asked: list[int] = field(default_factory=list)

    async def __call__(self, body: Body) -> HttpResponse:
        """The requested page."""
        number = body["page"]
        assert isinstance(number, int)
        self.asked.append(number)
        await anyio.sleep(self.chance.random())
        spoilt = self.broken.get(number)
        if isinstance(spoilt, TransportError):
            raise spoilt
        return spoilt or self.answer(number)

    def answer(self, number: int) -> HttpResponse:
        """A page, or the response past the end."""
        if number > self.pages and self.past_end == "refused":
            return HttpResponse(404, {}, b"")
        if self.past_end == "repeats":
            number = min(number, self.pages)
        data = [{"_id": one} for one in self.ids(number)]
        return HttpResponse(200, {}, json.dumps({"success": True, "data": data}).encode())

    def ids(self, number: int) -> list[str]:
        """The ids on a page."""
        if not 1 <= number <= self.pages:
            return []
        return numbered(number, self.rest if number == self.pages else self.size)

    @property
    def everybody(self) -> set[bytes]:
        """All ids, as JSON text."""
        return {json.dumps(one).encode() for number in range(1, self.pages + 1) for one in self.ids(number)}


def walked(listing: Listing, concurrency: int = 4, receive: Callable[[Page], object] = lambda _: None) -> set[bytes]:
    """The ids that a scan of the listing delivers."""
    seen: set[bytes] = set()

    async def keep(page: Page) -> None:
        seen.update(page.ids)
        receive(page)

    async def main() -> None:
        client = Client(listing, account="main", concurrency=concurrency, jitter=lambda: 0.5)
        await scan_pages(client, QUERY, keep, PageScan(listing.past_end == "repeats"))

    run(main())
    return seen


@given(
    pages=st.integers(0, 25),
    past_end=st.sampled_from(PAST_ENDS),
    rest=st.integers(1, 3),
    concurrency=st.integers(1, 12),
    chance=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_a_walk_reads_the_whole_list(
    pages: int, past_end: PastEnd, rest: int, concurrency: int, chance: Random
) -> None:
    """Any kind of end is found, no contact is missed, and at most `concurrency` requests go beyond (A13, A14, N23)."""
    if past_end == "refused":
        # A server that refuses page 1 of an empty account cannot be distinguished from one that fails.
        pages = max(pages, 1)
    listing = Listing(pages, past_end, rest=rest, chance=chance)
    assert walked(listing, concurrency) == listing.everybody
    # Unless the last page is repeated, one more request confirms the end.
    assert len(listing.asked) <= pages + concurrency + 1


@pytest.mark.parametrize("number", [1, 2, 7, 20])
def test_an_empty_page_in_the_middle_ends_nothing(number: int) -> None:
    """It is requested again, and the list goes on (A43)."""
    listing = Emptied(20, number=number)
    assert walked(listing) == listing.everybody


@dataclass(slots=True)
class Emptied(Listing):
    """A listing whose page `number` is empty once."""

    number: int = 0

    def answer(self, number: int) -> HttpResponse:
        """A page."""
        if number == self.number and self.asked.count(number) == 1:
            return HttpResponse(200, {}, b'{"success": true, "data": []}')
        return super(Emptied, self).answer(number)


@pytest.mark.parametrize("refused", [1, 2, 7, 19])
@pytest.mark.parametrize("past_end", PAST_ENDS)
def test_a_page_refused_in_the_middle_breaks_the_contract(refused: int, past_end: PastEnd) -> None:
    """A refusal followed by further pages is not the end: the scan fails and names the page (A14, A4)."""
    listing = Listing(20, past_end, broken={refused: HttpResponse(400, {}, b"")})
    with pytest.raises((ContractError, ExceptionGroup)) as caught:
        walked(listing)
    assert f"page {refused} is refused, but page {refused + 1} is not" in str(caught.value)


def test_a_list_that_is_refused_altogether_is_refused() -> None:
    """A server that refuses page 1 and the following ones is not an empty account (A14)."""
    with pytest.raises(PageRefused):
        walked(Listing(0, "refused"))


ERRORS: Sequence[tuple[HttpResponse | TransportError, type[EtlError]]] = [
    (HttpResponse(401, {}, b'{"success":false}'), AuthError),
    (HttpResponse(200, {}, b"<html>"), ContractError),
    (TransportError("reset"), SourceUnavailable),
]


@pytest.mark.parametrize(("spoilt", "error"), ERRORS)
def test_a_page_that_cannot_be_had_ends_the_walk(spoilt: HttpResponse | TransportError, error: type[EtlError]) -> None:
    """A page that fails for any reason other than a refusal is never skipped: the scan fails (N5, A1)."""
    listing = Listing(20, broken={5: spoilt})
    with pytest.raises(BaseExceptionGroup) as caught:
        walked(listing)
    assert caught.group_contains(error)


def test_a_slow_receiver_slows_the_walk_down() -> None:
    """Pages are requested no further ahead than `concurrency`, so that memory does not grow with the list (S21)."""
    listing, received, ahead = Listing(40), list[Page](), list[int]()

    async def receive(page: Page) -> None:
        await anyio.sleep(10)
        received.append(page)
        ahead.append(len(listing.asked) - len(received))

    async def main() -> int:
        return await scan_pages(Client(listing, account="main", concurrency=4), QUERY, receive, PageScan(repeats=False))

    assert run(main()) == 40
    assert len(received) == 40
    assert max(ahead) <= 4


# --- an interrupted scan --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Moving(Listing):
    """A listing that may change: its ids in order, divided into pages."""

    listed: list[str] = field(default_factory=list)

    def ids(self, number: int) -> list[str]:
        """The ids on a page."""
        return self.listed[(number - 1) * self.size : number * self.size] if number >= 1 else []

    def moves(self, listed: list[str]) -> None:
        """Change the list and clear the log of requests."""
        self.listed, self.pages, self.asked = listed, -(-len(listed) // self.size), []

    def saved(self, taken: Sequence[int], end: int | None = None) -> SavedScan:
        """The saved state of a scan that has read these pages."""
        sizes = {number: len(self.ids(number)) for number in taken}
        saved = SavedScan(sizes, end)
        return replace(saved, ids={number: frozenset(self.ids(number)) for number in saved.wanted & sizes.keys()})


def moving(count: int, size: int, past_end: PastEnd = "empty") -> Moving:
    """A listing of `count` contacts with this page size."""
    listing = Moving(0, past_end, size)
    listing.moves([f"{place:04d}" for place in range(count)])
    return listing


def gone_on(listing: Moving, saved: SavedScan, concurrency: int = 4) -> tuple[SavedScan, set[bytes]]:
    """The part of a saved scan that still holds, and the ids that the resumed scan delivers."""
    seen: set[bytes] = set()

    async def keep(page: Page) -> None:
        seen.update(page.ids)

    async def main() -> SavedScan:
        client = Client(listing, account="main", concurrency=concurrency, jitter=lambda: 0.5)
        repeats = listing.past_end == "repeats"
        held = await still_holds(client, QUERY, saved, repeats=repeats)
        await scan_pages(client, QUERY, keep, PageScan(repeats, sizes=dict(held.sizes), end=held.end))
        return held

    return run(main()), seen


@given(
    count=st.integers(1, 60),
    size=st.integers(1, 5),
    taken=st.sets(st.integers(1, 60)),
    prefix=st.integers(0, 20),
    deleted=st.sets(st.integers(0, 59), max_size=12),
    fresh=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    past_end=st.sampled_from(PAST_ENDS),
    end_known=st.booleans(),
    concurrency=st.integers(1, 8),
    chance=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_nobody_hides_from_a_walk_that_is_gone_on_with(
    count: int,
    size: int,
    taken: set[int],
    prefix: int,
    deleted: set[int],
    fresh: tuple[int, int],
    past_end: PastEnd,
    end_known: bool,
    concurrency: int,
    chance: Random,
) -> None:
    """If contacts are deleted, or added at either end, in a pause, a resumed scan misses none that stayed (M1, M3)."""
    listing = moving(count, size, past_end)
    listing.chance = chance
    before = listing.listed
    pages = sorted(number for number in {*taken, *range(1, prefix + 1)} if number <= listing.pages)
    saved = listing.saved(pages, listing.pages + 1 if end_known else None)
    seen = {json.dumps(one).encode() for number in pages for one in listing.ids(number)}
    stayed = [one for place, one in enumerate(before) if place not in deleted]
    listing.moves([*(f"new {n}" for n in range(fresh[0])), *stayed, *(f"late {n}" for n in range(fresh[1]))])
    if past_end == "refused" and not listing.listed:
        return
    _, later = gone_on(listing, saved, concurrency)
    assert {json.dumps(one).encode() for one in stayed} <= seen | later


@given(
    count=st.integers(1, 60),
    size=st.integers(1, 5),
    taken=st.sets(st.integers(2, 60)),
    past_end=st.sampled_from(("empty", "refused")),
    end_known=st.booleans(),
    concurrency=st.integers(1, 8),
)
@settings(deadline=None)
def test_where_nothing_moved_only_the_gaps_are_asked_for(
    count: int, size: int, taken: set[int], past_end: PastEnd, end_known: bool, concurrency: int
) -> None:
    """Two requests confirm that the list is unchanged; beyond a known end no page is requested (P4)."""
    listing = moving(count, size, past_end)
    pages = [number for number in range(1, listing.pages + 1) if number == 1 or number in taken]
    saved = listing.saved(pages, listing.pages + 1 if end_known else None)
    held, _ = gone_on(listing, saved, concurrency)
    gaps = set(range(1, listing.pages + 1)) - set(pages)
    assert held == saved
    assert set(listing.asked) >= gaps
    beyond = 0 if end_known else concurrency + (past_end != "repeats")
    assert len(listing.asked) <= len(gaps) + 2 + beyond
    assert end_known is False or max(listing.asked, default=0) <= listing.pages


def test_where_the_last_page_is_repeated_nothing_holds_behind_a_gap() -> None:
    """The last saved page may now be past the end and looks the same, so nothing after a gap holds (A13)."""
    listing = moving(15, 2, "repeats")
    saved = listing.saved([1, 3, 8], end=9)
    listing.moves([*listing.listed[:2], *listing.listed[10:]])
    held, seen = gone_on(listing, saved)
    assert held == SavedScan({1: 2})
    assert seen >= {json.dumps(f"{place:04d}").encode() for place in range(10, 15)}


def test_a_walk_that_was_over_asks_nothing() -> None:
    """A completed scan requests nothing, neither a page nor a confirmation."""
    listing = moving(10, 3)
    held, seen = gone_on(listing, listing.saved([1, 2, 3, 4], end=5))
    assert (held.over, seen, listing.asked) == (True, set(), [])


def test_it_goes_back_until_everybody_is_known() -> None:
    """After seven deletions contacts moved up by more than two pages of three, so the scan goes back further (M1)."""
    listing = moving(60, 3)
    saved = listing.saved(range(1, 11))
    listing.moves(listing.listed[7:])
    held, seen = gone_on(listing, saved, concurrency=1)
    assert held == SavedScan(dict.fromkeys(range(1, 8), 3))
    assert listing.asked[:4] == [10, 9, 7, 8]
    assert seen >= {json.dumps(f"{place:04d}").encode() for place in range(30, 60)}


def test_where_everybody_is_new_it_begins_anew() -> None:
    """If the order was not kept, the saved pages prove nothing: after a few leaps back the scan starts over (A22)."""
    listing = moving(900, 1)
    saved = listing.saved(range(1, 401))
    listing.moves([f"other {place}" for place in range(900)])
    held, seen = gone_on(listing, saved)
    assert (held, len(seen)) == (SavedScan(), 900)
    assert listing.asked[: len(LEAPS)] == [400 - leap for leap in LEAPS]


def test_a_list_that_became_shorter_than_what_was_taken_is_no_end() -> None:
    """Pages past the end of a shortened list, empty, refused or repeated, do not hide its contacts (A13, A14)."""
    for past_end in PAST_ENDS:
        listing = moving(30, 3, past_end)
        saved = listing.saved(range(1, 9))
        listing.moves(listing.listed[15:])
        _, seen = gone_on(listing, saved, concurrency=2)
        assert seen >= {json.dumps(f"{place:04d}").encode() for place in range(24, 30)}
