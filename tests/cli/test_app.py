"""The command line: choice of configuration, bad input, damaged targets; one clear message and the right exit code."""

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
from tests.support.live import TOKEN, Account, Ended, Job, Live, live


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """An account of 60 contacts."""
    return Account(tmp_path_factory.mktemp("account"), {"contacts": 60, "nasty_share": 0, "small": True})


@pytest.fixture(scope="module")
def server(account: Account) -> Iterator[Live]:
    """The server of that account."""
    with account.served() as running:
        yield running


@pytest.fixture
def job(server: Live, tmp_path: Path) -> Job:
    """A job for that account."""
    return Job(tmp_path, {"main": server.url}, sinks=("duckdb",))


def refused(ended: Ended, code: int, *words: str) -> None:
    """Check for a JSON document with this code, a message, its place and a hint, and for no traceback."""
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
    """Every command that takes CONFIG uses ETL_CONFIG if CONFIG is omitted."""
    config = str(job.config())
    assert job.call("run", ETL_CONFIG=config).code == 0
    assert job.call("status", "--json", ETL_CONFIG=config).document["accounts"][0]["seq"] == 1
    assert job.call("sql", "select 1 as one", "--json", ETL_CONFIG=config).document == [{"one": 1}]
    assert job.call("doctor", "--json", ETL_CONFIG=config).code == 0


def test_etl_toml_in_the_working_folder_is_taken(job: Job) -> None:
    """`etl.toml` in the working folder is used if no other configuration is named."""
    job.config().rename(job.folder / "etl.toml")
    ended = subprocess.run(
        [sys.executable, "-m", "etl", "run"], cwd=job.folder, env=job.environment(), capture_output=True, check=False
    )
    assert ended.returncode == 0
    assert job.duckdb.exists()


def test_without_any_configuration_the_message_says_what_to_do(job: Job) -> None:
    """Without a configuration the exit code is 2, and the message names ETL_CONFIG and etl.toml."""
    refused(job.call("run", "--json", ETL_CONFIG=""), 2, "ETL_CONFIG", "etl.toml")


def test_flags_win_over_the_environment_over_the_file(job: Job) -> None:
    """Flags override the environment, which overrides the file."""
    job.settings = "[extract]\nconcurrency = 3\n"
    environment = {"ETL_SINKS__DUCKDB__PATH": str(job.folder / "env" / "c.duckdb")}
    assert job.call("run", "CONFIG", **environment).code == 0
    assert (job.folder / "env" / "c.duckdb").exists()
    assert not job.duckdb.exists()
    flag = job.folder / "flag" / "c.duckdb"
    assert job.call("run", "CONFIG", "--set", f"sinks.duckdb.path={flag}", **environment).code == 0
    assert flag.exists()


def test_an_account_may_come_from_the_environment_alone(job: Job) -> None:
    """Environment variables set the entries of a list by their index."""
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
    """Quotes, brackets, stars, spaces and letters of any script in a path are neither SQL nor a pattern (X4, X6)."""
    folder = tmp_path / "it's [a] *test* ü #1"
    folder.mkdir()
    job = Job(folder, {"main": server.url}, sinks=(sink,))
    assert [job.run().exit_code, job.run().exit_code] == [0, 0]
    assert job.call("sql", "CONFIG", "select count(*) as n from contacts", "--json").document == [{"n": 60}]


def test_a_token_may_come_from_a_file(job: Job) -> None:
    """The line break at the end of a token file is not part of the token."""
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
    """The message names the place and, for a mistyped key, the nearest key; nothing is written."""
    toml, word = BAD_TOML[name]
    job.settings = toml
    refused(job.call("run", "CONFIG", "--json"), 2, word)
    assert not (job.folder / "data").exists()


def test_all_faults_are_told_at_once(job: Job) -> None:
    """All configuration errors are reported together."""
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
    """A wrong command line is reported as one JSON document with `--json`, and as text without it."""
    ended = job.call(*words, "--json")
    assert (ended.code, ended.document["error"]["code"]) == (2, 2)
    assert "Traceback" not in ended.err
    plain = job.call(*words)
    assert plain.code == 2
    assert plain.err.strip()


def test_every_failure_of_run_has_the_keys_of_run(job: Job) -> None:
    """Every failure of `run` prints the same JSON document, so that a program needs to read only one shape."""
    keys = {"exit", "seconds", "accounts", "sinks", "error"}
    for words in (("nowhere.toml",), ("CONFIG", "--no-such-flag"), ("CONFIG", "--set", "x=1"), ()):
        assert job.call("run", *words, "--json").document.keys() == keys


@pytest.mark.parametrize("token", ["", "   ", None])
def test_a_missing_token_is_exit_2_and_names_the_variable(token: str | None, job: Job) -> None:
    """A missing token is reported before anything is sent or written."""
    job.tokens["main"] = token or ""
    refused(job.call("run", "CONFIG", "--json"), 2, "TOKEN_MAIN")
    assert not (job.folder / "data").exists()


