"""Reads a target in a separate process, which isolates engine crashes.

DuckDB can end its whole process on a damaged file, and only another process can show that a file was written
completely. Run as a program, it takes {"setup": [sql], "queries": [sql]} on stdin and prints the rows of each query. It
imports nothing from the package, so that it starts fast.
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
"""Seconds after which a read is considered hung."""

Rows = list[list[object]]


class ReadBackError(Exception):
    """The target could not be read; the message is the engine's, or states how the process ended."""


def read_back(setup: Sequence[str], queries: Sequence[str]) -> list[Rows]:
    """The rows of each query, from a separate engine after `setup`; none if a table does not exist.

    Values must be JSON-serializable. Raises `ReadBackError` for any other failure.
    """
    request = json.dumps({"setup": list(setup), "queries": list(queries)})
    # -P: modules in the folder of this file would shadow others of the same name.
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
        rows: list[list[tuple[object, ...]]] = []
        for query in request["queries"]:
            try:
                rows.append(connection.execute(query).fetchall())
            except duckdb.CatalogException:
                rows.append([])
    except duckdb.Error as error:
        # The engine does not retry a read that the system interrupted, and that is not damage.
        if again and os.strerror(errno.EINTR) in str(error):
            return _answer(request, again=False)
        return {"error": str(error)}
    return {"rows": rows}


if __name__ == "__main__":
    json.dump(_answer(json.load(sys.stdin)), sys.stdout)
