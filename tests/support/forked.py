"""Commands in forked children of one warm process, which saves the second that an interpreter takes to start.

A child can harm itself at a chosen moment: its functions are counted as they are entered (a coroutine also when it
resumes after an await), so the moments of a run are numbered, and any of them can be hit again. Signals are real,
limits are the system's, and no part of the product is replaced.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import etl.commands.run  # noqa: F401 - so that the process is warm
from etl.cli.app import main

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds after which a child is killed (code 137): none of these runs takes 2 s."""


@dataclass(frozen=True, slots=True)
class Harm:
    """Acts of a child against itself, at call number `at` of the product or when it enters `function`."""

    acts: Sequence[tuple[str, float]]
    """In this order: ("signal", number) or ("sleep", seconds)."""
    at: int = 0
    function: str = ""
    """Its qualified name, for example `DuckDBSink.publish`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended."""

    code: int
    """As a shell reports it: 128 + the number of the signal that killed it."""
    seconds: float
    out: str
    err: str
    calls: int
    """Calls into the product; 0 if they were not counted or the child was killed."""

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@dataclass(slots=True)
class Nursery:
    """The warm process."""

    process: subprocess.Popen[str]
    folder: Path
    """The folder of the children's output."""
    _number: int = field(default=0)

    def start(
        self,
        *words: str,
        cwd: Path,
        environment: Mapping[str, str],
        harm: Harm | None = None,
        limits: Mapping[str, int] | None = None,
        headroom: int = 0,
        unprivileged: bool = False,
    ) -> int:
        """Start `etl WORDS` and return its process id.

        `limits` are system limits by name (FSIZE, NOFILE); `headroom` is the memory (bytes) it may use beyond that of
        the warm process; `unprivileged` makes it obey file permissions even if we are root.
        """
        self._number += 1
        order = {
            "words": words,
            "cwd": str(cwd),
            "environment": dict(environment),
            "acts": list(harm.acts) if harm else [],
            "at": harm.at if harm else 0,
            "function": harm.function if harm else "",
            "count": harm is not None,
            "limits": dict(limits or {}),
            "headroom": headroom,
            "unprivileged": unprivileged,
            "told": str(self.folder / f"child-{self._number}"),
        }
        return int(self._ask(order)["pid"])

    def wait(self, pid: int) -> Ended:
        """Wait until the child has ended."""
        told = self._ask({"wait": pid})
        out, err, calls = (Path(f"{told['told']}.{name}") for name in ("out", "err", "calls"))
        counted = int(calls.read_text() or 0)
        code = told["code"] if told["code"] >= 0 else 128 - told["code"]
        return Ended(code, told["seconds"], out.read_text(), err.read_text(), counted)

    def run(self, *words: str, **options: Any) -> Ended:
        """Start and wait."""
        return self.wait(self.start(*words, **options))

    def _ask(self, order: Mapping[str, object]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """A warm process while the block lasts."""
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:  # noqa: S603
        yield Nursery(process, folder)
        assert process.stdin is not None
        process.stdin.close()


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by SIGSTOP (Linux)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# The code below runs in the warm process and its children.


def _serve() -> None:
    born: dict[int, tuple[float, str]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            began, told = born.pop(order["wait"])
            status = _waited(order["wait"])
            answer = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began, "told": told}
        else:
            pid = os.fork()
            if not pid:
                _child(order)
            born[pid] = (time.monotonic(), order["told"])
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def _waited(pid: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.kill(pid, signal.SIGUSR1)  # shows on stderr the point at which it hangs
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _child(order: dict[str, Any]) -> None:
    code: object = 99
    try:
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for handle, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{order['told']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
        count = os.open(f"{order['told']}.calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        sys.argv = ["etl", *order["words"]]
        faulthandler.enable(2)
        faulthandler.register(signal.SIGUSR1, 2)
        hook = _Hook(order["at"], order["function"], order["acts"])
        _confine(order)
        if order["count"]:
            threading.setprofile(hook)
            sys.setprofile(hook)
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        sys.setprofile(None)
        os.write(count, str(hook.calls).encode())
    finally:
        os._exit(code if isinstance(code, int) else 98)


def _confine(order: dict[str, Any]) -> None:
    for name, limit in order["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    if order["headroom"]:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + order["headroom"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if order["unprivileged"] and os.geteuid() == 0:
        _drop_privileges()


def _drop_privileges() -> None:
    """Make root obey file permissions (Linux): drop two capabilities in this process and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    for override in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, override, 0, 0, 0)  # PR_CAPBSET_DROP
        for place in (0, 1, 2):
            data[place] &= ~(1 << override)
    libc.capset(header, data)


class _Hook:
    """Counts the calls of the product in all threads, and acts at the chosen one."""

    def __init__(self, at: int, function: str, acts: Sequence[tuple[str, float]]) -> None:
        self.calls = 0
        self._at, self._function, self._acts = at, function, list(acts)
        self._ours = str(ROOT / "etl")

    def __call__(self, frame: Any, event: str, _: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(self._ours):
            return
        self.calls += 1
        if self.calls == self._at or frame.f_code.co_qualname == self._function:
            acts, self._acts = self._acts, []
            for act, value in acts:
                if act == "signal":
                    os.kill(os.getpid(), signal.Signals(int(value)))
                else:
                    time.sleep(value)


if __name__ == "__main__":
    _serve()
