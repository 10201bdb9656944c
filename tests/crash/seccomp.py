"""A seccomp filter that stops a process for its tracer at the watched calls, and lets all others run at full speed.

Classic BPF over `struct seccomp_data` (nr, arch, instruction pointer, six arguments of 64 bits); see seccomp(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator, Sequence

from tests.crash.syscalls import Syscall

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000
_LOAD, _IF_EQUAL, _IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

Instruction = tuple[int, int, int, int]
"""(code, jump if true, jump if false, operand)"""


def program(watched: Sequence[Syscall]) -> list[Instruction]:
    """Trace the watched calls, allow the rest."""
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, ARCHITECTURES[platform.machine()]),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for call in watched:
        code += _stop_at(call)
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _stop_at(call: Syscall) -> Iterator[Instruction]:
    condition = list(_condition(call))
    yield (_IF_EQUAL, 0, 1 + len(condition), call.number or 0)
    yield from condition
    yield (_RETURN, 0, 0, _TRACE)


def _condition(call: Syscall) -> Iterator[Instruction]:
    test = call.bits or call.equals
    if test is None:
        return
    argument, operand = test
    yield (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)  # the lower half, on little-endian machines
    yield (_IF_BITS if call.bits else _IF_EQUAL, 2, 0, operand)
    yield (_LOAD, 0, 0, _NUMBER)
    yield (0x05, 0, 0, 1)  # jump over the return: another row may match this number


def install(watched: Sequence[Syscall]) -> None:
    """Put this process and its descendants under the filter; without a tracer the watched calls would fail."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program(watched))
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    pointer = ctypes.create_string_buffer(header)
    if libc.prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(pointer), 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
