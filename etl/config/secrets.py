"""Secrets: a token or a DSN is read from the variable or the file that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from etl.config import layers
from etl.display import redacted
from etl.errors import UsageError


def read_secret(what: str, variable: str, file: Path | None, where: str, environ: Mapping[str, str]) -> str:
    """The text of a secret without surrounding blanks, from its file or, if there is none, from its variable.

    `what` is its name in messages. Raises UsageError if it cannot be read or is empty; no message repeats any of it.
    """
    if file is None:
        found, name = environ.get(variable, ""), redacted(variable)
        if not found and not may_be_variable(variable):
            key = f"{what.lower()}_env"
            message = f"the value of {key} ({len(variable)} characters) is not the name of a variable"
            hint = f"Put the {what} into a variable, and its name into {key}: export NAME=..."
            raise UsageError(message, where=where, hint=hint)
        source, hint = f"the variable {name}", f"Set it: export {name}=..."
    else:
        source, hint = f"the file {layers.shown(file)}", f"Write the {what} into it, mode 0600."
        try:
            found = layers.text(file.read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"cannot read the {what} from {source}: {reason}", where=where, hint=hint) from None
    # A variable set from a file may contain its byte order mark.
    found = found.removeprefix("\ufeff").strip()
    if not found:
        raise UsageError(f"{source} contains no {what}", where=where, hint=hint)
    return found


def may_be_variable(text: str) -> bool:
    """Whether text can be the name of a variable; text that looks like a secret cannot."""
    return text.isascii() and text.isidentifier() and text == redacted(text)