def test_all_missing_tokens_are_reported_together(job: Job) -> None:
    """Of several accounts, all those without a token are named at once."""
    job.urls = dict.fromkeys(("main", "shop", "clinic"), job.urls["main"])
    job.tokens |= {"main": "", "clinic": " "}
    refused(job.call("run", "CONFIG", "--json"), 2, "account main: the variable TOKEN_MAIN contains no token; account")
    message = job.call("run", "CONFIG", "--json").document["error"]["message"]
    assert "account clinic: the variable TOKEN_CLINIC contains no token" in message
    assert "shop" not in message


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
    """The token is sent over https only; plain http is for loopback hosts (X10)."""
    job.urls = {"main": url}
    refused(job.call("run", "CONFIG", "--json"), 2, "base_url")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_plain_http_is_good_for_loopback_hosts(host: str, job: Job, server: Live) -> None:
    """Plain http is accepted for a loopback host, by name and by number."""
    job.urls = {"main": server.url.replace("127.0.0.1", host)}
    assert job.call("run", "CONFIG").code == 0


# --- targets that are not as they should be --------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_exit_20_before_anything_is_sent(job: Job, server: Live) -> None:
    """A file in place of the folder is reported before the first request and stays unchanged (P12)."""
    (job.folder / "data").write_text("in the way")
    requests = server.stats()["requests"]
    refused(job.call("run", "CONFIG", "--json"), 20, str(job.folder / "data"))
    assert server.stats()["requests"] == requests
    assert (job.folder / "data").read_text() == "in the way"


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder that not even root can write to")
def test_a_folder_that_nobody_can_write_to_is_exit_20(job: Job) -> None:
    """A folder that even root cannot write to, such as /proc, is exit 20 (P12)."""
    refused(job.call("run", "CONFIG", "--json", "--set", "sinks.duckdb.path=/proc/etl/contacts.duckdb"), 20, "/proc")


def zero(job: Job) -> None:
    """Empty the file."""
    job.duckdb.write_bytes(b"")


