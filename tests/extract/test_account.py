"""One account's reader: the phase that its progress shows, step by step."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import anyio.lowlevel
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.api.sources import sources
from etl.config import load
from etl.extract.account import Reader
from etl.extract.history import NoSnapshot, Snapshot
from etl.model import AccountYield, Phase, Received, RunRecord
from tests.support.live import Job, live


class NothingPublished(NoSnapshot):
    """A target without contacts."""

    def during(self, received: Received, folder: Path) -> Snapshot:  # noqa: ARG002 - nothing was published
        """The same during a run."""
        return self

    def copy_ids(self, file: Path) -> None:
        """No ids."""
        pq.write_table(pa.table({"contact_id": pa.array([], pa.string()), "strikes": pa.array([], pa.int8())}), file)


async def read(job: Job, last: RunRecord | None = None) -> tuple[AccountYield, list[Phase]]:
    """Read the account of a job; returns what it yields, and the phases its progress showed, in order."""
    config, phases, yields = load(job.config()), list[Phase](), list[AccountYield]()
    async with sources(config) as [source], anyio.create_task_group() as tasks:
        stage = job.folder / "stage"
        reader = Reader(source, NothingPublished(), stage, config, full=False, seq=1, run_id="run", last=last)

        async def watch() -> None:
            while not yields:
                progress = reader.progress()
                if progress is not None and [progress.phase] != phases[-1:]:
                    phases.append(progress.phase)
                await anyio.lowlevel.checkpoint()

        assert reader.progress() is None
        tasks.start_soon(watch)
        yields.append(await reader.read())
    return yields[0], phases


FULL: list[Phase] = ["probe", "cross-check", "windows", "sweep", "cross-check"]


@pytest.mark.parametrize(
    ("witness_every", "phases"), [("7d", ["probe", "windows", "sweep"]), ("1s", FULL)], ids=["scrub", "cross-check"]
)
async def test_progress_shows_the_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, witness_every: str, phases: list[Phase]
) -> None:
    """A first run is cross-checked before and after; an incremental run scrubs in the phase of the windows."""
    with live(contacts=200, small=True, latency=0.005) as server:
        settings = f'[extract]\nwitness_every = "{witness_every}"\n'
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings=settings)
        for name, value in job.environment().items():
            monkeypatch.setitem(os.environ, name, value)
        first, shown = await read(job)
        assert (first.record.mode, shown) == ("full", FULL)
        server.ahead += 5
        second, shown = await read(job, first.record)
        assert (second.record.mode, shown) == ("incremental", phases)


async def test_a_filtered_export_scans_pages_in_the_phase_of_the_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no phase of its own: pages are where its contacts come from, as windows elsewhere."""
    with live(contacts=200, small=True, latency=0.005) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings="[extract.filters]\nisContact = true\n")
        for name, value in job.environment().items():
            monkeypatch.setitem(os.environ, name, value)
        found, phases = await read(job)
    assert (found.record.mode, phases) == ("filtered", ["probe", "windows"])
    assert set(found.record.detail["requests"]) == {"probe", "walk"}
