"""The few file operations that durable publishing is made of.

Everything made here is private (files 0600, folders 0700, whatever the umask). A system error leaves as a `SinkError`
that names the path and the mend; each translation wraps one operation. Knows nothing of tables or formats.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etl.errors import SinkError

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_FICLONE = 0x40049409
"""Linux ioctl: share the blocks of another file (Btrfs, XFS); the copy costs nothing until it is written to."""

_MENDS = {
    errno.ENOSPC: "Free space on this disk, then run again.",
    errno.EDQUOT: "Free space in this quota, then run again.",
    errno.EROFS: "The disk is mounted read-only; mount it for writing or choose another path.",
    errno.EACCES: "Give this user the right to write there, or choose another path.",
    errno.EPERM: "Give this user the right to write there, or choose another path.",
    errno.ENOTDIR: "A file stands where a folder is needed; choose another path.",
    errno.EEXIST: "A file stands where a folder is needed; choose another path.",
    errno.EXDEV: "Keep the `.etl` folder on the same disk as the target.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), then run again.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
}


@contextmanager
def doing(what: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` of one operation into a `SinkError` that says what was being done, where, and the mend."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SinkError(f"Cannot {what}: {reason}", where=str(path), mend=_MENDS.get(error.errno or 0, "")) from error


def private_folder(path: Path) -> Path:
    """Make the folder and its missing parents, each 0700; one that exists keeps its rights."""
    with doing("make the folder", path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            folder.chmod(FOLDER_MODE)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(path))
    return path


def private_file(path: Path, content: bytes = b"") -> Path:
    """Write a new file, 0600, that must not exist yet; not synced."""
    with doing("write the file", path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, FILE_MODE), "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(content)
    return path


def make_private(path: Path) -> Path:
    """Take the rights of others away from a file that a library wrote."""
    with doing("set the rights", path):
        path.chmod(FILE_MODE)
    return path


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk; a file system that cannot sync folders is tolerated."""
    with doing("sync", path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTSUP} or not path.is_dir():
                raise
        finally:
            os.close(handle)


def copy_file(source: Path, target: Path) -> Path:
    """Copy to a new private file, sharing blocks where the file system can."""
    private_file(target)
    with doing("copy the target", target):
        if not _reflinked(source, target):
            shutil.copyfile(source, target)
    return target


def _reflinked(source: Path, target: Path) -> bool:
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            return False
    return True


def remove(path: Path) -> None:
    """Delete a file or a whole folder; nothing happens where there is none."""
    with doing("remove", path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_if_empty(path: Path) -> None:
    """Delete the folder unless something is in it."""
    with suppress(OSError):
        path.rmdir()


def probe(folder: Path, beside: Path) -> None:
    """Show that files can be written, synced and renamed in `folder`, and that `beside` accepts entries.

    Raises `SinkError` before anything was fetched, instead of after.
    """
    first, second = folder / f"probe-{os.getpid()}", folder / f"probed-{os.getpid()}"
    remove(first)
    private_file(first, b"probe")
    sync(first)
    with doing("rename a file", folder):
        first.replace(second)
    remove(second)
    with doing("write into the folder", beside):
        if not os.access(beside, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(beside))
