"""All server faults end to end: one account with a canary, one command, and the state it leaves.

Each case is data. The target holds the state of a good run; then the server fails, and the command must end with the
case's exit code, report the problem in one line, change no byte of the target (or publish the correct data, if it
recovered from the fault), and output neither the token nor the contact, whatever the server sends.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.campaign import campaign
from tests.support.canary import CONTACT_ID, EMAIL, PHONE, RAW, TOKEN, files, leaks
from tests.support.live import Ended, Job, Live, live

BABBLE = f"Bearer {TOKEN} of {EMAIL}, {PHONE} is not valid, {TOKEN}"
"""A server message that repeats the token and a contact's data."""
SHORT = '[http]\nattempt_timeout = "250ms"\n'
SMALL_BODIES = '[http]\nmax_body = "1MiB"\n'


@dataclass(frozen=True)
class Case:
    """One case: server faults and settings, the token that is sent, additional TOML, and the expected exit code."""

    exit_code: int
    faults: tuple[Mapping[str, Any], ...] = ()
    sandbox: Mapping[str, Any] = field(default_factory=dict)
    token: str = TOKEN
    settings: str = ""


def always(exit_code: int, kind: str, settings: str = "", **spec: object) -> Case:
    """A case with this fault in every request, unless `spec` restricts it."""
    return Case(exit_code, ({"kind": kind, **spec},), settings=settings)


def answers(exit_code: int, status: int, **spec: object) -> Case:
    """Every response has this status and a message with the values that must not be repeated."""
    return always(exit_code, "status", status=status, message=BABBLE, **spec)


def says(exit_code: int, code: int) -> Case:
    """Every response has status 200 and reports a failure in its body."""
    return always(exit_code, "success_false", code=code, message=BABBLE)


FAILING: Mapping[str, Case] = {
    "N4 reset before headers": always(11, "reset"),
    "N4 closed before headers": always(11, "close"),
    "N5 reset mid-body": always(11, "reset_mid_body"),
    "N5 closed mid-body": always(11, "close_mid_body"),
    "N6 no final chunk": always(11, "chunk_cut"),
    "N7 truncated JSON": always(12, "truncated_json", at=0.9),
    "N8 an object": always(12, "envelope", shape="object"),
    "N8 a list": always(12, "envelope", shape="list"),
    "N9 slow body": always(11, "slow_body", SHORT, seconds=20),
    "N10 no answer": always(11, "hang", SHORT),
    "N11 corrupt gzip": always(12, "bad_gzip"),
    "N12 X12 bomb beyond the cap": always(12, "gzip_bomb", SMALL_BODIES, megabytes=2),
    "N12 X12 bomb by its ratio": always(12, "gzip_bomb", megabytes=4),
    "N13 huge body": always(12, "huge", SMALL_BODIES, megabytes=2),
    "N14 header bomb": always(12, "headers", count=10_000),
    "N15 HTML": always(12, "html"),
    "N17 UTF-16": always(12, "charset", charset="utf-16"),
    "N18 X10 redirect to another host": always(12, "redirect", location=f"https://elsewhere.example.com/?t={TOKEN}"),
    "N18 X10 redirect to the metadata address": always(12, "redirect", status=307, location="http://169.254.169.254/"),
    "A1 unknown token": Case(10, sandbox={"token": "0" * 24}),
    "A2 token expires": Case(10, sandbox={"token_expires_after": 12}),
    "A4 400": answers(12, 400),
    "A4 403": answers(10, 403),
    "A4 404": answers(12, 404),
    "A4 405": answers(12, 405),
    "A4 422": answers(12, 422),
    "A6 endless wait": answers(11, 429, retry_after="1000000000"),
    "A8 500": answers(11, 500),
    "A8 502 as HTML": answers(11, 502, **{"as": "html"}),
    "A11 401 told under 200": says(10, 401),
    "A11 500 told under 200": says(11, 500),
    "A11 422 told under 200": says(12, 422),
    "A11 success false": says(12, 200),
    "A12 empty body": always(12, "empty"),
    "A12 204": always(12, "no_content"),
    "A20 filter lost on the way": Case(12, ({"kind": "ignore_dates", "from": 20},)),
    "A25 too many rejects": Case(
        14, ({"kind": "foreign_row", "row": '{"profile":{}}'},), settings="[guard]\nmax_reject_share = 0\n"
    ),
    "A32 NaN": always(12, "nan"),
    "A33 X12 deep nesting": always(12, "deep"),
    "A48 malformed token": Case(10, token="kanarie", sandbox={"token": "5eed" * 6}),  # noqa: S106
    "A49 authtype lost": answers(10, 401),
    "A50 date filters ignored": Case(13, sandbox={"applicable_filters": "ignored"}),
    "A11 an error beside an empty list": always(11, "envelope", shape="error"),
    "A11 an error beside an empty list, after the probe": always(11, "envelope", shape="error", **{"from": 20}),
    "N8 nobody in a bare envelope, after the probe": always(12, "envelope", shape="nobody", **{"from": 20}),
    "A55 texts instead of contacts": always(12, "envelope", shape="texts"),
    "A55 a bare list": always(12, "envelope", shape="bare_list"),
    "A55 data is an object": always(12, "envelope", shape="object_data"),
    "A55 no data": always(12, "envelope", shape="no_data"),
}
"""Faults that end a run."""

