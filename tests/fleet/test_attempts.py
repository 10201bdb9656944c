"""Attempts to read one account: who may write where, what a new one resumes, and the result that one leaves."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from etl import errors
from etl.api.sources import sources
from etl.config import load
from etl.errors import EtlError, SourceUnavailable, first_of
from etl.extract.checkpoint_file import NAME, TOO_OLD, saved_progress
from etl.fleet.attempts import RESULT, attempts, claim, keep_result, kept_result, last_attempt
from etl.fleet.takeover import Takeover
from etl.fleet.task import Task
from etl.model import AccountYield
from etl.sinks.targets import sinks
from tests.support.live import Job, Live, live

RUN = "0123abcd"
NOW = 1e9


async def read(job: Job, run_id: str = RUN) -> tuple[AccountYield, Takeover]:
    """Read the only account of a job as a worker does."""
    os.environ.update(job.environment())
    config = load(job.config())
    [sink] = sinks(config)
    async with sources(config) as [source]:
        reader = Takeover(Task("main", config, sink.name, job.folder / "stage", False, 7, run_id), source, sink)
        return await reader.read(), reader


@pytest.fixture
def job(tmp_path: Path, account: Live) -> Job:
    """A job with one account."""
    return Job(tmp_path, {"main": account.url}, sinks=("duckdb",), settings="[extract]\nconcurrency = 2\n")


@pytest.fixture(scope="module")
def account() -> Iterator[Live]:
    """A small account."""
    with live(contacts=300, small=True) as server:
        yield server


def test_every_attempt_has_a_folder_of_its_own_and_the_files_of_the_last_one(tmp_path: Path) -> None:
    """Files are copied, not linked, because the last attempt may still write; the journal makes them complete."""
    first = claim(tmp_path, RUN)
    (first / NAME).write_bytes(b"line\n")
    (first / "part-000001.parquet").write_bytes(b"rows")
    (first / RESULT).write_bytes(b"of another key")
    with (first / NAME).open("ab", buffering=0) as held:
        second = claim(tmp_path, "ffff0000")
        held.write(b"of a worker that was believed dead\n")
    assert (first.name, second.name) == (f"attempt-0001-{RUN}", "attempt-0002-ffff0000")
    assert {path.name: path.read_bytes() for path in second.iterdir()} == {
        NAME: b"line\n",
        "part-000001.parquet": b"rows",
    }
    assert attempts(tmp_path) == [second], "what is superseded is removed"
    assert {path.stat().st_mode & 0o777 for path in second.iterdir()} == {0o600}


def test_an_attempt_that_died_before_its_journal_was_copied_is_passed_over(tmp_path: Path) -> None:
    """What was read before it is not lost with it."""
    first = claim(tmp_path, RUN)
    (first / NAME).write_bytes(b"line\n")
    (tmp_path / f"attempt-0002-{RUN}").mkdir()
    assert last_attempt(tmp_path) == first
    assert (claim(tmp_path, RUN) / NAME).read_bytes() == b"line\n"


def test_an_attempt_resumes_what_one_process_had_read(tmp_path: Path) -> None:
    """A run with --cluster after a killed one without it: the stage itself is the attempt before the first."""
    (tmp_path / NAME).write_bytes(b"line\n")
    assert last_attempt(tmp_path) == tmp_path
    assert (claim(tmp_path, RUN) / NAME).read_bytes() == b"line\n"


async def test_what_another_machine_has_read_is_resumed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its boot is another one, and says nothing about the files: their checksums decide."""
    await read(job)
    [attempt] = attempts(job.folder / "stage")
    key = (attempt / NAME).read_text().partition('"key":"')[2].partition('"')[0]
    now = attempt.stat().st_mtime + 10
    monkeypatch.setattr("etl.extract.checkpoint_file._BOOT", job.folder / "job.toml")
    assert saved_progress(attempt, key, now).resumption is None
    found = saved_progress(attempt, key, now, shared=True)
    assert found.resumption is not None
    assert found.resumption.accepted


async def test_the_result_of_an_attempt_that_nobody_received_is_taken_over(job: Job, account: Live) -> None:
    """It is complete, belongs to the new run, counts as resumed, and costs no request."""
    brought, first = await read(job)
    sent = account.stats()["requests"]
    again, second = await read(job, "0000ffff")
    assert account.stats()["requests"] == sent
    assert (first.spent().sent > 0, second.spent().sent) == (True, 0)
    record = brought.record
    detail = {**record.detail, "resumed": record.proof.windows}
    assert again.record.detail.keys() == detail.keys()
    assert replace(again.record, detail={}) == replace(record, run_id="0000ffff", detail={})
    assert again.record.detail["resumed"] == record.proof.windows
    assert again.windows.equals(brought.windows)
    assert (again.parts, again.coverage, again.confirmed) == (brought.parts, brought.coverage, brought.confirmed)
    assert len(pickle.dumps(brought)) < 16_384, "what travels to the coordinator is small"


@pytest.mark.parametrize("change", ["key", "age", "result", "part"])
async def test_a_result_that_does_not_fit_is_none(job: Job, change: str) -> None:
    """Another key, another day, or a changed file: the account is read again."""
    brought, _ = await read(job)
    stage = job.folder / "stage"
    [attempt] = attempts(stage)
    keep_result(attempt, "key", brought, NOW)
    assert kept_result(stage, "key", NOW + 1) is not None
    if change in {"result", "part"}:
        damaged = attempt / RESULT if change == "result" else brought.parts[0]
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    now = NOW + (TOO_OLD.total_seconds() + 1 if change == "age" else 1)
    assert kept_result(stage, "other" if change == "key" else "key", now) is None


async def test_an_attempt_ends_when_a_newer_one_begins(tmp_path: Path) -> None:
    """A worker that was believed dead stops to send requests with the token of another one."""
    with live(contacts=2000, small=True, latency=0.2) as server:
        slow = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))

        os.environ.update(slow.environment())
        config = load(slow.config())
        [sink] = sinks(config)
        async with sources(config) as [source]:
            task = Task("main", config, sink.name, tmp_path / "stage", False, 1, RUN)
            async with anyio.create_task_group() as tasks:

                async def replace_it() -> None:
                    await anyio.sleep(1)
                    claim(task.folder, RUN)

                tasks.start_soon(replace_it)
                with pytest.raises(ExceptionGroup) as caught:
                    await Takeover(task, source, sink).read()
    assert isinstance(first_of(caught.value), SourceUnavailable)
    assert [path.name for path in attempts(task.folder)] == [f"attempt-0002-{RUN}"]


def test_errors_travel_between_processes() -> None:
    """An error that a worker returns is the same on the coordinator: kind, message, place and hint."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EtlError)]
    for kind in kinds:
        error = kind("what", where="account main", hint="do it")
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(again), str(again), again.document()) == (kind, str(error), error.document())
