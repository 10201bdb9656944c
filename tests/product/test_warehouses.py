"""The commands on a PostgreSQL schema, on several sinks at once, and copies between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import etl
from etl.commands.copy import _history
from etl.config import load
from etl.errors import PublishConflict
from etl.sinks.targets import sinks
from etl.storage.lock import Lock
from tests.support.live import DSN, Job, Live, Row, live
from tests.support.postgres import PASSWORD, Server

TABLES: Mapping[str, tuple[str, ...]] = {
    "contacts": ("account", "contact_id"),
    "contact_versions": ("account", "contact_id", "seq"),
    "rejects": ("account", "contact_id", "raw"),
    "runs": ("seq", "account"),
}
"""The tables for users, with their keys."""


@pytest.fixture
def churning() -> Iterator[Live]:
    """An account in which a third of the contacts has one of every known oddity."""
    with live(contacts=300, nasty_share=0.3, small=True) as server:
        yield server


@pytest.fixture
def job(churning: Live, postgres: Server, tmp_path: Path) -> Job:
    """A job with every kind of sink, before its first run."""
    settings = '[guard]\nmax_reject_share = 1.0\n[extract]\nscrub_every = "1s"\n'
    dsn = postgres.dsn(postgres.create_database())
    return Job(tmp_path, {"main": churning.url}, settings=settings, sinks=("duckdb", "parquet", "postgres"), dsn=dsn)


def sorted_rows(rows: list[Row], table: str) -> list[Row]:
    """Rows in the order of their key, with the values of every client alike."""
    return sorted(rows, key=lambda row: [str(row[name]) for name in TABLES[table]])


def test_every_command_works_on_the_server_alone(job: Job, churning: Live) -> None:
    """`run`, `status`, `plan`, `sql`, `explain`, `verify` and `doctor` need no other sink, and show no password."""
    job = replace(job, sinks=("postgres",))
    first = job.call("run", "CONFIG", "--json")
    assert first.code in {0, 40}, first.out
    assert first.document["sinks"] == {"postgres": {"path": "schema etl (sinks.postgres)", "seq": 1}}
    churning.churn(0)
    second = job.call("run", "CONFIG", "--json")
    assert second.code in {0, 40}
    assert second.document["accounts"][0]["mode"] == "incremental"
    [[contact_id]] = [list(row.values()) for row in job.call("sql", "CONFIG", _SOME, "--json").document]
    ended = {
        words[0]: job.call(*words, "--json")
        for words in (
            ("status", "CONFIG"),
            ("plan", "CONFIG"),
            ("sql", "CONFIG", "select count(*) as n, max(created_at) as newest from contacts"),
            ("explain", "CONFIG", contact_id),
            ("verify", "CONFIG"),
            ("doctor", "CONFIG"),
        )
    }
    assert {name: end.code for name, end in ended.items()} == dict.fromkeys(ended, 0)
    assert ended["status"].document["accounts"][0]["seq"] == 2
    assert ended["explain"].document["accounts"][0]["last_read_by"]["seq"] == 2
    [row] = ended["sql"].document
    assert (row["n"], row["newest"][-1]) == (second.document["accounts"][0]["counts"]["contacts"], "Z")
    assert job.call("verify", "CONFIG", "--live", "2").code == 0
    assert not any(PASSWORD in end.out + end.err for end in (*ended.values(), first, second))


_SOME = "select contact_id from contacts where seq = 2 order by contact_id limit 1"


@pytest.mark.parametrize(
    "query", ["delete from contacts", "select 1; drop table etl.contacts", "select no from contacts"]
)
def test_a_query_that_writes_is_a_mistake_of_the_user(job: Job, query: str) -> None:
    """A writing or wrong query is exit 2 with the message of the server (X4)."""
    job = replace(job, sinks=("postgres",))
    assert job.call("sql", "CONFIG", "select 1").code == 2
    assert job.call("run", "CONFIG").code in {0, 40}
    ended = job.call("sql", "CONFIG", query, "--json")
    assert ended.code == 2
    assert ended.document["error"]["where"] == "query"


def test_a_wrong_password_is_one_message_without_it(job: Job) -> None:
    """A password that is refused is exit 20, nothing is fetched, and no output repeats it (X1)."""
    wrong = replace(job, sinks=("postgres",), dsn=job.dsn.replace(PASSWORD, "wrong-but-secret"))
    for words in (("run", "CONFIG"), ("status", "CONFIG"), ("doctor", "CONFIG"), ("sql", "CONFIG", "select 1")):
        ended = wrong.call(*words)
        assert ended.code == 20, words
        assert "does not accept the password" in ended.out + ended.err
        assert "wrong-but-secret" not in ended.out + ended.err


def test_a_dsn_that_is_not_set_names_its_variable(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing variable is exit 2 with its name."""
    monkeypatch.delenv(DSN, raising=False)
    ended = replace(job, sinks=("postgres",), dsn="").call("run", "CONFIG")
    assert ended.code == 2
    assert DSN in ended.err


