"""The files below a folder, with the operations of `storage.objects`: private, synced, never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from etl.storage import files
from etl.storage.objects import Listed, Missing


class LocalObjects:
    """See `Objects`; a name is a path relative to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)
        self.local: Path | None = folder

    def list(self, prefix: str = "") -> dict[str, Listed]:
        """See `Objects.list`."""
        folder, found = Path(self.url), dict[str, Listed]()
        for path in files.tree(folder / prefix):
            with suppress(FileNotFoundError):
                stat = path.lstat()
                if path.is_file():
                    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
                    found[path.relative_to(folder).as_posix()] = Listed(stat.st_size, modified)
        return found

    def exists(self, name: str) -> bool:
        """See `Objects.exists`."""
        return self._path(name).exists()

    def read(self, name: str) -> bytes:
        """See `Objects.read`."""
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Objects.chunks`."""
        path = self._path(name)
        with files.translate_os_errors("read", path):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                raise Missing("there is no such file", where=str(path)) from None
            with file:
                while chunk := file.read(2**20):
                    yield chunk

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """See `Objects.read_range`."""
        path = self._path(name)
        with files.translate_os_errors("read", path), path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def upload(self, path: Path, name: str) -> None:
        """See `Objects.upload`; links the file if possible."""
        target = self._path(name)
        files.private_folder(target.parent)
        files.link_or_copy(path, target)
        files.sync(target)
        files.sync(target.parent)

    def create(self, name: str, content: bytes) -> bool:
        """See `Objects.create`; the outcome is always known."""
        target = self._path(name)
        files.private_folder(target.parent)
        fresh = files.private_file(target.with_name(f".{target.name}"), content)
        try:
            files.sync(fresh)
            with files.translate_os_errors("create the file", target):
                try:
                    files.put(fresh, target)
                except FileExistsError:
                    return self.read(name) == content
        finally:
            files.remove(fresh)
        files.sync(target.parent)
        return True

    def remove(self, names: Iterable[str]) -> None:
        """See `Objects.remove`."""
        for name in names:
            files.remove(self._path(name))
            files.remove_if_empty(self._path(name).parent)

    def settle(self, name: str) -> None:
        """Make everything that a library wrote below a name private and durable."""
        for path in files.tree(self._path(name)):
            if path.is_file():
                files.make_private(path)
            else:
                with files.translate_os_errors("set the rights", path):
                    path.chmod(files.FOLDER_MODE)
            files.sync(path)

    def where(self, name: str) -> str:
        """See `Objects.where`."""
        return str(self._path(name))

    def _path(self, name: str) -> Path:
        return Path(self.url) / name
