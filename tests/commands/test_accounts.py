"""`etl account rename`, `etl account drop`, and the warning about accounts that are not in the configuration."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from etl.cli.render import render_run
from etl.commands.result import RunResult
from etl.storage.lock import Lock
from tests.support.campaign import campaign
from tests.support.live import TOKEN, Account, Ended, Job, Live, Row, live

SMALL = {"contacts": 120, "nasty_share": 0.0, "small": True}


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """An account of 120 contacts without oddities."""
    return Account(tmp_path_factory.mktemp("account"), SMALL)


@pytest.fixture
def job(account: Account, server: Live, tmp_path: Path) -> Job:
    """A job for that account under the name `main`, into both targets, after its first run."""
    return account.job(server, tmp_path, "duckdb", "parquet")


@pytest.fixture
def to_duckdb(account: Account, server: Live, tmp_path: Path) -> Job:
    """The same into a DuckDB file alone."""
    return account.job(server, tmp_path, "duckdb")


@pytest.fixture
def two_accounts(account: Account, server: Live, tmp_path: Path) -> Job:
    """The same for a job that exports the account under the names `main` and `other`."""
    return account.job(server, tmp_path, "duckdb", "parquet", names=("main", "other"))


def counted(report: RunResult) -> Row:
    """The mode and counts of a successful run of one account."""
    assert report.error is None, report.error
    [account] = report.document()["accounts"]  # type: ignore[misc, attr-defined]
    return {"mode": account["mode"], **account["counts"]}


def renamed(job: Job, old: str = "main", new: str = "shop") -> Ended:
    """Rename the account in the targets, then in the configuration."""
    ended = job.call("account", "rename", "CONFIG", old, new, "--json")
    assert ended.code == 0, ended
    job.urls = {new if name == old else name: url for name, url in job.urls.items()}
    return ended


def agree(job: Job, server: Live, account: str) -> None:
    """Check that both targets hold each living contact once, under this name only, and that `etl verify` passes."""
    [(seq,)] = job.rows("select max(seq) from runs")
    for rows in (job.in_duckdb(), job.in_parquet(seq)):
        assert sorted((row["account"], row["contact_id"]) for row in rows) == [
            (account, identity) for identity in sorted(server.ids())
        ]
    ended = job.call("verify", "CONFIG", "--live", "50", "--json")
    assert ended.code == 0, ended.out


def acts(server: Live, act: str, ids: list[str]) -> None:
    """Apply a change to several contacts."""
    server.change(lambda world, now: [getattr(world, act)(identity, now) for identity in ids])


# --- rename ----------------------------------------------------------------------------------------------------------


def test_a_renamed_account_goes_on_incrementally(job: Job, server: Live) -> None:
    """After a rename, no contact is duplicated or changed, and the next run is incremental and reads only changes."""
    for _ in range(2):
        acts(server, "touch", server.ids()[:3])
        job.run()
    before = {row["contact_id"]: row["row_hash"] for row in job.in_duckdb()}
    assert renamed(job).document == {
        "exit": 0,
        "account": "main",
        "renamed_to": "shop",
        "contacts": 120,
        "seq": 4,
        "sinks": {"duckdb": {"path": str(job.duckdb), "seq": 4}, "parquet": {"path": str(job.parquet), "seq": 4}},
        "error": None,
    }
    assert {row["contact_id"]: row["row_hash"] for row in job.in_duckdb()} == before
    agree(job, server, "shop")
    acts(server, "touch", server.ids()[:5])
    server.change(lambda world, now: world.insert(now))
    found = counted(job.run())
    assert (found["mode"], found["new"], found["changed"], found["deleted"]) == ("incremental", 1, 5, 0)
    agree(job, server, "shop")
    assert job.rows("select account, mode, contacts from runs where seq > 3 order by seq, mode") == [
        ("main", "dropped", 0),
        ("shop", "renamed", 120),
        ("shop", "incremental", 121),
    ]


def test_the_state_of_any_time_is_that_of_the_name_it_had(to_duckdb: Job) -> None:
    """`contacts_as_of` shows the old name before the rename and the new name after it."""
    renamed(to_duckdb)
    times = [moment for (moment,) in to_duckdb.rows("select distinct observed_at from runs order by 1")]
    query = "select account, count(*) from contacts_as_of(?) group by 1"
    assert to_duckdb.rows(query, times[-1]) == [("shop", 120)]
    if len(times) > 1:
        assert to_duckdb.rows(query, times[0]) == [("main", 120)]
    assert to_duckdb.rows(query, times[0] - timedelta(seconds=1)) == []
    to_duckdb.run()
    assert to_duckdb.rows(query, times[-1] + timedelta(days=1)) == [("shop", 120)]


@pytest.mark.parametrize("ahead", [-7200.0, 7200.0])
def test_a_rename_is_dated_by_the_servers_clock(ahead: float, server: Live, tmp_path: Path) -> None:
    """A rename is dated between the runs before and after it, whatever the local clock says."""
    job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
    server.ahead = ahead
    job.run()
    renamed(job)
    time.sleep(1)
    job.run()
    times = [moment for (moment,) in job.rows("select max(observed_at) from runs group by seq order by seq")]
    assert times == sorted(times)
    assert times[-1] - times[0] < timedelta(minutes=5)
    assert job.rows("select max((detail->>'clock_back')::int) from runs where account = 'shop' and seq = 3") == [(0,)]


def test_absences_before_and_after_a_rename_are_two(job: Job, server: Live) -> None:
    """A contact that was absent once under the old name is deleted by the second absence under the new name (A45)."""
    acts(server, "delete", server.ids()[:3])
    assert counted(job.run(full=True))["deleted"] == 0
    renamed(job)
    assert counted(job.run(full=True))["deleted"] == 3
    agree(job, server, "shop")


def test_who_is_listed_as_deleted_for_ever_stays_deleted_under_the_new_name(tmp_path: Path) -> None:
    """A contact that is always listed as DELETED stays deleted, after one or two sightings before the rename (A54)."""
    with live(**SMALL, soft_delete="listed") as server:
        job = Job(tmp_path, {"main": server.url})
        job.run()
        acts(server, "delete", server.ids()[:2])
        for _ in range(2):
            job.run(full=True)
        acts(server, "delete", server.ids()[:1])
        job.run(full=True)
        renamed(job)
        found = [counted(job.run(full=True)) for _ in range(2)]
        assert [(each["new"], each["deleted"], each["contacts"]) for each in found] == [(0, 1, 117), (0, 0, 117)]
        agree(job, server, "shop")


def test_contacts_without_creation_times_and_odd_ones_move_as_well(tmp_path: Path) -> None:
    """A rename keeps every kind of value, contacts without a creation time, and rejects."""
    settings = "[guard]\nmax_reject_share = 1\n"
    with live(contacts=300, nasty_share=0.2, no_created_at_share=0.05, small=True, seed=3) as server:
        job = Job(tmp_path, {"main": server.url}, settings=settings)
        assert job.run().exit_code == 40
        keep = {row["contact_id"]: {**row, "account": "", "seq": 0, "observed_at": None} for row in job.in_duckdb()}
        assert any(row["created_at"] is None for row in keep.values())
        renamed(job)
        for rows in (job.in_duckdb(), job.in_parquet(2)):
            assert {row["contact_id"]: {**row, "account": "", "seq": 0, "observed_at": None} for row in rows} == keep
        ended = job.call("verify", "CONFIG", "--live", "50", "--json")
        assert ended.code == 0, ended.out
        found = counted(job.run())
        assert (found["mode"], found["new"], found["changed"], found["deleted"]) == ("incremental", 0, 0, 0)


def test_a_column_of_the_users_keeps_its_values(account: Account, server: Live, tmp_path: Path) -> None:
    """A rename moves the values of a user's column with their contacts, and only with those (S6)."""
    job = account.job(server, tmp_path, "duckdb", names=("main", "other"))
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute('alter table contacts add column "my note" varchar')
        connection.execute("""update contacts set "my note" = contact_id where account = 'main'""")
    renamed(job)
    assert job.rows('select account, count(*), count("my note") from contacts group by 1 order by 1') == [
        ("other", 120, 0),
        ("shop", 120, 120),
    ]
    assert job.rows('select count(*) from contacts where "my note" = contact_id') == [(120,)]


