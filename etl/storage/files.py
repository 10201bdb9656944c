"""File operations for durable publishing.

Files are created private (0600, folders 0700, whatever the umask) and stay so when published, unless an `Access` shares
them with readers. System errors are raised as `SinkError` with path and hint; each translation wraps one operation.
Knows nothing of tables or formats.

Data that a run resumes from must belong exclusively to this user (`refuse_stranger`). The check holds only at the time
it is made: a user that can rename the folder itself, because its parent is writable, could also replace the target.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import grp
import hashlib
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from etl.errors import OPEN_FILES_HINT, SinkError, UsageError

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_FICLONE = 0x40049409
"""Linux ioctl: share the blocks of another file (Btrfs, XFS); the copy costs nothing until it is written to."""

_NO_LINK = {errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL, errno.EACCES}
"""Errors of file systems without hard links (SMB, exFAT, FUSE); EMLINK: this file has too many links."""
_NO_FLAGS = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}
_AT_CWD, _NO_REPLACE = -100, 1
_libc = ctypes.CDLL(None, use_errno=True)


_HINTS = {
    errno.ENOSPC: "Free space on this disk, then run again.",
    errno.EDQUOT: "Free space in this quota, then run again.",
    errno.EROFS: "The disk is mounted read-only; mount it for writing or choose another path.",
    errno.EACCES: "Give this user the right to write there, or choose another path.",
    errno.EPERM: "Give this user the right to write there (owner, sticky folder, chattr), or choose another path.",
    errno.ENOTDIR: "A file is in the place of a folder; choose another path.",
    errno.EEXIST: "A file is in the place of a folder; choose another path.",
    errno.EXDEV: "Keep the `.etl` folder on the same disk as the target, and mount the target as a whole.",
    errno.EBUSY: "Mount the folder that the file is in, not the file by itself.",
    errno.EMFILE: OPEN_FILES_HINT,
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.ELOOP: "A link is in the place of a file or a folder; remove it, or choose another path.",
}


@contextmanager
def translate_os_errors(what: str, path: Path) -> Iterator[None]:
    """Translate an `OSError` of one operation to a `SinkError` with operation, path and hint."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SinkError(f"cannot {what}: {reason}", where=str(path), hint=_HINTS.get(error.errno or 0, "")) from error


def private_folder(path: Path) -> Path:
    """Create the folder and its missing parents, each 0700; existing folders keep their permissions."""
    with translate_os_errors("make the folder", path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with suppress(FileExistsError):  # A folder created concurrently keeps its permissions.
                # Private from the start: a run killed before the chmod leaves nothing open to others.
                folder.mkdir(FOLDER_MODE)
                folder.chmod(FOLDER_MODE)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(path))
    return path


def refuse_stranger(path: Path) -> None:
    """Raise `SinkError` unless the path belongs to this user (see `refuse_foreign`) and no other user can write to it.

    A missing path is accepted.
    """
    with translate_os_errors("look at", path), suppress(FileNotFoundError):
        _refuse_stranger(path, path.lstat())


def _refuse_stranger(path: Path, found: os.stat_result) -> None:
    refuse_foreign(path, found)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        name, rights = shlex.quote(str(path)), stat.S_IMODE(found.st_mode)
        raise SinkError(
            f"other users can write to files that a run would trust (rights {rights:04o})",
            where=str(path),
            hint=f"Delete it (rm -r {name}), or, if no other user wrote to it: chmod -R go-w {name}. Then run again.",
        )


def refuse_foreign(path: Path, found: os.stat_result) -> None:
    """Raise `SinkError` unless `found` at `path` is a file or folder of this user, and not a symbolic or hard link."""
    delete, user = f"rm -r {shlex.quote(str(path))}", os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        why = "a link stands in the place of files that a run would trust"
        hint = f"Remove the link ({delete}), then run again; temporary files stay on the same disk as the target."
    elif found.st_uid != user:
        why = f"a file that a run would trust belongs to user {found.st_uid}, and this is user {user}"
        hint = f"Run as that user, or delete it ({delete}) and run again, or choose a path in a folder of this user."
    elif not stat.S_ISDIR(found.st_mode) and (not stat.S_ISREG(found.st_mode) or found.st_nlink > 1):
        why = "a file that a run would trust has a second name (a hard link), or is not a plain file"
        hint = f"Delete it ({delete}), then run again."
    else:
        return
    raise SinkError(why, where=str(path), hint=hint)


