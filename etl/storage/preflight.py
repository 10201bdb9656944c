"""Checks before the first request that a run can publish, using the same calls, and that there is enough space."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from contextlib import ExitStack
from pathlib import Path

from etl.errors import SinkError
from etl.storage import files

HANDLES = 24
"""Files and sockets that a command has open at once while it talks to a server."""
ROOM = 16 * 2**20
"""Bytes that a small run writes; they must be free before its first request."""


def probe(folder: Path, place: Path, access: files.Access | None = None, *, folders: bool = False) -> None:
    """Check that files in the empty `folder` can be published, that is, moved to `place`, a free name elsewhere.

    Uses the same calls as a publication, including moves of `folders`. Raises `SinkError` before anything is fetched
    instead of afterwards; the probe files may then be left in both places.
    """
    first, second, home = folder / "probe", folder / "probed", place.parent
    files.private_file(second, b"probe")
    files.private_file(first, b"probe")
    files.sync(first)
    if access:
        access.give(first)
    with files.translate_os_errors("put a file into place", home):
        files.put(first, place)
        second.replace(place)
    files.remove(place)
    files.remove(first)
    if folders:
        files.private_file(files.private_folder(second) / "probe")
        with files.translate_os_errors("move a folder into place", home):
            second.rename(place)
        files.remove(place)
    files.sync(home)


def check_replaceable(folder: Path, path: Path) -> None:
    """Check that a file in the empty `folder` could replace the file `path`, without doing it.

    A folder never replaces a file, and the system reports that only if nothing else forbids it (permissions,
    attributes). Mount points are not among these reasons, so they are checked separately.
    """
    with files.translate_os_errors("replace the file", path):
        if not path.is_file():
            return
        if not files.same_mount(path, path.parent):
            raise OSError(errno.EBUSY, "it is a mount point by itself", str(path))
        never = files.private_folder(folder / "probe")
        try:
            never.rename(path)
        except OSError as error:
            if error.errno in {errno.EPERM, errno.EACCES, errno.EBUSY, errno.EROFS, errno.EXDEV}:
                raise
            never.rmdir()
        else:  # the file was removed concurrently
            path.rename(never)


def check_handles() -> None:
    """Raise `SinkError` if the limit of open files is too low even to start."""
    with files.translate_os_errors(f"open {HANDLES} files at once", Path(os.devnull)), ExitStack() as opened:
        for _ in range(HANDLES):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def check_room(folder: Path, copied: int) -> None:
    """Raise `SinkError` if there is too little space for a run that begins by copying `copied` bytes into `folder`."""
    with files.translate_os_errors("look at the free space", folder):
        usage = shutil.disk_usage(folder)
    needed = copied + ROOM
    free = usage.free if usage.total else needed  # some network file systems do not report it
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if found := shortage(needed, free=free, largest=None if most == resource.RLIM_INFINITY else most):
        message, hint = found
        raise SinkError(message, where=str(folder), hint=f"{hint}, then run again.")


def shortage(needed: int, *, free: int, largest: int | None) -> tuple[str, str] | None:
    """Why `needed` bytes do not fit, and the hint; None if they fit.

    `free` is the space left on the disk, `largest` the maximum size of a file (None: unlimited), both in bytes.
    """
    if needed > free:
        return f"the disk has {free:,} bytes left and a run needs {needed:,}", f"Free space: {needed - free:,} bytes"
    if largest is not None and needed > largest:
        return f"a file may have {largest:,} bytes and a run needs {needed:,}", "Raise the limit of files (ulimit -f)"
    return None
