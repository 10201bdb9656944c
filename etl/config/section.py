"""What all sections have in common: their base, and the types of paths and addresses."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict


def named_path(value: object) -> object:
    """Parse a path and expand `~`. Raises ValueError if it cannot be a path."""
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.fspath(value)
    if not text.strip():
        raise ValueError("the path is empty; is a variable in it not set?")
    if "\0" in text:
        raise ValueError("a path cannot contain a NUL character")
    try:
        text.encode()
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("the path cannot be encoded in UTF-8 or in this locale") from None
    if text.startswith("~"):
        user = text.partition("/")[0]
        text = os.path.expanduser(text) if user != "~" or os.environ.get("HOME") else text  # noqa: PTH111 - no raise
        if not text.startswith("/"):
            unknown = "HOME names no folder" if user == "~" else f"there is no home folder of {user}"
            raise ValueError(f"{unknown}; write the whole path (./~... for a name that begins with ~)")
    return Path(text)


NamedPath = Annotated[Path, BeforeValidator(named_path)]


def secure_address(value: str, example: str) -> str:
    """`value` without a trailing slash; https only, except plain http for loopback hosts. Raises ValueError."""
    parts = urlsplit(value)
    # Accessing the port raises ValueError if it is invalid.
    _ = parts.port
    if parts.scheme not in {"https", "http"} or not parts.hostname or any(c.isspace() for c in value):
        raise ValueError(f"expected an address such as {example}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an address cannot contain a user, password, query or fragment")
    try:
        is_loopback = ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        is_loopback = parts.hostname == "localhost"
    if parts.scheme == "http" and not is_loopback:
        raise ValueError("plain http would send the token unprotected; use https (http only for loopback hosts)")
    return value.rstrip("/")


class Section(BaseModel):
    """A section of the configuration: frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


S = TypeVar("S", bound=Section)
OBJECT_STORES = ("s3", "az")
"""The schemes of addresses in object stores."""


def absolute(section: S) -> S:
    """The section with absolute paths, which mean the same in another working directory; addresses stay as they are."""
    return section.model_copy(update={name: _absolute(value) for name, value in section})


def _absolute(value: object) -> object:
    if isinstance(value, Section):
        return absolute(value)
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    if not isinstance(value, Path) or str(value).startswith(tuple(f"{scheme}:/" for scheme in OBJECT_STORES)):
        return value
    return value.absolute()
