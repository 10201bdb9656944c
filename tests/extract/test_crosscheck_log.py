"""The cross-check's files and their checkpoint lines: state that a killed run leaves and the next one finds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import anyio
import msgspec
import pytest

from etl.api.client import Client
from etl.api.request import Body
from etl.api.response import HttpResponse, Page, Row
from etl.errors import SinkError
from etl.extract import crosscheck
from etl.extract.capabilities import Capabilities, PageSizes
from etl.extract.checkpoint import ExtractionStart
from etl.extract.checkpoint_file import NAME, CheckpointFile, saved_progress
from etl.extract.crosscheck_log import CHUNK_ROWS, CrossCheckFiles
from etl.extract.evidence import Evidence
from etl.extract.pages import SavedScan
from etl.extract.windows import Accepted, RangeSemantics, Window
from etl.model import RawPage
from etl.storage.staging import Stage
from tests.support.publishing import batch, contact

KEY, NOW = "the same", 1_760_000_000.0
FAR = 10**14
"""A time (ms) after all contacts."""
START = ExtractionStart(
    "full",
    Capabilities(
        t0=0,
        clock="server",
        page_sizes=PageSizes(3, 3),
        page_size_agreed=True,
        first_page=1,
        honours_page=True,
        one_page=False,
        past_end="empty",
        newest_first=True,
        created=RangeSemantics(),
        seen=RangeSemantics(),
        counts_matches=False,
        lists="disjoint",
        total=None,
        empty=False,
    ),
    watermark=0,
    clock_ahead=0,
)


def page_of(number: int, *ids: str | None, size: int = 0) -> Page:
    """Page `number` with these ids, or with `size` generated ones; an id with an "x" has no createdAt."""
    ids = ids or tuple(f"{number}-{place}" for place in range(size))
    rows = [Row(msgspec.Raw(json.dumps(one).encode()), None if "x" in (one or "") else _created(number)) for one in ids]
    return Page(b"", rows, number=number)


def _created(second: int) -> str:
    return f"1970-01-01T00:{second // 60:02d}:{second % 60:02d}Z"


async def nothing() -> tuple[Sequence[Path], Sequence[Path]]:
    """The files of a run that has received no contact."""
    return (), ()


Begin = Callable[[], CrossCheckFiles]
"""Starts another process, which resumes from the state of the one before; returns its cross-check files."""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Consecutive processes in the same folder."""
    with ExitStack() as held:

        def another() -> CrossCheckFiles:
            checkpoint = held.enter_context(CheckpointFile.open(tmp_path, KEY, NOW))
            checkpoint.begin(START)
            return CrossCheckFiles(tmp_path, nothing, lambda _: None, checkpoint)

        yield another


def files(folder: Path) -> list[str]:
    """The names of the log's files."""
    return sorted(path.name for path in folder.glob("cross-check-*"))


async def test_an_interrupted_scan_is_known_to_the_next_run(begin: Begin) -> None:
    """The next run knows an interrupted scan's pages of both lists, rows, ids, times, and the end of a list (P4)."""
    log = begin()
    await log.record(page_of(1, "a", "x", None), is_contact=True)
    await log.record(page_of(3, "c"), is_contact=True)
    await log.record(page_of(1, "b", "d"), is_contact=False)
    log.end(False, 2)
    await log.save()
    again = begin()
    saved = await again.saved_scan(True)
    assert saved == SavedScan({1: 3, 3: 1}, None, {1: frozenset({"a", "x"}), 3: frozenset({"c"})})
    assert (saved.gap, saved.last, saved.over) == (2, 3, False)
    leads = await again.saved_scan(False)
    assert (leads, leads.over) == (SavedScan({1: 2}, 2), True)
    for is_contact, valid in ((True, saved), (False, leads)):
        await again.resume(is_contact, valid)
    assert [list(again.created(is_contact)) for is_contact in (True, False)] == [[1000, 3000], [1000, 1000]]
    assert {one.created for one in await again.missing(10**6)} == {1000, 3000}


async def test_an_interrupted_second_scan_is_resumed(begin: Begin) -> None:
    """The next run knows the ids of the first scan and those only in the second, and resumes the second (P4)."""
    log = begin()
    await log.record(page_of(1, "a", "x1"), is_contact=True)
    log.end(True, 2)
    await log.save()
    log.next_scan()
    await log.record(page_of(1, "x1", "x2", "b"), is_contact=True)
    await log.save()
    for again in (log, begin()):
        saved = await again.saved_scan(True)
        if again is not log:
            assert (saved.sizes, saved.end) == ({1: 3}, None)
            await again.resume(True, saved)
        assert (again.scan, list(again.created(True))) == (2, [1000])
        assert again.without_created_at() == {"x1": (1, 0), "x2": (2, 0)}


