"""One folder for each attempt to read an account on a cluster: `attempt-NNNN-<run>` in the account's stage.

A worker that was stopped, or cut off, may go on after another one has taken its place. It knows only its own folder,
which has a lower number, so it cannot write into that of a newer attempt; and it ends when it sees that there is one. A
new attempt begins with copies of the files of the last one, never with links: the other process may have them open.

An attempt that has read the whole account leaves its result in its folder, in case the coordinator is gone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import pyarrow as pa

from etl.errors import SinkError
from etl.extract.checkpoint_file import NAME, TOO_OLD
from etl.model import AccountYield
from etl.storage import files

RESULT = "result"
"""The file with the result of an attempt: its SHA-256, then MessagePack."""
_ATTEMPT = re.compile(r"attempt-(\d{4,})-[0-9a-f]+")


def attempts(folder: Path) -> list[Path]:
    """The attempts in the stage of an account, the newest last."""
    numbered = [(int(found[1]), path) for path in files.entries(folder) if (found := _ATTEMPT.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def last_attempt(folder: Path) -> Path:
    """The newest attempt that has read something; the stage itself if one process alone has worked in it."""
    begun = (path for path in reversed(attempts(folder)) if (path / NAME).exists())
    return next(begun, folder)


def claim(folder: Path, run_id: str) -> Path:
    """The new folder of an attempt of this run, with a copy of what was read before; older attempts are removed."""
    files.private_folder(folder)
    while True:
        older, before = attempts(folder), last_attempt(folder)
        number = int(older[-1].name.split("-")[1]) + 1 if older else 1
        claimed = folder / f"attempt-{number:04d}-{run_id}"
        with files.translate_os_errors("make the folder", claimed):
            try:
                claimed.mkdir(files.FOLDER_MODE)
                claimed.chmod(files.FOLDER_MODE)
            except FileExistsError:
                continue
        _copy(before, claimed)
        for path in older:
            files.remove_quietly(path)
        return claimed


def _copy(before: Path, claimed: Path) -> None:
    """Copy the files of an attempt; its journal is read first and written last.

    Everything that it names exists when it is read; and a copy that is not complete has none.
    """
    journal = before / NAME
    if not journal.exists():
        return
    with files.own_file(journal) as file:
        lines = file.read()
    for path in files.entries(before):
        if path.is_file() and path.name not in {NAME, RESULT}:
            with suppress(SinkError):  # A process that is still at work there may have removed it.
                files.copy_file(path, claimed / path.name)
    files.private_file(claimed / NAME, lines)


class _Result(msgspec.Struct):
    key: str
    at: float
    """Seconds since 1970."""
    checksums: Mapping[str, str]
    """Of its files, by name."""
    brought: AccountYield


def keep_result(attempt: Path, key: str, brought: AccountYield, now: float) -> None:
    """Keep the result of an attempt; `key` is its `reading_key`, `now` is in seconds since 1970."""
    checksums = {path.name: files.checksum(path) for path in (*brought.parts, *brought.rejects)}
    content = _encode(_Result(key, now, checksums, brought))
    files.replace_file(attempt / RESULT, hashlib.sha256(content).digest() + content)


def kept_result(folder: Path, key: str, now: float) -> AccountYield | None:
    """The result in the newest attempt that has one; None if it has another key, was changed or is too old."""
    for attempt in reversed(attempts(folder)):
        with suppress(SinkError, msgspec.MsgspecError), files.own_file(attempt / RESULT) as file:
            digest, content = file.read(32), file.read()
            if digest != hashlib.sha256(content).digest():
                continue
            found = _decode(content)
            fresh = found.key == key and 0 <= now - found.at <= TOO_OLD.total_seconds()
            if fresh and all(files.checksum(attempt / name) == known for name, known in found.checksums.items()):
                return found.brought
    return None


def _plain(value: object) -> object:
    """A value for which MessagePack has no type: a path as text, a table in the format of Arrow's streams."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, pa.Table):
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, value.schema) as stream:
            stream.write_table(value)
        return buffer.getvalue().to_pybytes()
    raise NotImplementedError(type(value).__name__)


def _typed(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is pa.Table and isinstance(value, bytes):
        with pa.ipc.open_stream(value) as stream:
            return stream.read_all()
    return value  # in a detail, of which only JSON knows the type


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
_decode = msgspec.msgpack.Decoder(_Result, dec_hook=_typed).decode