def with_named(job: Job, *named: str) -> Job:
    """The same job with these sinks instead, in TOML."""
    return replace(job, sinks=(), settings="".join(named) + job.settings)


def file(name: str, path: Path) -> str:
    """A DuckDB file as a named sink."""
    return f'[sinks.{name}]\nkind = "duckdb"\npath = "{path}"\n'


def schema(name: str, folder: Path, home: str) -> str:
    """A PostgreSQL schema as a named sink."""
    return f'[sinks.{name}]\nkind = "postgres"\ndsn_env = "{DSN}"\nschema = "{home}"\nstage = "{folder / name}"\n'


def test_a_program_reads_the_sink_that_it_names(job: Job) -> None:
    """`etl.connect` and `etl.status` take the name of a sink; a server's tables are queried as those of a file."""
    assert job.run().exit_code in {0, 40}
    config = load(job.config())
    counts = []
    for sink in ("duckdb", "postgres"):
        with etl.connect(config, sink=sink) as connection:
            counts.append(connection.sql("select status, count(*) from contacts group by all order by all").fetchall())
        assert etl.status(config, sink=sink).accounts[0].last_run.seq == 1
    assert counts[0] == counts[1]


def test_two_sinks_of_one_kind_have_names(job: Job, tmp_path: Path) -> None:
    """Each named sink is published, reported and read under its name; an unknown name lists the known ones."""
    job = with_named(job, schema("one", tmp_path / "data", "first"), schema("two", tmp_path / "data", "second"))
    ended = job.call("run", "CONFIG", "--json")
    assert ended.code in {0, 40}, ended.out
    assert {name: sink["path"] for name, sink in ended.document["sinks"].items()} == {
        "one": "schema first (sinks.one)",
        "two": "schema second (sinks.two)",
    }
    table = "select current_schema() as home, count(*) > 0 as has_contacts from contacts"
    for name, home in (("one", "first"), ("two", "second")):
        assert job.call("sql", "CONFIG", table, "--sink", name, "--json").document == [
            {"home": home, "has_contacts": True}
        ]
        assert job.call("status", "CONFIG", "--sink", name, "--json").document["accounts"][0]["seq"] == 1
    wrong = job.call("sql", "CONFIG", "select 1", "--sink", "three")
    assert wrong.code == 2
    assert "There are: one, two." in wrong.err