def test_the_witness_and_the_pace_go_on_too(to_duckdb: Job, server: Live) -> None:
    """A run after a rename costs no more than any incremental run: cross-check, pace and scrub continue."""
    to_duckdb.run()
    first = server.stats()["requests"]
    to_duckdb.run()
    usual = server.stats()["requests"] - first
    renamed(to_duckdb)
    first = server.stats()["requests"]
    to_duckdb.run()
    assert server.stats()["requests"] - first <= usual + 5


def test_an_unproven_account_stays_unproven(tmp_path: Path) -> None:
    """A rename keeps the list of things that are unproven."""
    with live(**SMALL, applicable_filters="ignored") as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        job.run(allow_unproven=True)
    renamed(job)
    [(was,), (now,)] = job.rows("select unproven from runs where mode <> 'dropped' order by seq")
    assert was == now != []


def test_a_filtered_export_can_be_renamed(server: Live, tmp_path: Path) -> None:
    """A filtered export is still one after a rename: without proof, and not comparable with the account."""
    job = Job(tmp_path, {"main": server.url}, settings="[extract.filters]\nuserInteracted = true\n")
    held = counted(job.run())["contacts"]
    assert renamed(job).document["contacts"] == held
    found = counted(job.run())
    assert (found["mode"], found["new"], found["contacts"]) == ("filtered", 0, held)
    assert job.call("verify", "CONFIG").code == 0
    assert "a filtered export" in job.call("verify", "CONFIG", "--live", "5").out