async def test_contacts_of_a_page_that_is_read_again_were_seen(begin: Begin) -> None:
    """Contacts on a page that is read again count as seen, so a later scan that shows them finds nothing new (A27)."""
    log = begin()
    await log.record(page_of(1, "a"), is_contact=True)
    await log.record(page_of(2, "x"), is_contact=True)
    await log.save()
    again = begin()
    await again.resume(True, (await again.saved_scan(True)).upto(1))
    assert (list(again.without_created_at()), list(again.created(True))) == (["x"], [1000])


async def test_a_chunk_outlives_a_killed_process(begin: Begin, tmp_path: Path) -> None:
    """After SIGKILL only complete chunks are in the log, and the rest is read again (P4)."""
    log = begin()
    for number in range(1, 6):
        await log.record(page_of(number, size=CHUNK_ROWS // 4), is_contact=True)
    assert files(tmp_path) == ["cross-check-000001.parquet"]
    assert sorted((await begin().saved_scan(True)).sizes) == [1, 2, 3, 4]


async def test_a_cancelled_run_saves_its_log(begin: Begin) -> None:
    """On SIGTERM the log is saved on the way out, although no further await is possible (P1)."""
    log = begin()
    with anyio.CancelScope() as scope:
        try:
            await log.record(page_of(1, "a"), is_contact=True)
            scope.cancel()
            await anyio.sleep(1)
        finally:
            await log.save()
    assert (await begin().saved_scan(True)).sizes == {1: 1}


async def test_concurrent_pages_are_all_in_complete_files(begin: Begin) -> None:
    """While one chunk is written others fill: each line follows its file and all files before it (P22)."""
    log = begin()
    async with anyio.create_task_group() as tasks:
        for number in range(1, 41):
            tasks.start_soon(lambda n: log.record(page_of(n, size=CHUNK_ROWS // 5), is_contact=bool(n % 2)), number)
    await log.save()
    again = begin()
    scans = [await again.saved_scan(is_contact) for is_contact in (False, True)]
    assert [sorted(saved.sizes) for saved in scans] == [list(range(2, 41, 2)), list(range(1, 41, 2))]
    for is_contact in (False, True):
        await again.resume(is_contact, scans[is_contact])
        assert len(again.created(is_contact)) == 4 * CHUNK_ROWS


async def test_withdrawn_pages_are_read_again_and_count_once(begin: Begin) -> None:
    """Pages that the list has moved past are read again; contacts seen there still count in the cross-check (M1)."""
    log = begin()
    for number in (1, 2, 3):
        await log.record(page_of(number, f"old {number}"), is_contact=True)
    log.end(True, 5)
    await log.save()
    log = begin()
    await log.resume(True, (await log.saved_scan(True)).upto(1))
    assert list(log.created(True)) == [1000]
    await log.record(page_of(2, "new 2"), is_contact=True)
    await log.save()
    log = begin()
    saved = await log.saved_scan(True)
    assert saved == SavedScan({1: 1, 2: 1}, None, {1: frozenset({"old 1"}), 2: frozenset({"new 2"})})
    await log.resume(True, saved)
    assert list(log.created(True)) == [1000, 2000]
    assert sorted(one.created for one in await log.missing(10**6)) == [1000, 2000, 2000, 3000]


async def test_what_a_doubted_order_brought_must_be_received_again(tmp_path: Path) -> None:
    """Contacts received before the doubt count as seen only, in every process, and its windows as not read (A9)."""
    stage, received = Stage(tmp_path), 0

    async def parts() -> tuple[Sequence[Path], Sequence[Path]]:
        stage.close()
        checkpoint.written(*stage.checksums, received, {})
        return stage.parts, stage.rejects

    window = Window("createdAt", True, None, 1)
    with CheckpointFile(tmp_path, KEY, NOW) as checkpoint:
        checkpoint.begin(START)
        checkpoint.accept(Accepted(window, 2, level="ordered"))
        lists: list[bool | None] = [True, False, None]
        stage.append(batch("main", [contact(n, is_contact=listed) for n, listed in enumerate(lists)]))
        log, received = CrossCheckFiles(tmp_path, parts, lambda _: None, checkpoint), 3
        assert await log.missing(FAR) == []
        await log.distrust_received()
        checkpoint.unproven("a range that is read again in windows")
        checkpoint.doubt("not sorted")
        checkpoint.unproven("a page lacked a contact")
        checkpoint.accept(Accepted(window, 1))
        stage.append(batch("main", [contact(0, is_contact=False)], read_no=3))
        received = 4
        seen = sorted(await log.missing(FAR))
        assert [one.is_contact for one in seen] == [False, False, True], "the second contact, and the third in any list"
    saved = saved_progress(tmp_path, KEY, NOW)
    assert saved.resumption
    assert (saved.resumption.doubt, [*saved.resumption.accepted]) == ("not sorted", [Accepted(window, 1)])
    assert saved.resumption.unproven == ["a page lacked a contact"]
    with CheckpointFile(tmp_path, KEY, NOW, saved) as checkpoint:
        assert sorted(await CrossCheckFiles(tmp_path, parts, lambda _: None, checkpoint).missing(FAR)) == seen


async def test_rejected_contacts_were_received(tmp_path: Path) -> None:
    """They are in no part, but not missing: neither by their id, nor by any of two contradictory ones (A9)."""
    stage = Stage(tmp_path)
    rejects = [{"contact_id": "b", "reason": "too deep", "raw": "{}"}, {"reason": "ids differ", "raw": '{"_id": "c"}'}]
    stage.append(batch("main", [], rejects))
    stage.close()

    async def received() -> tuple[Sequence[Path], Sequence[Path]]:
        return stage.parts, stage.rejects

    with CheckpointFile(tmp_path, KEY, NOW) as checkpoint:
        checkpoint.begin(START)
        log = CrossCheckFiles(tmp_path, received, lambda _: None, checkpoint)
        await log.record(page_of(1, "a", "b", "c"), is_contact=True)
        await log.save()
        assert [one.contact_id for one in await log.missing(FAR)] == ["a"]


@pytest.mark.parametrize(
    ("in_contacts", "in_leads", "received_as", "doubted", "returned"),
    [
        (True, False, False, False, True),
        (True, True, False, False, False),  # The lists overlap.
        (False, True, False, False, False),
        (True, False, True, False, False),
        (True, False, None, False, False),  # The server does not tell.
        (True, False, False, True, False),  # It may have been a lead long before it was seen.
    ],
)
async def test_a_contact_that_went_back_to_the_leads(
    tmp_path: Path, *, in_contacts: bool, in_leads: bool, received_as: bool | None, doubted: bool, returned: bool
) -> None:
    """The list in which it was seen, and the one in which it was received, show that it went back (M13)."""
    stage = Stage(tmp_path)

    async def received() -> tuple[Sequence[Path], Sequence[Path]]:
        stage.close()
        return stage.parts, stage.rejects

    with CheckpointFile(tmp_path, KEY, NOW) as checkpoint:
        checkpoint.begin(START)
        log = CrossCheckFiles(tmp_path, received, lambda _: None, checkpoint)
        assert not await log.shows_returns()
        one = contact(1, is_contact=received_as)
        stage.append(batch("main", [one]))
        if doubted:
            await log.distrust_received()
        for listed, seen in ((True, in_contacts), (False, in_leads)):
            await log.record(page_of(1, *([one["contact_id"]] if seen else ["b"])), is_contact=listed)
        await log.save()
        assert await log.shows_returns() is returned


async def test_a_file_without_its_line_is_removed(begin: Begin, tmp_path: Path) -> None:
    """A process killed between file and line leaves a file that is not listed, and the next run removes it (P27)."""
    log = begin()
    await log.record(page_of(1, "a"), is_contact=True)
    await log.save()
    (tmp_path / "cross-check-000002.parquet").write_bytes(b"PAR1 and no")
    again = begin()
    assert (await again.saved_scan(True)).sizes == {1: 1}
    assert files(tmp_path) == ["cross-check-000001.parquet"]
    await again.record(page_of(2, "b"), is_contact=True)
    await again.save()
    assert files(tmp_path) == ["cross-check-000001.parquet", "cross-check-000002.parquet"]


async def test_a_torn_line_costs_only_its_chunk(begin: Begin, tmp_path: Path) -> None:
    """A line cut anywhere is ignored, and lines written after it are not lost (P11)."""
    log = begin()
    for number in (1, 2):
        await log.record(page_of(number, "a"), is_contact=True)
        await log.save()
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:-20])
    log = begin()
    assert (await log.saved_scan(True)).sizes == {1: 1}
    await log.record(page_of(3, "c"), is_contact=True)
    await log.save()
    assert (await begin().saved_scan(True)).sizes == {1: 1, 3: 1}


OLDER = b'{"type":"witnessed","files":["cross-check-000001.parquet"]}\n'
"""A line of an older version."""


@pytest.mark.parametrize("line", [OLDER, b'{"type":"scan","files":[]}\n', b'{"type":"scan"\n', b"\xff\n"])
async def test_an_unknown_line_ends_the_checkpoint(begin: Begin, tmp_path: Path, line: bytes) -> None:
    """A line of another version, or a damaged one, ends the checkpoint: nothing after it is trusted (P24, P25)."""
    log = begin()
    await log.record(page_of(1, "a"), is_contact=True)
    await log.save()
    with (tmp_path / NAME).open("ab") as checkpoint:
        checkpoint.write(line)
    size = (tmp_path / NAME).stat().st_size
    assert (await begin().saved_scan(True)).sizes == {1: 1}
    assert (tmp_path / NAME).stat().st_size == size - len(line)


async def test_without_one_of_its_files_nothing_is_resumed(begin: Begin, tmp_path: Path) -> None:
    """If a file is missing, nothing is resumed and reading starts over (P26)."""
    log = begin()
    await log.record(page_of(1, "a"), is_contact=True)
    await log.save()
    (tmp_path / "cross-check-000001.parquet").unlink()
    assert saved_progress(tmp_path, KEY, NOW).resumption is None


# --- the files of a killed run, and each of them changed ------------------------------------------------------------


async def a_killed_run(folder: Path) -> None:
    """A checkpoint with a part, a file of rejects, a cross-check file, and two pages that are in no part yet."""
    stage = Stage(folder)
    with CheckpointFile(folder, KEY, NOW) as checkpoint:
        checkpoint.begin(START)
        stage.append(batch("main", [contact(1)], [{"reason": "no id", "raw": "{}"}]))
        stage.close()
        checkpoint.receive(RawPage(b'{"data": [1]}', 2, 0))
        checkpoint.written(*stage.checksums, 2, {"received": 2})
        log = CrossCheckFiles(folder, nothing, lambda _: None, checkpoint)
        await log.record(page_of(1, "a"), is_contact=True)
        await log.save()
        checkpoint.receive(RawPage(b'{"email": "ada@example.com"}', 1, 2))
        checkpoint.receive(RawPage(b'{"email": "eve@example.com"}', 1, 3))


def the_file(folder: Path, pattern: str) -> Path:
    """The one file that matches this pattern."""
    [file] = folder.glob(pattern)
    return file


async def test_unchanged_files_are_resumed(tmp_path: Path) -> None:
    """The same parts, pages and files are resumed, and new lines follow those of the killed process (P4)."""
    await a_killed_run(tmp_path)
    saved = saved_progress(tmp_path, KEY, NOW)
    assert {path.name for path in saved.files(tmp_path)} == {
        *("part-000001.parquet", "rejects-000001.parquet", "cross-check-000001.parquet", "pages-000001.jsonl"),
    }
    with CheckpointFile(tmp_path, KEY, NOW, saved) as checkpoint:
        assert [page.body[11:14] for page in checkpoint.pages()] == [b"ada", b"eve"]
        checkpoint.receive(RawPage(b"more", 1, 4))
    assert [page.read_no for page in saved_progress(tmp_path, KEY, NOW).pages] == [2, 3, 4]


@pytest.mark.parametrize("name", ["part-*", "rejects-*", "cross-check-*", "pages-*"])
@pytest.mark.parametrize("change", ["flip", "cut", "empty", "grow", "link", "remove"])
async def test_a_changed_file_is_not_resumed(tmp_path: Path, name: str, change: str) -> None:
    """If a byte, the end or all of a file changes, reading starts over (P25, P26, X4)."""
    await a_killed_run(tmp_path)
    file = the_file(tmp_path, name)
    content = file.read_bytes()
    if change in ("link", "remove"):
        file.rename(tmp_path / "elsewhere")
        if change == "link":
            file.symlink_to("elsewhere")
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"flip": flipped, "cut": content[:-1], "empty": b"", "grow": content + b"x"}[change])
    resumption = saved_progress(tmp_path, KEY, NOW).resumption
    # Bytes after the pages in their file belong to none of them.
    assert (resumption is None) is not ((name, change) == ("pages-*", "grow"))


async def test_a_page_with_another_address_in_it_is_not_resumed(tmp_path: Path) -> None:
    """A page changed without changing its length is found by its checksum, even after the first check (X4)."""
    await a_killed_run(tmp_path)
    saved = saved_progress(tmp_path, KEY, NOW)
    file = the_file(tmp_path, "pages-*")
    file.write_bytes(file.read_bytes().replace(b"eve@", b"mal@"))
    assert saved_progress(tmp_path, KEY, NOW).resumption is None
    with CheckpointFile(tmp_path, KEY, NOW, saved) as checkpoint, pytest.raises(SinkError, match="changed"):
        list(checkpoint.pages())


async def test_an_edited_line_ends_the_checkpoint(tmp_path: Path) -> None:
    """An edited, missing or reordered line ends the checkpoint, so no more than the lines before it is resumed."""
    await a_killed_run(tmp_path)
    lines = (tmp_path / NAME).read_bytes().splitlines(keepends=True)
    whole = saved_progress(tmp_path, KEY, NOW)
    assert len(whole.pages) == 2
    for at, line in enumerate(lines):
        edited = re.sub(rb'("\w+":)\d', rb"\g<1>9", line)
        assert edited != line
        for changed in ([edited], [], [edited, line], [line, line]):
            (tmp_path / NAME).write_bytes(b"".join([*lines[:at], *changed, *lines[at + 1 :]]))
            saved = saved_progress(tmp_path, KEY, NOW)
            assert saved.resumption is None or saved.resumption.start == START
            assert saved.size <= sum(map(len, lines[: at + 1]))
            assert list(saved.pages) == list(whole.pages)[: len(saved.pages)]


class Moving:
    """A server with three contacts a page, whose list changes after response `at` and every `every` responses."""

    def __init__(
        self, names: Sequence[str], change: Callable[[list[str]], None], *, at: int, every: int = 10**9
    ) -> None:
        self.names, self.change = list(names), change
        self.turns = range(at, 10**6, every)
        self.answered = 0

    async def __call__(self, body: Body) -> HttpResponse:
        """One page; a name with an "x" has no createdAt, and one with a "!" was seen in the year 2030."""
        page = int(str(body["page"]))
        listed = self.names[3 * page - 3 : 3 * page] if body["isContact"] else []
        self.answered += 1
        if self.answered in self.turns:
            self.change(self.names)
        seen = {name: "2030-01-01T00:00:00.000Z" if "!" in name else None for name in listed}
        data = [
            {"_id": name, "createdAt": None if "x" in name else _created(page), "lastSeenAt": seen[name]}
            for name in listed
        ]
        return HttpResponse(200, {}, json.dumps({"success": True, "data": data}).encode())


def shortened(names: list[str]) -> None:
    """Delete the first contact, so that all others move one place forward."""
    del names[0]


def grown(names: list[str]) -> None:
    """Append a contact that was never seen and has no createdAt."""
    names.append(f"x{len(names)}")


def busy(names: list[str]) -> None:
    """Append a contact that was just seen, so that the sweep covers it."""
    names.append(f"x{len(names)}!")


@pytest.mark.parametrize(
    ("server", "found", "doubts"),
    [
        (Moving(["a", "b", "x1", "x2", "c"], shortened, at=1), {"x1", "x2"}, 0),
        (Moving(["a", "x1", "b"], busy, at=1, every=1), {"x1"}, 0),
        (Moving(["a", "x1", "b"], grown, at=1, every=3), {"x1"}, 1),
        (Moving(["a", "b", "c", "d"], shortened, at=1, every=2), set(), 0),
    ],
    ids=["missed once", "only the sweep's", "always another", "none"],
)
async def test_scans_are_repeated_until_they_find_no_other_contact_without_createdat(
    begin: Begin, server: Moving, found: set[str], doubts: int
) -> None:
    """Scans can miss contacts without createdAt, so they repeat until one finds nothing new, within a limit (A27)."""
    received: set[str] = set()

    async def receive(page: Page) -> None:
        received.update(json.loads(bytes(row.contact_id)) for row in page.rows)

    client = Client(server, account="main", concurrency=1)
    check = crosscheck.CrossCheck(client, START.capabilities, begin(), Evidence(receive))
    doubts_found, _ = await check.scan(1_800_000_000_000)
    assert (found <= received, len(doubts_found)) == (True, doubts)
    assert server.answered <= crosscheck.MOST_SCANS * (len(server.names) // 3 + 4)
