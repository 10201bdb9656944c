"""The account at one moment: its contacts, their lists, and the log of changes."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from etl.sandbox.contacts import Contact
from etl.sandbox.index import Listing
from etl.sandbox.settings import Partition, SoftDelete
from etl.sandbox.truth import Event, Truth

Member = Callable[[Contact], bool]


def _contacts(contact: Contact) -> bool:
    return contact.is_contact


def _leads(contact: Contact) -> bool:
    return not contact.is_contact


def _everyone(_: Contact) -> bool:
    return True


PARTITIONS: Mapping[Partition, Mapping[bool, Member]] = MappingProxyType(
    {
        "disjoint": {True: _contacts, False: _leads},
        "overlap": {True: _contacts, False: _everyone},
        "same": {True: _everyone, False: _everyone},
    }
)
"""Which contacts are in the list of `isContact` true, and of false."""


class Account:
    """The contacts that answers can show, and the log of all that ever existed."""

    def __init__(self, contacts: Iterable[Contact], partition: Partition, start: float) -> None:
        everyone = list(contacts)
        self.rows = {contact.serial: contact for contact in everyone}
        """The contacts that answers can show, by serial, including soft-deleted ones."""
        self.truth = Truth()
        self.changes = 0
        """Incremented whenever an answer may change."""
        self.deleted: dict[str, Contact] = {}
        """The last version of each deleted contact, by id."""
        self.hidden: dict[int, Contact] = {}
        """Deleted contacts that only a filter on their status returns, by serial."""
        self._visible: Member = _everyone
        self.members = PARTITIONS[partition]
        by_member = {member: Listing(filter(member, everyone)) for member in set(self.members.values())}
        self.lists = {flag: by_member[self.members[flag]] for flag in (True, False)}
        self._listings = tuple(by_member.items())
        self._living = [contact.serial for contact in everyone]
        self._places = {serial: place for place, serial in enumerate(self._living)}
        self._serials = {contact.id: contact.serial for contact in everyone}
        for contact in everyone:
            self.truth.begin(start, contact.id, contact.raw)

    def narrow(self, visible: Member) -> None:
        """From now on list only `visible` contacts, as for a token that lost some of its permissions.

        The others still exist, also in the truth log.
        """
        for member, listing in self._listings:
            for contact in filter(member, self.rows.values()):
                if contact.serial not in self.hidden and self._visible(contact) and not visible(contact):
                    listing.remove(contact)
        self._visible = visible
        self.changes += 1

    def find(self, id: str) -> Contact | None:  # noqa: A002 - the API's own word
        """The existing contact with this id, if any."""
        serial = self._serials.get(id)
        return self.rows[serial] if serial in self._places else None

    def pick(self, chance: float) -> Contact | None:
        """One of the existing contacts, by a number in [0, 1)."""
        return self.rows[self._living[int(chance * len(self._living))]] if self._living else None

    def living(self) -> dict[str, Contact]:
        """All contacts that exist and are not deleted, by id."""
        return {self.rows[serial].id: self.rows[serial] for serial in self._living}

    def put(self, kind: str, contact: Contact, at: float) -> None:
        """Show a new contact, or the next version of an existing one."""
        self._relist(self.rows.get(contact.serial), contact)
        if contact.serial not in self._places:
            self._places[contact.serial] = len(self._living)
            self._living.append(contact.serial)
            self._serials[contact.id] = contact.serial
        self.truth.record(Event(at, kind, contact.id, contact.raw))

    def remove(self, contact: Contact, mark: Contact, how: SoftDelete, at: float) -> None:
        """Delete a contact; after a soft delete, `mark` remains of it."""
        self._relist(contact, mark if how == "listed" else None)
        if how == "hidden":
            self.rows[contact.serial] = self.hidden[contact.serial] = mark
        self._bury(contact.serial)
        self.deleted[contact.id] = contact
        self.truth.record(Event(at, "delete", contact.id, None))

    def restore(self, contact: Contact, at: float) -> None:
        """Restore a deleted contact unchanged."""
        del self.deleted[contact.id]
        if self.hidden.pop(contact.serial, None):
            del self.rows[contact.serial]
        self.put("restore", contact, at)

    def _relist(self, old: Contact | None, new: Contact | None) -> None:
        self.changes += 1
        for member, listing in self._listings:
            if old is not None and member(old) and self._visible(old):
                listing.remove(old)
            if new is not None and member(new) and self._visible(new):
                listing.add(new)
        if old is not None:
            del self.rows[old.serial]
        if new is not None:
            self.rows[new.serial] = new

    def _bury(self, serial: int) -> None:
        """Remove a contact from the existing ones; the last one takes its place, so that picking stays cheap."""
        place, last = self._places.pop(serial), self._living.pop()
        if last != serial:
            self._living[place] = last
            self._places[last] = place
