"""The command line: which configuration, bad input, damaged targets; always one clear message and the right code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import duckdb
import pytest

from etl import schema
from tests.support.live import TOKEN, Ended, Job, Live, live


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """An account of 60 contacts."""
    with live(contacts=60, nasty_share=0, small=True) as running:
        yield running


@pytest.fixture
def job(server: Live, tmp_path: Path) -> Job:
    """A job for that account."""
    return Job(tmp_path, {"main": server.url})


def refused(ended: Ended, code: int, *words: str) -> None:
    """One JSON document with the code, and a message for people that names what, where and the hint; no traceback."""
    assert ended.code == code, ended
    error = ended.document["error"]
    assert error.keys() == {"code", "message", "where", "hint"}
    assert error["code"] == code
    assert all(isinstance(error[name], str) and error[name] for name in ("message", "where", "hint")), error
    for word in words:
        assert word in f"{error['message']} {error['where']} {error['hint']}"
    assert "Traceback" not in ended.err
    assert error["message"] in ended.err


# --- which configuration ---------------------------------------------------------------------------------------------


def test_the_configuration_may_be_named_by_a_variable(job: Job) -> None:
    """ETL_CONFIG, where CONFIG is left out, for every command that takes one."""
    config = str(job.config())
    assert job.call("run", ETL_CONFIG=config).code == 0
    assert job.call("status", "--json", ETL_CONFIG=config).document["accounts"][0]["seq"] == 1
    assert job.call("sql", "select 1 as one", "--json", ETL_CONFIG=config).document == [{"one": 1}]
    assert job.call("doctor", "--json", ETL_CONFIG=config).code == 0


def test_etl_toml_in_the_working_folder_is_taken(job: Job) -> None:
    """Where nothing names another."""
    job.config().rename(job.folder / "etl.toml")
    ended = subprocess.run(
        [sys.executable, "-m", "etl", "run"], cwd=job.folder, env=job.environment(), capture_output=True, check=False
    )
    assert ended.returncode == 0
    assert job.duckdb.exists()


def test_without_any_configuration_the_message_says_what_to_do(job: Job) -> None:
    """Exit 2, naming ETL_CONFIG and etl.toml."""
    refused(job.call("run", "--json", ETL_CONFIG=""), 2, "ETL_CONFIG", "etl.toml")


def test_flags_win_over_the_environment_over_the_file(job: Job) -> None:
    """Precedence, shown by where the DuckDB file ends up."""
    job.settings = "[extract]\nconcurrency = 3\n"
    environment = {"ETL_SINKS__DUCKDB__PATH": str(job.folder / "env" / "c.duckdb")}
    assert job.call("run", "CONFIG", **environment).code == 0
    assert (job.folder / "env" / "c.duckdb").exists()
    assert not job.duckdb.exists()
    flag = job.folder / "flag" / "c.duckdb"
    assert job.call("run", "CONFIG", "--set", f"sinks.duckdb.path={flag}", **environment).code == 0
    assert flag.exists()


def test_an_account_may_come_from_the_environment_alone(job: Job) -> None:
    """Entries of a list by their number."""
    config = job.config()
    text = config.read_text()
    config.write_text(text[text.index("[sinks") :])
    settings = {"NAME": "main", "BASE_URL": job.urls["main"], "TOKEN_ENV": "TOKEN_MAIN"}
    environment = {f"ETL_ACCOUNTS__0__{name}": value for name, value in settings.items()} | {"ETL_CONFIG": str(config)}
    run = [sys.executable, "-m", "etl", "run"]
    ended = subprocess.run(run, env=job.environment() | environment, capture_output=True, check=False)  # noqa: S603
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("sink", ["duckdb", "parquet"])
def test_paths_may_hold_whatever_a_path_can(sink: str, server: Live, tmp_path: Path) -> None:
    """X4, X6: quotes, brackets, stars, blanks and letters of any script are no SQL and no pattern."""
    folder = tmp_path / "it's [a] *test* ü #1"
    folder.mkdir()
    job = Job(folder, {"main": server.url}, sinks=(sink,))
    assert [job.run().exit_code, job.run().exit_code] == [0, 0]
    assert job.call("sql", "CONFIG", "select count(*) as n from contacts", "--json").document == [{"n": 60}]


def test_a_token_may_come_from_a_file(job: Job) -> None:
    """With a line end, as editors leave it."""
    secret = job.folder / "token"
    secret.write_text(TOKEN + "\n")
    config = job.config()
    config.write_text(config.read_text().replace('token_env = "TOKEN_MAIN"', f'token_file = "{secret}"'))
    run = [sys.executable, "-m", "etl", "run", str(config)]
    assert subprocess.run(run, capture_output=True, check=False).returncode == 0  # noqa: S603


# --- bad input -------------------------------------------------------------------------------------------------------

BAD_TOML = {
    "not TOML": ("[extract\n", "TOML"),
    "unknown key": ("[extract]\nconcurency = 3\n", "concurrency"),
    "unknown section": ("[exctract]\nconcurrency = 3\n", "extract"),
    "wrong type": ('[extract]\nconcurrency = "many"\n', "extract.concurrency"),
    "out of range": ("[extract]\nconcurrency = 0\n", "extract.concurrency"),
    "duration without a unit": ("[extract]\nlookback = 30\n", "extract.lookback"),
    "share beyond 1": ("[guard]\nmax_shrink_share = 5\n", "guard.max_shrink_share"),
    "unknown filter": ('[extract.filters]\ntag = ["vip"]\n', "tag"),
    "filter of another type": ('[extract.filters]\ntags = "vip"\n', "tags"),
    "token in the file": ('[[accounts]]\nname = "b"\nbase_url = "https://a.example"\ntoken = "x"\n', "token"),
    "same name twice": (
        '[[accounts]]\nname = "main"\nbase_url = "https://a.example"\ntoken_env = "TOKEN_MAIN"\n',
        "name",
    ),
}


@pytest.mark.parametrize("name", BAD_TOML)
def test_a_bad_configuration_is_exit_2(name: str, job: Job) -> None:
    """One message that names the place and, for a mistyped key, the nearest; nothing is written."""
    toml, word = BAD_TOML[name]
    job.settings = toml
    refused(job.call("run", "CONFIG", "--json"), 2, word)
    assert not (job.folder / "data").exists()


def test_all_faults_are_told_at_once(job: Job) -> None:
    """Three faults, one message."""
    job.settings = "[extract]\nconcurency = 3\nscrub_runs = 0\n[guard]\nmax_reject_share = 2\n"
    refused(job.call("run", "CONFIG", "--json"), 2, "concurency", "scrub_runs", "max_reject_share")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "nowhere.toml"),
        ("run", "CONFIG", "--set", "extract.concurrency"),
        ("run", "CONFIG", "--set", "extract.concurency=4"),
        ("run", "CONFIG", "--no-such-flag"),
        ("run", "CONFIG", "another.toml"),
        ("run", "."),
        ("sql", "CONFIG"),
        ("sql", "CONFIG", "select 1", "select 2"),
        ("dance", "CONFIG"),
        ("status", "nowhere.toml"),
        ("doctor", "nowhere.toml"),
        ("plan", "nowhere.toml"),
    ],
)
def test_a_wrong_command_line_is_exit_2(words: tuple[str, ...], job: Job) -> None:
    """One JSON document where JSON is asked for, and one line for people."""
    ended = job.call(*words, "--json")
    assert (ended.code, ended.document["error"]["code"]) == (2, 2)
    assert "Traceback" not in ended.err
    plain = job.call(*words)
    assert plain.code == 2
    assert plain.err.strip()


def test_every_failure_of_run_has_the_keys_of_run(job: Job) -> None:
    """The pinned document, whatever went wrong: a program that reads it needs no second shape."""
    keys = {"exit", "seconds", "accounts", "sinks", "error"}
    for words in (("nowhere.toml",), ("CONFIG", "--no-such-flag"), ("CONFIG", "--set", "x=1"), ()):
        assert job.call("run", *words, "--json").document.keys() == keys


@pytest.mark.parametrize("token", ["", "   ", None])
def test_a_missing_token_is_exit_2_and_names_the_variable(token: str | None, job: Job) -> None:
    """Before anything is sent or written."""
    job.tokens["main"] = token or ""
    refused(job.call("run", "CONFIG", "--json"), 2, "TOKEN_MAIN")
    assert not (job.folder / "data").exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://api-v7.express-chat.com",
        "http://192.168.1.5:8080",
        "ftp://127.0.0.1",
        "api-v7.express-chat.com",
        "https://",
    ],
)
def test_the_token_is_never_sent_in_the_clear(url: str, job: Job) -> None:
    """X10: https only; plain http is for loopback hosts alone."""
    job.urls = {"main": url}
    refused(job.call("run", "CONFIG", "--json"), 2, "base_url")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_plain_http_is_good_for_loopback_hosts(host: str, job: Job, server: Live) -> None:
    """By name and by number."""
    job.urls = {"main": server.url.replace("127.0.0.1", host)}
    assert job.call("run", "CONFIG").code == 0


# --- targets that are not as they should be --------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_exit_20_before_anything_is_sent(job: Job, server: Live) -> None:
    """P12: a file stands where the folder is needed."""
    (job.folder / "data").write_text("in the way")
    requests = server.stats()["requests"]
    refused(job.call("run", "CONFIG", "--json"), 20, str(job.folder / "data"))
    assert server.stats()["requests"] == requests
    assert (job.folder / "data").read_text() == "in the way"


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder that not even root can write to")
def test_a_folder_that_nobody_can_write_to_is_exit_20(job: Job) -> None:
    """P12: /proc takes no files, whoever asks."""
    refused(job.call("run", "CONFIG", "--json", "--set", "sinks.duckdb.path=/proc/etl/contacts.duckdb"), 20, "/proc")


def zero(job: Job) -> None:
    """Nothing left of it."""
    job.duckdb.write_bytes(b"")


def cut(job: Job) -> None:
    """The second half is missing."""
    job.duckdb.write_bytes(job.duckdb.read_bytes()[: job.duckdb.stat().st_size // 2])


def garbage(job: Job) -> None:
    """Not a database."""
    job.duckdb.write_bytes(b"this is not a database" * 1000)


def foreign(job: Job) -> None:
    """A database with a `contacts` table that is not ours."""
    job.duckdb.unlink()
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute("create table contacts as select 1 as id")


def emptied(job: Job) -> None:
    """A database that once was ours: its state is gone, its contacts are not."""
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute("drop schema etl cascade")


def folder(job: Job) -> None:
    """A folder where a file belongs."""
    job.duckdb.unlink()
    job.duckdb.mkdir()


def no_manifest(job: Job) -> None:
    """Parquet data of nobody knows which state."""
    shutil.rmtree(job.parquet / "manifests")


def bad_manifest(job: Job) -> None:
    """Half a manifest."""
    [manifest] = (job.parquet / "manifests").glob("*.json")
    manifest.write_bytes(manifest.read_bytes()[:100])


def empty_manifest(job: Job) -> None:
    """A manifest of zero bytes."""
    [manifest] = (job.parquet / "manifests").glob("*.json")
    manifest.write_bytes(b"")


def lost_file(job: Job) -> None:
    """A data file is missing."""
    next((job.parquet / "current").rglob("*.parquet")).unlink()


def cut_file(job: Job) -> None:
    """A data file is cut off."""
    file = next((job.parquet / "current").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-10])


def file_for_folder(job: Job) -> None:
    """A file where the Parquet folder belongs."""
    shutil.rmtree(job.parquet)
    job.parquet.write_text("x")


DAMAGES = {
    "duckdb": (zero, cut, garbage, foreign, emptied, folder),
    "parquet": (no_manifest, bad_manifest, empty_manifest, lost_file, cut_file, file_for_folder),
}


@pytest.mark.parametrize(("sink", "damage"), [(sink, damage) for sink in DAMAGES for damage in DAMAGES[sink]])
def test_a_damaged_target_is_told_and_never_taken_for_an_empty_one(
    sink: str, damage: Callable[[Job], None], job: Job
) -> None:
    """P25, P26, S4, S6, S9: exit 22 (2 and 20 for another kind) with path and hint; what is left stays as it is."""
    job.sinks = (sink,)
    assert job.run().exit_code == 0
    damage(job)
    left = {path: path.read_bytes() for path in (job.folder / "data").rglob("*") if path.is_file()}
    ended = job.call("run", "CONFIG", "--json")
    refused(ended, {folder: 2, file_for_folder: 20}.get(damage, 22), str(job.folder / "data"))
    kept = {path: path.read_bytes() for path in (job.folder / "data").rglob("*") if path.is_file()}
    ours = {job.temporary / "contacts.lock", job.temporary / "contacts.duckdb.lock", *job.temporary.glob("*.jsonl")}
    assert {p: b for p, b in kept.items() if p not in ours} == {p: b for p, b in left.items() if p not in ours}


QUESTIONS = {
    "status": ("status", "CONFIG"),
    "sql": ("sql", "CONFIG", "select count(*) from contacts"),
    "verify": ("verify", "CONFIG"),
    "explain": ("explain", "CONFIG", "65aa0000000000000000a001"),
}


@pytest.mark.parametrize("sink", DAMAGES)
def test_questions_to_a_damaged_target_fail_as_a_run_does(sink: str, job: Job) -> None:
    """P25, P26, S4, S6, S9: the code of a run, the path, a hint that does not speak of rights, no empty answer."""
    job.sinks = (sink,)
    assert job.run().exit_code == 0
    whole = job.folder / "whole"
    shutil.copytree(job.folder / "data", whole)
    for damage in DAMAGES[sink]:
        damage(job)
        wanted = {folder: 2, file_for_folder: 20}.get(damage, 22)
        for words in QUESTIONS.values():
            ended = job.call(*words, "--json")
            assert (ended.code, damage, words) == (wanted, damage, words), ended
            assert "Traceback" not in ended.err
            told = ended.document.get("error") or next(c for c in ended.document["checks"] if not c["ok"])
            assert str(job.folder / "data") in (told["message"] if wanted == 2 else told["where"])
            assert told["hint"]
            assert wanted == 20 or "rights" not in told["hint"]
        shutil.rmtree(job.folder / "data")
        shutil.copytree(whole, job.folder / "data")
    assert [job.call(*words).code for words in QUESTIONS.values()] == [0, 0, 0, 0]


@pytest.mark.parametrize("sink", ["duckdb", "parquet"])
def test_questions_to_a_place_that_holds_nothing_of_ours_wait_for_the_first_run(sink: str, job: Job) -> None:
    """S6: the tables of others alone, or an empty folder, are no damage: `status` is empty, `sql` says what to do."""
    job.sinks = (sink,)
    job.duckdb.parent.mkdir()
    if sink == "parquet":
        job.parquet.mkdir()
    else:
        with duckdb.connect(str(job.duckdb)) as connection:
            connection.execute("create table theirs as select 1 as id")
    ended = job.call("status", "CONFIG", "--json")
    assert (ended.code, ended.document) == (0, {"accounts": [], "runs": [], "attempts": []})
    assert job.call("verify", "CONFIG").code == 0
    refused(job.call(*QUESTIONS["sql"], "--json"), 2, "etl run")


def test_a_database_with_other_tables_gets_ours_added(job: Job) -> None:
    """S6: and keeps its own, as well as a column that was added to ours."""
    job.sinks = ("duckdb",)
    job.duckdb.parent.mkdir()
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute("create table mine as select 42 as answer")
    assert job.run().exit_code == 0
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute("alter table contacts add column owner varchar default 'me'")
        connection.execute("create view best as select * from contacts where status = 'OPEN'")
    assert job.run(full=True).exit_code == 0
    assert job.rows("select answer from mine") == [(42,)]
    assert job.rows("select owner, count(*) from contacts group by 1") == [("me", 60)]


# --- the other commands ----------------------------------------------------------------------------------------------


def test_run_for_people_ends_with_a_summary(job: Job) -> None:
    """New, changed, unchanged, rejected, requests, seconds, where the data is, a line to trust and one SQL to try."""
    ended = job.command("run", "CONFIG")
    assert ended.code == 0
    for word in (
        "60 new",
        "0 changed",
        "0 unchanged",
        "0 deleted",
        "0 rejected",
        "requests",
        "seconds",
        str(job.duckdb),
    ):
        assert word in ended.out
    assert "complete: 60 contacts" in ended.out
    [hint] = re.findall(r'etl sql (?:\S+ )?"(.+)"', ended.out)
    assert "OPEN" in job.call("sql", "CONFIG", hint).out
    events = [json.loads(line) for line in ended.err.splitlines()]
    assert {event["event"] for event in events} >= {"account.read", "sink.published"}


def test_a_failure_is_one_line_for_people(job: Job) -> None:
    """After the events: what, where, and what to do."""
    job.tokens["main"] = "0" * 24
    ended = job.call("run", "CONFIG")
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("error 10: ")
    assert "account main" in last
    assert "etl doctor" in last
    assert "complete" not in ended.out


STUB = """
import os
class Named:
    def __set_name__(self, *_):
        os.kill(os.getpid(), {:d})