PASSING: Mapping[str, Case] = {
    "N4 reset now and then": always(0, "reset", every=12),
    "N5 cut now and then": always(0, "close_mid_body", every=12),
    "N6 a final chunk missing": always(0, "chunk_cut", nth=9),
    "N9 one slow body": always(0, "slow_body", SHORT, seconds=20, nth=9),
    "N10 one request without answer": always(0, "hang", SHORT, nth=9),
    "N11 one corrupt gzip": always(0, "bad_gzip", nth=9),
    "N12 one bomb": always(0, "gzip_bomb", megabytes=4, nth=9),
    "N16 JSON called a picture": always(0, "content_type", type=f"image/{'x' * 40}"),
    "N17 BOM": always(0, "charset", charset="utf-8-sig"),
    "N21 closed after each answer": always(0, "close_after"),
    "N23 answers overtake each other": Case(0, sandbox={"latency": 0.01, "latency_jitter": 1.0}),
    "N25 A47 Date a day ahead": always(0, "date", seconds=86_400),
    "N25 A47 Date a day behind": always(0, "date", seconds=-86_400),
    "N25 A47 Date goes back an hour": always(0, "date", seconds=3600, until=10),
    "N25 A47 Date leaps by an hour": always(0, "date", seconds=3600, **{"from": 10}),
    "N25 no Date": always(0, "date", text=""),
    "N25 senseless Date": always(0, "date", text=BABBLE),
    "A5 429 with a wait": always(0, "retry_after", retry_after="0.1", nth=9),
    "A6 429 with a senseless wait": always(0, "retry_after", retry_after=BABBLE, nth=9),
    "A6 429 with a wait in the past": always(0, "retry_after", retry_after="Wed, 21 Oct 2015 07:28:00 GMT", nth=9),
    "A7 429 without a wait": always(0, "status", status=429, nth=9),
    "A8 500 now and then": always(0, "status", status=500, message=BABBLE, every=12),
    "A11 one error beside an empty list": always(0, "envelope", shape="error", nth=9),
    "A12 one empty answer": always(0, "empty", nth=9),
    "A13 the last page again past the end": Case(0, sandbox={"past_end": "repeat"}),
    "A14 404 past the end": Case(0, sandbox={"past_end": "404"}),
    "A15 pages from 0": Case(0, sandbox={"page_base": 0}),
    "A16 page ignored": Case(0, sandbox={"ignore_page": True}),
    "A19 total far too small": Case(0, sandbox={"total": "zero"}),
    "A22 another order every time": Case(0, sandbox={"sort": "shuffled"}),
    "A23 rows twice": always(0, "duplicate_row"),
    "A55 the other envelope": always(0, "envelope", shape="status_message"),
}
"""Faults from which a run recovers."""

