"""What a server was found to do: the probe's answers, which every later step reads and the manifest keeps. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from etl.api.response import EnvelopeSignature
from etl.extract.windows import RangeSemantics

SMALLEST_PAGE = 14
"""Contacts that a page holds at least (API.md): with fewer rows it is complete, whatever server answered."""

PastEnd = Literal["empty", "repeats", "refused"]
Lists = Literal["disjoint", "overlapping", "false holds both", "unknown"]


@dataclass(frozen=True, slots=True)
class PageSizes:
    """The rows seen on pages of each of the two lists, whose pages need not be of one size; 0 where nobody is.

    Several servers behind one address may also have pages of several sizes. A page that had rows behind it was cut at
    its size: where one was smaller than another, the smallest is all that a page is sure to hold.
    """

    contacts: int
    """The most rows on a page of contacts."""
    leads: int
    cut_contacts: int = 0
    """The fewest rows on a page of contacts that had rows behind it; 0 while no page is known to."""
    cut_leads: int = 0

    def seen(self, is_contact: bool) -> int:
        """The most rows seen on a page of a list."""
        return self.contacts if is_contact else self.leads

    def cut(self, is_contact: bool) -> int:
        """The fewest rows seen on a page of a list that had rows behind it; 0 for none."""
        return self.cut_contacts if is_contact else self.cut_leads

    @property
    def mixed(self) -> bool:
        """Whether pages of one list have several sizes."""
        return any(0 < self.cut(listed) < self.seen(listed) for listed in (False, True))

    def of(self, is_contact: bool) -> int:
        """What a page of a list holds at least: with fewer rows it is never full.

        A list that never showed two rows is taken to show them if there are two, as the other list does; API.md: a page
        holds 14 at least. Without that the first lead of an account would be a full page. Where one list has pages of
        several sizes, so may the other.
        """
        largest = max(1, self.seen(is_contact), min(2, max(self.contacts, self.leads)))
        cuts = [cut for listed in (False, True) if 0 < (cut := self.cut(listed)) < self.seen(listed)]
        return min([largest, *cuts])

    def with_page(self, is_contact: bool, rows: int) -> PageSizes:
        """What is known after a page of so many rows."""
        most = max(self.seen(is_contact), rows)
        return replace(self, contacts=most) if is_contact else replace(self, leads=most)

    def with_cut(self, is_contact: bool, rows: int) -> PageSizes:
        """What is known after a page of so many rows that had rows behind it.

        One of fewer than `SMALLEST_PAGE` was not cut: others were deleted, or came, between two answers.
        """
        if rows < SMALLEST_PAGE:
            return self
        fewest = min(rows, self.cut(is_contact) or rows)
        return replace(self, cut_contacts=fewest) if is_contact else replace(self, cut_leads=fewest)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the probe found."""

    t0: int
    """The server's clock at the start, floored to the second, milliseconds since the epoch."""
    clock: Literal["server", "local"]
    page_sizes: PageSizes
    """As far as the probe saw. The true sizes are these or more."""
    page_size_agreed: bool
    """Whether three full pages of the longer list had the same size."""
    first_page: int
    """The number of the first page: 1, or 0 on a server that counts from there."""
    honours_page: bool | None
    """Whether page 2 differs from page 1; None when that cannot be told."""
    one_page: bool
    """Whether page 1 was all there is; told only where `honours_page` is not."""
    past_end: PastEnd
    """What a page far beyond the end answers."""
    newest_first: bool
    """Whether the list came sorted by falling creation time: a hint for cutting, never a proof."""
    created: RangeSemantics | None
    """How a createdAt range is read; None when it is not honoured."""
    seen: RangeSemantics | None
    """The same of lastSeenAt."""
    counts_matches: bool
    """Whether the server tells how many contacts match a filter: then a page may not list fewer."""
    lists: Lists
    """How the two isContact lists relate, as far as the probe saw."""
    total: int | None
    empty: bool
    """Whether the account showed no contact at all."""
    manners: tuple[EnvelopeSignature, ...] = ()
    """How the server tells that nobody is there."""

    @property
    def page_size(self) -> int:
        """The most rows seen on a page of either list; at least 1."""
        return max(1, self.page_sizes.contacts, self.page_sizes.leads)

    def capacity(self, is_contact: bool) -> int:
        """The most contacts that a window of a list may hold and still prove itself."""
        return max(1, self.page_sizes.of(is_contact) - 1)

    @property
    def resolution(self) -> int:
        """The finest step of createdAt (ms) that the server tells apart."""
        return self.created.resolution if self.created else 1

    @property
    def windows(self) -> bool:
        """Whether one-request windows can prove completeness here."""
        return self.created is not None and self.seen is not None

    def document(self) -> dict[str, object]:
        """The findings for the manifest."""
        return asdict(self) | {"page_size": self.page_size}
