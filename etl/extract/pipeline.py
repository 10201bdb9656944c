"""Pipeline from accepted pages to parts: a bounded stream, worker threads that normalize, a stage on files.

The stream is short, so that a slow disk slows reading down instead of filling memory. Pages are normalized in batches,
which costs a third of one at a time; batches are normalized concurrently and staged in the order received.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Self, TypeAlias

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
from anyio import to_thread

from etl.api.response import Page
from etl.extract.checkpoint_file import CheckpointFile
from etl.model import NormalizedBatch, RawPage
from etl.storage.staging import Stage

Normalize: TypeAlias = Callable[[Sequence[RawPage]], NormalizedBatch]

WORKERS = 2
"""Batches normalized concurrently: Arrow releases the GIL, and one thread is slower than the requests."""

WAITING_PAGES = 32
"""Pages buffered between reader and normalizer; at 75 KB each, about 2.5 MB."""
BATCH_PAGES = 32
GATHER_SECONDS = 0.05
"""A batch is normalized when it is full or has waited this long."""


class Pipeline:
    """Normalizes one account's pages into its stage."""

    def __init__(self, account: str, stage: Stage, checkpoint: CheckpointFile) -> None:
        self.counts: Counter[str] = Counter(checkpoint.saved.counts)
        self._account = account
        self._stage = stage
        self._checkpoint = checkpoint
        self._sender, self._receiver = anyio.create_memory_object_stream[RawPage](WAITING_PAGES)
        self._rejected = {digest for file in stage.rejects for digest in _digests(pq.read_table(file, columns=["raw"]))}
        """Digests of the contacts rejected so far."""
        self._rows = self._done = checkpoint.saved.upto
        """Contacts received, and how many of them, in order, are staged."""
        self._progress = anyio.Condition()
        self._gathering = anyio.Lock()

    async def receive(self, page: Page) -> None:
        """Queue an accepted page; waits while the normalizer is behind."""
        if page.mislabelled:
            self.counts["mislabelled_pages"] += 1
        raw = RawPage(page.body, len(page.rows), self._rows)
        self._checkpoint.receive(raw)
        await self._take(raw)

    async def resume(self) -> None:
        """Queue the pages that a killed run had received but not yet written to parts."""
        for raw in self._checkpoint.pages():
            await self._take(raw)

    async def _take(self, raw: RawPage) -> None:
        self._rows += raw.rows
        try:
            self._sender.send_nowait(raw)
        except anyio.WouldBlock:
            await self._sender.send(raw)

    async def run(self) -> None:
        """Normalize received pages until `close`."""
        async with anyio.create_task_group() as tasks:
            for _ in range(WORKERS):
                tasks.start_soon(self._work)

    async def _work(self) -> None:
        normalize = await to_thread.run_sync(_normalizer, self._account)
        while True:
            pages: list[RawPage] = []
            # Wait briefly for more pages than one: a batch costs at least as much as three pages.
            async with self._gathering:
                with suppress(anyio.EndOfStream):
                    pages.append(await self._receiver.receive())
                    with anyio.move_on_after(GATHER_SECONDS):
                        while len(pages) < BATCH_PAGES:
                            pages.append(await self._receiver.receive())
            if not pages:
                return
            batch = await to_thread.run_sync(normalize, pages)
            async with self._progress:
                while self._done < pages[0].read_no:
                    await self._progress.wait()
            complete = await to_thread.run_sync(self._keep, batch)
            async with self._progress:
                self._done += sum(page.rows for page in pages)
                if complete:
                    self._check()
                self._progress.notify_all()

    async def parts(self) -> Sequence[Path]:
        """The complete parts that hold everything received so far."""
        async with self._progress:
            while self._done < self._rows:
                await self._progress.wait()
        await to_thread.run_sync(self._stage.close)
        self._check()
        return self._stage.parts

    async def files(self) -> tuple[Sequence[Path], Sequence[Path]]:
        """The parts and the reject files that hold everything received so far."""
        return await self.parts(), self._stage.rejects

    def _check(self) -> None:
        """Record in the checkpoint that everything staged so far is in complete parts."""
        self._checkpoint.written(*self._stage.checksums, self._done, self.counts)

    def close(self) -> None:
        """Signal that no more pages will be received."""
        self._sender.close()

    def __enter__(self) -> Self:
        """Close both ends of the stream when the block ends, also on errors."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close both ends."""
        self._sender.close()
        self._receiver.close()

    @property
    def rows(self) -> int:
        """Contacts received so far."""
        return self._rows

    def _keep(self, batch: NormalizedBatch) -> bool:
        """Stage a batch without the rejects seen before; returns whether all data so far is in complete parts."""
        rejects = batch.rejects
        if rejects.num_rows:
            # Without an id they cannot be deduplicated later, so it is done here by bytes.
            digests = _digests(rejects)
            new = [index for index, digest in enumerate(digests) if digests.index(digest) == index]
            new = [index for index in new if digests[index] not in self._rejected]
            self._rejected.update(digests)
            rejects = rejects.take(pa.array(new, pa.int64()))
        complete = self._stage.append(replace(batch, rejects=rejects))
        self.counts.update(batch.counts)
        repeated = batch.rejects.num_rows - rejects.num_rows
        self.counts["folded"] += repeated
        self.counts["rejected"] -= repeated
        return complete


def _normalizer(account: str) -> Normalize:
    """A separate normalizer for each worker; its modules are imported in a thread, concurrently with requests."""
    from etl.normalize.normalizer import Normalizer  # noqa: PLC0415

    return Normalizer(account)


def _digests(rejects: pa.Table) -> list[bytes]:
    return [blake2b(raw.encode(), digest_size=16).digest() for raw in rejects["raw"].to_pylist()]