HIDING: Mapping[str, Case] = {
    "N24 one page for every question": Case(0, ({"kind": "duplicate_page", "from": 8},)),
    "A14 404 for a page in the middle": answers(12, 404, page=2),
    "A17 half of each page": Case(0, ({"kind": "page_size", "size": 10, "from": 12},)),
    "A18 short pages": Case(0, ({"kind": "short_page"},), {"total": "exact"}),
    "A42 A43 nobody any more": Case(0, ({"kind": "empty_list"},)),
    "A43 nobody now and then": Case(0, ({"kind": "empty_list", "every": 5},)),
}
"""Faults that may hide contacts: a run publishes the correct data, or exits with 12, 13 or 14 and publishes nothing."""


@dataclass(frozen=True)
class Exported:
    """A good run's folder, and the contacts it exported."""

    folder: Path
    contacts: tuple[bytes, ...]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The initial state of every case: 60 contacts and the canary."""
    with live(contacts=60, nasty_share=0, small=True, page_size=20) as server:
        people = (*server.truth().values(), RAW)
    job = Job(tmp_path_factory.mktemp("good"), {}, {"main": TOKEN}, sinks=("duckdb",))
    with account(Case(0), people) as server:
        job.urls = {"main": server.url}
        ended = job.call("run", "CONFIG")
    assert ended.code == 0, ended.err
    assert_discreet(job, ended)
    return Exported(job.folder, people)


@contextmanager
def account(case: Case, people: tuple[bytes, ...]) -> Iterator[Live]:
    """An account with these contacts on a server with the case's faults."""
    settings = {"token": TOKEN, "page_size": 20, "faults": case.faults, **case.sandbox}
    with live(contacts=0, nasty_share=0, **settings) as server:
        server.change(lambda world, now: [world.adopt(raw, now) for raw in people])
        yield server


@contextmanager
def disturbed(case: Case, exported: Exported, folder: Path) -> Iterator[tuple[Job, Live]]:
    """The case's job with the good state in its target, and its server."""
    shutil.copytree(exported.folder, folder, dirs_exist_ok=True)
    with account(case, exported.contacts) as server:
        yield Job(folder, {"main": server.url}, {"main": case.token}, case.settings, ("duckdb",)), server


def assert_discreet(job: Job, ended: Ended) -> None:
    """No trace of the canary in the output or, except for data files, in the written files, which are all private."""
    assert leaks({"stdout": ended.out.encode(), "stderr": ended.err.encode()}) == []
    assert leaks(files(job.folder / "data")) == []
    assert_private(job.folder / "data")


def assert_private(folder: Path) -> None:
    """Files 0600, folders 0700."""
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert [path for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)] == []


def assert_failed(job: Job, ended: Ended, code: int) -> None:
    """One error line on stderr and one error in the JSON document, each with a hint, and no canary in new files."""
    told = [line for line in ended.err.splitlines() if line.startswith(f"error {code}: ")]
    assert (ended.code, len(told)) == (code, 1), ended.err
    assert "Traceback" not in ended.err
    assert told[0].rstrip().endswith((".", "?"))
    if ended.out.startswith("{"):
        assert ended.document["exit"] == ended.document["error"]["code"] == code
        assert ended.document["error"]["hint"]
        assert ended.document["sinks"] == {}
    assert leaks({"stdout": ended.out.encode(), "stderr": ended.err.encode()}) == []
    # The target is unchanged and was searched after the good run; only temporary files are left to search.
    assert leaks(files(job.temporary)) == []
    assert_private(job.folder / "data")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param(
            name,
            words,
            id=f"{name}, {words[0] if words else 'text'}",
            marks=() if words or case.exit_code in {10, 20} else pytest.mark.campaign,
        )
        for name, case in FAILING.items()
        for words in ((), ("--json",))
        # Five attempts take seconds; these cases end the same way in both forms, so one form is enough.
        if words or case.exit_code != 11 or "wait" in name
    ],
)
def test_a_fault_that_lasts_changes_nothing(
    name: str, words: tuple[str, ...], exported: Exported, tmp_path: Path
) -> None:
    """A permanent fault gives the right exit code, an unchanged target, private files and no canary (X1-X3)."""
    case = FAILING[name]
    with disturbed(case, exported, tmp_path) as (job, _):
        before = job.fingerprint()
        ended = job.call("run", "CONFIG", "--full", *words)
        assert_failed(job, ended, case.exit_code)
        assert job.fingerprint() == before


