"""The pipeline stages concurrently received pages completely and in reading order, or the run ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anyio
import pyarrow.parquet as pq
import pytest

from etl.api.response import HttpResponse, Page, parse_response
from etl.errors import SinkError
from etl.extract.checkpoint_file import CheckpointFile
from etl.extract.pipeline import BATCH_PAGES, Pipeline
from etl.storage.staging import Stage

ROWS = 20


def page(number: int, text: str = "x") -> Page:
    """A valid page of `ROWS` contacts; every third page contains an odd one."""
    contacts = [{"_id": f"{number:06d}-{row:02d}", "name": text} for row in range(ROWS)]
    if not number % 3:
        contacts[0]["status"] = 5  # type: ignore[assignment]
    verdict = parse_response(HttpResponse(200, {}, json.dumps({"success": True, "data": contacts}).encode()))
    assert isinstance(verdict, Page)
    return verdict


async def staged(stage: Stage, pages: Sequence[Page]) -> tuple[Sequence[Path], Pipeline]:
    """The parts that a pipeline makes of `pages`."""
    with Pipeline("main", stage, CheckpointFile(stage.folder, "", 0.0)) as pipeline:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.run)
            for one in pages:
                await pipeline.receive(one)
            parts = await pipeline.parts()
            pipeline.close()
    return parts, pipeline


async def test_parts_hold_everything_in_reading_order(tmp_path: Path) -> None:
    """Batches are normalized concurrently, and the parts are the same as if they had been sequential."""
    pages = [page(number, "long" * (number % 7)) for number in range(5 * BATCH_PAGES + 3)]
    parts, pipeline = await staged(Stage(tmp_path / "stage"), pages)
    tables = [pq.read_table(part, columns=["contact_id", "read_no"]) for part in parts]
    numbers = [number for table in tables for number in table["read_no"].to_pylist()]
    assert numbers == list(range(len(pages) * ROWS))
    assert tables[0]["contact_id"].to_pylist()[ROWS] == "000001-00"
    assert pipeline.counts["received"] == pipeline.rows == len(numbers)


async def test_a_stage_that_fails_ends_the_pipeline(tmp_path: Path) -> None:
    """If one worker fails, no other waits for its batch and no caller waits for the parts."""
    stage = Stage(tmp_path / "stage")
    stage.remove()
    pages = [page(number) for number in range(1000)]
    with pytest.raises(ExceptionGroup) as caught:
        await staged(stage, pages)
    assert caught.group_contains(SinkError)
