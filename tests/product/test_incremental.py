"""Runs after the first: changes to `contacts`, the history and `runs`, and when contacts are deleted."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest

from etl.cli.render import render_run
from etl.commands.result import RunResult
from etl.extract.account import history_of, last_run
from etl.extract.history import NoSnapshot
from etl.model import RunRecord, SinkState
from tests.support import expected_rows
from tests.support.campaign import campaign
from tests.support.live import Account, Job, Live, Row, live

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """An account of 300 contacts without oddities."""
    return Account(tmp_path_factory.mktemp("account"), {"contacts": 300, "nasty_share": 0, "small": True})


def counted(report: RunResult) -> Row:
    """The counts of a good run of one account."""
    document = report.document()
    assert report.error is None, document["error"]
    [account] = document["accounts"]  # type: ignore[misc, attr-defined]
    return {"mode": account["mode"], **account["counts"]}


def each(act: str, ids: list[str]) -> Callable[[Any, float], None]:
    """One change, applied to several contacts."""

    def happen(world: Any, now: float) -> None:
        for identity in ids:
            getattr(world, act)(identity, now)

    return happen


def versions(job: Job, identity: str) -> list[tuple[int, str, str]]:
    """Seq, op and status of every version of a contact."""
    return job.rows("select seq, op, status from contact_versions where contact_id = ? order by seq", identity)


def test_a_run_without_changes_adds_its_row_to_runs_and_nothing_else(job: Job) -> None:
    """A run without changes leaves contacts, their stamps and the history as they are."""
    before = job.rows("select contact_id, seq, observed_at, row_hash from contacts order by 1")
    found = counted(job.run())
    assert (found["mode"], found["new"], found["changed"], found["deleted"], found["contacts"]) == (
        "incremental",
        0,
        0,
        0,
        300,
    )
    assert job.rows("select contact_id, seq, observed_at, row_hash from contacts order by 1") == before
    assert job.rows("select count(*) from contact_versions") == [(300,)]
    assert job.rows("select seq, mode from runs order by seq") == [(1, "full"), (2, "incremental")]


def test_the_second_run_asks_only_for_what_it_must(job: Job, server: Live) -> None:
    """An incremental run costs the probe, a sweep and one share of the windows, not another full run."""
    first = server.stats()["requests"]
    job.run()
    assert server.stats()["requests"] - first < 40


def test_new_and_changed_contacts_get_one_version_each(job: Job, server: Live) -> None:
    """Touched contacts are replaced and new ones inserted; all others keep the row of the first run."""
    ids = server.ids()
    server.change(each("touch", ids[:10]))
    server.change(each("edit", ids[:5]))
    new = server.change(lambda w, now: [w.insert(now) for _ in range(4)])
    found = counted(job.run())
    assert (found["new"], found["changed"], found["contacts"]) == (4, 10, 304)
    assert dict(job.rows("select seq, count(*) from contacts group by 1")) == {1: 290, 2: 14}
    assert [op for _, op, _ in versions(job, ids[0])] == ["upsert", "upsert"]
    assert [seq for seq, *_ in versions(job, new[0])] == [2]


PRESENCE = "select unread_messages, row_hash from contacts where contact_id = ?"


def test_presence_alone_is_no_version(job: Job, server: Live) -> None:
    """A new number of unread messages updates `contacts`, adds no version, and counts as unchanged."""
    [identity] = server.ids()[:1]
    before = job.rows(PRESENCE, identity)
    server.change(each("presence", [identity]))
    found = counted(job.run(full=True))
    assert (found["changed"], found["unchanged"]) == (0, 300)
    [(unread, fingerprint)] = job.rows(PRESENCE, identity)
    assert (unread, fingerprint) == (before[0][0] + 1, before[0][1])
    assert len(versions(job, identity)) == 1


def test_an_edit_that_moves_no_time_is_found_by_a_full_run(job: Job, server: Live) -> None:
    """M10: an edit that moves no time is invisible to the sweep and found by `--full`."""
    [identity] = server.ids()[:1]
    server.change(each("edit", [identity]))
    assert counted(job.run(full=True))["changed"] == 1
    assert len(versions(job, identity)) == 2


def test_an_edit_that_moves_no_time_is_found_within_one_round_of_the_scrub(job: Job, server: Live) -> None:
    """M10: with `scrub_runs = 3`, three incremental runs read every window again."""
    job.settings = "[extract]\nscrub_runs = 3\n"
    ids = server.ids()
    server.change(each("edit", ids[::10]))
    changed = [counted(job.run())["changed"] for _ in range(4)]
    assert sum(changed) == len(ids[::10])
    assert changed[3] == 0


def test_a_contact_is_deleted_by_its_second_strike(account: Account, server: Live, tmp_path: Path) -> None:
    """M2, A45: a contact stays after one absence; after two it is deleted, with a tombstone and its last values."""
    job = account.job(server, tmp_path, "duckdb", "parquet")
    gone = server.ids()[:3]
    server.change(each("delete", gone))
    first, second = counted(job.run(full=True)), counted(job.run(full=True))
    assert (first["deleted"], first["contacts"], second["deleted"], second["contacts"]) == (0, 300, 3, 297)
    assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids())
    assert {row["contact_id"] for row in job.in_parquet(3)} == set(server.ids())
    assert [(seq, op) for seq, op, _ in versions(job, gone[0])] == [(1, "upsert"), (3, "delete")]
    assert job.rows("select count(*) from contacts_as_of(timestamptz '2999-01-01')") == [(297,)]


def test_a_run_killed_between_two_sinks_strikes_once(tmp_path: Path) -> None:
    """P4, A45: a run resumed from a read that one sink has published adds no second strike; both sinks are equal."""
    with live(contacts=800, nasty_share=0, small=True, latency=0.05) as server:
        job = Job(tmp_path, {"main": server.url})
        job.run()
        gone = server.ids()[:8]
        server.change(each("delete", gone))
        before, kept = server.stats()["requests"], tmp_path / "kept"
        with job.start("run", "CONFIG", "--full") as process:
            while server.stats()["requests"] < before + 40 and process.poll() is None:
                time.sleep(0.005)
            process.kill()
        assert process.returncode == -9
        # The state after a kill between the sinks: the stage, the new DuckDB file and the old Parquet files.
        shutil.copytree(job.temporary, kept / "stage")
        shutil.copytree(job.parquet, kept / "parquet")
        assert counted(job.run(full=True))["deleted"] == 0
        for target, copy in ((job.temporary, kept / "stage"), (job.parquet, kept / "parquet")):
            shutil.rmtree(target)
            shutil.copytree(copy, target)
        found = job.run(full=True)
        assert (counted(found)["deleted"], counted(found)["contacts"], found.accounts[0].struck) == (0, 800, 8)
        times = job.rows("select count(distinct observed_at), min((detail->>'resumed')::int) from runs where seq > 1")
        assert times[0][0] == 1
        assert times[0][1] > 0
        assert {row["contact_id"] for row in job.in_parquet(3)} == {row["contact_id"] for row in job.in_duckdb()}
        assert counted(job.run(full=True))["deleted"] == 8
        assert {row["contact_id"] for row in job.in_parquet(4)} == {row["contact_id"] for row in job.in_duckdb()}


def test_a_contact_that_comes_back_loses_its_strike(job: Job, server: Live) -> None:
    """M9, A45: a contact that is absent, present and absent again has one strike."""
    [flapping] = server.ids()[:1]
    for act in ("delete", "restore", "delete"):
        server.change(each(act, [flapping]))
        assert counted(job.run(full=True))["deleted"] == 0
    assert counted(job.run(full=True))["deleted"] == 1


def test_a_deleted_contact_that_comes_back_is_a_new_version(job: Job, server: Live) -> None:
    """M9: a deleted contact that is restored is in `contacts` again, with a new version."""
    [undead] = server.ids()[:1]
    server.change(each("delete", [undead]))
    job.run(full=True)
    job.run(full=True)
    server.change(each("restore", [undead]))
    assert counted(job.run(full=True))["new"] == 1
    assert [op for _, op, _ in versions(job, undead)] == ["upsert", "delete", "upsert"]


def test_deletes_become_tombstones_within_two_rounds_of_the_scrub(job: Job, server: Live) -> None:
    """M2: incremental runs alone find deletions, because a scrubbed window is an accepted one."""
    job.settings = "[extract]\nscrub_runs = 2\n"
    gone = server.ids()[::30]
    server.change(each("delete", gone))
    assert sum(counted(job.run())["deleted"] for _ in range(5)) == len(gone)


@pytest.mark.parametrize("how", ["listed", "hidden"])
def test_a_soft_delete_is_a_delete(how: str, tmp_path: Path) -> None:
    """A54: status DELETED, whether listed or hidden by default, gives a strike as absence does."""
    with live(contacts=100, nasty_share=0, small=True, soft_delete=how) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        job.run()
        gone = server.ids()[:2]
        server.change(each("delete", gone))
        deleted = [counted(job.run(full=True))["deleted"] for _ in range(3)]
        assert deleted == [0, 2, 0]
        assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids())


def test_a_mass_shrink_publishes_nothing(account: Account, server: Live, tmp_path: Path) -> None:
    """A41, S23: if more than max(100, 5 %) are gone, the run exits with 14 and an unchanged target, unless allowed."""
    job = account.job(server, tmp_path, "duckdb", "parquet")
    before = job.fingerprint()
    server.change(each("delete", server.ids()[:101]))
    assert job.run(full=True).exit_code == 14
    assert job.fingerprint() == before
    assert counted(job.run(full=True, allow_shrink=True))["deleted"] == 0
    assert job.run(full=True).exit_code == 14
    assert counted(job.run(full=True, allow_shrink=True))["deleted"] == 101


def test_up_to_a_hundred_may_go_at_once(job: Job, server: Live) -> None:
    """S23: the guard never trips at 100 contacts or fewer."""
    server.change(each("delete", server.ids()[:100]))
    assert [counted(job.run(full=True))["deleted"] for _ in range(2)] == [0, 100]


@pytest.mark.parametrize("kind", ["empty_list", "short_page"])
def test_a_sudden_nothing_is_not_believed(kind: str, job: Job) -> None:
    """A42, A43: a run whose valid responses suddenly lack most or all contacts publishes nothing."""
    before = job.fingerprint()
    with live(contacts=300, nasty_share=0, small=True, faults=({"kind": kind, "drop": 40},)) as server:
        job.urls = {"main": server.url}
        assert job.run(full=True).exit_code in {12, 13, 14}
    assert job.fingerprint() == before


def test_an_account_that_suddenly_shows_nobody_is_not_believed(job: Job) -> None:
    """A42, A43: an incremental run of a suddenly empty account moves no watermark and publishes nothing."""
    before = job.fingerprint()
    with live(contacts=300, nasty_share=0, small=True, faults=({"kind": "empty_list"},)) as server:
        job.urls = {"main": server.url}
        assert job.run().exit_code in {13, 14}
    assert job.fingerprint() == before


def test_contacts_as_of_is_the_state_of_the_last_run_before(job: Job, server: Live) -> None:
    """`contacts_as_of` uses `observed_at`, the run's T0 by the server's clock."""
    ids = server.ids()
    states = [{row["contact_id"]: row["updated_at"] for row in job.in_duckdb()}]
    for changed in (ids[:5], ids[3:8]):
        server.ahead += HOUR
        server.change(each("touch", changed))
        server.change(lambda w, now: w.insert(now))
        counted(job.run())
        states.append({row["contact_id"]: row["updated_at"] for row in job.in_duckdb()})
    times: list[datetime] = [t0 for (t0,) in job.rows("select observed_at from runs order by seq")]
    assert [round((b - a) / timedelta(hours=1)) for a, b in pairwise(times)] == [1, 1]
    for t0, state in zip(times, states, strict=True):
        for moment in (t0, t0 + timedelta(minutes=30)):
            assert dict(job.rows("select contact_id, updated_at from contacts_as_of(?)", moment)) == state
    assert job.rows("select * from contacts_as_of(?)", times[0] - timedelta(seconds=1)) == []


def test_a_late_contact_is_found_by_the_next_run(tmp_path: Path) -> None:
    """A44, A53: a lead that becomes visible 15 minutes late, with its old creation time, is not lost."""
    with live(contacts=200, nasty_share=0, small=True, late=15 * MINUTE) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        late = server.change(lambda w, now: w.insert(now))
        job.run()
        server.ahead += 10 * MINUTE
        assert counted(job.run())["new"] == 0
        server.ahead += 10 * MINUTE
        assert counted(job.run())["new"] == 1
        assert versions(job, late)[0][0] == 3


@pytest.mark.parametrize("skew", [-DAY, DAY, None])
def test_a_wrong_date_header_loses_nobody(skew: float | None, tmp_path: Path) -> None:
    """N25: a `Date` that is missing or a day off moves no watermark beyond the data that was read."""
    wrong = {"kind": "date", "text": ""} if skew is None else {"kind": "date", "seconds": skew}
    with live(contacts=200, nasty_share=0, small=True, faults=(wrong,)) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        job.run()
        for _ in range(2):
            touched = server.ids()[:5]
            server.change(each("touch", touched))
            server.change(lambda w, now: w.insert(now))
            found = counted(job.run())
            assert (found["new"], found["changed"]) == (1, 5)


@pytest.mark.parametrize(
    ("ahead", "step"), [(0, -2 * HOUR), campaign(0, -25 * MINUTE), (7 * HOUR, -7 * HOUR), campaign(0, -40 * DAY)]
)
def test_a_server_clock_that_goes_back_loses_nobody(ahead: float, step: float, tmp_path: Path) -> None:
    """N25: later changes have times before the watermark; the sweep reaches as far back, and the step is reported."""
    with live(contacts=200, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        server.ahead = ahead
        job.run()
        assert counted(job.run())["mode"] == "incremental"
        server.ahead += step
        server.change(lambda w, now: setattr(w, "now", now))  # The world's own time never goes back.
        for back in (-step, None):
            touched = server.ids()[:5]
            server.change(each("touch", touched))
            server.change(lambda w, now: w.insert(now))
            report = job.run()
            found = counted(report)
            assert (found["mode"], found["new"], found["changed"]) == ("incremental", 1, 5)
            assert ("gone back" in render_run(report)) is (back is not None)
            [(clocks,)] = job.rows("select detail->>'clock_back' from runs order by seq desc limit 1")
            assert abs(int(clocks) - (back or 0)) < 30
    assert job.rows("select count(*) from contacts_as_of(timestamptz '2999-01-01')") == [(202,)]


def test_a_clock_of_ours_that_goes_forward_costs_requests_alone(job: Job) -> None:
    """P19: if our clock goes forward, the server's seems to go back, so the sweep starts earlier; otherwise not."""
    [(document, watermark)] = job.rows("select detail, watermark from runs")
    record = replace(
        job.run().accounts[0].record, watermark=watermark, detail={**json.loads(document), "clock_ahead": 10}
    )
    history = history_of(record, NoSnapshot())
    moved = [history.watermark - history.by_clock(ahead).watermark for ahead in (-DAY, 9, 10, 11, 12, DAY)]
    assert moved == [1000 * (DAY + 12), 3000, 2000, 1000, 0, 0]


