"""A read-only file system for the engine: the published files of a folder, by their names in the target.

The engine's own file system can write wherever it can read, so connections for users get this one instead.
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
    """Only the given files of the folder `target`; none can be written, created or removed."""

    protocol = "published"
    cachable = False
    """One object per connection: fsspec would otherwise reuse the last one."""

    def __init__(self, target: Path, files: Iterable[Path]) -> None:
        super().__init__()
        self._paths = {self.name(target, path): path for path in files}

    @classmethod
    def name(cls, target: Path, path: Path) -> str:
        """The engine's name for a file of the target."""
        return f"{cls.protocol}://{path.relative_to(target).as_posix()}"

    def open(self, path: str, mode: str = "rb", **_: object) -> OpenFile:
        """Open a published file. Raises `PermissionError` for any other file or mode."""
        if mode != "rb" or path not in self._paths:
            message = f"{path} cannot be opened ({mode}): published files are read-only"
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
        """The time of the last change, which the engine uses to validate its cache."""
        return datetime.fromtimestamp(self._paths[path].stat().st_mtime, UTC)


class OpenFile:
    """An open file with a separate position per thread: several engine threads seek and read in the same file."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._places: dict[int, int] = {}

    def seek(self, place: int) -> int:
        """Set the position, in bytes."""
        self._places[get_ident()] = place
        return place

    def tell(self) -> int:
        """The position of the next read, in bytes."""
        return self._places.get(get_ident(), 0)

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes. Raises `OSError` if the file has fewer: the engine does not check."""
        found = os.pread(self._file.fileno(), size, self.tell())
        if len(found) < size:
            message = f"{self._file.name} is corrupt: it ended while it was read"
            raise OSError(message)
        self.seek(self.tell() + size)
        return found

    def seekable(self) -> bool:
        """True: the engine reads at arbitrary positions."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        """Close the file: the engine drops a file after reading it without closing it."""
        self.close()