@pytest.mark.parametrize(
    "name", ["N15 HTML", "A2 token expires", "A20 filter lost on the way", "A25 too many rejects", "A32 NaN"]
)
def test_a_first_run_that_fails_leaves_no_target(name: str, exported: Exported, tmp_path: Path) -> None:
    """A first run that fails creates no target; other files are private and free of the canary (X1-X3)."""
    case = FAILING[name]
    with account(case, exported.contacts) as server:
        job = Job(tmp_path, {"main": server.url}, {"main": case.token}, case.settings, ("duckdb",))
        assert_failed(job, job.call("run", "CONFIG"), case.exit_code)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".etl"}


ALSO_FIRST = {"A13", "A14", "A15", "A16", "A19", "A22"}
"""Kinds of servers with which `tests/commands/test_run.py` makes first and later runs."""


@pytest.mark.parametrize("name", [campaign(name) if name.split()[0] in ALSO_FIRST else name for name in PASSING])
def test_a_fault_that_passes_costs_nobody(name: str, exported: Exported, tmp_path: Path) -> None:
    """A full run, and an incremental one if the fault lasts, exit with 0, correct data, and no canary (X1-X3)."""
    case = PASSING[name]
    once = any("nth" in fault for fault in case.faults)
    with disturbed(case, exported, tmp_path) as (job, server):
        for words in (("--full", "--json"),) if once else (("--full",), ("--json",)):
            ended = job.call("run", "CONFIG", *words)
            assert ended.code == 0, ended.err
            assert leaks({"stdout": ended.out.encode(), "stderr": ended.err.encode()}) == []
        assert_discreet(job, ended)
        wanted = set(server.ids())
    assert CONTACT_ID in wanted
    assert {row["contact_id"] for row in job.in_duckdb()} == wanted


@pytest.mark.parametrize("name", HIDING)
def test_a_fault_that_hides_is_not_believed(name: str, exported: Exported, tmp_path: Path) -> None:
    """A run exits with 0 and correct data, or with 12, 13 or 14 and an unchanged target, without canary (X1-X3)."""
    with disturbed(HIDING[name], exported, tmp_path) as (job, server):
        before = job.fingerprint()
        ended = job.call("run", "CONFIG", "--full", "--json")
        if ended.code == 0:
            assert_discreet(job, ended)
            assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids())
        else:
            assert_failed(job, ended, ended.code)
            assert ended.code in {12, 13, 14}
            assert job.fingerprint() == before


@pytest.mark.parametrize("words", [("plan",), ("status",), ("verify",), ("doctor",), ("run", "--full")])
def test_no_command_tells_the_canary(words: tuple[str, ...], exported: Exported, tmp_path: Path) -> None:
    """Without faults, no command shows the token or a contact that was not requested (X1, X2)."""
    command, *options = words
    with disturbed(Case(0), exported, tmp_path) as (job, _):
        for form in ((), ("--json",)):
            ended = job.call(command, "CONFIG", *options, *form)
            assert ended.code == 0, ended.err
            assert_discreet(job, ended)


