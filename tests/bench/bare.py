"""The bare pipeline: the speed of the same libraries if nothing is proven, retried or saved.

aiohttp, bodies joined every 20 pages, `pyarrow.json` with an explicit schema in one worker thread, and Parquet (zstd)
or DuckDB (append, then drop the older of repeated contacts). Fields without a column are skipped, or become columns
of the types that Arrow infers from the first batch. It reads only these contacts: any oddity ends it.
It prints `{"received": rows, "stored": rows}`, which the caller compares.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Protocol

import aiohttp
import pyarrow as pa
import pyarrow.json as pj

CONCURRENCY = 16
PAGES = 20
"""Pages in a batch."""
EMPTY = 200
"""A page with fewer bytes holds no contact."""

_FILTERS: dict[str, object] = {
    "searchText": "",
    **dict.fromkeys(("tags", "status", "segments", "applicableFilters", "lastMessageBy", "_agentAssigned"), ()),
    **dict.fromkeys(("_botWebsite", "_botWhatsapp", "_botTelegram", "_botFacebook", "_botAutomation"), ()),
    **dict.fromkeys(("isOnline", "userInteracted", "isLiveChatActive"), False),
    "lastSeenAt": {"startAt": "", "endsAt": ""},
    "createdAt": {"startAt": "", "endsAt": ""},
    "hasOrdered": {"status": False, "lastAt": ""},
    "isExport": "none",
}

_TEXT, _TEXTS, _FLAG, _NUMBER, _TIME = pa.string(), pa.list_(pa.string()), pa.bool_(), pa.int64(), pa.timestamp("ms")


def _struct(**fields: pa.DataType) -> pa.StructType:
    return pa.struct(list(fields.items()))


def _fields(names: str, kind: pa.DataType) -> dict[str, pa.DataType]:
    return dict.fromkeys(names.split(), kind)


_DETAILS = _struct(
    **_fields("name userProvidedName whatsAppNumber telegramUserName instagramProfileId facebookProfileId", _TEXT),
    **_fields("picture city country gender", _TEXT),
    contact=_struct(email=_TEXT, phone=_struct(prefix=_TEXT, number=_TEXT)),
    tags=_TEXTS,
    attributes=pa.list_(_struct(key=_TEXT, value=_TEXT)),
)
_CONTACT = _struct(
    **_fields("_id uuid _agency _customer _agentAssigned status", _TEXT),
    **_fields("platform secondaryPlatform segments", _TEXTS),
    **_fields("isSubscriber isOnline userInteracted isContact isImported isMigrated isLiveChatActive isPaid", _FLAG),
    **_fields("websiteVisits unreadMessages __v", _NUMBER),
    **_fields("lastSeenAt createdAt updatedAt", _TIME),
    profile=_struct(
        userDetails=_DETAILS,
        marketing=_struct(urlsVisited=_TEXTS),
        notes=pa.list_(_struct(title=_TEXT, description=_TEXT, _id=_TEXT)),
    ),
    lastMessage=_struct(by=_TEXT, at=_TIME, text=_TEXT),
    hasOrdered=_struct(status=_FLAG, lastAt=_TIME),
)
_PAGE = pa.schema({"data": pa.list_(_CONTACT)})
_DEPTH = 4
"""Nesting depth of objects."""


class Target(Protocol):
    """Receives batches."""

    def append(self, batch: pa.Table) -> None:
        """Keep a batch."""

    def close(self) -> int:
        """Finish; return the number of stored rows."""


class Parquet:
    """One file."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq  # noqa: PLC0415 - imported on use: start-up is measured

        self._open = lambda schema: pq.ParquetWriter(path, schema, compression="zstd")
        self._rows_of = lambda: int(pq.read_metadata(path).num_rows)
        self._writer: pq.ParquetWriter | None = None

    def append(self, batch: pa.Table) -> None:
        """Write a row group; the first one determines the columns."""
        if self._writer is None:
            self._writer = self._open(batch.schema)
        self._writer.write_table(batch.select(self._writer.schema.names))

    def close(self) -> int:
        """Finish the file."""
        if self._writer is None:
            return 0
        self._writer.close()
        return self._rows_of()


