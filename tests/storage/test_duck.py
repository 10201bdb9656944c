"""Results of the engine as a stream of row groups."""

from __future__ import annotations

import duckdb
import pytest

from etl.storage import duck

MEGABYTE = 1_000_000


def test_a_stream_has_every_row_in_groups_of_limited_size() -> None:
    """Short rows are grouped by number, long ones by size; the columns are known before the first group."""
    with duck.connect() as connection:
        schema, short = duck.stream(connection, "SELECT range AS number FROM range(20000)")
        assert schema.names == ["number"]
        assert [group.num_rows for group in short] == [8192, 8192, 3616]
        _, long = duck.stream(connection, "SELECT repeat('x', 10000) AS text FROM range(6144)")
        assert [group.num_rows for group in long] == [2048, 2048, 2048]
        schema, empty = duck.stream(connection, "SELECT 1 AS number WHERE false")
        assert (schema.names, list(empty)) == (["number"], [])


def test_an_error_while_a_stream_is_read_is_an_error_of_the_engine() -> None:
    """Arrow reports every error of a stream as OSError, which would pass for a full disk."""
    with duck.connect() as connection:
        _, groups = duck.stream(connection, "SELECT (if(range < 50000, range::VARCHAR, 'x'))::INT FROM range(100000)")
        with pytest.raises(duckdb.Error):
            list(groups)
        assert connection.execute("SELECT 1").fetchall() == [(1,)], "the connection can be used again"


def test_memory_that_runs_out_while_a_stream_is_read_is_told_apart() -> None:
    """A merge is repeated with more memory if, and only if, that is what it lacks."""
    with duck.connect(30 * MEGABYTE) as connection, pytest.raises(duckdb.OutOfMemoryException):
        list(duck.stream(connection, "SELECT list(range::VARCHAR) FROM range(10000000)")[1])