def test_a_run_goes_on_from_the_sink_that_was_published_first(job: Job) -> None:
    """N25: runs are ordered by our clock; a later run has an earlier watermark if the server's clock went back."""
    first = job.run().accounts[0].record
    assert first is not None
    back = timedelta(hours=2)
    ahead = first.detail["clock_ahead"] - back.total_seconds()
    later = replace(first, t0=first.t0 - back + timedelta(minutes=5), watermark=first.watermark - back, seq=9)
    later = replace(later, detail={**first.detail, "clock_ahead": int(ahead)})

    def state(*records: RunRecord) -> SinkState:
        return SinkState(runs={record.account: record for record in records})

    assert last_run([state(later), state(first)], "main") == first
    assert last_run([state(first), state(later)], "main") == first
    assert last_run([state(first), state()], "main") is None


def test_a_contact_of_the_future_does_not_move_the_watermark(job: Job, server: Live) -> None:
    """A28: a lastSeenAt in 2999 is kept as it is, and later contacts are still found."""
    raw = b'{"_id":"future","createdAt":"2025-01-01T00:00:00.000Z","lastSeenAt":"2999-01-01T00:00:00.000Z"}'
    server.change(lambda w, now: w.adopt(raw, now))
    assert counted(job.run())["new"] == 1
    server.ahead += HOUR
    server.change(lambda w, now: w.insert(now))
    assert counted(job.run())["new"] == 1


