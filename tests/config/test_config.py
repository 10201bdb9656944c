"""The configuration: sources of each value, rejected values and their messages, and where the token is found."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl.config import Account, Config, find_config, load, load_named, read_token, sandbox_settings
from etl.errors import EtlError, UsageError
from etl.sinks.targets import access_of, sinks
from etl.storage.files import Access

SINK = """
[sinks.duckdb]
path = "contacts.duckdb"
"""
ONE_ACCOUNT = """
[[accounts]]
name = "main"
base_url = "https://api-v7.express-chat.com"
token_env = "ELEAPI_TOKEN"
"""
GOOD = ONE_ACCOUNT + SINK


def loaded(text: str = GOOD, *assignments: str, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration from this text, these assignments and this environment."""
    path = Path("etl.toml")
    path.write_text(text, encoding="utf-8")
    return load(path, assignments, environ or {})


def refused(text: str = GOOD, *assignments: str, environ: Mapping[str, str] | None = None) -> UsageError:
    """The error that such a configuration raises."""
    with pytest.raises(UsageError) as caught:
        loaded(text, *assignments, environ=environ)
    assert caught.value.exit_code == 2
    return caught.value


def address(url: str) -> str:
    """A configuration with this base_url."""
    return GOOD.replace("https://api-v7.express-chat.com", url)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- defaults and precedence ----------------------------------------------------------------------------------------


def test_the_defaults_are_the_pinned_ones() -> None:
    """Defaults that users rely on: concurrency 16, L 30 min, H 2 s, m 30, guards at 5 and 1 percent."""
    config = loaded()
    assert config.extract.concurrency == 16
    assert (config.extract.accounts_at_once, config.extract.requests_per_second) == (16, None)
    assert config.extract.lookback == timedelta(minutes=30)
    assert config.extract.visibility_lag == timedelta(seconds=2)
    assert (config.extract.scrub_every, config.extract.scrub_runs) == (timedelta(days=7), None)
    assert config.extract.witness_every == timedelta(days=7)
    assert config.extract.filters == {}
    assert (config.guard.max_shrink_share, config.guard.max_reject_share) == (0.05, 0.01)
    assert (config.http.connect_timeout, config.http.attempt_timeout) == (timedelta(seconds=5), timedelta(seconds=60))
    assert config.http.max_body == 64 * 2**20
    assert config.http.proxy_from_environment is False
    assert config.sandbox is None


def test_flags_beat_the_environment_beats_the_file() -> None:
    """Flags override the environment, which overrides the file, key by key; unset keys have their defaults."""
    text = GOOD + "[extract]\nconcurrency = 1\nscrub_runs = 1\nlookback = '1m'\n"
    environ = {"ETL_EXTRACT__CONCURRENCY": "2", "ETL_EXTRACT__SCRUB_RUNS": "2"}
    extract = loaded(text, "extract.concurrency=3", environ=environ).extract
    assert (extract.concurrency, extract.scrub_runs, extract.lookback) == (3, 2, timedelta(minutes=1))
    assert extract.visibility_lag == timedelta(seconds=2)


def test_the_last_of_two_flags_counts() -> None:
    """If a key is assigned twice, the last value counts."""
    assert loaded(GOOD, "extract.concurrency=3", "extract.concurrency=4").extract.concurrency == 4


def test_a_flag_makes_the_section_it_needs() -> None:
    """An assignment or a variable creates a section that the file does not have."""
    config = loaded(GOOD, "sinks.parquet.path=out", environ={"ETL_SANDBOX__CONTACTS": "7"})
    assert config.sinks.parquet is not None
    assert config.sinks.parquet.path == Path("out")
    assert config.sandbox is not None
    assert config.sandbox.contacts == 7


def test_an_account_is_named_by_its_place() -> None:
    """A number in a key is the index of an account; one past the last creates a new one."""
    config = loaded(
        GOOD,
        "accounts.0.name=first",
        "accounts.1.name=second",
        "accounts.1.base_url=https://x.example.com",
        "accounts.1.token_env=T",
        environ={"ETL_ACCOUNTS__0__TOKEN_ENV": "OTHER"},
    )
    assert [account.name for account in config.accounts] == ["first", "second"]
    assert config.accounts[0].token_env == "OTHER"  # noqa: S105 - the name of a variable