class Owner:
    name = Named()
"""
"""A library in whose import a signal comes, in the middle of a class: there an exception becomes a RuntimeError."""


@pytest.mark.parametrize("library", ["typer", "pydantic", "anyio"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_during_the_imports_ends_in_order(library: str, number: int, code: int, job: Job) -> None:
    """P1: of the commands, of the configuration, of the loop: the code, one document, no traceback, nothing written."""
    (job.folder / f"{library}.py").write_text(STUB.format(number))
    paths = os.pathsep.join([str(job.folder), os.environ.get("PYTHONPATH", "")])
    ended = job.command("run", "CONFIG", "--json", PYTHONPATH=paths)
    assert (ended.code, ended.document["error"]["code"]) == (code, code), ended
    assert "Traceback" not in ended.err
    assert ended.document.keys() == {"exit", "seconds", "accounts", "sinks", "error"}
    assert not (job.folder / "data").exists()


def test_plan_writes_nothing(job: Job) -> None:
    """Mode, windows, requests and seconds of the next run, before the first and after."""
    first = job.call("plan", "CONFIG", "--json")
    [account] = first.document["accounts"]
    assert account.keys() >= {"account", "mode", "windows", "requests", "seconds"}
    assert (first.code, account["mode"]) == (0, "full")
    assert account["requests"] > 0
    assert not (job.folder / "data").exists()
    assert job.run().exit_code == 0
    before = job.fingerprint()
    [account] = job.call("plan", "CONFIG", "--json").document["accounts"]
    assert account["mode"] == "incremental"
    assert job.fingerprint() == before


@pytest.mark.parametrize("past_end", ["empty", "repeat", "404"])
def test_plan_counts_about_what_a_run_then_sends(past_end: str, tmp_path: Path) -> None:
    """A13, A14: whatever a page past the end answers."""
    with live(contacts=1500, nasty_share=0, small=True, past_end=past_end) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        [planned] = job.call("plan", "CONFIG", "--json").document["accounts"]
        sent = job.run().accounts[0].record.requests.sent
    assert sent / 2 < planned["requests"] < sent * 2


def test_plan_reckons_with_questions_that_wait_for_each_other(tmp_path: Path) -> None:
    """The probe and the sweep ask one after the other: many requests at once do not make them any faster."""
    with live(contacts=60, nasty_share=0, small=True, latency=0.05) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings="[extract]\nconcurrency = 64\n")
        [told] = job.call("plan", "CONFIG", "--json").document["accounts"]
    assert told["seconds"] >= 10 * 0.05


@pytest.mark.parametrize("setting", ['nasty_kinds=["bogus"]', 'faults=[{kind="bogus"}]', "state=/"])
def test_a_sandbox_that_cannot_be_is_a_usage_error(setting: str, tmp_path: Path) -> None:
    """Exit 2 with a reason, as for the embedded one."""
    ended = Job(tmp_path, {"main": "http://127.0.0.1:1"}).call("sandbox", "--port", "0", "--set", setting)
    assert (ended.code, "error 2" in ended.err) == (2, True)


def test_plan_counts_the_weekly_witness(tmp_path: Path) -> None:
    """Every page of both lists, once a week, beside what a nightly run sends."""
    with live(contacts=1500, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        job.run()
        days: list[int] = []
        for _ in range(2):
            [planned] = job.call("plan", "CONFIG", "--json").document["accounts"]
            days.append(planned["requests"])
            server.ahead += 8 * 86_400
        sent = job.run().accounts[0].record.requests.sent
    assert days[1] >= days[0] + 1500 // 50
    assert sent / 2 < days[1] < sent * 2


def test_columns_documents_every_column(job: Job) -> None:
    """As JSON and as text, in the order of the table."""
    ended = job.call("columns", "--json")
    assert [row["name"] for row in ended.document] == list(schema.column_names())
    assert all(row["meaning"] and row["type"] and row["privacy"] for row in ended.document)
    assert job.call("columns").out.count("\n") >= len(ended.document)


def test_help_names_every_command(job: Job) -> None:
    """`etl --help` and `etl COMMAND --help` exit 0; `etl` alone shows the help, too."""
    ended = job.call("--help")
    assert ended.code == 0
    for command in ("run", "plan", "status", "sql", "doctor", "columns", "sandbox"):
        assert re.search(rf"^\s*{command}\s", ended.out, re.MULTILINE)
        assert job.call(command, "--help").code == 0


def test_the_sandbox_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    """One JSON document with its address, then answers, then a clean end at SIGTERM."""
    words = ["sandbox", "--port", "0", "--contacts", "10", "--set", "page_size=14", "--json"]
    command = [sys.executable, "-m", "etl", *words]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        told = json.loads(process.stdout.readline())
        with urlopen(Request(told["url"] + "/_truth"), timeout=10) as answer:  # noqa: S310
            assert len(answer.read().splitlines()) == 11
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "words",
    [
        *(("--set", "pagesize=3"), ("--contacts", "-1"), ("--set", "past_end=nonsense")),
        *(("--port", "99999"), ("--port", "-1")),
    ],
)
def test_a_wrong_setting_of_the_sandbox_is_exit_2(words: tuple[str, ...], job: Job) -> None:
    """As everywhere."""
    ended = job.call("sandbox", "--port", "0", *words, "--json")
    assert (ended.code, ended.document["error"]["code"]) == (2, 2)


EMBEDDED = """
[[accounts]]
name = "sandbox"
[sandbox]
contacts = 100
nasty_share = 0.0
state = "data/sandbox.json"
[sinks.duckdb]
path = "data/contacts.duckdb"
"""


def test_an_embedded_sandbox_lives_on_between_runs(tmp_path: Path) -> None:
    """Two commands and no server: the first run is full, the second incremental over the same account."""
    job = Job(tmp_path, {})
    (tmp_path / "etl.toml").write_text(EMBEDDED)
    modes = [job.call("run", "--json").document["accounts"][0]["mode"] for _ in range(2)]
    assert modes == ["full", "incremental"]
    assert job.rows("select count(*) from contacts") == [(100,)]
