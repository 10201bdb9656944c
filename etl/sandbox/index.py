"""Sorted indexes over the contacts of one list, so that a deep page or a narrow window costs no scan."""

from bisect import bisect_left, insort
from collections.abc import Iterable

from etl.sandbox.contacts import Contact
from etl.sandbox.times import EVER, SECOND, Span

Entry = tuple[int, int]
"""An instant (-1 if the contact has none, as a document store sorts it) and the serial of the contact."""


def created(contact: Contact) -> Entry:
    """The position of a contact by `createdAt`."""
    return (-1 if contact.created is None else contact.created, contact.serial)


def seen(contact: Contact) -> Entry:
    """The position of a contact by `lastSeenAt`."""
    return (-1 if contact.last_seen is None else contact.last_seen, contact.serial)


def created_second(contact: Contact) -> Entry:
    """The position by the second of `createdAt`; within a second, the order says nothing."""
    if contact.created is None:
        return (-1, contact.serial)
    return (contact.created // SECOND << 32 | contact.serial * 2_654_435_761 % 2**32, contact.serial)


def by_id(contact: Contact) -> Entry:
    """The position by `_id`, whose first bytes are the second of entry, not of `createdAt`."""
    try:
        return (int(contact.id, 16), contact.serial)
    except ValueError:
        return (-1, contact.serial)


class Index:
    """Entries in ascending order; adding or removing one only moves memory."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries = sorted(entries)

    def add(self, entry: Entry) -> None:
        """Insert an entry at its position."""
        insort(self.entries, entry)

    def remove(self, entry: Entry) -> None:
        """Remove an existing entry."""
        at = bisect_left(self.entries, entry)
        if self.entries[at] != entry:
            raise KeyError(entry)
        del self.entries[at]

    def between(self, span: Span) -> tuple[int, int]:
        """Positions of the entries in the span; for no restriction, of all, those without an instant too."""
        if span is EVER:
            return 0, len(self.entries)
        low = bisect_left(self.entries, (span.start, -1))
        return low, max(low, bisect_left(self.entries, (span.end, -1)))


class Listing:
    """One of the two lists a request can ask for, in both orders."""

    def __init__(self, contacts: Iterable[Contact]) -> None:
        members = list(contacts)
        self.created = Index(map(created, members))
        self.seen = Index(map(seen, members))

    def add(self, contact: Contact) -> None:
        """Add a contact to the list."""
        self.created.add(created(contact))
        self.seen.add(seen(contact))

    def remove(self, contact: Contact) -> None:
        """Remove a contact from the list."""
        self.created.remove(created(contact))
        self.seen.remove(seen(contact))