def test_a_sink_added_later_gets_everything(job: Job, server: Live) -> None:
    """A target without the account makes the next run a full one; both targets are then equal."""
    job.sinks = ("duckdb", "parquet")
    assert counted(job.run())["mode"] == "full"
    assert {row["contact_id"] for row in job.in_parquet(2)} == set(server.ids())


def test_who_fails_or_is_left_out_keeps_the_last_state(account: Account, server: Live, tmp_path: Path) -> None:
    """An account that fails or is removed from the configuration keeps its last state in every later run."""
    job = account.job(server, tmp_path, "duckdb", "parquet", names=("one", "two"))
    server.change(lambda w, now: [w.insert(now) for _ in range(3)])
    job.tokens["one"] = "0" * 24
    assert job.run().exit_code == 10
    assert accounts(job, 2) == {"one": 300, "two": 303}
    job.tokens.clear()
    job.urls = {"two": server.url}
    assert job.run().exit_code == 0
    assert accounts(job, 3) == {"one": 300, "two": 303}
    job.urls = {"one": server.url, "two": server.url}
    assert job.run().exit_code == 0
    assert accounts(job, 4) == {"one": 303, "two": 303}


def accounts(job: Job, seq: int) -> dict[str, int]:
    """Contacts by account; both sinks must agree."""
    found = Counter(row["account"] for row in job.in_duckdb())
    assert Counter(row["account"] for row in job.in_parquet(seq)) == found
    return dict(found)


