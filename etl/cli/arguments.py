"""What commands share: the arguments and options that several have, and how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from etl.errors import UsageError

ConfigPath = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG]", help="The configuration; by default $ETL_CONFIG, else etl.toml."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, also on failure.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."),
]
OneSink = Annotated[
    str | None, typer.Option("--sink", metavar="NAME", help="The sink to read; by default, the first one that exists.")
]


def operands(words: Sequence[str], count: int) -> tuple[Path | None, Sequence[str]]:
    """The optional configuration argument, and the `count` operands after it."""
    if len(words) == count:
        return None, words
    if len(words) == count + 1:
        return Path(words[0]), words[1:]
    raise UsageError(f"expected [CONFIG] and {count} more, got {len(words)}", where="command line")


def show(document: object, text: str, *, as_json: bool) -> None:
    """Print the result, as one JSON document or as text."""
    print(json.dumps(document, ensure_ascii=False) if as_json else text, flush=True)
