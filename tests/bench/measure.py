"""Measures the time, CPU and memory of one command in a separate process.

CPU time and peak memory are reported by the kernel (`wait4`), including children that the command waited for. A child's
peak begins with that of the process that started it, so this process stays small.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PYTHON = sys.executable
WATCH_SECONDS = 0.05
LIMIT = 600.0
"""Seconds after which a command is killed, by default."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one command."""

    started: float
    """Seconds since 1970."""
    seconds: float
    cpu: float
    """Seconds of all cores, user and system."""
    peak_mb: float
    """Largest resident memory, MiB."""
    out: str
    err: str
    threads: int = 0
    """The maximum at any moment, if the process was watched; children are not included."""
    files: int = 0
    """The same for open files and sockets."""


class Failed(Exception):
    """A measured command did not do its work."""


def measured(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    well: Collection[int] = (0,),
    limit: float = LIMIT,
    watched: bool = False,
) -> Cost:
    """Run `command` to its end; raises Failed with the end of its output unless its exit code is in `well`.

    It is killed after `limit` seconds. With `watched`, measuring takes a hundredth of a core.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started, clock = time.time(), time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - our own programs
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **(environment or {})}
        )
        watchdog = threading.Timer(limit, process.kill)
        watchdog.start()
        threads, files = _watch(process.pid) if watched else (0, 0)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - clock
        watchdog.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said, complained = out.read().decode(), err.read().decode()
    if process.returncode not in well:
        raise Failed(f"{' '.join(command)} ended with {process.returncode}: {(complained or said)[-2000:]}")
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    return Cost(started, seconds, cpu, peak, said, complained, threads, files)


def _watch(pid: int) -> tuple[int, int]:
    """The maximum threads and open files of a process, sampled until it has ended and is a zombie."""
    most = [0, 0]
    home = Path(f"/proc/{pid}")
    with suppress(OSError):
        while files := sum(1 for _ in (home / "fd").iterdir()):  # a zombie has none
            most = [max(most[0], sum(1 for _ in (home / "task").iterdir())), max(most[1], files)]
            time.sleep(WATCH_SECONDS)
    return most[0], most[1]