def test_parquet_keeps_three_states_and_the_whole_history(account: Account, server: Live, tmp_path: Path) -> None:
    """S22: older complete states are removed, versions and manifests stay, and each kept state is readable alone."""
    job = account.job(server, tmp_path, "parquet")
    for number in range(4):
        server.change(lambda w, now: w.insert(now))
        assert counted(job.run())["contacts"] == 301 + number
    assert [f.name for f in sorted((job.parquet / "current").iterdir())] == [f"seq={n:08d}" for n in (3, 4, 5)]
    assert [f.name for f in sorted((job.parquet / "manifests").iterdir())] == [f"{n:08d}.json" for n in range(1, 6)]
    assert [len(job.in_parquet(seq)) for seq in (3, 4, 5)] == [302, 303, 304]
    assert len([f for f in (job.parquet / "versions").iterdir() if f.name.startswith("seq=")]) == 5


def test_a_witness_walks_again_after_a_week(job: Job, server: Live) -> None:
    """The first full run has a cross-check, a full run the next day has none, and one after a week has one."""
    server.ahead += DAY
    job.run(full=True)
    server.ahead += 7 * DAY
    job.run(full=True)
    purposes = [json.loads(detail)["requests"] for (detail,) in job.rows("select detail from runs order by seq")]
    assert ["witness" in purpose for purpose in purposes] == [True, False, True]