@pytest.mark.parametrize("name", ["ETL_CONFIG", "ETL_TOKEN", "OTHER__KEY", "etl_extract__concurrency"])
def test_other_variables_mean_nothing(name: str) -> None:
    """Only `ETL_SECTION__KEY` is a setting; all other variables are ignored."""
    assert loaded(environ={name: "99"}) == loaded()


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ('"5"', "5"), ("true", True), ("[1, 2]", [1, 2]), ("{a = 1}", {"a": 1}), ("a b", "a b"), ("", "")],
)
def test_a_value_is_toml_where_it_can_be(text: str, value: object) -> None:
    """A value on the command line is read as TOML, or as plain text if it is not valid TOML."""
    assert loaded(GOOD, f"extract.filters.searchText={text}").extract.filters == {"searchText": value}


def test_a_value_may_hold_an_equals_sign() -> None:
    """Only the first equals sign separates key and value."""
    assert loaded(GOOD, "sinks.duckdb.path=a=b.duckdb").sinks.duckdb is not None


# --- invalid configurations -----------------------------------------------------------------------------------------

MISTYPED = [
    ("extract.concurency=3", "extract.concurency; did you mean concurrency?"),
    ("extrct.concurrency=3", "extrct; did you mean extract?"),
    ("guard.max_shrink=0.1", "guard.max_shrink; did you mean max_shrink_share?"),
    ("http.max_bod=1", "http.max_bod; did you mean max_body?"),
    ("sinks.duckbd.path=x", "sinks.duckbd; did you mean duckdb?"),
    ("sinks.duckdb.pth=x", "sinks.duckdb.pth; did you mean path?"),
    ("accounts.0.token=x", "accounts.0.token; did you mean token_env?"),
    ("sandbox.contcts=5", "sandbox.contcts; did you mean contacts?"),
]


@pytest.mark.parametrize(("assignment", "told"), MISTYPED)
def test_an_unknown_key_names_the_nearest(assignment: str, told: str) -> None:
    """A mistyped key is never ignored: it is an error that suggests the nearest key."""
    assert f"unknown key {told}" in refused(GOOD, assignment).message


def test_an_error_names_the_flag_or_the_variable_it_comes_from() -> None:
    """An error in a flag or variable names it, so that the user does not search the file."""
    error = refused(GOOD, "guard.max_reject_share=2", environ={"ETL_EXTRACT__CONCURENCY": "3"})
    assert "did you mean concurrency? (from ETL_EXTRACT__CONCURENCY)" in error.message
    assert "(from --set guard.max_reject_share)" in error.message


def test_a_variable_keeps_the_letters_of_a_filter() -> None:
    """Our own keys are lower case; a filter keeps the spelling of the API."""
    assert loaded(environ={"ETL_EXTRACT__FILTERS__isOnline": "true"}).extract.filters == {"isOnline": True}


PATHS = {
    "sinks.parquet.path=x/../contacts.duckdb": "both sinks have the same path",
    'sinks.duckdb.path="a\\u0000b"': "a path cannot contain a NUL character",
    "sinks.duckdb.path=what?.duckdb": "DuckDB does not open a path with ?",
    "sinks.delta.path=a%20b": "does not open a path with",
    "sinks.duckdb.path=": "sinks.duckdb.path: the path is empty",
    "sinks.parquet.path=": "sinks.parquet.path: the path is empty",
    "sinks.parquet.path=  ": "sinks.parquet.path: the path is empty",
    'sinks.parquet.path="\\t"': "sinks.parquet.path: the path is empty",
    "accounts.0.token_file=": "accounts.0.token_file: the path is empty",
    "http.ca_bundle=": "http.ca_bundle: the path is empty",
    "sinks.parquet.path=.": "sinks.parquet.path: . contains other files",
    "sinks.parquet.path=./": "sinks.parquet.path: . contains other files",
    "sinks.parquet.path=/": "sinks.parquet.path: / contains other files",
    "sinks.parquet.path=..": "sinks.parquet.path: .. contains other files",
    "sinks.duckdb.path=a/..": "sinks.duckdb.path: a/.. contains other files",
    "sinks.duckdb.path=/dev": "sinks.duckdb.path: /dev is not a file; name one in it",
    "sinks.duckdb.path=/dev/null": "sinks.duckdb.path: /dev/null is not a file",
    "sinks.parquet.path=a\udcffb": "sinks.parquet.path: the path cannot be encoded in UTF-8",
    "sinks.duckdb.path=a\ud800b": "sinks.duckdb.path: the path cannot be encoded in UTF-8",
    "accounts.0.token_file=a\0b": "accounts.0.token_file: a path cannot contain a NUL character",
    "http.ca_bundle=~nobody-of-that-name/ca.pem": "http.ca_bundle: there is no home folder of ~nobody-of-that-name",
}


