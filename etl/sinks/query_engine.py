"""One engine for the queries of all accounts of a run: starting one takes 20 ms, and hundreds of accounts have several.

Its memory is bounded for all of them together. Between queries it holds no file open: a program that opens a DuckDB
file for writing would be refused as long as it did.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from etl.storage import duck


@dataclass(slots=True)
class _Started:
    connection: duckdb.DuckDBPyConnection
    queries: int = 0
    """Those that are running."""


class QueryEngine:
    """An engine that is started by the first query and stays until `close`; queries may run in several threads."""

    def __init__(self, memory_limit: int, spill: Path, *, attach: str = "", detach: str = "") -> None:
        """`attach` is executed before the first of the queries that run at the same time, `detach` after the last."""
        self._memory_limit = memory_limit
        self._spill = spill
        self._attach = attach
        self._detach = detach
        self._lock = threading.Lock()
        self._started: _Started | None = None

    @contextmanager
    def query(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to the engine, with temporary relations and settings of its own. Raises the engine's errors."""
        with self._lock:
            engine = self._started = self._started or self._start()
            if self._attach and not engine.queries:
                engine.connection.execute(self._attach)
            engine.queries += 1
            cursor = engine.connection.cursor()
        try:
            cursor.execute("SET TimeZone = 'UTC'")
            yield cursor
        except duckdb.Error:
            # An error may have made the engine unusable: the next query starts another one. Those that are running keep
            # this one, so it is not closed.
            with self._lock:
                self._started = None
            raise
        finally:
            cursor.close()
            with self._lock, suppress(duckdb.Error):
                engine.queries -= 1
                if self._detach and not engine.queries:
                    engine.connection.execute(self._detach)

    def _start(self) -> _Started:
        connection = duck.connect(self._memory_limit, self._spill)
        # It would keep what it reads from files, up to the limit.
        connection.execute("SET enable_external_file_cache = false")
        return _Started(connection)

    def close(self) -> None:
        """Give back its memory; no query may be running. A later one starts another engine."""
        with self._lock:
            started, self._started = self._started, None
        if started is not None:
            started.connection.close()
