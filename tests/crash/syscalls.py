"""The system calls that publishing can make: their numbers, files and possible errors.

The numbers are the kernel's: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import dataclass

ENOSPC, EDQUOT, EIO, EMFILE, EINTR = errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EINTR
EROFS = errno.EROFS
SHORT = -2
"""Not an errno: a write accepts only half of its bytes, which is allowed."""
_FULL = (ENOSPC, EDQUOT, EIO)
_MADE = (*_FULL, EMFILE, EINTR)
_NAMED = (*_FULL, EROFS)
"""A disk that becomes read-only (ext4 does so after an internal error) refuses new names and removals."""
_CREATING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FICLONE, _SET_LOCK = 0x40049409, 6


@dataclass(frozen=True, slots=True)
class Syscall:
    """One watched system call."""

    name: str
    x86_64: int | None
    aarch64: int | None
    fd: int | None = None
    """The argument that is the descriptor of the file it works on."""
    path: int | None = None
    """The argument that is its path; if `at` is set, relative to the descriptor in the argument before it."""
    at: bool = False
    goal: int | None = None
    """The argument that is the new path; of the same kind as `path`."""
    errnos: tuple[int, ...] = ()
    """The errors with which it is made to fail."""
    bits: tuple[int, int] | None = None
    """(argument, mask): watched only if the argument has one of these bits."""
    equals: tuple[int, int] | None = None
    """(argument, value): watched only if the argument has this value."""
    reads: bool = False
    """It changes nothing: the process is not killed at it, but it is made to fail."""

    @property
    def number(self) -> int | None:
        """Its number on this machine; None if there is no such call."""
        return self.aarch64 if platform.machine() == "aarch64" else self.x86_64


def _on(name: str, x86_64: int, aarch64: int, errnos: tuple[int, ...], fd: int = 0, *, reads: bool = False) -> Syscall:
    return Syscall(name, x86_64, aarch64, fd=fd, errnos=errnos, reads=reads)


SYSCALLS = (
    Syscall("openat", 257, 56, path=1, at=True, errnos=(*_MADE, EROFS), bits=(2, _CREATING)),
    Syscall("open", 2, None, path=0, errnos=_MADE, bits=(1, _CREATING)),
    Syscall("creat", 85, None, path=0, errnos=_MADE),
    _on("write", 1, 64, (*_FULL, EINTR, SHORT)),
    _on("writev", 20, 66, (*_FULL, EINTR)),
    _on("pwrite64", 18, 68, (*_FULL, EINTR, SHORT)),
    _on("pwritev", 296, 70, (*_FULL, EINTR)),
    _on("pwritev2", 328, 287, (*_FULL, EINTR)),
    _on("sendfile", 40, 71, _FULL),
    _on("copy_file_range", 326, 285, _FULL, 2),
    _on("fallocate", 285, 47, (*_FULL, EINTR)),
    _on("ftruncate", 77, 46, (*_FULL, EINTR)),
    Syscall("truncate", 76, 45, path=0, errnos=_FULL),
    _on("fsync", 74, 82, (*_FULL, EINTR)),
    _on("fdatasync", 75, 83, (*_FULL, EINTR)),
    _on("sync_file_range", 277, 84, _FULL),
    _on("close", 3, 57, (*_FULL, EINTR)),
    _on("fchmod", 91, 52, (EIO,)),
    Syscall("chmod", 90, None, path=0, errnos=(EIO, EROFS)),
    Syscall("fchmodat", 268, 53, path=1, at=True, errnos=(EIO, EROFS)),
    Syscall("mkdir", 83, None, path=0, errnos=_NAMED),
    Syscall("mkdirat", 258, 34, path=1, at=True, errnos=_NAMED),
    Syscall("rename", 82, None, path=0, goal=1, errnos=_NAMED),
    Syscall("renameat", 264, 38, path=1, at=True, goal=3, errnos=_NAMED),
    Syscall("renameat2", 316, 276, path=1, at=True, goal=3, errnos=_NAMED),
    Syscall("link", 86, None, path=0, goal=1, errnos=_NAMED),
    Syscall("linkat", 265, 37, path=1, at=True, goal=3, errnos=_NAMED),
    Syscall("symlink", 88, None, path=1, errnos=_NAMED),
    Syscall("unlink", 87, None, path=0, errnos=(EIO, EROFS)),
    Syscall("unlinkat", 263, 35, path=1, at=True, errnos=(EIO, EROFS)),
    Syscall("rmdir", 84, None, path=0, errnos=(EIO, EROFS)),
    Syscall("ioctl", 16, 29, fd=0, errnos=_FULL, equals=(1, _FICLONE)),
    Syscall("flock", 73, 32, fd=0, errnos=(EIO,)),
    Syscall("fcntl", 72, 25, fd=0, errnos=(EIO,), equals=(1, _SET_LOCK)),
    Syscall("openat", 257, 56, path=1, at=True, errnos=(EIO, EMFILE, EINTR), reads=True),
    _on("read", 0, 63, (EIO, EINTR), reads=True),
    _on("pread64", 17, 67, (EIO, EINTR), reads=True),
    _on("getdents64", 217, 61, (EIO,), reads=True),
)
"""If two rows have the same number, the first whose condition holds is the call."""

CHANGING = tuple(call for call in SYSCALLS if call.number is not None and not call.reads)
"""Calls at which a kill can make a difference."""
FAILING = tuple(call for call in SYSCALLS if call.number is not None)
"""Calls that can return an error."""
REMOVING = frozenset({"unlink", "unlinkat", "rmdir"})
PUBLISHING = frozenset({"rename", "renameat", "renameat2", "link", "linkat"})
STORING = frozenset({"write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fsync", "fdatasync"})
"""If one of these fails and that is not reported, data are lost."""
SYNCING = frozenset({"fsync", "fdatasync"})


def which(number: int, arguments: tuple[int, ...], watched: tuple[Syscall, ...]) -> Syscall | None:
    """The row of a call; None if it is not watched."""
    return next((call for call in watched if call.number == number and _holds(call, arguments)), None)


def _holds(call: Syscall, arguments: tuple[int, ...]) -> bool:
    if call.bits is not None:
        return bool(arguments[call.bits[0]] & call.bits[1])
    return call.equals is None or arguments[call.equals[0]] == call.equals[1]
