"""The pages of `etl docs`: Markdown files in the package; the heading of each says what it covers."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from importlib.resources import files

from etl.display import redacted
from etl.errors import UsageError

Document = dict[str, object]
_SUFFIX = ".md"


@dataclass(frozen=True, slots=True)
class Topic:
    """A page of the documentation."""

    topic: str
    title: str
    """What it covers: its heading after the colon."""
    text: str


def topics() -> list[Topic]:
    """All pages, by name."""
    folder = files("etl") / "docs"
    pages = {page.name: page.read_text(encoding="utf-8") for page in folder.iterdir() if page.name.endswith(_SUFFIX)}
    texts = {name.removesuffix(_SUFFIX): text for name, text in sorted(pages.items())}
    return [Topic(name, text.partition("\n")[0].partition(": ")[2], text) for name, text in texts.items()]


def read_docs(name: str | None) -> tuple[Document, str]:
    """The page `name`, or the list of topics, as the `--json` document and as text. Raises UsageError."""
    found = {page.topic: page for page in topics()}
    if name is None:
        listed = [{"topic": page.topic, "title": page.title} for page in found.values()]
        return {"topics": listed}, "\n".join(f"{page.topic:<15}{page.title}" for page in found.values())
    if name in found:
        return asdict(found[name]), found[name].text.rstrip()
    nearest = "".join(f"Did you mean {page}? " for page in difflib.get_close_matches(name, found, n=1))
    hint = f"{nearest}There are: {', '.join(found)}."
    raise UsageError(f"no documentation page has this name ({redacted(name)})", where="docs", hint=hint)
