"""The engine that the queries of all accounts share: threads, errors, and its end."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from etl.sinks.query_engine import QueryEngine
from etl.storage import duck


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A DuckDB file with one table."""
    path = tmp_path / "numbers.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE numbers AS SELECT range AS n FROM range(1000)")
    return path


@pytest.fixture
def engine(file: Path, tmp_path: Path) -> QueryEngine:
    """An engine whose queries see that file as `target`."""
    attach = f"ATTACH {duck.literal(file)} AS target (READ_ONLY)"
    return QueryEngine(duck.FRUGAL, tmp_path / "spill", attach=attach, detach="DETACH target")


def test_queries_share_the_engine_and_nothing_else(engine: QueryEngine) -> None:
    """Queries in several threads see the file, each with temporary relations of its own, in UTC."""

    def count(most: int) -> tuple[int, str]:
        with engine.query() as connection:
            connection.execute(f"CREATE TEMP VIEW chosen AS SELECT * FROM target.numbers WHERE n < {most}")  # noqa: S608
            [[rows, zone]] = connection.execute("SELECT count(*), current_setting('TimeZone') FROM chosen").fetchall()
            return rows, zone

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(count, range(100))) == [(most, "UTC") for most in range(100)]


def test_after_an_error_the_next_query_works(engine: QueryEngine) -> None:
    """An error may have made the engine unusable: the next query gets another one, and running ones go on with it."""
    with engine.query() as running:
        with pytest.raises(duckdb.CatalogException), engine.query() as failing:
            failing.execute("SELECT * FROM nowhere")
        assert running.execute("SELECT max(n) FROM target.numbers").fetchall() == [(999,)]
    with engine.query() as connection:
        assert connection.execute("SELECT count(*) FROM target.numbers").fetchall() == [(1000,)]


def test_a_closed_engine_starts_again(engine: QueryEngine) -> None:
    """Closing may be repeated, and the next query starts another engine."""
    for _ in range(2):
        with engine.query() as connection:
            assert connection.execute("SELECT max(n) FROM target.numbers").fetchall() == [(999,)]
        engine.close()
        engine.close()


def test_between_queries_the_file_is_free(engine: QueryEngine, file: Path) -> None:
    """Another program may open the file for writing while no query is running."""
    with engine.query() as connection:
        assert connection.execute("SELECT max(n) FROM target.numbers").fetchall() == [(999,)]
    program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('INSERT INTO numbers VALUES (1000)')"
    subprocess.run([sys.executable, "-c", program, file], check=True)  # noqa: S603 - our own program
    with engine.query() as connection:
        assert connection.execute("SELECT max(n) FROM target.numbers").fetchall() == [(1000,)]