def test_a_name_may_be_given_back_and_used_anew(job: Job, server: Live) -> None:
    """A name that a rename has freed can be restored, or given to another account in the same target."""
    renamed(job, "main", "one")
    renamed(job, "one", "two")
    renamed(job, "two", "main")
    agree(job, server, "main")
    renamed(job, "main", "old")
    job.urls["main"] = server.url
    job.run()
    assert job.rows("select account, count(*) from contacts group by 1 order by 1") == [("main", 120), ("old", 120)]
    assert job.call("verify", "CONFIG", "--live", "20").code == 0


# --- what interrupts it ----------------------------------------------------------------------------------------------


def between_two_targets(job: Job, *words: str) -> None:
    """Leave the state of a kill after the DuckDB file was published and before the Parquet folder was."""
    kept = job.folder / "kept"
    shutil.copytree(job.parquet, kept, copy_function=shutil.copy2)
    assert job.call(*words).code == 0
    shutil.rmtree(job.parquet)
    kept.rename(job.parquet)


@pytest.mark.parametrize("words", [("rename", "CONFIG", "main", "shop"), ("drop", "CONFIG", "main")])
def test_the_same_command_completes_one_that_was_killed(
    words: tuple[str, ...], server: Live, two_accounts: Job
) -> None:
    """Repeating a killed command skips the finished target; both targets agree afterwards, and runs continue (P4)."""
    job = two_accounts
    between_two_targets(job, "account", *words)
    first = job.duckdb.read_bytes()
    ended = job.call("account", *words, "--json")
    assert (ended.code, ended.document["contacts"]) == (0, 120)
    assert job.duckdb.read_bytes() == first
    seq = ended.document["sinks"]["parquet"]["seq"]
    accounts = [sorted({row["account"] for row in rows}) for rows in (job.in_duckdb(), job.in_parquet(seq))]
    assert accounts == ([["other", "shop"]] * 2 if "shop" in words else [["other"]] * 2)
    if "shop" in words:
        assert ended.document["sinks"] == {
            name: {"path": str(path), "seq": 2} for name, path in (("duckdb", job.duckdb), ("parquet", job.parquet))
        }
    job.urls = {**({"shop": server.url} if "shop" in words else {}), "other": server.url}
    assert {account.record.mode for account in job.run().accounts if account.record} == {"incremental"}
    assert job.call("verify", "CONFIG", "--live", "20").code == 0


