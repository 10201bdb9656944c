"""The accounts: those of the configuration itself, and those that a CSV file or a folder of tokens lists.

An account that is listed has the same keys as one of `[[accounts]]`. Whatever is wrong with a file is reported at once,
with line numbers. A cell may be a token in the wrong column, so no message repeats one that does not look like a name.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from etl.config import layers
from etl.config.secrets import may_be_variable
from etl.config.section import NamedPath, Section, secure_address
from etl.display import redacted
from etl.errors import UsageError

ACCOUNT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
EXAMPLE = "https://api-v7.express-chat.com"
SHOWN_PROBLEMS = 50
"""Problems of one file that a message lists; the others are counted."""
_SHORTEST_TOKEN = 20
"""Characters of a word that may be a token if it looks like none that people choose."""


Address = Annotated[str, AfterValidator(lambda value: secure_address(value, EXAMPLE) if value else value)]
"""The address of the API, see `secure_address`; it may be empty."""


class Account(Section):
    """One account of the source."""

    name: str = Field("main", pattern=ACCOUNT_NAME)
    """The `account` column; also a folder name, hence the pattern."""
    base_url: Address = ""
    """The address of the API; empty: the embedded sandbox."""
    token_env: str = ""
    """Name of the environment variable that holds the token."""
    token_file: NamedPath | None = None
    """A file that holds the token."""

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.base_url and bool(self.token_env) == (self.token_file is not None):
            raise ValueError("give exactly one of token_env and token_file")
        return self


class AccountsFrom(Section):
    """Where more accounts are listed."""

    path: NamedPath | None = None
    """A CSV file: a header, then one account a line, in the columns `Account` has."""
    tokens: NamedPath | None = None
    """A folder with one file an account: its name is the account's, its content the token."""
    base_url: Address = ""
    """The address of the accounts for which no other one is listed."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.path is None and self.tokens is None:
            raise ValueError("name a CSV file (path), a folder of tokens (tokens), or both")
        return self


@dataclass(slots=True)
class _Listing:
    """The accounts found so far, and what is wrong with the others."""

    base_url: str
    embedded: bool
    """Whether an account may do without an address, because there is an embedded sandbox."""
    environ: Mapping[str, str]
    places: dict[str, str]
    """Where each account stands, by its name."""
    accounts: list[Account] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, cells: Mapping[str, str], place: str, source: Path) -> None:
        """Add the account with these keys, or note what is wrong with it; an empty cell is an absent one."""
        given = {"base_url": self.base_url, "name": ""} | {key: cell for key, cell in cells.items() if cell}
        name, variable = given["name"], given.get("token_env", "")
        if any(len(word) >= _SHORTEST_TOKEN and redacted(word) != word for word in re.split(r"[._-]", name)):
            self.problems.append(f"{place}: the name may be a token ({len(name)} characters, not shown)")
            return
        try:
            account = Account.model_validate(given)
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_input=False):
                key, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
                self.problems.append(f"{place}: {f'{key}: ' if key else ''}{message}")
            return
        if not account.base_url and not self.embedded:
            self.problems.append(f"{place}: no base_url")
        if variable and variable not in self.environ and not may_be_variable(variable):
            self.problems.append(f"{place}: token_env ({len(variable)} characters) is not the name of a variable")
        if name in self.places:
            self.problems.append(f"{place}: the name {name} is taken ({self.places[name]})")
        self.places.setdefault(name, f"{place} of {source.name}")
        self.accounts.append(account)


def listed_accounts(
    listed: AccountsFrom, beside: Sequence[Account], environ: Mapping[str, str], *, embedded: bool
) -> tuple[Account, ...]:
    """The accounts that the file lists, in its order, then those of the folder, by name.

    `beside` are the accounts of the configuration itself; `embedded`: without an address, the embedded sandbox is
    meant. Raises UsageError if a file or folder cannot be read, lists nothing, or lists what cannot be used.
    """
    listing = _Listing(listed.base_url, embedded, environ, {account.name: "[[accounts]]" for account in beside})
    for path, read, hint in (
        (listed.path, _read_file, "Correct these lines, then run again."),
        (listed.tokens, _read_folder, "Each file is an account: its name is the account's, its content the token."),
    ):
        if path is None:
            continue
        where, before = f"accounts_from {layers.shown(path)}", len(listing.accounts)
        try:
            read(path, listing)
        except OSError as error:
            raise UsageError(f"cannot read the accounts: {error.strerror}", where=where) from None
        except ValueError as error:
            raise UsageError(f"cannot read the accounts: {error}", where=where, hint=hint) from None
        if problems := listing.problems:
            rest = len(problems) - SHOWN_PROBLEMS
            shown = [*problems[:SHOWN_PROBLEMS], *([f"and {rest} more"] if rest > 0 else [])]
            raise UsageError("; ".join(shown), where=where, hint=hint)
        if len(listing.accounts) == before:
            raise UsageError("no account is listed", where=where, hint=hint)
    return tuple(listing.accounts)


def _read_file(path: Path, listing: _Listing) -> None:
    """Add the accounts of a CSV file. Raises OSError, or ValueError without the content of a cell."""
    lines = csv.reader(StringIO(layers.text(path.read_bytes()), newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(lines, ())]
        _check_header(header)
        end = lines.line_num
        for row in lines:
            # A quoted cell may contain line ends: the place of a row is its first line.
            place, end = f"line {end + 1}", lines.line_num
            cells = [cell.strip() for cell in row]
            if len(cells) == len(header) and any(cells):
                listing.add(dict(zip(header, cells, strict=True)), place, path)
            elif any(cells):
                listing.problems.append(f"{place}: {len(row)} cells, but the header has {len(header)}")
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from None


def _check_header(header: Sequence[str]) -> None:
    known = list(Account.model_fields)
    if not any(header):
        raise ValueError(f"the first line does not name the columns: {', '.join(known)}")
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise ValueError("the cells are not separated by commas; save it as CSV with commas")
    for name in header:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"line 1: unknown column {redacted(name)}; did you mean {nearest}?")
    if "name" not in header or len(set(header)) < len(header):
        raise ValueError("line 1: the header needs the column name, and each column once")


def _read_folder(path: Path, listing: _Listing) -> None:
    """Add the files of a folder. Raises OSError.

    Kubernetes mounts a secret as links into a hidden folder `..data`, so names that begin with a dot are left out.
    """
    for file in sorted(path.iterdir()):
        if file.name.startswith("."):
            continue
        if file.is_file():
            listing.add({"name": file.name, "token_file": str(file)}, f"file {redacted(file.name)}", path)
        else:
            listing.problems.append(f"{redacted(file.name)} is not a file")
