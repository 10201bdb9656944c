"""`etl sql` and `etl status`: queries of the exported data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tests.support.live import Ended, Job, live

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture(scope="module", params=["duckdb", "parquet"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Two runs over an account of 60 contacts, in one sink."""
    with live(contacts=60, nasty_share=0, seed=2) as server:
        done = Job(tmp_path_factory.mktemp("sql"), {"main": server.url}, sinks=(request.param,))
        assert [done.run().exit_code, done.run().exit_code] == [0, 0]
        yield done


def ask(job: Job, query: str) -> Ended:
    """Run a query with `--json`."""
    return job.call("sql", "CONFIG", query, "--json")


def test_sql_answers_with_a_list_of_row_objects(job: Job) -> None:
    """Times are ISO 8601 with `Z`, maps and structs are objects, lists are lists, numbers and booleans are kept."""
    [row] = ask(job, "select * from contacts where len(notes) > 0 and len(urls_visited) > 0 limit 1").document
    assert TIME.fullmatch(row["created_at"])
    assert TIME.fullmatch(row["observed_at"])
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in row["attributes"].items())
    assert row["attributes"]["order_number"].isdigit()
    assert row["notes"][0].keys() == {"title", "description", "_id"}
    assert isinstance(row["urls_visited"][0], str)
    assert (type(row["website_visits"]), type(row["is_contact"]), row["seq"]) == (int, bool, 1)


def test_every_table_and_the_time_travel_stand_in_every_sink(job: Job) -> None:
    """`contacts`, `contact_versions`, `runs`, `rejects` and `contacts_as_of` exist in every sink."""
    relations = ("contacts", "contact_versions", "runs", "rejects", "contacts_as_of(timestamptz '2999-01-01')")
    counts = [ask(job, f"select count(*) as n from {relation}").document for relation in relations]  # noqa: S608
    assert counts == [[{"n": 60}], [{"n": 60}], [{"n": 2}], [{"n": 0}], [{"n": 60}]]


def test_no_rows_are_an_empty_list(job: Job) -> None:
    """A query without rows returns an empty list."""
    assert ask(job, "select * from contacts where false").document == []


@pytest.mark.parametrize(
    "query",
    [
        "delete from contacts",
        "update contacts set name = 'x'",
        "insert into rejects select * from rejects",
        "drop table contacts",
        "create table mine as select 1",
        "copy contacts to 'stolen.csv'",
        "attach 'other.duckdb' as other",
        "install httpfs",
        "set enable_external_access = true",
        "pragma database_list; select 1",
        "select 1; select 2",
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "explain analyze delete from contacts",
        "with x as (copy (select 1) to 'stolen.csv') select * from x",
        "with x as (copy (from contacts) to 'data/contacts.duckdb') from x",
        "with x as (delete from contacts returning *) from x",
        "select 1 /*",
        "selekt 1",
        "select nothing from contacts",
        "",
    ],
)
def test_a_writing_or_broken_query_is_exit_2_and_harms_nothing(query: str, job: Job) -> None:
    """A writing or invalid query is exit 2 with one document, and the target stays byte-identical (X4)."""
    before = {path: path.read_bytes() for path in (job.folder / "data").rglob("*") if path.is_file()}
    ended = ask(job, query)
    assert (ended.code, ended.document["error"]["code"]) == (2, 2)
    assert ended.document["error"]["message"]
    assert "Traceback" not in ended.err
    assert {path: path.read_bytes() for path in (job.folder / "data").rglob("*") if path.is_file()} == before
    assert not list(job.folder.glob("stolen*"))


def test_the_engine_says_what_is_wrong(job: Job) -> None:
    """The message names the column that does not exist."""
    assert "nothing" in ask(job, "select nothing from contacts").document["error"]["message"]


def test_sql_for_people_is_a_table(job: Job) -> None:
    """Without `--json`, a table is printed on stdout and nothing on stderr."""
    ended = job.call("sql", "CONFIG", "select count(*) as everyone from contacts")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"everyone", ended.out)
    assert re.search(r"\b60\b", ended.out)