def test_a_run_between_a_kill_and_its_healing_mixes_nothing(job: Job, server: Live) -> None:
    """If one target lacks the new name, a run reads it in full; the old name is reported and can be dropped."""
    between_two_targets(job, "account", "rename", "CONFIG", "main", "shop")
    job.urls = {"shop": server.url}
    report = job.run()
    assert (counted(report)["mode"], report.unconfigured) == ("full", {"main": 120})
    assert job.call("account", "drop", "CONFIG", "main").code == 0
    seq = max(sink.seq for sink in report.sinks.values()) + 1
    assert {row["account"] for row in (*job.in_duckdb(), *job.in_parquet(seq))} == {"shop"}
    assert counted(job.run())["new"] == 0
    agree(job, server, "shop")


def test_a_rename_that_is_done_is_no_error_and_changes_nothing(job: Job) -> None:
    """Repeating a finished rename exits with 0 and changes no byte of the targets."""
    words = ("account", "rename", "CONFIG", "main", "shop", "--json")
    first, before = job.call(*words), job.fingerprint()
    assert job.call(*words).document == first.document
    assert job.fingerprint() == before


def test_targets_of_two_states_are_not_renamed(job: Job, server: Live) -> None:
    """If one target is behind the other, a rename exits with 2 and changes nothing; it works after a run."""
    kept = job.folder / "kept"
    shutil.copytree(job.parquet, kept)
    acts(server, "touch", server.ids()[:1])
    time.sleep(1)
    job.run()
    shutil.rmtree(job.parquet)
    kept.rename(job.parquet)
    before = job.fingerprint()
    ended = job.call("account", "rename", "CONFIG", "main", "shop", "--json")
    assert (ended.code, "etl run" in ended.document["error"]["hint"]) == (2, True)
    assert job.fingerprint() == before
    job.run()
    renamed(job)
    agree(job, server, "shop")


def test_a_target_without_any_state_is_passed_over(account: Account, server: Live, tmp_path: Path) -> None:
    """A target that was just added to the configuration is skipped, and the next run fills it."""
    job = account.job(server, tmp_path, "duckdb")
    job.sinks = ("duckdb", "parquet")
    assert renamed(job).document["sinks"].keys() == {"duckdb"}
    job.run()
    agree(job, server, "shop")


@pytest.mark.parametrize("stale", ["shop", campaign("main")])
def test_what_a_killed_run_had_read_is_not_gone_on_with(stale: str, tmp_path: Path) -> None:
    """A rename removes the data that a killed run staged under either name, and the next run does not resume it."""
    with live(contacts=800, nasty_share=0, small=True, latency=0.05) as server:
        job = Job(tmp_path, {"main": server.url})
        job.run()
        before = server.stats()["requests"]
        job.urls = {stale: server.url}
        with job.start("run", "CONFIG", "--full") as process:
            while server.stats()["requests"] < before + 40 and process.poll() is None:
                time.sleep(0.005)
            process.kill()
        assert any(job.temporary.glob(f"*.stage/{stale}"))
        job.urls = {"main": server.url}
        renamed(job)
        assert not any(job.temporary.glob("*.stage/*"))
        job.run()
        assert job.rows("select mode, detail->>'resumed' from runs order by seq desc limit 1") == [("incremental", "0")]
        agree(job, server, "shop")


def test_nothing_temporary_stays(job: Job) -> None:
    """After a rename and a drop, only locks and the log of attempts are left in the temporary folder."""
    renamed(job)
    assert job.call("account", "drop", "CONFIG", "shop").code == 0
    assert {path.suffix for path in job.temporary.iterdir()} == {".lock", ".jsonl"}


# --- drop ------------------------------------------------------------------------------------------------------------


