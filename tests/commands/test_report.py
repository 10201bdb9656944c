"""`etl report`: the figures are those of the target, no contact's values are on the page, and runs can write it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import etl
from etl import schema
from etl.commands import outputs
from etl.commands.figures import gather
from etl.errors import Interrupted
from etl.schema import Kind, Privacy
from etl.storage.attempts import Attempt
from tests.support.live import Job, live

NOW = datetime(2026, 11, 29, tzinfo=UTC)
AT = "2025-01-01T00:00:00.000Z"
FAR = {"_id": "far", "createdAt": "9999-12-31T23:59:59.999Z", "lastSeenAt": AT, "updatedAt": AT, "isContact": True}


@pytest.fixture(scope="module", params=["duckdb", "parquet"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Two runs over 400 contacts, one of which claims to be created in the year 9999, in one sink."""
    with live(contacts=400, nasty_share=0, seed=3) as server:
        server.change(lambda world, now: world.adopt(json.dumps(FAR).encode(), now))
        done = Job(tmp_path_factory.mktemp("report"), {"main": server.url}, sinks=(request.param,))
        first = done.run()
        assert first.exit_code in {0, 40}, first.error
        edited = server.ids()[:30]
        server.change(lambda world, now: [world.edit(one, now) for one in edited])
        server.ahead = 60
        assert done.run(full=True).exit_code in {0, 40}
        yield done


def one(job: Job, query: str) -> object:
    """The only cell of a query."""
    [row] = job.call("sql", "CONFIG", query, "--json").document
    return next(iter(row.values()))


def test_the_figures_are_those_of_the_target(job: Job) -> None:
    """Counts by run, group, month, hour, window and column agree with SQL on the tables."""
    config = etl.load_config(job.config())
    figures = gather(config, NOW)
    total = one(job, "select count(*) from contacts")
    assert [run.seq for run in figures.runs] == [1, 2]
    assert figures.runs[-1].contacts == figures.contacts.total == total
    assert figures.runs[-1].changed == one(job, "select changed from runs where seq = 2") == 30
    for groups in (figures.contacts.statuses, figures.contacts.countries):
        assert sum(count for _, count in groups) == total
    found = figures.contacts
    assert sum(count for _, count in found.months) + found.earlier + found.later + found.without_time == total
    assert len(found.months) <= 36
    later = "select count(*) from contacts where created_at > (select max(observed_at) from runs)"
    assert found.later == one(job, later) > 0
    assert sum(count for _, _, count in found.week) == one(job, "select count(last_seen_at) from contacts")
    assert sum(count for _, count in figures.proof.looked_at) == total
    assert figures.proof.windows == one(job, "select count(*) from etl.windows")
    assert len(figures.proof.manifest) == 64
    shares = {column.name: column for column in figures.data.columns}
    assert shares["email"].share == pytest.approx(one(job, "select count(email) / count(*) from contacts"))
    first = "(select observed_at from runs where seq = 1)"
    then = one(job, f"select count(last_message_text) / count(*) from contacts_as_of({first})")  # noqa: S608
    assert shares["last_message_text"].change == pytest.approx(shares["last_message_text"].share - then)
    [account] = figures.accounts
    assert (account.account, account.proven_since) == ("main", account.at)


def test_no_value_of_a_contact_is_on_the_page(job: Job) -> None:
    """Names, numbers, addresses, ids and texts of all contacts are searched for in the file."""
    done = job.call("report", "CONFIG", "-o", "page.html")
    assert done.out.startswith("page.html: run 2, 401 contacts; ")
    path = job.folder / "page.html"
    page = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size < 300_000
    told = [
        c.name for c in schema.CONTACTS if c.privacy in {Privacy.DIRECT, Privacy.CONTENT} and c.kind is not Kind.JSON
    ]
    told += ["contact_id", "uuid", "agent_id", "urls_visited"]
    for row in job.call("sql", "CONFIG", f"select {', '.join(told)} from contacts", "--json").document:  # noqa: S608
        for value in row.values():
            for text in value if isinstance(value, list) else [value]:
                shown = json.dumps(text, ensure_ascii=False).strip('"')
                is_word = shown.isalpha() and shown.islower()  # a gender, a tag: the page has such words of its own
                assert is_word or len(shown) < 4 or shown not in page, shown


def test_it_is_replaced_after_every_run(job: Job, tmp_path: Path) -> None:
    """`report.path` is written after runs, failed ones too, with its mode; not after one that a signal stopped."""
    own = job.copy(tmp_path)
    page = tmp_path / "seen.html"
    own.settings = f'[report]\npath = "{page}"\nmode = "0644"\n[extract]\ndeadline = "3s"\n'
    own.urls = {"main": "http://127.0.0.1:9"}
    assert own.run().exit_code == 11
    assert "The last run failed" in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o644
    page.unlink()
    config = etl.load_config(own.config())
    attempt = Attempt(NOW, NOW, 130, 0)
    outputs.write(config, attempt, Interrupted("stopped"))
    assert not page.exists()
    outputs.write(config, attempt, None)
    assert page.exists()


def test_without_the_extra_one_line_says_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library is exit code 2 and names the extra, for the command and before a run."""
    monkeypatch.setitem(sys.modules, "altair", None)
    for words in (("report", "CONFIG"), ("run", "CONFIG", "--set", "report.path=page.html")):
        done = job.call(*words)
        assert done.code == 2
        assert "altair is not installed" in done.err
        assert "Install etl with its extra report" in done.err


def test_before_the_first_run_there_is_a_page(tmp_path: Path) -> None:
    """A target that does not exist yet has a page that says so."""
    job = Job(tmp_path, {"main": "http://127.0.0.1:9"})
    assert job.call("report", "CONFIG").out.startswith("report.html: no run has published yet; ")
    assert job.call("report", "CONFIG", "--json").document["seq"] == 0


def test_a_program_writes_it(job: Job, tmp_path: Path) -> None:
    """`etl.report` returns what it wrote."""
    written = etl.report(etl.load_config(job.config()), tmp_path / "mine.html")
    assert isinstance(written, etl.WrittenReport)
    assert (written.seq, written.contacts, written.size) == (2, 401, (tmp_path / "mine.html").stat().st_size)
    with pytest.raises(etl.SinkError):
        etl.report(etl.load_config(job.config()), tmp_path / "none" / "mine.html")


def test_a_bug_in_an_output_does_not_fail_the_run(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong after publishing is logged: a process that cannot start, and even a bug."""
    own = job.copy(tmp_path)
    own.settings = f'[report]\npath = "{tmp_path}/page.html"\n'
    config = etl.load_config(own.config())
    for name, broken in (("pages.process.sys.executable", "/nonexistent"), ("commands.figures._RUNS", "selekt")):
        with monkeypatch.context() as patched:
            patched.setattr(f"etl.{name}", broken)
            outputs.write(config, Attempt(NOW, NOW, 0, 0), None)
            assert not (tmp_path / "page.html").exists()
    monkeypatch.delenv("HOME")
    outputs.write(config, Attempt(NOW, NOW, 0, 0), None)
    assert (tmp_path / "page.html").exists()
