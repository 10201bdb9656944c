"""Capabilities of a server: the probe's results, used by all later steps and kept in the manifest. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from etl.api.response import EnvelopeSignature
from etl.extract.windows import RangeSemantics

SMALLEST_PAGE = 14
"""The minimum page size of the API: a page with fewer rows is complete, whichever server answered."""

PastEnd = Literal["empty", "repeats", "refused"]
Lists = Literal["disjoint", "overlapping", "false holds both", "unknown"]


@dataclass(frozen=True, slots=True)
class PageSizes:
    """The page sizes seen in each of the two lists, which may differ; 0 for an empty list.

    Several servers behind one address may also have different page sizes. A page with rows after it was cut at its
    size: if such pages differ, only the smallest size is certain.
    """

    contacts: int
    """The most rows on a page of contacts."""
    leads: int
    cut_contacts: int = 0
    """The fewest rows on a page of contacts that had rows after it; 0 if no such page is known."""
    cut_leads: int = 0

    def seen(self, is_contact: bool) -> int:
        """The most rows seen on a page of a list."""
        return self.contacts if is_contact else self.leads

    def cut(self, is_contact: bool) -> int:
        """The fewest rows seen on a page of a list that had rows after it; 0 for none."""
        return self.cut_contacts if is_contact else self.cut_leads

    @property
    def mixed(self) -> bool:
        """Whether pages of one list have several sizes."""
        return any(0 < self.cut(listed) < self.seen(listed) for listed in (False, True))

    def of(self, is_contact: bool) -> int:
        """The minimum page size of a list: a page with fewer rows is never full.

        If the other list showed two rows on a page, a page of this one is assumed to hold two as well (the minimum is
        14); otherwise the first lead of an account would be a full page. If one list has several page sizes, so may the
        other.
        """
        largest = max(1, self.seen(is_contact), min(2, max(self.contacts, self.leads)))
        cuts = [cut for listed in (False, True) if 0 < (cut := self.cut(listed)) < self.seen(listed)]
        return min([largest, *cuts])

    def with_page(self, is_contact: bool, rows: int) -> PageSizes:
        """The page sizes known after a page with `rows` rows."""
        most = max(self.seen(is_contact), rows)
        return replace(self, contacts=most) if is_contact else replace(self, leads=most)

    def with_cut(self, is_contact: bool, rows: int) -> PageSizes:
        """The page sizes known after a page with `rows` rows that had rows after it.

        A page with fewer than `SMALLEST_PAGE` was not cut: contacts were deleted or created between two responses.
        """
        if rows < SMALLEST_PAGE:
            return self
        fewest = min(rows, self.cut(is_contact) or rows)
        return replace(self, cut_contacts=fewest) if is_contact else replace(self, cut_leads=fewest)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The probe's results."""

    t0: int
    """The server's clock at the start, floored to the second, milliseconds since the epoch."""
    clock: Literal["server", "local"]
    page_sizes: PageSizes
    """As far as the probe saw; the true sizes are at least these."""
    page_size_agreed: bool
    """Whether three full pages of the longer list had the same size."""
    first_page: int
    """The number of the first page: 1, or 0 if the server counts from 0."""
    honours_page: bool | None
    """Whether page 2 differs from page 1; None if unknown."""
    one_page: bool
    """Whether page 1 was the whole list; determined only if `honours_page` is None."""
    past_end: PastEnd
    """How the server answers a page far beyond the end."""
    newest_first: bool
    """Whether the list is sorted by descending creation time: used to choose cuts, never as proof."""
    created: RangeSemantics | None
    """How the server reads a range of createdAt; None if not honoured."""
    seen: RangeSemantics | None
    """The same for lastSeenAt."""
    counts_matches: bool
    """Whether the server returns how many contacts match a filter: then a page must not list fewer."""
    lists: Lists
    """How the two isContact lists relate, as far as the probe saw."""
    total: int | None
    empty: bool
    """Whether the account listed no contact at all."""
    manners: tuple[EnvelopeSignature, ...] = ()
    """The signatures of the server's empty pages."""

    @property
    def page_size(self) -> int:
        """The most rows seen on a page of either list; at least 1."""
        return max(1, self.page_sizes.contacts, self.page_sizes.leads)

    def capacity(self, is_contact: bool) -> int:
        """The most contacts that a window of a list may hold and still be proven complete by one response."""
        return max(1, self.page_sizes.of(is_contact) - 1)

    @property
    def resolution(self) -> int:
        """The finest step of createdAt (ms) that the server distinguishes."""
        return self.created.resolution if self.created else 1

    @property
    def windows(self) -> bool:
        """Whether windows can prove completeness on this server."""
        return self.created is not None and self.seen is not None

    def document(self) -> dict[str, object]:
        """The results in the form kept in the manifest."""
        return asdict(self) | {"page_size": self.page_size}