@pytest.mark.parametrize("sink", ["duckdb", "parquet"])
def test_the_weekly_witness_of_a_nightly_job_finds_what_came_too_late(
    account: Account, server: Live, tmp_path: Path, sink: str
) -> None:
    """A53, M6: a contact that appears with old times escapes every sweep; the cross-check finds it before its scrub."""
    # A scrub of all windows would find it as well, and so would the probe on one of the first pages.
    job = account.job(server, tmp_path, sink)
    job.settings = "[extract]\nscrub_runs = 300\n"
    old = b"""{"_id": "65aa0000000000000000a001", "isContact": true, "lastSeenAt": "%s", "createdAt": "%s"}"""
    late = sorted(json.loads(raw)["createdAt"] for raw in server.truth().values())[75].encode()
    server.ahead += 8 * DAY
    server.change(lambda w, now: w.adopt(old % (late, late), now))
    found = counted(job.run())
    assert (found["mode"], found["new"], found["contacts"]) == ("incremental", 1, 301)
    query = "select detail->>'late' as late, detail->>'requests' as requests from runs order by seq"
    first, second = job.call("sql", "CONFIG", query, "--json").document
    assert (first["late"], second["late"]) == ("0", "1"), (first, second)
    assert "witness" in second["requests"]


def test_a_target_that_is_behind_gets_what_the_other_has(account: Account, server: Live, tmp_path: Path) -> None:
    """A contact that the cross-check finds reaches a target that lacks it, even if the other target has it (P4)."""
    job = account.job(server, tmp_path, "duckdb", "parquet")
    job.settings = "[extract]\nwitness_every = '1s'\n"
    shutil.copytree(job.parquet, tmp_path / "backup")
    old = b"""{"_id": "65aa0000000000000000a001", "isContact": true, "createdAt": "%s"}"""
    late = max(json.loads(raw)["createdAt"] for raw in server.truth().values()).encode()
    server.change(lambda w, now: w.adopt(old % late, now))
    for restored in (False, True):
        time.sleep(1.1)  # T0 has whole seconds and decides which target is behind.
        if restored:
            shutil.rmtree(job.parquet)
            shutil.copytree(tmp_path / "backup", job.parquet)
        seq = job.run().accounts[0].record.seq
        assert len(job.in_duckdb()) == len(job.in_parquet(seq)) == 301