def cut(job: Job) -> None:
    """Remove the second half of the file."""
    job.duckdb.write_bytes(job.duckdb.read_bytes()[: job.duckdb.stat().st_size // 2])


def garbage(job: Job) -> None:
    """Replace the file with bytes that are no database."""
    job.duckdb.write_bytes(b"this is not a database" * 1000)


def foreign(job: Job) -> None:
    """Replace the file with a database that has a foreign `contacts` table."""
    job.duckdb.unlink()
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute("create table contacts as select 1 as id")


def emptied(job: Job) -> None:
    """Drop the state from the database and leave the contacts."""
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute("drop schema etl cascade")


def folder(job: Job) -> None:
    """Put a folder in place of the file."""
    job.duckdb.unlink()
    job.duckdb.mkdir()


def no_manifest(job: Job) -> None:
    """Remove the manifests from the Parquet folder."""
    shutil.rmtree(job.parquet / "manifests")


def bad_manifest(job: Job) -> None:
    """Truncate the manifest."""
    [manifest] = (job.parquet / "manifests").glob("*.json")
    manifest.write_bytes(manifest.read_bytes()[:100])


def empty_manifest(job: Job) -> None:
    """Empty the manifest."""
    [manifest] = (job.parquet / "manifests").glob("*.json")
    manifest.write_bytes(b"")


def lost_file(job: Job) -> None:
    """Remove a data file."""
    next((job.parquet / "current").rglob("*.parquet")).unlink()


def cut_file(job: Job) -> None:
    """Truncate a data file."""
    file = next((job.parquet / "current").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-10])


def file_for_folder(job: Job) -> None:
    """Put a file in place of the Parquet folder."""
    shutil.rmtree(job.parquet)
    job.parquet.write_text("x")


DAMAGES = {
    "duckdb": (zero, cut, garbage, foreign, emptied, folder),
    "parquet": (no_manifest, bad_manifest, empty_manifest, lost_file, cut_file, file_for_folder),
}


@pytest.mark.parametrize(("sink", "damage"), [(sink, damage) for sink in DAMAGES for damage in DAMAGES[sink]])
def test_a_damaged_target_is_told_and_never_taken_for_an_empty_one(
    sink: str, damage: Callable[[Job], None], account: Account, server: Live, tmp_path: Path
) -> None:
    """A damaged target is exit 22 (2 or 20 for a wrong kind) and stays as it is (P25, P26, S4, S6, S9)."""
    job = account.job(server, tmp_path, sink)
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
def test_questions_to_a_damaged_target_fail_as_a_run_does(
    sink: str, account: Account, server: Live, tmp_path: Path
) -> None:
    """Reading commands fail with the exit code of a run, the path and a hint (P25, P26, S4, S6, S9)."""
    job = account.job(server, tmp_path, sink)
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
    """Foreign tables or an empty folder are no damage: `status` is empty, and `sql` suggests a run (S6)."""
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
    """A run keeps foreign tables, views, and columns that were added to its own tables (S6)."""
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
    """The summary has the counts, requests, seconds, the path, the verdict, and an SQL query to try."""
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
    """The last line of stderr says what happened, where, and what to do."""
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
"""A library whose import raises a signal inside a class body, where exceptions become a RuntimeError."""


@pytest.mark.parametrize("library", ["typer", "pydantic", "anyio"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_during_the_imports_ends_in_order(library: str, number: int, code: int, job: Job) -> None:
    """A signal during an import yields its exit code and one document, no traceback, and writes nothing (P1)."""
    (job.folder / f"{library}.py").write_text(STUB.format(number))
    paths = os.pathsep.join([str(job.folder), os.environ.get("PYTHONPATH", "")])
    ended = job.command("run", "CONFIG", "--json", PYTHONPATH=paths)
    assert (ended.code, ended.document["error"]["code"]) == (code, code), ended
    assert "Traceback" not in ended.err
    assert ended.document.keys() == {"exit", "seconds", "accounts", "sinks", "error"}
    assert not (job.folder / "data").exists()


def test_plan_writes_nothing(job: Job) -> None:
    """`plan` forecasts mode, windows, requests and seconds, before the first run and after it, without writing."""
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


def test_a_deadline_that_is_too_short_is_told_before(tmp_path: Path) -> None:
    """`plan` warns that the account cannot be read before the deadline, and so does the run as soon as it knows."""
    with live(contacts=1500, nasty_share=0, small=True, latency=0.05) as server:
        limits = '[extract]\nrequests_per_second = 20\ndeadline = "4s"\n'
        job = Job(tmp_path, {"main": server.url}, settings=limits, sinks=("duckdb",))
        planned = job.call("plan", "CONFIG")
        assert "\nwarning: main takes longer than extract.deadline: set it to 1h" in planned.out
        ended = job.call("run", "CONFIG")
    assert ended.code == 11
    [event] = [one for one in map(json.loads, ended.err.splitlines()[:-2]) if one["event"] == "deadline.too_short"]
    assert (event["account"], event["deadline_seconds"]) == ("main", 4)
    assert event["seconds"] >= 4


@pytest.mark.parametrize("past_end", ["empty", "repeat", "404"])
def test_plan_counts_about_what_a_run_then_sends(past_end: str, tmp_path: Path) -> None:
    """`plan` estimates the requests within a factor of two, whatever a page past the end returns (A13, A14)."""
    with live(contacts=1500, nasty_share=0, small=True, past_end=past_end) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        [planned] = job.call("plan", "CONFIG", "--json").document["accounts"]
        sent = job.run().accounts[0].record.requests.sent
    assert sent / 2 < planned["requests"] < sent * 2


def test_plan_reckons_with_questions_that_wait_for_each_other(tmp_path: Path) -> None:
    """`plan` counts the requests of probe and sweep as sequential, whatever the concurrency."""
    with live(contacts=60, nasty_share=0, small=True, latency=0.05) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings="[extract]\nconcurrency = 64\n")
        [told] = job.call("plan", "CONFIG", "--json").document["accounts"]
    assert told["seconds"] >= 10 * 0.05


@pytest.mark.parametrize("setting", ['nasty_kinds=["bogus"]', 'faults=[{kind="bogus"}]', "state=/"])
def test_a_sandbox_that_cannot_be_is_a_usage_error(setting: str, tmp_path: Path) -> None:
    """A sandbox setting that cannot work is exit 2, with a reason."""
    ended = Job(tmp_path, {"main": "http://127.0.0.1:1"}).call("sandbox", "--port", "0", "--set", setting)
    assert (ended.code, "error 2" in ended.err) == (2, True)


def test_plan_counts_the_weekly_witness(tmp_path: Path) -> None:
    """`plan` adds the pages of the weekly cross-check to the requests of a nightly run."""
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
    """`columns` describes every column, in the order of the table, as JSON and as text."""
    ended = job.call("columns", "--json")
    assert [row["name"] for row in ended.document] == list(schema.column_names())
    assert all(row["meaning"] and row["type"] and row["privacy"] for row in ended.document)
    assert job.call("columns").out.count("\n") >= len(ended.document)


def test_help_names_every_command(job: Job) -> None:
    """`etl --help` lists every command, and `etl COMMAND --help` exits with 0."""
    ended = job.call("--help")
    assert ended.code == 0
    for command in ("run", "plan", "status", "sql", "doctor", "columns", "sandbox"):
        assert re.search(rf"^\s*{command}\s", ended.out, re.MULTILINE)
        assert job.call(command, "--help").code == 0


def test_the_sandbox_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    """The sandbox prints its address as JSON, serves requests, and exits with 0 at SIGTERM."""
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
    """An unknown or invalid setting of the sandbox is exit 2, with one JSON document."""
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
    """Two commands share an embedded sandbox: the first run is full, the second incremental."""
    job = Job(tmp_path, {})
    (tmp_path / "etl.toml").write_text(EMBEDDED)
    modes = [job.call("run", "--json").document["accounts"][0]["mode"] for _ in range(2)]
    assert modes == ["full", "incremental"]
    assert job.rows("select count(*) from contacts") == [(100,)]