def test_a_dropped_account_is_gone_from_contacts_and_kept_in_the_history(two_accounts: Job) -> None:
    """Dropping an account leaves other accounts unchanged, and its history can still be queried."""
    job = two_accounts
    others = [row for row in job.in_duckdb() if row["account"] == "other"]
    [(then,)] = job.rows("select max(observed_at) from runs")
    time.sleep(1)
    ended = job.call("account", "drop", "CONFIG", "main", "--json")
    assert (ended.code, ended.document["renamed_to"], ended.document["contacts"]) == (0, None, 120)
    order = "contact_id"
    for rows in (job.in_duckdb(), job.in_parquet(2)):
        assert sorted(rows, key=lambda row: row[order]) == sorted(others, key=lambda row: row[order])
    as_of = "select account, count(*) from contacts_as_of(?) group by 1 order by 1"
    assert job.rows(as_of, then) == [("main", 120), ("other", 120)]
    assert job.rows(as_of, then + timedelta(days=1)) == [("other", 120)]
    assert job.rows("select account, mode, deleted, contacts from runs where seq = 2") == [("main", "dropped", 120, 0)]
    assert job.rows("select op, count(*) from contact_versions where account = 'main' group by 1 order by 1") == [
        ("delete", 120),
        ("upsert", 120),
    ]
    assert [entry["account"] for entry in job.call("status", "CONFIG", "--json").document["accounts"]] == ["other"]
    assert job.call("verify", "CONFIG").code == 0


def test_a_dropped_account_that_is_still_configured_is_read_anew(job: Job, server: Live) -> None:
    """The next run of a dropped account is a full first run that ignores its old strikes and deletions."""
    assert job.call("account", "drop", "CONFIG", "main").code == 0
    found = counted(job.run())
    assert (found["mode"], found["new"], found["contacts"]) == ("full", 120, 120)
    agree(job, server, "main")


# --- what is refused -------------------------------------------------------------------------------------------------


REFUSED = (
    (("rename", "CONFIG", "mian", "shop"), "main"),
    (("rename", "CONFIG", "main", "other"), "already holds an account other"),
    (("rename", "CONFIG", "main", "main"), "cannot be renamed"),
    (("rename", "CONFIG", "main", "a/b"), "cannot be renamed"),
    (("rename", "CONFIG", "main", ".."), "cannot be renamed"),
    (("rename", "CONFIG", "main", "shop\n"), "cannot be renamed"),
    (("rename", "CONFIG", "main", ""), "cannot be renamed"),
    (("rename", "main"), "expected"),
    (("drop", "CONFIG", "nobody"), "main, other"),
    (("drop", "nowhere.toml", "main"), "nowhere.toml"),
    (("drop", "CONFIG", "main", "--set", "extract.filters.userInteracted=true"), "filters"),
    (("drop", "CONFIG", "main", "--no-such-flag"), "no-such-flag"),
)


def test_what_cannot_be_done_is_exit_2(two_accounts: Job) -> None:
    """A refused command prints one complete JSON document and one line of text, and leaves the targets unchanged."""
    job = two_accounts
    before = job.fingerprint()
    for words, said in REFUSED:
        ended = job.call("account", *words, "--json")
        assert (ended.code, ended.document["error"]["code"]) == (2, 2), ended
        assert ended.document.keys() == {"exit", "account", "renamed_to", "contacts", "seq", "sinks", "error"}
        assert said in " ".join(map(str, ended.document["error"].values()))
        assert ended.document["error"]["message"] in ended.err
    assert job.fingerprint() == before


def test_before_the_first_run_there_is_nothing_to_rename(server: Live, tmp_path: Path) -> None:
    """Before the first run, the command exits with 2 and creates no folder."""
    job = Job(tmp_path, {"main": server.url})
    assert job.call("account", "drop", "CONFIG", "main", "--json").code == 2
    assert not (job.folder / "data").exists()


def test_a_target_at_work_is_exit_30(job: Job) -> None:
    """The command takes the same lock as a run."""
    with Lock(job.parquet):
        ended = job.call("account", "rename", "CONFIG", "main", "shop", "--json")
    assert (ended.code, ended.document["error"]["code"]) == (30, 30)


# --- what is told ----------------------------------------------------------------------------------------------------