def test_what_somebody_else_writes_during_a_run_is_not_lost(tmp_path: Path) -> None:
    """S1, P17: a run is published on top of another program's changes or refused with exit 21; none are overwritten."""
    with live(contacts=300, nasty_share=0, small=True, latency=0.05) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        job.run()
        with job.start("run", "CONFIG", "--json", "--full") as running:
            requests = server.stats()["requests"]
            while server.stats()["requests"] < requests + 5:
                time.sleep(0.01)
            with duckdb.connect(str(job.duckdb)) as connection:
                connection.execute("create table mine as select 1 as one")
            running.communicate(timeout=60)
    published = {0: 2, 21: 1}[running.returncode]
    assert job.rows("select one, (select max(seq) from runs) from mine") == [(1, published)]


def test_rejects_of_a_later_run_are_added_with_its_number(job: Job, server: Live) -> None:
    """A25: a run with a rejected contact exits with 40 and adds it to `rejects` under its own number."""
    job.settings = "[guard]\nmax_reject_share = 1\n"
    server.change(lambda w, now: w.adopt(b'{"_id":null,"createdAt":"2025-01-01T00:00:00.000Z"}', now))
    report = job.run(full=True)
    assert report.exit_code == 40
    assert job.rows("select seq, raw from rejects") == [(2, '{"_id":null,"createdAt":"2025-01-01T00:00:00.000Z"}')]