def test_a_sink_that_fails_does_not_stop_the_others(job: Job, churning: Live, postgres: Server) -> None:
    """While a server is away, the others are published and exit 20 names it; then it catches up, incrementally."""
    assert job.run().exit_code in {0, 40}
    away = replace(job, dsn=job.dsn.replace(PASSWORD, "wrong-but-secret"))
    churning.churn(0)
    ended = away.call("run", "CONFIG", "--json")
    assert ended.code == 20
    assert ended.document["error"]["where"] == "schema etl (sinks.postgres)"
    assert ended.document["accounts"][0]["seq"] == 2
    assert {name: sink["seq"] for name, sink in ended.document["sinks"].items()} == {
        "duckdb": 2,
        "parquet": 2,
        "postgres": None,
    }
    assert "wrong-but-secret" not in ended.out + ended.err
    churning.churn(1)
    caught_up = job.call("run", "CONFIG", "--json")
    assert caught_up.code in {0, 40}
    assert caught_up.document["accounts"][0]["mode"] == "incremental"
    assert {sink["seq"] for sink in caught_up.document["sinks"].values()} == {3}
    in_server = postgres.rows("etl.contacts", job.dsn.rpartition("/")[2])
    without = {"seq", "observed_at"}  # The run that wrote a row differs for a sink that missed one.
    assert [_without(row, without) for row in sorted_rows(in_server, "contacts")] == [
        _without(row, without) for row in sorted_rows(job.in_duckdb(), "contacts")
    ]
    assert job.call("verify", "CONFIG").code == 0


def test_a_copy_and_a_run_exclude_each_other(job: Job) -> None:
    """A run that publishes between two tables of the source would give the copy a manifest of another state."""
    assert replace(job, sinks=("duckdb",)).run().exit_code in {0, 40}
    with Lock(job.duckdb):
        ended = replace(job, sinks=("duckdb", "postgres")).call("copy", "CONFIG", "duckdb", "postgres")
    assert ended.code == 30, ended.err


def test_a_source_that_is_published_meanwhile_is_copied_again(job: Job, churning: Live) -> None:
    """No lock keeps another machine away: a copy is of one state, or exit 21."""
    job = replace(job, sinks=("parquet",))
    assert job.run().exit_code in {0, 40}
    [source] = sinks(load(job.config()))
    with source.reading() as connection:
        assert [one.seq for one in _history(connection, source)] == [1]
        churning.churn(0)
        assert job.run().exit_code in {0, 40}
        with pytest.raises(PublishConflict, match="another run was published"):
            _history(connection, source)


def _with(job: Job, *sinks: str) -> Job:
    """The job with these sinks."""
    delta = f'[sinks.delta]\npath = "{job.folder / "lake"}"\n' if "delta" in sinks else ""
    return replace(job, sinks=tuple(name for name in sinks if name != "delta"), settings=delta + job.settings)


def _without(row: Row, names: set[str]) -> Row:
    return {name: value for name, value in row.items() if name not in names}


_COPIED = (
    "select contact_id, row_hash, seq from contacts order by contact_id",
    "select contact_id, row_hash, seq, op from contact_versions order by contact_id, seq",
    "select seq, account, mode, contacts, new, changed from runs order by seq, account",
    "select reason, path, first_seq, seen from rejects order by reason, path, first_seq, seen",
)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("duckdb", "postgres"),
        ("postgres", "duckdb"),
        ("parquet", "postgres"),
        ("postgres", "parquet"),
        ("duckdb", "delta"),
        ("delta", "parquet"),
    ],
)
def test_a_new_sink_is_filled_from_an_existing_one(job: Job, churning: Live, source: str, target: str) -> None:
    """A copy has every row and every run of the other sink, asks the server for nothing, and continues from there."""
    old, both = (_with(job, *names) for names in ((source,), (source, target)))
    for number in range(2):
        assert old.run().exit_code in {0, 40}
        churning.churn(number)
    requests = churning.stats()["requests"]
    ended = both.call("copy", "CONFIG", source, target, "--json")
    assert ended.code == 0, ended.out + ended.err
    assert churning.stats()["requests"] == requests
    assert both.call("verify", "CONFIG").code == 0
    for query in _COPIED:
        first, second = (both.call("sql", "CONFIG", query, "--sink", name, "--json") for name in (source, target))
        assert first.document == second.document, query
        assert first.document
    again = both.call("run", "CONFIG", "--json")
    assert again.code in {0, 40}
    assert again.document["accounts"][0]["mode"] == "incremental"
    assert both.call("verify", "CONFIG").code == 0
    refused = both.call("copy", "CONFIG", source, target)
    assert refused.code == 2
    assert "already holds state" in refused.err
