"""The rows of a page: by rank if an index has the order, else from matches that are gathered once and cached."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType

from etl.sandbox import index
from etl.sandbox.account import Account
from etl.sandbox.answer import Answer, envelope, refusal
from etl.sandbox.contacts import Contact
from etl.sandbox.filters import Query
from etl.sandbox.index import Entry, Listing
from etl.sandbox.settings import Settings, Sort, Total
from etl.sandbox.times import EVER


@dataclass(frozen=True, slots=True)
class Rows:
    """All matches in the order of one index, as a range of it."""

    entries: list[Entry]
    low: int
    high: int

    def __len__(self) -> int:
        """The number of matches."""
        return self.high - self.low

    def serials(self, first: int, count: int, *, descending: bool) -> list[int]:
        """The contacts from rank `first` on."""
        if descending:
            end = self.high - first
            return [serial for _, serial in reversed(self.entries[max(self.low, end - count) : max(self.low, end)])]
        start = self.low + first
        return [serial for _, serial in self.entries[start : min(self.high, start + count)]]


@dataclass(frozen=True, slots=True)
class Page:
    """The contacts of one page, as JSON, and the reported number of all matches."""

    rows: list[bytes]
    matching: int
    total: object = None


TOTALS: Mapping[Total, Callable[[Page, Settings], object]] = MappingProxyType(
    {
        "exact": lambda page, _: page.matching,
        "wrong": lambda page, _: page.matching * 9 // 10 + 1,
        "doubled": lambda page, _: page.matching * 2,
        "capped": lambda page, settings: min(page.matching, settings.total_cap),
        "zero": lambda _, __: 0,
        "negative": lambda _, __: -1,
        "null": lambda _, __: None,
        "text": lambda page, _: str(page.matching),
        "per_page": lambda page, _: len(page.rows),
    }
)
"""The value of `total`, by setting."""


ORDERS: Mapping[Sort, Callable[[Contact], Entry]] = MappingProxyType(
    {"last_seen_desc": index.seen, "created_second_desc": index.created_second, "id_desc": index.by_id}
)
"""The order of a list, unless it is by `createdAt`."""


def render(page: Page, settings: Settings) -> Answer:
    """The answer that shows a page."""
    if settings.total == "none":
        return Answer(200, envelope(page.rows))
    return Answer(200, envelope(page.rows, TOTALS[settings.total](page, settings), has_total=True))


@dataclass(slots=True)
class Pager:
    """Reads pages of an account; caches the last gathered matches until the account changes."""

    account: Account
    settings: Settings
    shuffle: Random = field(default_factory=Random)
    """The order of every request if the sort is `shuffled`."""
    _gathered: dict[tuple[str, int], Rows] = field(default_factory=dict)

    def page(self, query: Query, size: int) -> Page | Answer:
        """The requested page, or the rejection of one that does not exist."""
        matching = self.matching(query)
        number = self._number(query.page)
        if number < 0:
            return refusal(400, "page must not be less than 1", ["page must not be less than 1"])
        if number and number * size >= len(matching):
            if self.settings.past_end in ("404", "400"):
                return refusal(int(self.settings.past_end), "Page not found")
            if self.settings.past_end == "repeat":
                number = max(0, len(matching) - 1) // size
        return Page([self.account.rows[n].raw for n in self._serials(matching, number * size, size)], len(matching))

    def _number(self, page: int) -> int:
        """The number of pages before the requested one; -1 if there is no such page."""
        if self.settings.ignore_page:
            return 0
        if self.settings.page_base == 1 and page == 0 and self.settings.page_zero == "first":
            return 0
        return page - self.settings.page_base

    def _serials(self, matching: Rows, first: int, count: int) -> list[int]:
        if self.settings.sort != "shuffled":
            return matching.serials(first, count, descending=self.settings.sort.endswith("desc"))
        # Every request has its own order, so a page of it is a random sample.
        left = max(0, min(count, len(matching) - first))
        return [matching.entries[n][1] for n in self.shuffle.sample(range(matching.low, matching.high), left)]

    def matching(self, query: Query) -> Rows:
        """All contacts that match, in order."""
        listing = self.account.lists[query.is_contact]
        by_seen = self.settings.sort == "last_seen_desc"
        own, other = (query.seen, query.created) if by_seen else (query.created, query.seen)
        indexed = by_seen or self.settings.sort not in ORDERS
        if query.predicates or other is not EVER or query.wants_deleted or not indexed:
            return self._gather(query, listing)
        order = listing.seen if by_seen else listing.created
        return Rows(order.entries, *order.between(own))

    def _gather(self, query: Query, listing: Listing) -> Rows:
        key = (repr(query.filters), self.account.changes)
        if key not in self._gathered:
            order = ORDERS.get(self.settings.sort, index.created)
            entries = sorted(order(contact) for contact in self._candidates(query, listing) if _fits(contact, query))
            self._gathered = {key: Rows(entries, 0, len(entries))}
        return self._gathered[key]

    def _candidates(self, query: Query, listing: Listing) -> list[Contact]:
        """The contacts of the narrower window, and hidden deleted ones if the request asks for their status."""
        windows = ((listing.created, query.created), (listing.seen, query.seen))
        ranges = [(*order.between(span), order) for order, span in windows]
        low, high, order = min(ranges, key=lambda found: found[1] - found[0])
        listed = [self.account.rows[serial] for _, serial in order.entries[low:high]]
        member = self.account.members[query.is_contact]
        return listed + [contact for contact in self.account.hidden.values() if query.wants_deleted and member(contact)]


def _fits(contact: Contact, query: Query) -> bool:
    """Whether a contact is in both windows and passes every filter."""
    in_created = query.created is EVER or index.created(contact)[0] in query.created
    in_seen = query.seen is EVER or index.seen(contact)[0] in query.seen
    return in_created and in_seen and all(predicate(contact) for predicate in query.predicates)