def test_accounts_that_the_configuration_does_not_name_are_told(to_duckdb: Job, server: Live) -> None:
    """Run, doctor and status report each unconfigured account with its number of contacts and the remedies."""
    to_duckdb.urls = {"shop": server.url}
    before = examined(to_duckdb)
    ended = to_duckdb.command("run", "CONFIG")
    assert ended.code == 0
    for text in (ended.out, before, examined(to_duckdb), to_duckdb.call("status", "CONFIG").out):
        assert "the configuration does not name account main: its 120 contacts" in text
        assert "etl account rename main NEW" in text
        assert "etl account drop main" in text
    events = [json.loads(line) for line in ended.err.splitlines()]
    assert [
        (event["level"], event["account"], event["contacts"]) for event in events if "not_conf" in event["event"]
    ] == [("warning", "main", 120)]
    report = to_duckdb.run()
    assert report.unconfigured == {"main": 120}
    accounts = to_duckdb.call("status", "CONFIG", "--json").document["accounts"]
    assert {entry["account"]: entry["configured"] for entry in accounts} == {"main": False, "shop": True}


def test_accounts_from_a_file_are_those_of_the_file_now(to_duckdb: Job, server: Live) -> None:
    """All commands take the accounts of the file; one that was removed from it stays in the target, and is reported."""
    listed = to_duckdb.folder / "accounts.csv"
    to_duckdb.settings, to_duckdb.urls = '[accounts_from]\npath = "accounts.csv"\n', {}
    line = f"{{}},{server.url},TOKEN_LISTED\n"
    listed.write_text("name,base_url,token_env\n" + line.format("main") + line.format("shop"))
    ended = to_duckdb.call("run", "CONFIG", "--json", TOKEN_LISTED=TOKEN)
    assert [account["account"] for account in ended.document["accounts"]] == ["main", "shop"]
    listed.write_text("name,base_url,token_env\n" + line.format("shop"))
    for words in (("run",), ("doctor",), ("status",), ("plan",)):
        ended = to_duckdb.call(*words, "CONFIG", TOKEN_LISTED=TOKEN)
        assert ended.code == 0, ended
        assert words == ("plan",) or "the configuration does not name account main: its 120 contacts" in ended.out
    listed.write_text("name,base_url,token_env\n" + 2 * line.format("shop"))
    ended = to_duckdb.call("run", "CONFIG", "--json", TOKEN_LISTED=TOKEN)
    assert (ended.code, ended.document["error"]["message"]) == (
        2,
        "line 3: the name shop is taken (line 2 of accounts.csv)",
    )


def examined(job: Job) -> str:
    """The output of a `doctor` call that finds no failure."""
    ended = job.call("doctor", "CONFIG")
    assert ended.code == 0, ended
    return ended.out


@pytest.mark.parametrize("end", [renamed, lambda job: job.call("account", "drop", "CONFIG", "main")])
def test_nothing_is_told_any_more_once_it_is_mended(end: Callable[[Job], object], to_duckdb: Job, server: Live) -> None:
    """A renamed or dropped account is no longer reported as unconfigured."""
    end(to_duckdb)
    to_duckdb.urls = {"shop": server.url}
    report = to_duckdb.run()
    assert (report.unconfigured, "notice" in render_run(report)) == ({}, False)
    assert "account main" not in examined(to_duckdb) + to_duckdb.call("status", "CONFIG").out


def test_explain_follows_a_contact_through_its_names(to_duckdb: Job, server: Live) -> None:
    """`explain` shows the last read under the old name, and that the contact left that name with its account."""
    identity = server.ids()[0]
    [was] = to_duckdb.call("explain", "CONFIG", identity, "--json").document["accounts"]
    renamed(to_duckdb)
    old, new = to_duckdb.call("explain", "CONFIG", identity, "--json").document["accounts"]
    assert (old["account"], old["in_contacts"], old["why"]) == (
        "main",
        False,
        "gone with its account, which run 2 renamed to shop",
    )
    assert (new["account"], new["in_contacts"], new["last_read_by"]) == ("shop", True, was["last_read_by"])
    acts(server, "delete", [identity])
    for _ in range(2):
        to_duckdb.run(full=True)
    assert to_duckdb.call("account", "drop", "CONFIG", "shop").code == 0
    old, new = to_duckdb.call("explain", "CONFIG", identity, "--json").document["accounts"]
    assert new["why"].startswith("deleted by run 4")
    assert new["last_read_by"] == was["last_read_by"]
    other = server.ids()[0]
    _, new = to_duckdb.call("explain", "CONFIG", other, "--json").document["accounts"]
    assert new["why"] == "gone with its account, which run 5 dropped"
