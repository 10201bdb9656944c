"""One contact as the server holds it, and the JSON it shows: encoded once per version, as bytes.

Bytes, because oddities (a repeated key, a lone surrogate) do not survive a dict. The encoding has a constant head (the
identity) and a tail of the members that change (status, last message, times).
"""

from dataclasses import dataclass, field

from etl.sandbox.times import SPELLINGS


@dataclass(frozen=True, slots=True)
class Facts:
    """The constant data that the filters of a request check."""

    name: str = ""
    email: str = ""
    phone: str = ""
    """Prefix and national number, digits alone."""
    tags: tuple[str, ...] = ()
    bots: tuple[str, ...] = ()
    agent: str = ""
    segments: tuple[str, ...] = ()
    subscriber: bool = False
    online: bool = False
    interacted: bool = False
    live_chat: bool = False
    ad_click: str = ""
    """Came by a click-to-WhatsApp advertisement: "new", "old" or not at all."""
    ordered_at: int | None = None
    """Instant of the last order."""


@dataclass(frozen=True, slots=True)
class Contact:
    """One version of one contact."""

    serial: int
    """Order of birth in the account, never reused; breaks ties of every order."""
    id: str
    """`_id` as text; if it is missing or unusable, `#` and the serial."""
    head: bytes
    """The JSON object up to its first changing member, ending in a comma."""
    facts: Facts
    status: str
    is_contact: bool
    created: int | None
    """Instant of `createdAt`; None if it has none; then no window on it returns the contact."""
    last_seen: int | None
    updated: int
    last_by: str = "user"
    last_text: str = ""
    unread: int = 0
    version: int = 0
    """`__v`."""
    created_as: str = "ms"
    seen_as: str = "ms"
    """How the times are spelled, by name in `times.SPELLINGS`; without an instant the member says "" or null."""
    verbatim: bytes = b""
    """Shown instead of head and tail, for a contact that was given as JSON and has not changed."""
    raw: bytes = field(init=False, repr=False, compare=False)
    """The JSON object as the server shows it."""

    def __post_init__(self) -> None:
        """Encode it once for all pages."""
        object.__setattr__(self, "raw", self.verbatim or self.head + _tail(self).encode())


def _tail(contact: Contact) -> str:
    """The changing members and the end of the object."""
    seen = _time(contact.last_seen, contact.seen_as)
    return (
        f'"status":"{contact.status}","isContact":{"true" if contact.is_contact else "false"},'
        f'"unreadMessages":{contact.unread},"lastMessage":{{"by":"{contact.last_by}","at":{seen},'
        f'"text":"{contact.last_text}"}},"lastSeenAt":{seen},"__v":{contact.version}{_created(contact)},'
        f'"updatedAt":{_time(contact.updated, "ms")}}}'
    )


def _time(at: int | None, spelling: str) -> str:
    if at is None:
        return "null" if spelling == "null" else '""'
    return SPELLINGS[spelling](at)


def _created(contact: Contact) -> str:
    if contact.created is None and contact.created_as == "ms":
        return ""
    return f',"createdAt":{_time(contact.created, contact.created_as)}'
