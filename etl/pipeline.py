"""From accepted pages to parts: a bounded stream, a worker thread that normalizes, a stage on disk.

The stream is short, so a slow disk slows the reading down instead of filling memory. Many pages are normalized at once,
which costs a third of one at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Self

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
from anyio import to_thread

from etl.api.answer import Page
from etl.journal import Journal
from etl.model import RawPage
from etl.normalize import Normalizer
from etl.staging import Stage

WAITING_PAGES = 32
"""Pages between the reader and the normalizer; times 75 KB, about 2.5 MB."""
BATCH_PAGES = 32
GATHER_SECONDS = 0.05
"""A batch is worked on when it is full, or when it has waited so long."""


class Pipeline:
    """The way of one account's pages into its stage."""

    def __init__(self, normalizer: Normalizer, stage: Stage, journal: Journal) -> None:
        self.counts: Counter[str] = Counter(journal.left.counts)
        self._normalizer = normalizer
        self._stage = stage
        self._journal = journal
        self._sender, self._receiver = anyio.create_memory_object_stream[RawPage](WAITING_PAGES)
        self._rejected = {digest for file in stage.rejects for digest in _digests(pq.read_table(file, columns=["raw"]))}
        """Digests of the contacts rejected so far."""
        self._rows = self._done = journal.left.upto
        self._progress = anyio.Condition()

    async def receive(self, page: Page) -> None:
        """Take an accepted page; waits while the normalizer is behind."""
        if page.mislabelled:
            self.counts["mislabelled_pages"] += 1
        raw = RawPage(page.body, len(page.rows), self._rows)
        self._journal.receive(raw)
        await self._take(raw)

    async def go_on(self) -> None:
        """Take the pages that a killed run had received and not come to write."""
        for raw in self._journal.pages():
            await self._take(raw)

    async def _take(self, raw: RawPage) -> None:
        self._rows += raw.rows
        await self._sender.send(raw)

    async def run(self) -> None:
        """Normalize what is received until `close`."""
        async for page in self._receiver:
            pages = [page]
            await self._gather(pages)
            complete = await to_thread.run_sync(self._work, pages)
            async with self._progress:
                self._done += sum(raw.rows for raw in pages)
                self._progress.notify_all()
            if complete:
                self._check()

    async def _gather(self, pages: list[RawPage]) -> None:
        """Wait a moment for more pages: a batch costs as much as three pages, whatever is in it."""
        with anyio.move_on_after(GATHER_SECONDS), suppress(anyio.EndOfStream):
            while len(pages) < BATCH_PAGES:
                pages.append(await self._receiver.receive())

    async def parts(self) -> Sequence[Path]:
        """The parts that hold everything received so far, written out."""
        async with self._progress:
            while self._done < self._rows:
                await self._progress.wait()
        await to_thread.run_sync(self._stage.close)
        self._check()
        return self._stage.parts

    def _check(self) -> None:
        """Note that everything normalized so far is in complete parts."""
        self._journal.written(self._stage.parts, self._stage.rejects, self._done, self.counts)

    def close(self) -> None:
        """Nothing more will be received."""
        self._sender.close()

    def __enter__(self) -> Self:
        """Both ends of the stream are closed when the block ends, however it does."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close both ends."""
        self._sender.close()
        self._receiver.close()

    @property
    def rows(self) -> int:
        """Contacts received so far."""
        return self._rows

    def _work(self, pages: Sequence[RawPage]) -> bool:
        batch = self._normalizer(pages)
        rejects = self._first_seen(batch.rejects)
        complete = self._stage.append(replace(batch, rejects=rejects))
        self.counts.update(batch.counts)
        self.counts["folded"] += batch.rejects.num_rows - rejects.num_rows
        self.counts["rejected"] -= batch.rejects.num_rows - rejects.num_rows
        return complete

    def _first_seen(self, rejects: pa.Table) -> pa.Table:
        """Without those that came before: what has no id cannot be folded later, so it is here, by its bytes."""
        if not rejects.num_rows:
            return rejects
        digests = _digests(rejects)
        fresh = [index for index, digest in enumerate(digests) if digests.index(digest) == index]
        fresh = [index for index in fresh if digests[index] not in self._rejected]
        self._rejected.update(digests)
        return rejects.take(pa.array(fresh, pa.int64()))


def _digests(rejects: pa.Table) -> list[bytes]:
    return [blake2b(raw.encode(), digest_size=16).digest() for raw in rejects["raw"].to_pylist()]
