"""The lock on a target, so that only one run works on it."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from etl.errors import TargetLocked
from etl.storage import files
from etl.storage.staging import create_temporary, refuse_strangers, temporary


class Lock:
    """An exclusive lock on a target, released when the process that holds it ends, however it ends.

    Advisory: two machines on one network disk may both get it; then the sequence number decides (`PublishConflict`).
    """

    def __init__(self, target: Path) -> None:
        self.path = temporary(target) / f"{target.name}.lock"
        self._target = target
        self._handle = -1

    def __enter__(self) -> Self:
        """Take the lock at once or raise `TargetLocked` with the holder's process id; see also `refuse_strangers`."""
        create_temporary(self._target)
        with files.translate_os_errors("open the lock", self.path):
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, files.FILE_MODE)
        try:
            # Checked before any write: the path could be a hard link to an unrelated file.
            files.refuse_foreign(self.path, os.fstat(self._handle))
            with files.translate_os_errors("take the lock", self.path):
                try:
                    fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.pread(self._handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
                    message = f"another run holds the target: process {holder}"
                    raise TargetLocked(message, where=str(self.path)) from None
                os.fchmod(self._handle, files.FILE_MODE)
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)
            refuse_strangers(self._target)
        except BaseException:
            os.close(self._handle)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock; the file stays, because removing it would race with the next holder."""
        # Even a failed close() releases the lock, and published data stays published.
        with suppress(OSError):
            os.close(self._handle)
