"""A tracer in pure Python: it runs a function in a child, sees its watched calls, and kills it or fails one of them.

It uses ptrace(2) through ctypes; all threads and processes of the child are traced, too. Only calls that touch the
folder `root` are reported; the others (imports, pipes) are ignored.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crash import seccomp
from tests.crash.syscalls import SHORT, Syscall, which

KILL = -1
"""The result of `decide` that kills the process; 0 lets the call proceed, an errno makes it fail.

`SHORT` makes a write (a descriptor, a buffer, a length) accept only half of its bytes.
"""

_CONT, _GETREGSET, _SETREGSET, _SEIZE = 7, 0x4204, 0x4205, 0x4206
_FORKS_CLONES_EXECS, _SECCOMP, _EXITKILL = 2 | 4 | 8 | 16, 0x80, 0x100000
_EVENT_SECCOMP = 7
_PRSTATUS, _ARM_SYSTEM_CALL = 1, 0x404
_WALL = 0x40000000
_AT_CWD = -100
_PATH_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """A watched call, as the process is about to make it."""

    n: int
    """Its number among the reported calls, from 1."""
    what: Syscall
    path: str
    """Relative to the root."""
    goal: str = ""
    """The path to which it is renamed or linked, also relative."""

    def __str__(self) -> str:
        """Readable form."""
        goal = f" -> {self.goal}" if self.goal else ""
        return f"#{self.n} {self.what.name}({self.path}{goal})"


Decide = Callable[[Call], int]


@dataclass(frozen=True, slots=True)
class Ended:
    """The result of a traced process."""

    calls: tuple[Call, ...]
    code: int
    """Its exit code; if negative, the signal that ended it."""


class _Arm:
    arguments = range(6)
    number, result = 8, 0
    words = 34


class _Intel:
    arguments = (14, 13, 12, 7, 9, 8)
    """rdi, rsi, rdx, r10, r8, r9 in `struct user_regs_struct`."""
    number, result = 15, 10
    words = 27


_REGISTERS = _Arm if platform.machine() == "aarch64" else _Intel
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_ulong, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def refusal() -> str:
    """Why this machine cannot trace; empty if it can."""
    if sys.platform != "linux" or platform.machine() not in seccomp.ARCHITECTURES:
        return "the tracer knows Linux on x86_64 and aarch64"
    try:
        trace(lambda: 0, (), Path("/nonexistent"), lambda _: 0)
    except OSError as error:
        return f"ptrace or seccomp is not allowed here: {error}"
    return ""


def trace(work: Callable[[], int], watched: tuple[Syscall, ...], root: Path, decide: Decide) -> Ended:
    """Run `work` in a traced child and ask `decide` before each watched call below `root`.

    The caller must have no other children and no threads. Raises `OSError` if tracing is not possible.
    """
    gate, opened = os.pipe()
    leader = os.fork()
    if not leader:
        os.close(opened)
        _obey(work, watched, gate)
    os.close(gate)
    try:
        _ptrace(_SEIZE, leader, 0, _FORKS_CLONES_EXECS | _SECCOMP | _EXITKILL)
    except OSError:
        os.close(opened)
        os.waitpid(leader, 0)
        raise
    os.write(opened, b"!")
    os.close(opened)
    return _Session(leader, watched, root, decide).run()


def _obey(work: Callable[[], int], watched: tuple[Syscall, ...], gate: int) -> None:
    code = 70
    try:
        if os.read(gate, 1):
            os.close(gate)
            seccomp.install(watched)
            code = work()
    except BaseException:  # noqa: BLE001 - after any error, this process must not continue as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class _Session:
    def __init__(self, leader: int, watched: tuple[Syscall, ...], root: Path, decide: Decide) -> None:
        self._leader = leader
        self._watched = watched
        self._root = f"{root}/"
        self._decide = decide
        self._calls: list[Call] = []
        self._alive = {leader}
        self._code = 0

    def run(self) -> Ended:
        while True:
            try:
                task, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return Ended(tuple(self._calls), self._code)
            if os.WIFSTOPPED(status):
                self._stopped(task, status)
                continue
            self._alive.discard(task)
            if task == self._leader:
                self._code = os.waitstatus_to_exitcode(status)

    def _stopped(self, task: int, status: int) -> None:
        self._alive.add(task)
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_SECCOMP:
            self._calling(task)
        _resume(task, 0 if event or number == signal.SIGTRAP else number)

    def _calling(self, task: int) -> None:
        registers = _registers(task)
        arguments = tuple(registers[i] for i in _REGISTERS.arguments)
        what = which(registers[_REGISTERS.number], arguments, self._watched)
        path = _subject(task, what, arguments) if what else ""
        if what is None or not path.startswith(self._root):
            return
        goal = "" if what.goal is None else _path(task, arguments, what.goal, at=what.at)
        call = Call(len(self._calls) + 1, what, path.removeprefix(self._root), goal.removeprefix(self._root))
        self._calls.append(call)
        decision = self._decide(call)
        if decision == KILL:
            for each in self._alive:
                _kill(each)
        elif decision == SHORT:
            _halve(task, registers)
        elif decision:
            _fail(task, registers, decision)


def _subject(task: int, what: Syscall, arguments: tuple[int, ...]) -> str:
    """The absolute path of the file that a call works on; empty if it has none."""
    if what.fd is not None:
        return _link(f"/proc/{task}/fd/{_signed(arguments[what.fd])}")
    return "" if what.path is None else _path(task, arguments, what.path, at=what.at)


def _path(task: int, arguments: tuple[int, ...], which_one: int, *, at: bool) -> str:
    path = _text(task, arguments[which_one])
    if path.startswith("/"):
        return path
    folder = _signed(arguments[which_one - 1]) if at else _AT_CWD
    home = _link(f"/proc/{task}/cwd" if folder == _AT_CWD else f"/proc/{task}/fd/{folder}")
    return f"{home}/{path}"


def _signed(value: int) -> int:
    return ctypes.c_int(value & 0xFFFFFFFF).value


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _text(task: int, address: int) -> str:
    handle = os.open(f"/proc/{task}/mem", os.O_RDONLY)
    try:
        # Only up to the end of the memory page: the next one may not be mapped.
        room = _PATH_BYTES - address % _PATH_BYTES
        found = os.pread(handle, room, address)
        if b"\0" not in found:
            found += os.pread(handle, _PATH_BYTES, address + room)
    finally:
        os.close(handle)
    return os.fsdecode(found.partition(b"\0")[0])


def _ptrace(request: int, task: int, address: int, data: int) -> None:
    if _libc.ptrace(request, task, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _resume(task: int, number: int) -> None:
    try:
        _ptrace(_CONT, task, 0, number)
    except ProcessLookupError:
        return  # it was killed; waitpid reports it


def _kill(task: int) -> None:
    try:
        os.kill(task, signal.SIGKILL)
    except ProcessLookupError:
        return


def _regset(request: int, task: int, kind: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    vector = struct.pack("QQ", ctypes.addressof(buffer), len(buffer))
    held = ctypes.create_string_buffer(vector, len(vector))
    _ptrace(request, task, kind, ctypes.addressof(held))


def _registers(task: int) -> list[int]:
    buffer = ctypes.create_string_buffer(8 * _REGISTERS.words)
    _regset(_GETREGSET, task, _PRSTATUS, buffer)
    return list(struct.unpack(f"{_REGISTERS.words}Q", buffer.raw))


def _halve(task: int, registers: list[int]) -> None:
    length = _REGISTERS.arguments[2]
    changed = list(registers)
    changed[length] = max(1, changed[length] // 2)
    _set(task, changed)


def _set(task: int, registers: list[int]) -> None:
    buffer = ctypes.create_string_buffer(struct.pack(f"{_REGISTERS.words}Q", *registers), 8 * _REGISTERS.words)
    _regset(_SETREGSET, task, _PRSTATUS, buffer)


def _fail(task: int, registers: list[int], number: int) -> None:
    """Skip the call at which a task stopped, and make it return an error."""
    none = 2**64 - 1
    changed = list(registers)
    changed[_REGISTERS.result] = 2**64 - number
    if _REGISTERS is _Intel:
        changed[_REGISTERS.number] = none
    else:
        chosen = ctypes.create_string_buffer(struct.pack("i", -1), 4)
        _regset(_SETREGSET, task, _ARM_SYSTEM_CALL, chosen)
    _set(task, changed)