def test_a_cell_neither_breaks_the_table_nor_steers_the_terminal(job: Job) -> None:
    """Line breaks, controls and direction marks are escaped, and JSON preserves the exact value (X4)."""
    evil = "a\n\tb\r\x1b[2J\x9b31m\u202e\u2028\u200bc"
    codes = ", ".join(str(ord(letter)) for letter in evil)
    cell = f"list_aggregate(list_transform([{codes}], lambda code: chr(code::int)), 'string_agg', '')"
    query = f'select {cell} as cell, [{cell}] as cells, map {{{cell}: {cell}}} as pairs, 1 as "co\x9bl\numn"'
    table = job.call("sql", "CONFIG", query)
    assert table.code == 0, table.err
    assert len(table.out.splitlines()) == 6
    answer = ask(job, query)
    assert {one for one in table.out + answer.out if not one.isprintable()} == {"\n"}
    assert answer.document == [{"cell": evil, "cells": [evil], "pairs": {evil: evil}, "co\x9bl\numn": 1}]


def test_names_of_people_are_shown_as_they_are(job: Job) -> None:
    """Names in any script, with combining marks and composite emoji, are shown unchanged."""
    name = "e\u0301le\u0300ve क्\u200dष 👩\u200d👧"
    assert name in job.call("sql", "CONFIG", f"select '{name}' as name").out
    assert name in job.call("sql", "CONFIG", f"select '{name}' as name", "--json").out


def test_a_message_of_the_engine_is_one_line(job: Job) -> None:
    """An error that the engine prints on several lines is shown on one."""
    [line] = job.call("sql", "CONFIG", "select nope\nfrom contacts").err.splitlines()
    assert line.startswith('error 2: Binder Error: Referenced column "nope" not found in FROM clause!; Candidate ')


def test_odd_types_become_json(job: Job) -> None:
    """Types unknown to JSON become text, NaN is no bare word, and no number is rounded."""
    query = (
        "select 170141183460469231731687303715884105727::hugeint as big, 'nan'::double as nan, '\"' as quote,"
        " date '2025-01-01' as day, {'a': [timestamptz '2025-01-01 00:00:00+00']} as nested, map {'k': 1} as pairs,"
        " 1.5::decimal(9,2) as price, interval 3 days as wait, 'ab'::blob as bytes, null as nothing,"
        " uuid '00000000-0000-0000-0000-000000000001' as id"
    )
    [row] = ask(job, query).document
    assert row["big"] == 2**127 - 1
    assert row["nested"] == {"a": ["2025-01-01T00:00:00Z"]}
    assert (row["day"], row["nothing"], row["price"], row["pairs"]) == ("2025-01-01", None, 1.5, {"k": 1})
    assert isinstance(row["nan"], str | None)
    assert row["id"] == "00000000-0000-0000-0000-000000000001"


TIMES = {
    "timestamptz 'infinity'": "infinity",
    "timestamp '-infinity'": "-infinity",
    "date '0044-03-15 (BC)'": "0044-03-15 (BC)",
    "timestamp '290000-01-01'": "290000-01-01 00:00:00",
    "timestamp_ns '2020-01-01 00:00:00.123456789'": "2020-01-01 00:00:00.123456789",
}


@pytest.mark.parametrize(("query", "told"), TIMES.items())
def test_times_that_python_does_not_know_are_told_in_the_words_of_the_engine(query: str, told: str, job: Job) -> None:
    """Times outside Python's range are shown as DuckDB writes them, and other values as usual."""
    kind = query.split(maxsplit=1)[0]
    document = ask(job, f"select {query} as moment union all select {kind} '2020-01-01'").document
    assert {row["moment"].removesuffix("Z").removesuffix("T00:00:00") for row in document} == {told, "2020-01-01"}
    assert job.call("sql", "CONFIG", f"select {query}").code == 0


def test_people_see_a_hundred_rows_and_how_many_there_are(job: Job) -> None:
    """A table of more than a hundred rows shows its first and last fifty and the number of rows."""
    many, few = (job.call("sql", "CONFIG", f"from range(10, {end})").out for end in (160, 70))
    shown = [{int(number) for number in re.findall(r"│ +(\d+) │", out)} for out in (many, few)]
    assert shown == [{*range(10, 60), *range(110, 160)}, {*range(10, 70)}]
    assert "150 rows" in many


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_an_answer_is_utf_8_in_any_locale(form: tuple[str, ...], job: Job) -> None:
    """Query and answer are UTF-8 in an ASCII locale (P20)."""
    ended = job.command("sql", "CONFIG", "select 'é' as letter", *form, LC_ALL="C", PYTHONUTF8="0")
    assert (ended.code, "é" in ended.out) == (0, True), ended