@pytest.mark.parametrize(("assignment", "told"), PATHS.items())
def test_a_path_that_cannot_be_is_refused(assignment: str, told: str, folder: Path) -> None:
    """An invalid path is rejected before any lock or read, with its key and flag, and nothing is created (P12)."""
    message = refused(GOOD.replace("data/", ""), assignment).message
    assert told in message
    if "both" not in told:
        assert f"(from --set {assignment.partition('=')[0]})" in message
    assert [path.name for path in folder.iterdir()] == ["etl.toml"]


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("key", ["sinks.parquet.path", "sinks.duckdb.path", "http.ca_bundle", "accounts.0.token_file"])
def test_a_path_of_a_variable_that_is_empty_is_refused(key: str, value: str) -> None:
    """An empty variable, as from an unset `${TARGET}`, is named and never means the working folder (P12)."""
    name = "ETL_" + key.upper().replace(".", "__")
    assert f"{key}: the path is empty; is a variable in it not set" in (
        message := refused(environ={name: value}).message
    )
    assert f"(from {name})" in message


def in_stores(**more: str) -> str:
    """A configuration with sinks of these names in an object store, each with more TOML."""
    return ONE_ACCOUNT + "".join(f'[sinks.{name}]\nkind = "parquet"\n{toml}\n' for name, toml in more.items())


def test_sinks_in_an_object_store_have_names() -> None:
    """Several prefixes are sinks of one kind, and each has a stage of its own."""
    text = in_stores(hot='path = "s3://bucket/hot"', cold='path = "s3://bucket/cold/x=1"\nkeep = 1')
    made = {sink.name: sink for sink in sinks(loaded(text))}
    assert {name: sink.location for name, sink in made.items()} == {
        "hot": "s3://bucket/hot",
        "cold": "s3://bucket/cold/x=1",
    }
    assert {sink.path for sink in made.values()} == {Path("data/hot"), Path("data/cold")}


def test_delta_tables_are_a_kind_of_sink_in_a_folder_or_a_store() -> None:
    """The section of the kind's own name needs no kind, others do; only a target in a store has a stage."""
    text = ONE_ACCOUNT + '[sinks.delta]\npath = "lake"\n[sinks.far]\nkind = "delta"\npath = "s3://bucket/far"\n'
    made = {sink.name: sink for sink in sinks(loaded(text))}
    assert {name: sink.kind for name, sink in made.items()} == {"delta": "delta", "far": "delta"}
    assert {name: sink.path for name, sink in made.items()} == {"delta": Path("lake"), "far": Path("data/far")}
    assert made["far"].location == "s3://bucket/far"
    for second, told in (
        ('path = "lake"', "both sinks have the same path: delta and far"),
        ('path = "s3://bucket/far"\nstage = "lake"', "both sinks have the same path: delta and far"),
        ('path = "other"\nmode = "0640"', "unknown key sinks.far.mode"),
        ('path = "other"\nretention = "0s"', "sinks.far.retention"),
    ):
        one = '[sinks.delta]\npath = "lake"\n'
        assert told in refused(f'{ONE_ACCOUNT}{one}[sinks.far]\nkind = "delta"\n{second}\n').message


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ('path = "s3://bucket/one"', "both sinks have the same path: one and two"),
        ('path = "s3://bucket/two"\nstage = "data/one"', "both sinks have the same path: one and two"),
        ('path = "data/one"', "both sinks have the same path: one and two"),
        ('path = "s3://bucket"', "sinks.two: expected an address such as s3://bucket/prefix, not s3://bucket"),
        ('path = "s3://bucket/two"\nmode = "0640"', "sinks.two: mode and group are permissions of files"),
        ('path = "two"\nendpoint = "https://s3.example.com"', "sinks.two: endpoint is for a path in an object store"),
        ('path = "s3://bucket/two"\nendpoint = "http://s3.example.com"', "sinks.two.endpoint: plain http"),
    ],
)
def test_a_sink_in_an_object_store_that_cannot_be_is_refused(second: str, told: str) -> None:
    """An address or a stage that another sink has, or that is none, is rejected with the name of the sink."""
    assert told in refused(in_stores(one='path = "s3://bucket/one"', two=second)).message


