"""A read-only file system for the engine: the published files of a folder, by their names in the target.

The engine's own file system can write wherever it can read, so connections for users get this one instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import get_ident

from fsspec import AbstractFileSystem

from etl.errors import EtlError
from etl.sinks.parquet_log import ReadRange

ReadAt = Callable[[int, int], bytes]
"""Reads from a position (bytes) at most so many bytes."""


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
        return self._opened(self._paths[path])

    def _opened(self, path: Path) -> OpenFile:
        file = path.open("rb", buffering=0)
        return OpenFile(file.name, lambda place, size: os.pread(file.fileno(), size, place), file.close)

    def info(self, path: str, **_: object) -> dict[str, object]:
        """Name, kind and size in bytes. Raises `FileNotFoundError`."""
        if path not in self._paths:
            raise FileNotFoundError(path)
        return {"name": path, "type": "file", "size": self._size(self._paths[path])}

    def _size(self, path: Path) -> int:
        return path.stat().st_size

    def glob(self, path: str, **_: object) -> list[str]:
        """The file of this name, if there is one: patterns match nothing."""
        return [path] if path in self._paths else []

    def modified(self, path: str) -> datetime:
        """The time of the last change, which the engine uses to validate its cache."""
        return datetime.fromtimestamp(self._paths[path].stat().st_mtime, UTC)


class RemoteFiles(PublishedFiles):
    """Published files that are not on this machine: the engine reads only the parts that a query needs."""

    def __init__(self, target: Path, sizes: Mapping[Path, int], read_range: ReadRange, failed: list[EtlError]) -> None:
        """`sizes` has the files, as if they were in `target`, and their sizes in bytes.

        Errors of `read_range` are appended to `failed`: the engine passes on only their text.
        """
        super().__init__(target, sizes)
        self._sizes = sizes
        self._read_range = read_range
        self._failed = failed

    def _opened(self, path: Path) -> OpenFile:
        return OpenFile(str(path), partial(self._read, path))

    def _read(self, path: Path, start: int, length: int) -> bytes:
        try:
            return self._read_range(path, start, length)
        except EtlError as error:
            self._failed.append(error)
            raise

    def _size(self, path: Path) -> int:
        return self._sizes[path]

    def modified(self, path: str) -> datetime:  # noqa: ARG002 - see `PublishedFiles.modified`
        """The same for all files: they never change."""
        return datetime.min.replace(year=1970, tzinfo=UTC)


class OpenFile:
    """An open file with a separate position per thread: several engine threads seek and read in the same file."""

    def __init__(self, name: str, read_at: ReadAt, close: Callable[[], object] = lambda: None) -> None:
        self._name = name
        self._read_at = read_at
        self._close = close
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
        found = self._read_at(self.tell(), size)
        if len(found) < size:
            message = f"{self._name} is corrupt: it ended while it was read"
            raise OSError(message)
        self.seek(self.tell() + size)
        return found

    def seekable(self) -> bool:
        """True: the engine reads at arbitrary positions."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._close()

    def __del__(self) -> None:
        """Close the file: the engine drops a file after reading it without closing it."""
        self.close()
