"""The configuration before validation: a TOML file, overridden by the environment and then by flags."""

from __future__ import annotations

import codecs
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from etl.display import redacted
from etl.errors import UsageError

PREFIX = "ETL_"


@dataclass(frozen=True, slots=True)
class Raw:
    """A document under construction, and the origin of each value that is not from the file."""

    document: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    """The variable or flag, by key."""


def read(path: Path) -> Raw:
    """Read the file alone. Raises UsageError if it cannot be read or is not TOML."""
    try:
        return Raw(tomllib.loads(text(path.read_bytes())))
    except OSError as error:
        raise UsageError(f"cannot read the configuration: {error.strerror}", where=shown(path)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid TOML: {error}", where=str(path)) from None


def shown(path: Path) -> str:
    """A path redacted for error output, as it may be a misplaced token; an existing parent folder is no secret."""
    # Problems with the path are reported when it is opened.
    known = os.path.isdir(path.parent)  # noqa: PTH112 - does not raise
    return str(path.parent / redacted(path.name)) if known else redacted(str(path))


def text(content: bytes) -> str:
    """Decode a file's text, UTF-8 with or without the byte order mark that editors add.

    Raises ValueError, which names the encoding if it is recognized, and nothing of the content.
    """
    wide = next((name for name, start in _WIDE if content.startswith(start)), "")
    if not wide and len(content) > 1 and (content[0] == 0) != (content[1] == 0):
        wide = "UTF-16"
    if wide:
        raise ValueError(f"the file is in {wide}, as PowerShell's > writes it; save it as UTF-8")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} of the file is not UTF-8; save it as UTF-8") from None


_WIDE = (
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)


def lay_environment(raw: Raw, environ: Mapping[str, str]) -> None:
    """Override `raw` with the variables `ETL_SECTION__KEY`."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and "__" in name:
            named = name.removeprefix(PREFIX).split("__")
            keys = [key.lower() for key in named]
            if keys[:2] == ["extract", "filters"]:
                keys[2:] = named[2:]  # the API's own names, which are case-sensitive
            _assign(raw, keys, environ[name], redacted(name))


def lay_flags(raw: Raw, assignments: Sequence[str]) -> None:
    """Override `raw` with the operands of `--set` ("section.key=value")."""
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {redacted(assignment)} has no value", hint="Write --set section.key=value.")
        _assign(raw, key.strip().split("."), value, f"--set {redacted(key.strip())}")


def _assign(raw: Raw, keys: Sequence[str], text: str, origin: str) -> None:
    """Set the value at `keys`; a number among the keys is a list index."""
    place: Any = raw.document
    for key, following in pairwise(keys):
        empty: Any = [] if following.isdecimal() else {}
        if isinstance(place, list) and key.isdecimal() and int(key) <= len(place):
            place.extend([empty] if int(key) == len(place) else [])
            place = place[int(key)]
        elif isinstance(place, dict):
            place = place.setdefault(key, empty)
        else:
            raise UsageError(f"{redacted('.'.join(keys))} does not lead to a setting", where=origin)
    if not isinstance(place, dict):
        raise UsageError(f"{redacted('.'.join(keys))} does not lead to a setting", where=origin)
    place[keys[-1]] = _literal(text)
    raw.origins[".".join(keys)] = origin


def _literal(text: str) -> Any:
    """`text` as the TOML value it spells (12, true, [1, 2]), else the text itself."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return value if isinstance(value, str | int | float | list | dict) else text
