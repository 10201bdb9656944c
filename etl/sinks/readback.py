"""Reads a target in a process of its own: what a damaged file does to the engine stays there.

DuckDB can end its whole process over a damaged file; and what was just written is only shown to be whole when somebody
else opens it. Run as a program it takes {"setup": [sql], "queries": [sql]} on stdin and prints the rows of each query.
It imports nothing of the package, so that it starts at once.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import _duckdb as duckdb  # the engine without its Python layers: starts in 0.05 s instead of 0.12 s

TIMEOUT = 1800.0
"""Seconds; a reading that takes longer is taken for one that hangs."""

Rows = list[list[object]]


class ReadBackError(Exception):
    """The target could not be read; the message is the engine's, or tells how the process ended."""


def read_back(setup: Sequence[str], queries: Sequence[str]) -> list[Rows]:
    """The rows of each query, from an engine of its own after `setup`; none where a table does not exist.

    Values must be JSON-able. Raises `ReadBackError` for anything else that fails.
    """
    request = json.dumps({"setup": list(setup), "queries": list(queries)})
    # -P: the folder of this file holds modules that would hide others of the same name.
    command = [sys.executable, "-P", __file__]
    try:
        ended = subprocess.run(  # noqa: S603 - our own interpreter and file
            command, input=request, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ReadBackError(f"not read within {TIMEOUT:.0f} s") from error
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ReadBackError(f"{last[0]} (the reading process ended with {ended.returncode})")
    answer: dict[str, list[Rows]] = json.loads(ended.stdout)
    if "error" in answer:
        raise ReadBackError(str(answer["error"]))
    return answer["rows"]


def _answer(request: dict[str, list[str]], *, again: bool = True) -> dict[str, object]:
    try:
        connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        for statement in request["setup"]:
            connection.execute(statement)
        return {"rows": [_rows(connection, query) for query in request["queries"]]}
    except duckdb.Error as error:
        # The engine does not go on by itself after a read that the system interrupted, and that is no damage.
        if again and os.strerror(errno.EINTR) in str(error):
            return _answer(request, again=False)
        return {"error": str(error)}


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[object, ...]]:
    try:
        return connection.execute(query).fetchall()
    except duckdb.CatalogException:
        return []


if __name__ == "__main__":
    json.dump(_answer(json.load(sys.stdin)), sys.stdout)