@contextmanager
def own_file(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading after the checks of `refuse_stranger`."""
    with translate_os_errors("open the file", path):
        # O_NONBLOCK: opening a named pipe would block.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        _refuse_stranger(path, os.fstat(handle))
        yield file


def checksum(path: Path) -> str:
    """The SHA-256 of a file that passes `refuse_stranger`: 1 GB/s if the processor supports SHA-256."""
    with own_file(path) as file, translate_os_errors("read", path):
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a published file, which may be hard-linked and shared with readers."""
    with translate_os_errors("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def private_file(path: Path, content: bytes = b"") -> Path:
    """Write a new file, 0600, that must not exist yet; not synced."""
    with translate_os_errors("write the file", path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, FILE_MODE), "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(content)
    return path


def replace_file(path: Path, content: bytes, mode: int = FILE_MODE) -> None:
    """Put a file with this content in the place of `path`, in one step; not synced."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    remove(fresh)
    try:
        private_file(fresh, content)
        with translate_os_errors("write the file", path):
            fresh.chmod(mode)
            fresh.replace(path)
    except SinkError:
        remove_quietly(fresh)
        raise


class Appended:
    """An append-only file, created 0600 if missing; unbuffered, so that appended data outlives the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_os_errors("open the file", path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(path, flags, FILE_MODE), "ab", buffering=0)

    def add(self, content: bytes) -> None:
        """Append, in one write if the system accepts it whole; not synced."""
        with translate_os_errors("write the file", self.path):
            while content:
                content = content[self._file.write(content) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def truncate(path: Path, size: int) -> None:
    """Truncate a file to its first `size` bytes."""
    with translate_os_errors("cut the file", path), os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW), "wb") as file:
        file.truncate(size)


def make_private(path: Path) -> Path:
    """Set a file that a library wrote to 0600."""
    with translate_os_errors("set the rights", path):
        path.chmod(FILE_MODE)
    return path


@dataclass(frozen=True, slots=True)
class Access:
    """Permissions of published files for readers; folders get the matching read and search permissions."""

    mode: int = FILE_MODE
    group: str = ""
    """A name or a number; if empty, files keep the group they are created with."""

    def gid(self) -> int:
        """The number of the group; -1 if none is set. Raises `UsageError` if the group does not exist."""
        if not self.group:
            return -1
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            if self.group.isdecimal() and int(self.group) < 2**32 - 1:
                return int(self.group)
            hint = "Create it (groupadd), name another one, or write its number."
            raise UsageError("there is no such group on this machine", where=f"group {self.group}", hint=hint) from None

    def give(self, path: Path) -> None:
        """Set group and mode of a file or folder; the group first, so that no other group gets access in between."""
        with translate_os_errors("set the rights for readers", path):
            gid, mode = self._missing(path)
            if gid is not None:
                try:
                    os.chown(path, -1, gid)
                except PermissionError as error:
                    message = f"cannot give files to the group {self.group}: {error.strerror}"
                    hint = f"Make the user of this job a member (usermod -aG {self.group} USER), or name another group."
                    raise SinkError(message, where=str(path), hint=hint) from error
            if mode is not None:
                path.chmod(mode)

    def check(self, path: Path) -> None:
        """Check that `give` may change a published file or folder; changes nothing."""
        with translate_os_errors("look at the rights", path):
            if self._missing(path) == (None, None):
                return
            try:
                path.chmod(stat.S_IMODE(path.stat().st_mode))
            except PermissionError as error:
                message = f"cannot set the rights for readers: {error.strerror}"
                hint = "It belongs to another user: give the whole target to the user of this job (chown -R)."
                raise SinkError(message, where=str(path), hint=hint) from error

    def _missing(self, path: Path) -> tuple[int | None, int | None]:
        """Group and mode that a file or folder does not have yet; both None for a symbolic link."""
        found, gid, reading = path.lstat(), self.gid(), self.mode & 0o444
        if stat.S_ISLNK(found.st_mode):
            return None, None
        # A folder keeps its setgid and sticky bits.
        folder = found.st_mode & 0o7000 | FOLDER_MODE | reading | reading >> 2
        mode = folder if stat.S_ISDIR(found.st_mode) else self.mode
        return (
            None if gid in {-1, found.st_gid} else gid,
            None if stat.S_IMODE(found.st_mode) == mode else mode,
        )

    def passes(self, folder: Path) -> bool:
        """Whether readers can traverse a folder, judging by its mode (group members may have other access)."""
        found = folder.stat()
        ours = self.gid() in {-1, found.st_gid}
        needed = (stat.S_IXGRP if ours else stat.S_IXOTH) if self.mode & stat.S_IRGRP else 0
        needed |= stat.S_IXOTH if self.mode & stat.S_IROTH else 0
        return found.st_mode & needed == needed


def sync(path: Path) -> None:
    """Sync a file or a folder's entries to disk; a folder that cannot be synced or opened is tolerated."""
    with translate_os_errors("sync", path):
        try:
            handle = os.open(path, os.O_RDONLY)
        except PermissionError:
            if path.is_dir():
                return
            raise
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC or not path.is_dir():
                raise
        finally:
            os.close(handle)


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything in it."""
    for path in tree(folder):
        sync(path)


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name; empty if the folder does not exist.

    (Some versions of `Path.glob` ignore errors: an unreadable folder would look empty.)
    """
    with translate_os_errors("list the folder", folder):
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []


def tree(path: Path) -> Iterator[Path]:
    """Everything in a folder, then the folder itself; for a file only the file, for a missing path nothing."""
    if path.is_dir() and not path.is_symlink():
        for entry in entries(path):
            yield from tree(entry)
    if os.path.lexists(path):
        yield path


def copy_file(source: Path, target: Path) -> Path:
    """Copy to a new private file, sharing blocks if the file system can."""
    private_file(target)
    with translate_os_errors("copy the target", target):
        with source.open("rb") as old, target.open("wb") as new:
            try:
                fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            except OSError:  # The file system cannot share blocks.
                pass
            else:
                return target
        shutil.copyfile(source, target)
    return target


def link_or_copy(source: Path, target: Path) -> bool:
    """Hard-link an immutable file, or copy it privately if it cannot be linked; return whether it was linked."""
    with translate_os_errors("link a file that did not change", target):
        if _linked(source, target):
            return True
    copy_file(source, target)
    return False


def _linked(source: Path, target: Path) -> bool:
    """Make a hard link; False if this file or the file system cannot have it. Raises `OSError` for other reasons."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def put(source: Path, target: Path) -> None:
    """Publish a finished file as `target` in one step, never replacing a file; `source` may be gone afterwards.

    Uses a hard link; without hard links, a rename that replaces nothing; if the file system does not support that
    either, an existence check and a plain rename: then only the lock keeps two runs apart. Raises `OSError`, and
    `FileExistsError` if the name is taken.
    """
    if _linked(source, target):
        return
    try:
        _rename_new(source, target)
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        source.rename(target)


def _rename_new(source: Path, target: Path) -> None:
    rename = getattr(_libc, "renameat2", None)  # not every C library has it
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(source))
    if rename(_AT_CWD, os.fsencode(source), _AT_CWD, os.fsencode(target), _NO_REPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))


def same_mount(one: Path, other: Path) -> bool:
    """Whether files can be renamed from one to the other: a bind mount is a different mount, even on the same disk."""
    return _mount(one) == _mount(other)


def _mount(path: Path) -> tuple[int, str]:
    handle = os.open(path, os.O_PATH)
    try:
        info = Path(f"/proc/self/fdinfo/{handle}").read_text(encoding="ascii")
        mount = next((line for line in info.splitlines() if line.startswith("mnt_id")), "")
    except FileNotFoundError:  # no /proc: only the device is compared
        mount = ""
    finally:
        device = os.fstat(handle).st_dev
        os.close(handle)
    return device, mount


def remove(path: Path) -> None:
    """Delete a file or a whole folder; a missing path is ignored."""
    with translate_os_errors("remove", path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_quietly(path: Path) -> None:
    """Delete files that the next start would also remove; a failure is ignored."""
    with suppress(SinkError):
        remove(path)


def remove_if_empty(path: Path) -> None:
    """Delete the folder if it is empty."""
    with suppress(OSError):
        path.rmdir()