class DuckDB:
    """One table in one file, filled in one transaction."""

    def __init__(self, path: Path) -> None:
        import duckdb  # noqa: PLC0415 - imported on use: start-up is measured

        self._database = duckdb.connect(path)
        self._database.execute("BEGIN")
        self._has_table = False

    def append(self, batch: pa.Table) -> None:
        """Insert the rows; the first batch determines the columns."""
        self._database.register("batch", batch)
        if not self._has_table:
            self._database.execute("CREATE TABLE contacts AS FROM batch LIMIT 0")
            self._has_table = True
        self._database.execute("INSERT INTO contacts BY NAME FROM batch")

    def close(self) -> int:
        """Drop all but the newest of each contact, and commit."""
        self._database.execute("""
            DELETE FROM contacts WHERE rowid IN (
                SELECT rowid FROM contacts
                QUALIFY row_number() OVER (PARTITION BY _id ORDER BY updatedAt DESC) > 1);
            COMMIT; CHECKPOINT""")
        stored = self._database.execute("SELECT count(*) FROM contacts").fetchone()
        self._database.close()
        return int(stored[0]) if stored else 0


def _read(bodies: Sequence[bytes], unknown: str) -> pa.Table:
    """The contacts in `bodies` as flat columns."""
    blob = b"\n".join(bodies)
    options = pj.ReadOptions(use_threads=False, block_size=len(blob) + 1)
    parsing = pj.ParseOptions(explicit_schema=_PAGE, unexpected_field_behavior=unknown)
    pages = pj.read_json(pa.BufferReader(blob), read_options=options, parse_options=parsing)
    return _flat(pages["data"].chunk(0).flatten())


def _flat(contacts: pa.StructArray) -> pa.Table:
    table = pa.Table.from_struct_array(contacts)
    for _ in range(_DEPTH):
        table = table.flatten()
    return table


class Bare:
    """One export."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, unknown: str) -> None:
        self.received = 0
        self._unknown = unknown
        self._session = session
        self._target = target
        self._thread = ThreadPoolExecutor(1)
        self._bodies: list[bytes] = []

    async def run(self) -> int:
        """Export both lists; return the number of stored rows."""
        for is_contact in (False, True):
            pages = count(1)
            await asyncio.gather(*(self._walk(is_contact, pages) for _ in range(CONCURRENCY)))
        await self._hand_over()
        return self._target.close()

    async def _walk(self, is_contact: bool, pages: Iterator[int]) -> None:
        for page in pages:
            request = {**_FILTERS, "isContact": is_contact, "page": page}
            async with self._session.post("/inbox/users", json=request) as response:
                body = await response.read()
            if len(body) < EMPTY:
                return
            self._bodies.append(body)
            if len(self._bodies) == PAGES:
                await self._hand_over()

    async def _hand_over(self) -> None:
        """Load a batch; the task that filled it waits, which bounds the memory."""
        bodies, self._bodies = self._bodies, []
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load, bodies)

    def _load(self, bodies: Sequence[bytes]) -> None:
        if bodies:
            batch = _read(bodies, self._unknown)
            self.received += batch.num_rows
            self._target.append(batch)


async def _main(url: str, token: str, target: Target, unknown: str) -> None:
    headers = {"Authorization": f"Bearer {token}", "authtype": "Key"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        bare = Bare(session, target, unknown)
        stored = await bare.run()
    print(json.dumps({"received": bare.received, "stored": stored}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bare")
    parser.add_argument("url")
    parser.add_argument("token")
    parser.add_argument("sink", choices=("parquet", "duckdb"))
    parser.add_argument("path", type=Path)
    parser.add_argument("unknown", choices=("ignore", "infer"), help="how to treat fields without a column")
    asked = parser.parse_args()
    target = (Parquet if asked.sink == "parquet" else DuckDB)(asked.path)
    asyncio.run(_main(asked.url, asked.token, target, asked.unknown))