def test_explain_names_the_run_that_last_read_a_contact(job: Job, server: Live) -> None:
    """`explain` names the last run that read a contact, not a later window that shows that it was gone."""
    [gone, *_] = server.ids()
    server.change(each("delete", [gone]))
    told = []
    for _ in range(2):
        assert job.run(full=True).exit_code == 0
        [account] = job.call("explain", "CONFIG", gone, "--json").document["accounts"]
        told.append((account["in_contacts"], account["last_read_by"]["seq"]))
    assert told == [(True, 1), (False, 1)]


@pytest.mark.parametrize("field", ["createdAt", "lastSeenAt"])
def test_a_time_that_means_never_is_kept(field: str, tmp_path: Path) -> None:
    """A28, A30: the last millisecond of the year 9999 is kept and is no sign that the server ignores its filters."""
    times = {"createdAt": "2025-01-01T00:00:00.000Z", "lastSeenAt": "2025-01-01T00:00:00.000Z"}
    raw = json.dumps({"_id": "never", "isContact": True, **times, field: "9999-12-31T23:59:59.999Z"}).encode()
    with live(contacts=60, nasty_share=0, small=True) as server:
        server.change(lambda w, now: w.adopt(raw, now))
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        assert [counted(job.run(full=full))["contacts"] for full in (False, False, True)] == [61, 61, 61]


def test_a_reject_that_a_full_run_bore_stops_no_later_run(tmp_path: Path) -> None:
    """A25: 12 rejects of 1,500 are below the limit, also in a scrub that reads them again among the oldest few."""
    null = b'{"_id":null,"createdAt":"2001-01-01T00:00:%02d.000Z"}'
    with live(contacts=1500, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        server.change(lambda w, now: [w.adopt(null % second, now) for second in range(12)])
        first, second = (job.run().document() for _ in range(2))
    assert (first["exit"], second["exit"]) == (40, 40)
    [account] = second["accounts"]
    assert account["mode"] == "incremental"
    assert account["counts"]["rejected"] > 0.01 * account["counts"]["received"]


CHURN = {"touches": 15.0, "inserts": 6.0, "deletes": 3.0, "flips": 3.0}


def test_a_chain_of_runs_over_a_live_account_loses_nobody(tmp_path: Path) -> None:
    """M1, M2, M3, M13: at 27 changes a second, every contact that existed throughout is in the result, fresh enough."""
    settings = {"contacts": 600, "nasty_share": 0.02, "nasty_kinds": ("surrogate", "tags_mixed"), "latency": 0.01}
    with live(**settings, small=True, **CHURN) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        codes = []
        for number in range(6):
            before = server.clock()
            codes.append(job.run(full=number == 3).exit_code)
            after = server.clock()
            if codes[-1] == 0:
                assert_nobody_is_missing(job, server, before, after)
    # A contact that changes lists between a read and a second look cannot be told from one that the server had hidden.
    assert set(codes) <= {0, 13}, codes
    assert codes.count(0) >= 5, codes


def assert_nobody_is_missing(job: Job, server: Live, before: float, after: float) -> None:
    """Check completeness by the truth log: every contact is present and at least as fresh as at T0 - H."""
    settled = before - 4  # T0 is floored to the second, H is two seconds
    there = server.change(lambda w, now: (w.advance(now), w.existed_throughout(settled, after))[1])
    rows = {row["contact_id"]: row for row in job.in_duckdb()}
    assert there <= rows.keys(), f"{len(there - rows.keys())} contacts are missing"
    old = server.change(lambda w, _: {identity: w.version_at(identity, settled) for identity in there})
    for identity, raw in old.items():
        assert rows[identity]["last_seen_at"] >= expected_rows.row(raw, "main")["last_seen_at"], identity


def test_a_storm_on_one_contact_does_not_keep_the_sweep_from_ending(tmp_path: Path) -> None:
    """M4: a contact that is touched all the time is exported, and the run ends."""
    with live(contacts=100, nasty_share=0, small=True, latency=0.01) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        [restless] = server.ids()[:1]
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                server.change(each("touch", [restless]))
                time.sleep(0.002)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            assert counted(job.run())["contacts"] == 100
        finally:
            stop.set()
            thread.join()
