"""Split pages into contacts: each contact's JSON text as the server sent it, created on demand."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from etl.errors import ContractError
from etl.model import RawPage
from etl.normalize.json_text import without_lone_surrogates

MAX_CONTACT_BYTES = 16 * 2**20

_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")


class _Page(msgspec.Struct):
    data: list[msgspec.Raw]


_decode = msgspec.json.Decoder(_Page).decode


class Contacts:
    """Elements of `data`, which may not be contacts, and the `read_no` of each.

    Their texts are extracted from the pages on first access, which costs a tenth of reading them.
    """

    def __init__(self, numbers: list[int], pages: Sequence[RawPage] = (), raws: list[bytes] | None = None) -> None:
        self.numbers = numbers
        self._pages = pages
        self._raws = raws

    @property
    def raws(self) -> list[bytes]:
        """Each as the server sent it; valid JSON, but possibly invalid UTF-8.

        Raises ContractError for a page that is not JSON, is nested deeper than Python recurses, or does not contain
        `rows` elements.
        """
        if self._raws is None:
            self._raws = [raw for page in self._pages for raw in _elements(page)]
        return self._raws

    def take(self, rows: Sequence[int]) -> Contacts:
        """The elements at the positions `rows`."""
        return Contacts([self.numbers[row] for row in rows], raws=[self.raws[row] for row in rows] if rows else [])

    def __len__(self) -> int:
        """The number of elements; does not extract them."""
        return len(self.numbers)


def contacts_of(pages: Sequence[RawPage]) -> Contacts:
    """The elements of `data` of all `pages`, in order."""
    return Contacts([number for page in pages for number in range(page.read_no, page.read_no + page.rows)], pages)


def one_line(text: bytes) -> bytes:
    """`text` without the line breaks between its tokens (JSON strings contain none)."""
    return text.translate(_LINE_BREAKS) if b"\n" in text or b"\r" in text else text


def without_surrogates(pages: Sequence[RawPage]) -> tuple[list[RawPage], list[int]]:
    """`pages` with U+FFFD for every lone surrogate, and the positions of the contacts that had one.

    Raises ContractError as `Contacts.raws` does.
    """
    sanitized: list[RawPage] = []
    repaired: list[int] = []
    start = 0
    for page in pages:
        twin = RawPage(without_lone_surrogates(page.body), page.rows, page.read_no)
        if twin.body != page.body:
            pairs = zip(_elements(page), _elements(twin), strict=True)
            repaired += [start + row for row, (old, new) in enumerate(pairs) if old != new]
        sanitized.append(twin)
        start += page.rows
    return sanitized, repaired


def _elements(page: RawPage) -> list[bytes]:
    where = f"contact {page.read_no} of the run and those after it"
    try:
        found = raw_contacts(page.body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ContractError(f"a page is not a list of contacts: {error}", where=where) from error
    if len(found) != page.rows:
        raise ContractError(f"a page of {page.rows} contacts contains {len(found)}", where=where)
    return found


def raw_contacts(body: bytes) -> list[bytes]:
    """The elements of `data` in the body of a page, each as the server sent it.

    Raises msgspec.DecodeError if the body is not a page, and RecursionError if it is nested too deeply.
    """
    try:
        return list(map(bytes, _decode(body).data))
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Perhaps only because of a lone surrogate: split the body where its twin of the same length without them is.
        twin = without_lone_surrogates(body)
    raws: list[bytes] = []
    start = 0
    for element in _decode(twin).data:
        text = bytes(element)
        start = twin.index(text, start)
        raws.append(body[start : start + len(text)])
        start += len(text)
    return raws