def test_columns_of_one_name_are_told_apart(job: Job) -> None:
    """Columns with the same name get a suffix, so that no value is lost."""
    assert ask(job, 'select 1 a, 2 a, 3 a_1, 4 "A", 5 a').document == [{"a": 1, "a_1": 2, "a_1_1": 3, "A": 4, "a_2": 5}]
    assert job.call("sql", "CONFIG", "select 1 a, 2 a").code == 0


INTERVALS = (
    *("0 days", "14 months", "-14 months", "1 year", "-1 day", "100 hours", "3.5 seconds", "-3.000001 seconds"),
    *("1 month -2 days 3 seconds", "-90 minutes", "2 years 1 month 1 day 23 hours 59 minutes 59.999999 seconds"),
)


@pytest.mark.parametrize("length", INTERVALS)
def test_an_interval_is_told_in_the_words_of_the_engine(length: str, job: Job) -> None:
    """Intervals are shown as DuckDB writes them, alone and in a list, a struct and a map."""
    found = f"interval '{length}'"
    query = f"select {found}::varchar as words, {found} as one, [{found}] as many, {{'x': {found}}} as part, map {{'k': {found}}} as pairs"  # noqa: E501
    [row] = ask(job, query).document
    words = row["words"]
    assert row == {"words": words, "one": words, "many": [words], "part": {"x": words}, "pairs": {"k": words}}


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_tells_the_last_run_of_every_account_and_the_history(job: Job) -> None:
    """`status` has watermark, seq and last run of each account, and all runs, newest first."""
    document = job.call("status", "CONFIG", "--json").document
    assert document.keys() == {"accounts", "runs", "attempts"}
    [account] = document["accounts"]
    assert account.keys() >= {"account", "watermark", "seq", "last_run"}
    assert (account["account"], account["seq"]) == ("main", 2)
    assert TIME.fullmatch(account["watermark"])
    assert [run["seq"] for run in document["runs"]] == [2, 1]
    assert account["last_run"] == document["runs"][0]
    assert document["runs"][1]["mode"] == "full"


def test_status_for_people_names_every_run(job: Job) -> None:
    """The text of `status` has a line for each run."""
    ended = job.call("status", "CONFIG")
    assert ended.code == 0
    assert "incremental" in ended.out
    assert "full" in ended.out


def test_before_the_first_run_status_is_empty_and_sql_says_what_to_do(job: Job) -> None:
    """Before the first run, `status` exits with 0 and `sql` with 2, and no file is created."""
    fresh = Job(job.folder / "fresh", job.urls, sinks=job.sinks)
    fresh.folder.mkdir()
    ended = fresh.call("status", "CONFIG", "--json")
    assert (ended.code, ended.document) == (0, {"accounts": [], "runs": [], "attempts": []})
    assert fresh.call("status", "CONFIG").code == 0
    asked = ask(fresh, "select 1")
    assert (asked.code, asked.document["error"]["code"]) == (2, 2)
    assert "etl run" in asked.document["error"]["hint"]
    assert not (fresh.folder / "data").exists()


def test_the_file_can_be_asked_while_somebody_reads_it(job: Job) -> None:
    """A query works while another process has the file open for reading (S1)."""
    if "duckdb" in job.sinks:
        with duckdb.connect(str(job.duckdb), read_only=True):
            assert ask(job, "select 1 as one").document == [{"one": 1}]


def test_a_run_with_rejects_ends_with_the_query_that_shows_them(tmp_path: Path) -> None:
    """After exit 40, the last line of the summary is a working command that shows the rejects."""
    with live(contacts=60, nasty_share=0.3, nasty_kinds=("id_null",), seed=3) as server:
        job = Job(tmp_path, {"main": server.url}, settings="[guard]\nmax_reject_share = 1\n")
        ended = job.call("run", "CONFIG")
        assert ended.code == 40
        command = shlex.split(ended.out.splitlines()[-1])
        assert command[:3] == ["try", "etl", "sql"]
        shown = job.call(*command[2:])
        assert (shown.code, "id" in shown.out) == (0, True)
