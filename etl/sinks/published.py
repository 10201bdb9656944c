"""The published files of a folder as the engine sees them: by their names in the target, and for reading alone.

The engine's own file system writes wherever it may read, so a connection that is handed out gets this one instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from threading import get_ident

from fsspec import AbstractFileSystem


class PublishedFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """These files of the folder `target` and no others; none can be written, made or removed."""

    protocol = "published"
    cachable = False
    """One object for each connection: fsspec would hand out the last one again."""

    def __init__(self, target: Path, files: Iterable[Path]) -> None:
        super().__init__()
        self._paths = {self.name(target, path): path for path in files}

    @classmethod
    def name(cls, target: Path, path: Path) -> str:
        """A file of the target as the engine names it."""
        return f"{cls.protocol}://{path.relative_to(target).as_posix()}"

    def open(self, path: str, mode: str = "rb", **_: object) -> OpenFile:
        """A published file. Raises `PermissionError` for anything but reading one."""
        if mode != "rb" or path not in self._paths:
            message = f"{path} cannot be opened ({mode}): what was published is only read"
            raise PermissionError(message)
        return OpenFile(self._paths[path].open("rb", buffering=0))

    def info(self, path: str, **_: object) -> dict[str, object]:
        """Name, kind and size in bytes. Raises `FileNotFoundError`."""
        if path not in self._paths:
            raise FileNotFoundError(path)
        return {"name": path, "type": "file", "size": self._paths[path].stat().st_size}

    def glob(self, path: str, **_: object) -> list[str]:
        """The file of this name, if there is one: patterns match nothing."""
        return [path] if path in self._paths else []

    def modified(self, path: str) -> datetime:
        """When it was last changed, by which the engine knows whether what it remembers of it still holds."""
        return datetime.fromtimestamp(self._paths[path].stat().st_mtime, UTC)


class OpenFile:
    """An open file with a place of its own for each thread: the engine lets several of them seek and read in one."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._places: dict[int, int] = {}

    def seek(self, place: int) -> int:
        """Go to this byte."""
        self._places[get_ident()] = place
        return place

    def tell(self) -> int:
        """The byte that is read next."""
        return self._places.get(get_ident(), 0)

    def read(self, size: int) -> bytes:
        """So many bytes from there. Raises `OSError` where the file has fewer: the engine does not look."""
        found = os.pread(self._file.fileno(), size, self.tell())
        if len(found) < size:
            message = f"{self._file.name} is corrupt: it ended while it was read"
            raise OSError(message)
        self.seek(self.tell() + size)
        return found

    def seekable(self) -> bool:
        """Yes: the engine reads here and there."""
        return True

    def close(self) -> None:
        """Let it go."""
        self._file.close()

    def __del__(self) -> None:
        """Let it go: the engine drops a file that it has read, and does not close it."""
        self.close()