def test_a_rejected_contact_is_kept_in_private(exported: Exported, tmp_path: Path) -> None:
    """A contact without an id is published in `rejects` with exit 40 and appears nowhere else (A25, X2, X20)."""
    nameless = json.dumps({name: value for name, value in json.loads(RAW).items() if name != "_id"}).encode()
    lenient = Case(40, settings="[guard]\nmax_reject_share = 1\n")
    with disturbed(lenient, exported, tmp_path) as (job, server):
        server.change(lambda world, now: world.adopt(nameless, now))
        ended = job.call("run", "CONFIG", "--full", "--json")
        assert ended.code == 40, ended.err
        assert_discreet(job, ended)
    [raw] = [json.loads(cell) for (cell,) in job.rows("select raw from rejects")]
    assert raw["profile"] == json.loads(RAW)["profile"]


def test_a_wrong_label_is_counted(exported: Exported, tmp_path: Path) -> None:
    """JSON with a wrong Content-Type is accepted, and the run's record counts these pages (N16)."""
    with disturbed(PASSING["N16 JSON called a picture"], exported, tmp_path) as (job, _):
        assert job.call("run", "CONFIG", "--full").code == 0
    [[detail]] = job.rows("select detail from runs order by seq desc limit 1")
    assert json.loads(detail)["cells"]["mislabelled_pages"] > 2


def test_a_window_that_fails_for_good_is_named(exported: Exported, tmp_path: Path) -> None:
    """If windows with one creation time always answer 500, the run exits with 12 and names a range around it (A9)."""
    moment = json.loads(exported.contacts[30])["createdAt"]
    poisoned = Case(12, ({"kind": "status", "status": 500, "message": BABBLE, "covers": moment},))
    with disturbed(poisoned, exported, tmp_path) as (job, _):
        before = job.fingerprint()
        ended = job.call("run", "CONFIG", "--full", "--json")
        assert_failed(job, ended, 12)
        assert job.fingerprint() == before
    told = ended.document["error"]
    assert "createdAt" in told["message"] + told["where"]
    assert moment[:13] in told["message"] + told["where"]


def test_a_closed_port_changes_nothing(exported: Exported, tmp_path: Path) -> None:
    """A refused connection gives exit 11, the address in the message and an unchanged target (N1, X1-X3)."""
    shutil.copytree(exported.folder, tmp_path, dirs_exist_ok=True)
    with live(contacts=0) as server:
        gone = server.url
    job = Job(tmp_path, {"main": gone}, {"main": TOKEN})
    before = job.fingerprint()
    ended = job.call("run", "CONFIG")
    assert_failed(job, ended, 11)
    assert gone.removeprefix("http://") in ended.err
    assert job.fingerprint() == before


def test_what_a_stopped_run_leaves_is_private(exported: Exported, tmp_path: Path) -> None:
    """SIGTERM in a run with umask 0 gives exit 143, an unchanged target, private files and no canary (P1, X1-X3)."""
    slow = Case(143, sandbox={"latency": 0.1}, settings="[extract]\nconcurrency = 2\n")
    with disturbed(slow, exported, tmp_path) as (job, server):
        before, mask = job.fingerprint(), os.umask(0)
        try:
            running = job.start("run", "CONFIG", "--full", "--json")
        finally:
            os.umask(mask)
        with running:
            while server.stats()["requests"] < 22:
                assert running.poll() is None
                time.sleep(0.01)
            running.terminate()
            out, err = running.communicate(timeout=20)
        assert_failed(job, Ended(running.returncode, out.decode(), err.decode()), 143)
        assert job.fingerprint() == before


def test_an_account_that_was_empty_may_stay_so(tmp_path: Path) -> None:
    """An empty account is exported with exit 0, and so it is again (A42)."""
    with account(Case(0), ()) as server:
        job = Job(tmp_path, {"main": server.url}, {"main": TOKEN})
        assert [job.call("run", "CONFIG").code for _ in range(2)] == [0, 0]
    assert job.rows("select count(*) from contacts") == [(0,)]