HOMES = {
    "~/x/contacts.duckdb": "/home/me/x/contacts.duckdb",
    "~root/x": "/root/x",
    "./~/x": "~/x",
    "./~x": "~x",
    "x/~/y": "x/~/y",
    "x~": "x~",
}


@pytest.mark.parametrize(("text", "meant"), HOMES.items())
def test_a_tilde_is_the_home_folder(text: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is expanded at the beginning of every path, as in a shell; no file is named `~` by mistake (P12)."""
    monkeypatch.setenv("HOME", "/home/me")
    config = loaded(
        GOOD,
        *(f"{key}={text}" for key in ("sinks.duckdb.path", "http.ca_bundle", "accounts.0.token_file")),
        f"sinks.parquet.path={text}.parquet",
        "accounts.0.token_env=",
    )
    assert config.sinks.duckdb is not None
    assert config.sinks.parquet is not None
    assert {config.sinks.duckdb.path, config.http.ca_bundle, config.accounts[0].token_file} == {Path(meant)}
    assert config.sinks.parquet.path == Path(f"{meant}.parquet")


@pytest.mark.parametrize("home", [None, "", "here"])
def test_a_tilde_without_a_home_folder_is_refused(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home folder `~` is rejected: an empty `HOME` would turn it into the root folder (P12)."""
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    for text in ("~", "~/x"):
        assert "HOME names no folder; write the whole path" in refused(GOOD, f"sinks.parquet.path={text}").message
        with pytest.raises(UsageError, match="HOME names no folder"):
            find_config(Path(text), {})
        with pytest.raises(UsageError, match="HOME names no folder") as caught:
            find_config(None, {"ETL_CONFIG": text})
        assert caught.value.where == "ETL_CONFIG"


@pytest.mark.parametrize("version", ["v1.2", "1.2.0", "1.2", "v9.9.9", "latest", '""', "x'y", "2"])
def test_a_storage_version_that_no_engine_knows_is_refused(version: str) -> None:
    """The error names the key and the possible values."""
    with pytest.raises(UsageError, match=r"sinks\.duckdb\.storage_version: .*v1\.2\.0"):
        loaded(GOOD, f"sinks.duckdb.storage_version={version}")


def test_all_errors_are_told_at_once() -> None:
    """All errors of a configuration are reported together."""
    message = refused(
        GOOD, "extract.concurency=3", "extract.lookback=5", "guard.max_reject_share=2", "http.max_body=0"
    ).message
    for part in ("concurency", "extract.lookback", "guard.max_reject_share", "http.max_body"):
        assert part in message


@pytest.mark.parametrize("text", ["", "[extract]", ONE_ACCOUNT, ONE_ACCOUNT + "[sinks]"])
def test_a_configuration_without_a_sink_is_refused(text: str) -> None:
    """At least one sink is required."""
    assert "sinks" in refused(text).message


def test_a_configuration_without_an_account_is_refused() -> None:
    """At least one account is required, even if it is only the sandbox."""
    assert "name at least one account" in refused(SINK).message
    assert loaded(SINK + "[sandbox]").accounts == ()
    assert "has no base_url" in refused('[[accounts]]\nname = "x"\n' + SINK).message


def test_two_accounts_of_one_name_are_refused() -> None:
    """The name is the key of all data that an account has published."""
    assert "two accounts have the same name" in refused(ONE_ACCOUNT + GOOD).message


def test_several_accounts_keep_their_order() -> None:
    """Accounts keep the order of the file, which decides the exit code."""
    config = loaded(ONE_ACCOUNT.replace("main", "b") + ONE_ACCOUNT.replace("main", "a") + SINK)
    assert [account.name for account in config.accounts] == ["b", "a"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\\b", "-x", ".x", "a b", "a\0", "a\n", "é", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    """An account's name is a folder name, so it must not lead out of the folder (X6)."""
    with pytest.raises(ValueError, match="name"):
        Account(name=name)


@pytest.mark.parametrize("name", ["main", "a.b-c_9", "0", "x" * 64])
def test_a_plain_name_is_taken(name: str) -> None:
    """Letters, digits, dots, dashes and underscores make a name."""
    assert Account(name=name).name == name


NO_TOML = ["x = [", "x", "\0", '[[accounts]]\nname = "a"\nname = "b"']


@pytest.mark.parametrize("text", NO_TOML)
def test_a_file_that_is_no_toml_is_refused(text: str) -> None:
    """A syntax error is reported with its position in the file."""
    assert refused(text).message.startswith("not valid TOML: ")


def test_a_file_that_cannot_be_read_is_told(folder: Path) -> None:
    """A missing file, a folder and a binary file are usage errors that name the file (P12)."""
    (folder / "latin.toml").write_bytes(b"x = '\xff'")
    for path in (Path("missing.toml"), folder, folder / "latin.toml"):
        with pytest.raises(UsageError) as caught:
            load(path, (), {})
        assert caught.value.where == str(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig"])
def test_a_file_of_any_editor_is_read(end: str, charset: str, folder: Path) -> None:
    """A file with a byte order mark and Windows line endings is read, and its text values are unchanged."""
    (folder / "etl.toml").write_bytes(GOOD.replace("contacts.", "Zoë.").replace("\n", end).encode(charset))
    (folder / "token").write_bytes(f"canary-1{end}".encode(charset))
    assert load(folder / "etl.toml", (), {}) == loaded(GOOD.replace("contacts.", "Zoë."))
    assert read_token(Account(token_file=folder / "token"), {}).get_secret_value() == "canary-1"


WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("charset", [*WIDE, "latin-1"])
def test_a_file_in_another_encoding_is_told_by_it(charset: str, folder: Path) -> None:
    """PowerShell's `>` writes UTF-16: the message names the encoding and the fix, and quotes nothing (X1)."""
    name = charset[:6].upper() if charset in WIDE else "byte "
    for content, read in (
        (f"# Zoë\n{GOOD}", lambda path: load(path, (), {})),
        ("canäry", lambda path: read_token(Account(token_file=path), {})),
    ):
        (folder / "file").write_bytes(content.encode(charset))
        with pytest.raises(UsageError, match=name) as caught:
            read(folder / "file")
        assert "save it as UTF-8" in caught.value.message
        assert "nary" not in str(caught.value)


@pytest.mark.parametrize(
    "assignment",
    ["extract.concurrency", "", "accounts.5.name=x", "accounts.name=x", "accounts.x.name=y", "accounts.².name=x"],
)
def test_an_assignment_that_leads_nowhere_is_refused(assignment: str) -> None:
    """An assignment without a value, or past the end of a list, is reported with its flag."""
    assert "--set" in str(refused(GOOD, assignment))


def test_an_assignment_into_a_value_is_refused() -> None:
    """A key below a plain value does not exist."""
    assert "does not lead to a setting" in refused(GOOD, "extract.concurrency=5", "extract.concurrency.x=5").message


@given(st.lists(st.text(max_size=30), max_size=3), st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_input_breaks_the_reading(assignments: list[str], text: str) -> None:
    """Any file, flag or variable gives a configuration or a usage error."""
    for file, flags, environ in ((GOOD, assignments, {}), (text, (), {}), (GOOD, (), {"ETL_EXTRACT__LOOKBACK": text})):
        try:
            loaded(file, *flags, environ=environ)
        except UsageError as error:
            assert error.message  # noqa: PT017


# --- values with a unit ---------------------------------------------------------------------------------------------

DURATIONS = [
    ("30m", 1800.0),
    ("2s", 2.0),
    ("250ms", 0.25),
    ("1.5h", 5400.0),
    ("1d", 86400.0),
    ("2w", 1209600.0),
    (" 5 s ", 5.0),
    ("5S", 5.0),
    ("0s", 0.0),
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_a_duration_is_text_with_a_unit(text: str, seconds: float) -> None:
    """Durations are read in every unit from milliseconds to weeks."""
    assert loaded(GOOD, f'extract.lookback="{text}"').extract.lookback.total_seconds() == seconds


@pytest.mark.parametrize(
    "text", ["30", "5", "-5s", "5 minutes", "s", "", "1e3s", "5s5s", "inf s", "nan", "true", "[5]", "∞s"]
)
def test_a_duration_without_a_unit_is_refused(text: str) -> None:
    """A bare number is not assumed to be seconds; the message shows the correct form."""
    assert "extract.lookback: expected text with a unit" in refused(GOOD, f"extract.lookback={text}").message


@pytest.mark.parametrize("text", ["99999999999w", "999999999999999d", "101000000000s", "9" * 400 + "s"])
def test_a_duration_beyond_reason_is_refused(text: str) -> None:
    """A duration that is out of range for a calendar is reported like any other error."""
    assert "extract.lookback" in refused(GOOD, f"extract.lookback={text}").message


@pytest.mark.parametrize("key", ["extract.deadline", "http.attempt_timeout", "http.connect_timeout"])
def test_a_time_limit_of_zero_is_refused(key: str) -> None:
    """Zero would silently disable a time limit (N9, N10)."""
    assert refused(GOOD, f"{key}=0s").message.startswith(f"{key}: a time limit cannot be zero")


@pytest.mark.parametrize(("text", "size"), [("64MiB", 2**26), ("1GB", 10**9), ("512 kib", 2**19), ("1000000", 10**6)])
def test_a_size_has_a_unit_or_counts_bytes(text: str, size: int) -> None:
    """Sizes are read in decimal and binary units."""
    assert loaded(GOOD, f"http.max_body={text}").http.max_body == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "64M", "1 TB", "true", "0MB", "9" * 400 + "GB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    """A size of zero, or in an unknown unit, is rejected."""
    assert "http.max_body" in refused(GOOD, f"http.max_body={text}").message


LIMITS = [
    ("extract.concurrency", ("0", "257", "-1", "many", "1.5")),
    ("extract.accounts_at_once", ("0", "1001", "-1", "many", "1.5")),
    ("extract.requests_per_second", ("0", "-1", "nan", "inf", "many", "[]")),
    ("extract.scrub_runs", ("0", "-1")),
    ("guard.max_shrink_share", ("-0.1", "1.1", "nan", "inf")),
    ("guard.max_reject_share", ("-0.1", "2")),
]


@pytest.mark.parametrize("text", ['"0640"', '"640"', '"0o640"', "0o640", "640"])
def test_the_rights_of_files_are_octal(text: str) -> None:
    """Modes are octal, as for chmod; without `mode` and `group`, published files are private."""
    target = loaded(GOOD + f'mode = {text}\ngroup = "analysts"\n').sinks.duckdb
    assert target is not None
    assert access_of(target) == Access(0o640, "analysts")
    plain = loaded().sinks.duckdb
    assert plain is not None
    assert access_of(plain) is None


@pytest.mark.parametrize(
    "text",
    [
        '"0888"',
        '"rw-r-----"',
        '"0646"',
        '"0666"',
        '"4640"',
        '"1640"',
        '"0440"',
        '"0040"',
        '"0750"',
        '""',
        "416.0",
        "-1",
    ],
)
def test_rights_that_are_none_are_refused(text: str) -> None:
    """Modes that are not octal, world-writable, not writable by the owner, executable or setuid are rejected."""
    assert "sinks.duckdb.mode: expected octal" in refused(GOOD + f"mode = {text}\n").message


@pytest.mark.parametrize("text", ["", "a\\u0000b", "a b"])
def test_a_group_that_is_no_name_is_refused(text: str) -> None:
    """An invalid group name is rejected; whether the group exists is checked at publication."""
    assert "sinks.duckdb.group" in refused(GOOD + f'group = "{text}"\n').message


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in LIMITS for text in texts])
def test_a_number_out_of_range_is_refused(key: str, text: str) -> None:
    """Numbers have limits, and the message names the key."""
    assert key in refused(GOOD, f"{key}={text}").message


# --- addresses ------------------------------------------------------------------------------------------------------

ALLOWED = [
    "https://api-v7.express-chat.com",
    "HTTPS://api.v7.botpenguin.com",
    "https://host:8443",
    "https://host/behind/a/path",
    "http://localhost:8080",
    "http://LOCALHOST",
    "http://127.0.0.1:1",
    "http://127.9.9.9",
    "http://[::1]:8080",
]


@pytest.mark.parametrize("url", ALLOWED)
def test_https_and_loopback_are_allowed(url: str) -> None:
    """Any host over https and loopback hosts over plain http are allowed; a trailing slash makes no difference."""
    assert loaded(address(url)).accounts[0].base_url == loaded(address(url + "/")).accounts[0].base_url == url


FORBIDDEN = [
    "http://api-v7.express-chat.com",
    "http://10.0.0.1",
    "http://0.0.0.0",
    "http://localhost.example.com",
    "http://127.0.0.1.example.com",
    "http://127.1",
    "http://[::2]",
    "http://128.0.0.1",
]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_plain_http_to_another_machine_is_refused(url: str) -> None:
    """The token is never sent unencrypted (X10)."""
    assert "plain http would send the token unprotected" in refused(address(url)).message


NO_ADDRESS = [
    "ftp://host",
    "host",
    "//host",
    "https://",
    "https:///path",
    "https://host:99999",
    "https://host:port",
    "https://[::1",
    "https://ho st",
    "https://host/a b",
    "https://user@host",
    "https://user:password@host",
    "http://localhost@host",
    "https://host?token=1",
    "https://host#x",
]


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_what_is_no_address_is_refused(url: str) -> None:
    """An address is a scheme and a host, without credentials or a query (X10)."""
    assert "accounts.0.base_url: " in refused(address(url)).message


@given(st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_text_slips_through_as_an_address(text: str) -> None:
    """Any text after http:// is rejected unless it is a loopback host (X10)."""
    for scheme in ("http://", "https://", ""):
        try:
            url = Account(base_url=scheme + text, token_env="T").base_url  # noqa: S106 - the name of a variable
        except ValueError:
            continue
        assert not url or url.lower().startswith("https://") or "localhost" in url.lower() or "1" in url


# --- the token ------------------------------------------------------------------------------------------------------


def test_a_token_has_one_source() -> None:
    """An account with an address names exactly one of a variable and a file."""
    told = "give exactly one of token_env and token_file"
    assert told in refused(GOOD.replace('token_env = "ELEAPI_TOKEN"', "")).message
    assert told in refused(GOOD, "accounts.0.token_file=token").message
    assert loaded(GOOD, "accounts.0.token_env=", "accounts.0.token_file=token").accounts[0].token_file == Path("token")


def test_a_token_comes_from_its_variable() -> None:
    """The token is the variable's value without surrounding blanks, wrapped so that it does not print."""
    token = read_token(Account(token_env="T"), {"T": " canary-1 \n"})  # noqa: S106 - the name of a variable
    assert token.get_secret_value() == "canary-1"
    marked = read_token(Account(token_env="T"), {"T": "\ufeffcanary-1\r\n"})  # noqa: S106 - the same
    assert marked == token
    assert "canary" not in repr(token) + str(token)


def test_a_token_comes_from_its_file(folder: Path) -> None:
    """A token file may end with a line break, as editors write it."""
    (folder / "token").write_text("canary-1\n")
    assert read_token(Account(token_file=folder / "token"), {}).get_secret_value() == "canary-1"


@pytest.mark.parametrize("environ", [{}, {"T": ""}, {"T": "  \n"}])
def test_a_missing_token_names_its_variable(environ: dict[str, str]) -> None:
    """A missing or empty token is exit 2 and names the variable and the fix."""
    with pytest.raises(UsageError, match="the variable T contains no token") as caught:
        read_token(Account(name="a", token_env="T"), environ)  # noqa: S106 - the name of a variable
    assert (caught.value.exit_code, caught.value.where) == (2, "account a")
    assert "export T=" in caught.value.hint


def test_a_missing_token_file_is_told(folder: Path) -> None:
    """A file that is missing, empty, a folder or binary is exit 2 and is named."""
    (folder / "empty").touch()
    (folder / "binary").write_bytes(b"\xff\xfe canary")
    for name in ("missing", "empty", "binary", "."):
        with pytest.raises(UsageError, match="token") as caught:
            read_token(Account(token_file=folder / name), {})
        assert str(folder) in caught.value.message
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("token", ["ca\nnary", "ca\r\nX-Evil: 1", "ca\0nary", "canäry", "ca\x7fnary"])
def test_a_token_with_odd_characters_is_refused_unquoted(token: str) -> None:
    """A token that could break out of its header is rejected and not shown (X1)."""
    with pytest.raises(UsageError) as caught:
        read_token(Account(token_env="T"), {"T": token})  # noqa: S106 - the name of a variable
    assert "nary" not in str(caught.value)


# --- which file -----------------------------------------------------------------------------------------------------


def test_a_named_configuration_is_taken(folder: Path) -> None:
    """A path on the command line overrides `ETL_CONFIG`, which overrides `etl.toml` in the working folder."""
    (folder / "etl.toml").touch()
    assert find_config(Path("a.toml"), {"ETL_CONFIG": "b.toml"}) == Path("a.toml")
    assert find_config(None, {"ETL_CONFIG": "b.toml"}) == Path("b.toml")
    assert find_config(None, {"ETL_CONFIG": ""}) == Path("etl.toml")
    assert find_config(None, {}) == Path("etl.toml")


def test_no_configuration_at_all_is_told() -> None:
    """If no configuration is named or found, the message lists the three ways to name one."""
    with pytest.raises(UsageError) as caught:
        find_config(None, {})
    assert caught.value.exit_code == 2
    for way in ("etl run", "ETL_CONFIG", "etl.toml"):
        assert way in caught.value.hint


def test_a_configuration_may_be_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is expanded even if no shell has done so, as in a systemd unit file."""
    monkeypatch.setenv("HOME", "/home/me")
    assert find_config(Path("~/a.toml"), {}) == find_config(None, {"ETL_CONFIG": "~/a.toml"}) == Path("/home/me/a.toml")


def test_an_empty_name_of_a_configuration_is_told() -> None:
    """`etl run "$CONFIG"` with an unset variable is an error and does not read a folder."""
    for path, environ in ((Path(), {}), (Path("  "), {}), (None, {"ETL_CONFIG": "  "})):
        with pytest.raises(UsageError, match="the path is empty"):
            find_config(path, environ)


def test_a_command_loads_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command reads `etl.toml` of the working folder and applies its flags."""
    for name in ("ETL_CONFIG", "ETL_EXTRACT__CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    Path("etl.toml").write_text(GOOD)
    assert load_named(None, ["extract.concurrency=5"]).extract.concurrency == 5
    assert load_named(None, None).extract.concurrency == 16


# --- the sandbox ----------------------------------------------------------------------------------------------------


def test_the_sandbox_is_a_section_like_others() -> None:
    """The sandbox's settings are typed, checked and reported like every other key."""
    config = loaded(SINK + '[sandbox]\ncontacts = 5\nsort = "shuffled"\nfaults = [{kind = "status", status = 500}]\n')
    assert config.sandbox is not None
    assert (config.sandbox.contacts, config.sandbox.sort, config.sandbox.page_size) == (5, "shuffled", 50)
    assert config.sandbox.faults == ({"kind": "status", "status": 500},)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("sandbox.page_size=0", "page_size must be 1 or more"),
        ("sandbox.nasty_share=2", "nasty_share must be between 0 and 1"),
        ("sandbox.sort=random", "sandbox.sort"),
        ("sandbox.contacts=many", "sandbox.contacts"),
        ("sandbox.faults=5", "sandbox.faults"),
    ],
)
def test_a_wrong_sandbox_is_refused(assignment: str, told: str) -> None:
    """A sandbox value that is out of range is a usage error."""
    assert told in refused(GOOD, assignment).message


def test_the_sandbox_command_takes_the_same_settings() -> None:
    """`etl sandbox --set` accepts the keys of `[sandbox]`, with the same errors."""
    settled = sandbox_settings(["contacts=5", 'past_end="404"', "retry_after=2"])
    assert (settled.contacts, settled.past_end, settled.retry_after) == (5, "404", "2")
    for assignments, told in ((["contcts=5"], "did you mean contacts"), (["page_size=0"], "1 or more")):
        with pytest.raises(UsageError, match=told):
            sandbox_settings(assignments)


def test_a_configuration_cannot_be_changed() -> None:
    """A loaded configuration is immutable."""
    config = loaded()
    for section in (config, config.extract, config.accounts[0]):
        with pytest.raises(ValueError, match="frozen"):
            section.name = "other"  # type: ignore[union-attr]


def test_an_error_is_a_document() -> None:
    """A rejected configuration becomes the `error` object of `--json`: code, message, where and hint."""
    error: EtlError = refused(GOOD, "foo=1")
    assert error.document().keys() == {"code", "message", "where", "hint"}
    assert error.document()["code"] == 2
