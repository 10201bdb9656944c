"""The simulated account over time: scheduled and requested events, and the answers to requests.

Pure, synchronous and deterministic: every time is a parameter, in seconds since 1970; one in the past counts as the
latest one seen. One answer is one atomic read of one moment, so a test needs a virtual clock and one thread.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from types import MappingProxyType

from etl.sandbox import churn, nasty, people
from etl.sandbox.account import Account
from etl.sandbox.adoption import adopted
from etl.sandbox.answer import Answer, refusal
from etl.sandbox.births import newborn
from etl.sandbox.contacts import Contact
from etl.sandbox.filters import Body, query
from etl.sandbox.pages import Page, Pager, render
from etl.sandbox.settings import Settings, unknown
from etl.sandbox.times import SECOND, instant
from etl.sandbox.truth import Truth
from etl.sandbox.validation import problems

Edit = Callable[[Contact, int], Contact]
"""The next version of a contact that changes at an instant."""
Reshape = Callable[[Page], Page]


def _touched(contact: Contact, at: int) -> Contact:
    seen_as = "ms" if contact.last_seen is None else contact.seen_as
    return replace(contact, last_seen=at, updated=at, unread=contact.unread + 1, last_by="user", seen_as=seen_as)


def _edited(contact: Contact, at: int) -> Contact:
    status = people.STATUSES[(contact.serial + contact.version) % len(people.STATUSES)]
    return replace(contact, status=status, updated=at, version=contact.version + 1)


def _flipped(contact: Contact, at: int) -> Contact:
    return replace(contact, is_contact=not contact.is_contact, updated=at)


def _noticed(contact: Contact, _: int) -> Contact:
    return replace(contact, unread=contact.unread + 1)


EDITS: Mapping[str, Edit] = MappingProxyType(
    {"touch": _touched, "edit": _edited, "flip": _flipped, "presence": _noticed}
)
"""Changes of a living contact, by the name under which the truth log knows them."""
CHURN = MappingProxyType({"touches": "touch", "edits": "edit", "flips": "flip"})
"""The rates in the settings that cause such changes."""


class World:
    """One account from `start` on, in seconds since 1970; raises `ValueError` for an oddity that does not exist.

    Contacts are named by their id in the truth log: `_id` as text, else `#` and the serial. A change of a contact that
    does not exist when the change becomes visible (`lag`, `late`) is dropped.
    """

    def __init__(self, settings: Settings, start: float) -> None:
        for kind in settings.nasty_kinds:
            if kind not in nasty.KINDS:
                raise unknown("oddity", kind, nasty.KINDS)
        self.settings = settings
        self.start = self.now = start
        self._draw = Random()  # noqa: S311 - reproducible on purpose
        self._born = settings.contacts
        self.account = Account(self._population(), settings.is_contact, start)
        self._pager = Pager(self.account, settings, Random(settings.seed))  # noqa: S311
        self._waiting: list[tuple[float, int, Callable[[float], None]]] = []
        self._waited = 0
        self._stream = churn.stream(settings)
        self._due = next(self._stream, None)

    @property
    def truth(self) -> Truth:
        """The log of all events, up to the last `advance`."""
        return self.account.truth

    def _population(self) -> list[Contact]:
        now, tied = instant(self.start), instant(self.start) - 90 * 86_400 * SECOND
        moments = (tied if serial < self.settings.ties else None for serial in range(self.settings.contacts))
        return [newborn(self.settings, self._draw, serial, at, now) for serial, at in enumerate(moments)]

    # --- time ------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Apply every event that is due by `now`; the result does not depend on how often this is called."""
        self.now = max(now, self.now)
        while (at := self._earliest()) <= self.now:
            if self._waiting and self._waiting[0][0] == at:
                when, _, act = heapq.heappop(self._waiting)
                act(when)
            else:
                self._churn(at)

    def _earliest(self) -> float:
        """The time of the next event."""
        churning = self.start + self._due.at if self._due else float("inf")
        return min(self._waiting[0][0], churning) if self._waiting else churning

    def _churn(self, at: float) -> None:
        due, self._due = self._due, next(self._stream, None)
        if due is None:
            return
        target = self.account.pick(due.chance)
        if due.kind in CHURN and target:
            self._change(CHURN[due.kind], target.id, at)
        elif due.kind == "deletes" and target:
            self._delete(target.id, at)
        elif due.kind == "inserts":
            self._insert(at, instant(at))
        elif due.kind == "imports":
            self._import(self.settings.import_size, instant(at - self.settings.import_backdated), at)

    def _after(self, delay: float, at: float, act: Callable[[float], None]) -> None:
        """Apply a change when it becomes visible."""
        if not delay:
            act(at)
            return
        heapq.heappush(self._waiting, (at + delay, self._waited, act))
        self._waited += 1

    # --- events ----------------------------------------------------------------------------------------------------

    def insert(self, now: float, *, created: float | None = None, is_contact: bool | None = None) -> str:
        """A contact is created, now or with a `createdAt` of another time; returns its id."""
        self.advance(now)
        return self._insert(self.now, instant(self.now if created is None else created), is_contact=is_contact)

    def adopt(self, raw: bytes, now: float) -> str:
        """Add a contact given as one JSON object, exactly as written; returns its id."""
        self.advance(now)
        return self._enter(adopted(raw, self._born, instant(self.now)), self.now)

    def touch(self, id: str, now: float) -> None:  # noqa: A002 - the API's own word
        """A contact is active: `lastSeenAt`, `updatedAt` and the last message change."""
        self.change("touch", id, now)

    def flip(self, id: str, now: float) -> None:  # noqa: A002
        """`isContact` changes, and with it the list; `lastSeenAt` stays."""
        self.change("flip", id, now)

    def edit(self, id: str, now: float) -> None:  # noqa: A002
        """The status changes, and `updatedAt`; `lastSeenAt` stays."""
        self.change("edit", id, now)

    def presence(self, id: str, now: float) -> None:  # noqa: A002
        """Only `unreadMessages` changes, and no time."""
        self.change("presence", id, now)

    def change(self, kind: str, id: str, now: float) -> None:  # noqa: A002
        """Apply one of `EDITS` to a contact."""
        self.advance(now)
        self._change(kind, id, self.now)

    def delete(self, id: str, now: float) -> None:  # noqa: A002
        """A contact is deleted, in the way of `soft_delete`."""
        self.advance(now)
        self._delete(id, self.now)

    def restore(self, id: str, now: float) -> None:  # noqa: A002
        """A deleted contact is back with its old times."""
        self.advance(now)
        if contact := self.account.deleted.get(id):
            self.account.restore(contact, self.now)

    def import_many(self, count: int, created_at: float, now: float | None = None) -> list[str]:
        """A bulk import: contacts that share one `createdAt`; returns their ids."""
        self.advance(self.now if now is None else now)
        return self._import(count, instant(created_at), self.now)

    def _insert(self, at: float, created: int, *, is_contact: bool | None = None) -> str:
        contact = newborn(self.settings, self._draw, self._born, created, instant(at))
        if is_contact is not None:
            contact = replace(contact, is_contact=is_contact)
        return self._enter(contact, at)

    def _enter(self, contact: Contact, at: float) -> str:
        self._born += 1
        self._after(self.settings.late, at, lambda visible: self.account.put("insert", contact, visible))
        return contact.id

    def _import(self, count: int, created: int, at: float) -> list[str]:
        return [self._insert(at, created) for _ in range(count)]

    def _change(self, kind: str, id: str, at: float) -> None:  # noqa: A002
        def show(visible: float) -> None:
            if contact := self.account.find(id):
                self.account.put(kind, EDITS[kind](replace(contact, verbatim=b""), instant(at)), visible)

        self._after(self.settings.lag, at, show)

    def _delete(self, id: str, at: float) -> None:  # noqa: A002
        def show(visible: float) -> None:
            if contact := self.account.find(id):
                mark = replace(contact, verbatim=b"", status="DELETED", updated=instant(at))
                self.account.remove(contact, mark, self.settings.soft_delete, visible)

        self._after(self.settings.lag, at, show)

    # --- answers ---------------------------------------------------------------------------------------------------

    def answer(self, body: object, now: float, *, page_size: int = 0, reshape: Reshape = lambda page: page) -> Answer:
        """The answer of `POST /inbox/users` to a decoded body at `now`.

        A `page_size` other than 0 replaces that of the settings, and `reshape` alters a good page; both are for faults.
        """
        self.advance(now)
        if wrong := problems(body, require_all_fields=self.settings.require_all_fields):
            return refusal(400, "Validation failed", wrong)
        found = self.select(body, self.now, page_size=page_size)  # type: ignore[arg-type]
        return render(reshape(found), self.settings) if isinstance(found, Page) else found

    def select(self, body: Body, now: float, *, page_size: int = 0) -> Page | Answer:
        """The page that a valid body requests at `now`, or the rejection of a page that does not exist."""
        self.advance(now)
        return self._pager.page(query(body, self.settings), page_size or self._size(leads=not body["isContact"]))

    def _size(self, *, leads: bool) -> int:
        return (leads and self.settings.leads_page_size) or self.settings.page_size

    # --- the oracle ------------------------------------------------------------------------------------------------

    def contacts(self, now: float) -> dict[str, bytes]:
        """All contacts that exist at `now` (in either list), as JSON by id."""
        self.advance(now)
        return {id: contact.raw for id, contact in self.account.living().items()}  # noqa: A001

    def existed_throughout(self, start: float, end: float) -> set[str]:
        """Ids of the contacts visible at every moment from `start` to `end`, as far as the world has been advanced."""
        return self.truth.existed_throughout(start, end)

    def version_at(self, id: str, at: float) -> bytes | None:  # noqa: A002
        """The contact as shown at a past time; None if there was none."""
        return self.truth.version_at(id, at)
