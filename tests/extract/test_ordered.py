"""The ordered read: what a page in order shows, what a landmark counts, and which servers are doubted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from operator import attrgetter, itemgetter
from pathlib import Path

import anyio
import msgspec
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.api.client import Client, Transport
from etl.api.request import Body
from etl.api.response import HttpResponse, Page, Row
from etl.extract.capabilities import PageSizes
from etl.extract.checkpoint import NullCheckpoint
from etl.extract.fetch import WindowReader
from etl.extract.landmarks import LONGEST_PIECE, MARGIN, Landmark, NotSorted, creation_times, disorder, rank_on, renewed
from etl.extract.ordered import GAP, OrderedRead, Segment, advance, gap, segments
from etl.extract.windows import Accepted, RangeSemantics, Window, evenly
from tests.extract.test_crosscheck_log import START
from tests.support.live import Job, Live, live
from tests.support.live import Row as Cells

T = 1_700_000_000_000
"""A creation time, in milliseconds."""


def page_of(*times: int | None, number: int = 1) -> Page:
    """A page of contacts with these creation times."""
    texts = [None if t is None else datetime.fromtimestamp(t / 1000, UTC).isoformat() for t in times]
    return Page(b"", [Row(msgspec.Raw(json.dumps(str(n)).encode()), t) for n, t in enumerate(texts)], number=number)


# --- without a server ------------------------------------------------------------------------------------------------


def test_a_page_must_fall_and_have_all_its_times() -> None:
    """A list sorted by `_id` or by second may rise within the margin; a later contact further down may not."""
    assert creation_times(page_of(T, T - 5000, T - 5000 + MARGIN)) == [T, T - 5000, T - 5000 + MARGIN]
    with pytest.raises(NotSorted, match="newest"):
        creation_times(page_of(T, T - 5000, T - 4999 + MARGIN))
    with pytest.raises(NotSorted, match="no createdAt"):
        creation_times(page_of(T, None))


@given(times=st.lists(st.integers(0, 10_000), min_size=1))
def test_disorder_is_the_largest_rise(times: list[int]) -> None:
    """No pair of times rises by more, and one by as much."""
    rises = [max(0, later - earlier) for i, earlier in enumerate(times) for later in times[i:]]
    assert disorder(times) == max(rises)


@given(
    newest_first=st.lists(st.integers(0, 30_000), min_size=5, max_size=40).map(lambda ts: sorted(ts, reverse=True)),
    resolution=st.sampled_from([1, 1000]),
)
def test_a_full_page_shows_all_contacts_of_the_part_it_proves(newest_first: list[int], resolution: int) -> None:
    """No contact beyond the page is in the part; parts never overlap, and a page that shows nothing new is None."""
    page, rest = newest_first[:5], newest_first[5:]
    window = Window("createdAt", True, None, page[0] - page[0] % resolution + resolution)
    part = advance(window, page, resolution)
    if part is None:
        assert page[0] // resolution == page[-1] // resolution
        return
    assert part.end == window.end
    assert part.start is not None
    assert not [time for time in rest if time >= part.start]


@pytest.mark.parametrize(
    ("times", "shown", "empty"),
    [
        ([990, 985, 20, 20, 10], (30, 1000), (30, 980)),  # Most contacts were imported with a time of the past.
        ([20, 20, 20, 20, 20], (30, 1000), (30, 1000)),
        ([990, 700, 500, 20, 10], (30, 1000), None),
        ([990, 985, 980, 20, 10], (980, 1000), None),
        ([10, 10], (10, 11), None),
    ],
    ids=["after some", "at once", "a usual page", "a short part", "nothing to read"],
)
def test_the_range_in_which_a_page_lists_no_contact(
    times: list[int], shown: tuple[int, int], empty: tuple[int, int] | None
) -> None:
    """It counts if it is nearly all of the range that the page shows completely."""
    window = gap(Window("createdAt", True, *shown), times, resolution=10)
    assert (window and (window.start, window.end)) == empty


@given(times=st.lists(st.integers(0, 10_000), min_size=2, max_size=20).map(lambda ts: sorted(ts, reverse=True)))
def test_a_gap_holds_no_contact_of_the_page(times: list[int]) -> None:
    """And there is one if the page lists no contact for most of the time."""
    window = gap(Window("createdAt", True, times[-1], 10_001), times, resolution=1)
    longest = max(newer - older - 1 for newer, older in pairwise([10_001, *times]))
    assert (window is not None) == (longest >= GAP * (10_001 - times[-1]))
    if window is not None:
        assert not [time for time in times if (window.start or 0) <= time < (window.end or 0)]


def test_a_rank_is_told_only_by_the_page_around_the_cut() -> None:
    """The cut must lie between two contacts of the page, or at the end of the list."""
    page = page_of(T, T - 1000, T - 2000, number=4)
    assert rank_on(page, T - 1000, 3) == 3 * 3 + 2
    assert rank_on(page, T + 1, 3) is None
    assert rank_on(page, T - 2000, 3) is None
    assert rank_on(replace(page, number=1), T + 1, 3) == 0
    assert rank_on(page, T - 5000, 5) == 3 * 5 + 3, "the last page of the list"
    assert rank_on(page_of(T, T - 1000, T - 500, number=4), T - 700, 3) is None, "not sorted around the cut"


def test_segments_tile_both_lists_leads_first() -> None:
    """Each segment ends where the next one begins; the oldest has an open start, and comes first."""
    marks = tuple(Landmark(n, T - n, 10 * n) for n in (1, 5, 9))
    cut = list(segments((marks, marks[:1])))
    assert [one.is_contact for one in cut] == [False, False, False, True]
    assert [(one.window.start, one.window.end) for one in cut[:3]] == [(None, T - 9), (T - 9, T - 5), (T - 5, T - 1)]
    assert cut[3].window == Window("createdAt", True, None, T - 1)


class Scripted:
    """A server that answers with pages of contacts, given by their creation times, in turn."""

    def __init__(self, pages: Sequence[Sequence[int]]) -> None:
        self.left = list(pages)

    async def __call__(self, _: Body) -> HttpResponse:
        """The next page."""
        times = ((at, datetime.fromtimestamp(at / 1000, UTC).isoformat()) for at in self.left.pop(0))
        data = [{"_id": str(at), "createdAt": text} for at, text in times]
        return HttpResponse(200, {}, json.dumps({"success": True, "data": data}).encode())


class Sorted:
    """A server with one list of contacts, given by their creation times; counts its answers."""

    def __init__(self, times: Sequence[int]) -> None:
        self.newest_first = sorted(times, reverse=True)
        self.answers = 0

    async def __call__(self, body: Body) -> HttpResponse:
        """The page asked for."""
        self.answers += 1
        end = int(str(body["page"])) * 5
        return await Scripted([self.newest_first[end - 5 : end]])(body)


@given(
    times=st.lists(st.integers(T, T + 10**9), max_size=300, unique=True),
    cut=st.integers(T, T + 10**9),
    page=st.integers(1, 90),
    expected=st.integers(0, 400),
)
def test_a_list_that_has_moved_is_counted_again(times: list[int], cut: int, page: int, expected: int) -> None:
    """Wherever the cut or the end was before, they are found in a few requests, on the border of two pages, too."""

    async def count() -> tuple[int, int]:
        order = ordered(server)
        mark = await renewed(order._client, True, Landmark(page, cut, 0), 5)
        return mark.rank, await order._length(SEGMENT, expected)

    server = Sorted(times)
    assert anyio.run(count) == (sum(time >= cut for time in times), len(times))
    assert server.answers <= 28


CUTS = T + 100_000, T
"""Of the landmarks around a segment, which are on the pages 1 and 2."""
SEGMENT = Segment(True, Landmark(1, CUTS[0], 0), Landmark(2, CUTS[1], 7))
"""It had seven contacts when its landmarks were read."""


def ordered(server: Transport, received: int = 0) -> OrderedRead:
    """An ordered read with pages of five contacts that has `received` contacts of the segment."""

    async def receive(_: Page) -> None:
        raise AssertionError

    client = Client(server, account="main", concurrency=1)
    capabilities = replace(START.capabilities, page_sizes=PageSizes(5, 5))
    reader = WindowReader(client, capabilities, receive, NullCheckpoint())
    reader.accepted.append(Accepted(SEGMENT.window, received, level="ordered"))
    return OrderedRead(reader, client, ((SEGMENT.newer,), (SEGMENT.newer, SEGMENT.older)))


@pytest.mark.parametrize(
    ("received", "counts", "doubted"),
    [
        (7, [], False),
        (6, [(0, 6)], False),
        (6, [(0, 7), (1, 7)], False),
        (6, [(0, 7), (1, 8), (2, 8)], False),
        (6, [(0, 7), (0, 7)], True),
        (6, [(0, 7), (1, 8), (1, 8)], True),
    ],
    ids=["complete", "deleted", "created between two reads", "created twice", "lost", "lost, and one created"],
)
async def test_a_segment_lacks_contacts_if_two_counts_find_the_list_unchanged(
    received: int, counts: list[tuple[int, int]], doubted: bool
) -> None:
    """Nothing follows from landmarks as old as the run, nor from a count during which the list has grown (M6)."""
    pages = []
    for ranks in counts:
        for page, cut, rank in zip((0, 5), CUTS, ranks, strict=True):
            later = rank - page
            pages.append([cut + later - place for place in range(later)] + [cut - 1 - n for n in range(5 - later)])
    order = ordered(server := Scripted(pages), received)
    with pytest.raises(NotSorted, match="are listed in a range that brought 6") if doubted else nullcontext():
        await order._check_count(SEGMENT)
    assert (server.left, order.checks.segments) == ([], int(not doubted))


@pytest.mark.parametrize(
    ("again", "doubt"),
    [
        ([(3, 2, 1)], ""),
        ([(4, 3, 2, 1)], "1 contacts of a range are not on the page that should list them"),
        ([(3, 1), (3, 1)], ""),  # Deleted.
        ([(3, 1), (3, 2, 1)], "a second read of a range lacked a contact"),
    ],
)
async def test_a_range_that_is_read_again_must_list_the_same(again: list[tuple[int, ...]], doubt: str) -> None:
    """One that lacks a contact is read once more: a server that hides contacts at random is not in order (A9)."""
    order, window = ordered(server := Scripted([(3, 2, 1), *again])), Window("createdAt", True, 1, 5)
    page = await order._client.read(window.query(RangeSemantics()))
    with pytest.raises(NotSorted, match=doubt) if doubt else nullcontext():
        await order._compare(window, page.ids)
    assert (server.left, order.checks.ranges) == ([], int(not doubt))


# --- against a live account ------------------------------------------------------------------------------------------

CONTACTS = 1500
SMALL: Cells = {"contacts": CONTACTS, "page_size": 20, "nasty_share": 0, "small": True}
CHURN: Cells = {"touches": 20, "inserts": 2, "deletes": 1, "flips": 0.5}


@pytest.fixture
def server() -> Iterator[Live]:
    """An account of some eighty pages, sorted by creation time."""
    with live(**SMALL) as running:
        yield running


@pytest.fixture
def job(server: Live, tmp_path: Path) -> Job:
    """A job that has not run yet."""
    return Job(tmp_path, {"main": server.url}, sinks=("parquet",))


def ids(job: Job, seq: int) -> set[str]:
    """The contacts of a published run."""
    return {row["contact_id"] for row in job.in_parquet(seq)}


@pytest.mark.parametrize(
    ("settings", "further"),
    [
        ({}, 70),
        (CHURN, 140),
        ({"sort": "id_desc"}, 70),
        ({"sort": "created_second_desc"}, 70),
        ({"granularity": "s", "start_bound": "exclusive"}, 85),
        ({"past_end": "404", "leads_page_size": 15}, 80),
        ({"is_contact": "overlap"}, 70),
        ({"ties": 90}, 120),
    ],
    ids=str,
)
def test_a_sorted_account_is_read_once(settings: Cells, further: int, tmp_path: Path) -> None:
    """The first run reads each page once, with `further` requests for probe, landmarks, checks and sweep.

    It is proven by the order, and has every contact that stayed.
    """
    with live(**SMALL | settings) as server:
        job, before = Job(tmp_path, {"main": server.url}, sinks=("parquet",)), set(server.ids())
        result = job.run()
        stayed = before & set(server.ids())
    record = result.accounts[0].record
    assert result.exit_code == 0, result.error
    assert record.proof.level in {"ordered", "sequential"}
    assert record.detail["order_doubt"] == ""
    assert record.detail["order_checks"]["ranges"] >= 8
    assert "witness" not in record.detail["requests"]
    listed = CONTACTS * (1.8 if settings.get("is_contact") == "overlap" else 1)
    assert record.requests.sent < 1.1 * listed / 20 + further
    assert ids(job, 1) >= stayed


def test_chains_stay_close_to_each_other_in_time(tmp_path: Path) -> None:
    """What is read meanwhile lies within a few pieces, so that a slice of the account lies in few parts of the run."""
    with live(contacts=2500, page_size=5, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, settings="[extract]\nconcurrency = 2\n", sinks=("parquet",))
        assert job.run().accounts[0].record.proof.level == "ordered"
    files = [str(path) for path in (job.parquet / "windows").glob("*/*.parquet")]
    times = pq.ParquetDataset(files, partitioning=None).read().filter(pc.equal(pc.field("level"), "ordered"))
    read = sorted(times.filter(times["is_contact"]).to_pylist(), key=itemgetter("request"))
    assert sum(window["rows"] for window in read) > 1500
    before = [sum(other["rows"] for other in read if other["end"] <= window["end"]) for window in read]
    behind = [highest - rows for highest, rows in zip(accumulate(before, max), before, strict=True)]
    assert max(behind) < 3 * LONGEST_PIECE * 5


@given(
    start=st.integers(0, 10_000),
    length=st.integers(1, 5_000),
    longest=st.integers(1, 3_000),
    resolution=st.sampled_from([1, 60]),
)
def test_even_parts_tile_the_window(start: int, length: int, longest: int, resolution: int) -> None:
    """The parts follow each other, none is much longer than asked for, and cuts are multiples of the resolution."""
    window = Window("createdAt", True, start, start + length)
    parts = evenly(window, longest, RangeSemantics(resolution=resolution))
    assert (parts[0].start, parts[-1].end) == (window.start, window.end)
    assert all(one.end == after.start and (one.end or 0) % resolution == 0 for one, after in pairwise(parts))
    assert all((one.end or 0) - (one.start or 0) <= longest + 2 * resolution for one in parts)


@pytest.mark.parametrize(
    "settings",
    [
        {"sort": "created_asc"},
        {"sort": "last_seen_desc"},
        {"sort": "shuffled"},
        {"sort": "id_desc", "import_backdated": 1, "imports": 5},
        {"no_created_at_share": 0.01},
        {"sort": "id_desc", "no_created_at_share": 0.002},
        {"past_end": "repeat"},
        {"granularity": "day"},
        {"ignore_page": True},
        {"faults": ({"kind": "page_size", "size": 14, "rate": 0.3},)},
        {"faults": ({"kind": "page_size", "size": 14, "from": 60},)},
        {"faults": ({"kind": "hole", "every": 9, "from": 50},)},
        {"faults": ({"kind": "torn", "from": 50, "every": 20},)},
        {"faults": ({"kind": "empty_list", "from": 50, "every": 45},), "sort": "created_asc"},
        {"faults": ({"kind": "reversed", "from": 60},)},
        {"faults": ({"kind": "duplicate_page", "from": 60, "every": 7},)},
    ],
    ids=str,
)
def test_what_is_not_in_order_is_never_believed(settings: Cells, tmp_path: Path) -> None:
    """A server that does not sort, or does not show all of a page, is never believed: complete, or not published."""
    with live(**SMALL | settings) as server:
        job, before = Job(tmp_path, {"main": server.url}, sinks=("parquet",)), set(server.ids())
        result = job.run()
        stayed = before & set(server.ids())
    if result.exit_code:
        assert result.exit_code in {12, 13}, result.error
        return
    assert ids(job, 1) >= stayed


def test_contacts_without_a_creation_time_are_read_by_a_page_scan(tmp_path: Path) -> None:
    """They are at the end of the list: the pages in order stay, and the scan that reads them also cross-checks them."""
    with live(**SMALL | {"no_created_at_share": 0.01}) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("parquet",))
        result = job.run()
        assert result.exit_code == 0, result.error
        assert ids(job, 1) == set(server.ids())
    record = result.accounts[0].record
    assert record.proof.level == "ordered"
    assert record.detail["requests"]["witness"] > 0


def test_contacts_that_go_back_to_the_leads_are_read(tmp_path: Path) -> None:
    """The end of the list of leads is read last; if it has grown, leads are read again, and the level stays (M13)."""
    with live(**SMALL | {"latency": 0.02}) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings="[extract]\nconcurrency = 2\n")
        contacts = [one for one in server.world.account.living().values() if one.is_contact]
        newest_first = sorted(contacts, key=attrgetter("created"), reverse=True)
        with job.start("run", "CONFIG") as process:
            while server.stats()["requests"] < 70:
                pass
            # Leads have been read, and the oldest contacts; these are on pages of which none was a landmark.
            for contact in newest_first[200:280:10]:
                server.change(lambda world, now, contact_id=contact.id: world.flip(contact_id, now))
            process.communicate()
        assert process.returncode == 0
        assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids())
    assert job.rows("select proof_level from runs") == [("ordered",)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"faults": ({"kind": "reversed", "from": 40},)}, "the server does not list the newest contacts first"),
        ({"sort": "id_desc", "no_created_at_share": 0.2}, "some contacts have no createdAt"),
    ],
    ids=["a page", "the landmarks"],
)
def test_a_doubt_is_told(settings: Cells, reason: str, tmp_path: Path) -> None:
    """A run that falls back to windows says why in summary and log, and is proven by windows."""
    with live(**SMALL | settings) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("parquet",))
        ended = job.call("run", "CONFIG")
    assert ended.code == 0, ended.err
    assert f"order     not relied on, so everything was read twice: {reason}" in ended.out
    assert "order.doubted" in ended.err
    assert ended.out.splitlines()[-2].endswith("all proven")


def test_first_run_in_windows_if_configured(job: Job) -> None:
    """`extract.first_run = "windows"` reads everything twice."""
    record = job.run("extract.first_run=windows").accounts[0].record
    assert record.proof.level == "windows"
    assert record.detail["requests"]["witness"] > 75


def test_later_runs_prove_the_account_by_windows(server: Live, job: Job) -> None:
    """The share that is proven by windows grows with each scrub, and is shown by `status`; then all is proven."""
    assert job.run().accounts[0].record.proof.level == "ordered"
    shares = []
    for _ in range(4):
        server.ahead += 2 * 86_400
        shares.append(job.run().accounts[0].record.detail["by_windows"])
        shown = job.call("status", "CONFIG").out
        assert (f"{int(100 * shares[-1])} % windows" in shown) == (shares[-1] < 1)
    assert shares == sorted(shares)
    assert shares[0] > 0.2
    assert shares[-1] == 1.0


def test_a_contact_that_the_first_run_should_have_seen_makes_a_run_read_everything(tmp_path: Path) -> None:
    """An old contact that appears later, and was not touched, is found by a scrub, told as late, and ends the trust."""
    with live(**SMALL | {"late": 3600.0}) as server:
        settings = '[extract]\nlookback = "1s"\nvisibility_lag = "1s"\n'
        job = Job(tmp_path, {"main": server.url}, sinks=("parquet",), settings=settings)
        # Entered now with an old creation time, seen last before the watermark, and visible an hour after the run.
        late = {server.change(lambda world, now: world.insert(now, created=now - 900 * 86_400)) for _ in range(3)}
        time.sleep(3.5)
        assert job.run().exit_code == 0
        assert not late & ids(job, 1)
        server.ahead += 6 * 86_400
        record = job.run().accounts[0].record
    assert record.detail["late"] == len(late)
    assert record.detail["by_windows"] == 1.0
    assert ids(job, 2) >= late


def test_a_killed_run_is_resumed_in_order(tmp_path: Path) -> None:
    """What was read in order is not read again, and is counted with the rest."""
    with live(**SMALL | {"latency": 0.05}) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("parquet",), settings="[extract]\nconcurrency = 4\n")
        process = job.start("run", "CONFIG")
        while server.stats()["requests"] < 80:
            pass
        process.kill()
        process.communicate()
        sent = server.stats()["requests"]
        result = job.run()
        record = result.accounts[0].record
        assert result.exit_code == 0, result.error
        assert (record.proof.level, record.detail["order_doubt"]) == ("ordered", "")
        assert record.detail["resumed"] > 0
        assert server.stats()["requests"] - sent < 110
        assert ids(job, 1) == set(server.ids())
