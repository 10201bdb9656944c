"""The column table: every column of `contacts`, declared once.

The JSON read schema, the flattening, the SQL types, the documentation (`etl columns`) and the privacy classes are
derived from it; no other module lists the columns. This module depends on Arrow types and on no sink.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
NOTE_FIELDS = ("title", "description", "_id")
"""Notes (`profile.notes`) keep the API's field names."""


class Kind(StrEnum):
    """The type of a cell, which determines how it is read, coerced and stored."""

    TEXT = "text"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    TIME = "time"
    TEXTS = "list of text"
    ATTRIBUTES = "map of text to text"
    NOTES = "list of notes"
    JSON = "json"


class Privacy(StrEnum):
    """How closely a column identifies a person; a masked view would hide the closest first."""

    DIRECT = "direct"
    """Names or reaches one person: name, phone, e-mail, profile ids."""
    CONTENT = "content"
    """Written by the person or about them."""
    BEHAVIOUR = "behaviour"
    """Actions of the person, and their times."""
    NONE = "none"
    """Says nothing about a person."""


ARROW: dict[Kind, pa.DataType] = {
    Kind.TEXT: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.TIME: TIME,
    Kind.TEXTS: pa.list_(pa.string()),
    Kind.ATTRIBUTES: pa.map_(pa.string(), pa.string()),
    Kind.NOTES: pa.list_(pa.struct([(name, pa.string()) for name in NOTE_FIELDS])),
    Kind.JSON: pa.string(),
}

SQL: dict[Kind, str] = {
    Kind.TEXT: "VARCHAR",
    Kind.INTEGER: "BIGINT",
    Kind.BOOLEAN: "BOOLEAN",
    Kind.TIME: "TIMESTAMP WITH TIME ZONE",
    Kind.TEXTS: "VARCHAR[]",
    Kind.ATTRIBUTES: "MAP(VARCHAR, VARCHAR)",
    Kind.NOTES: "STRUCT(" + ", ".join(f'"{name}" VARCHAR' for name in NOTE_FIELDS) + ")[]",
    Kind.JSON: "JSON",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `contacts`."""

    name: str
    kind: Kind
    path: tuple[str, ...]
    """Path of the value in the API's contact; () if `etl` generates it."""
    privacy: Privacy
    meaning: str
    presence: bool = False
    """A presence field: it changes all the time, and alone makes no new version of a contact."""

    @property
    def arrow(self) -> pa.Field:
        """The column as an Arrow field."""
        return pa.field(self.name, ARROW[self.kind])

    @property
    def sql(self) -> str:
        """The column's DuckDB type."""
        return SQL[self.kind]


def _column(
    name: str,
    kind: Kind,
    path: str,
    privacy: Privacy,
    meaning: str,
    *,
    presence: bool = False,
) -> Column:
    return Column(name, kind, tuple(path.split(".")) if path else (), privacy, meaning, presence)


_T, _I, _B, _AT, _L = Kind.TEXT, Kind.INTEGER, Kind.BOOLEAN, Kind.TIME, Kind.TEXTS
_DIRECT, _CONTENT, _BEHAVIOUR, _NONE = (
    Privacy.DIRECT,
    Privacy.CONTENT,
    Privacy.BEHAVIOUR,
    Privacy.NONE,
)
_USER = "profile.userDetails"

CONTACTS: tuple[Column, ...] = (
    _column("account", _T, "", _NONE, "name of the account in the configuration"),
    _column("contact_id", _T, "_id", _NONE, "the API's id; one row per account and contact_id"),
    _column("uuid", _T, "uuid", _NONE, "id of a website visitor"),
    _column("agency_id", _T, "_agency", _NONE, "agency that owns the account"),
    _column("customer_id", _T, "_customer", _NONE, "customer of the agency"),
    _column("agent_id", _T, "_agentAssigned", _NONE, "agent the contact is assigned to"),
    _column("platforms", _L, "platform", _BEHAVIOUR, "channels, upper case: WHATSAPP, WEBSITE, ..."),
    _column("secondary_platforms", _L, "secondaryPlatform", _BEHAVIOUR, "further channels, lower case"),
    _column("status", _T, "status", _NONE, "OPEN, INPROGRESS, ...; an open set; DELETED is a soft delete"),
    _column("name", _T, f"{_USER}.name", _DIRECT, "name on the website channel"),
    _column("user_provided_name", _T, f"{_USER}.userProvidedName", _DIRECT, "name on WhatsApp or import"),
    _column("email", _T, f"{_USER}.contact.email", _DIRECT, "e-mail address, verbatim"),
    _column("phone_prefix", _T, f"{_USER}.contact.phone.prefix", _DIRECT, "country code, verbatim: 91 or +44"),
    _column("phone_number", _T, f"{_USER}.contact.phone.number", _DIRECT, "national number, verbatim"),
    _column("phone_e164", _T, "", _DIRECT, "the one valid number that prefix and number can mean, as E.164; else null"),
    _column("whatsapp_number", _T, f"{_USER}.whatsAppNumber", _DIRECT, "prefix and number, verbatim"),
    _column("telegram_username", _T, f"{_USER}.telegramUserName", _DIRECT, "Telegram user name"),
    _column("instagram_profile_id", _T, f"{_USER}.instagramProfileId", _DIRECT, "Instagram profile"),
    _column("facebook_profile_id", _T, f"{_USER}.facebookProfileId", _DIRECT, "Facebook profile"),
    _column("picture_url", _T, f"{_USER}.picture", _DIRECT, "address of the profile picture"),
    _column("city", _T, f"{_USER}.city", _DIRECT, "city"),
    _column("country", _T, f"{_USER}.country", _BEHAVIOUR, "country"),
    _column("gender", _T, f"{_USER}.gender", _DIRECT, "gender as given"),
    _column("tags", _L, f"{_USER}.tags", _CONTENT, "tags put on the contact"),
    _column(
        "attributes",
        Kind.ATTRIBUTES,
        f"{_USER}.attributes",
        _CONTENT,
        "custom attributes; the last value of a repeated key, then the whole list is in extra",
    ),
    _column("notes", Kind.NOTES, "profile.notes", _CONTENT, "notes: title, description, _id"),
    _column("urls_visited", _L, "profile.marketing.urlsVisited", _BEHAVIOUR, "pages visited"),
    _column("segments", _L, "segments", _BEHAVIOUR, "segments the contact belongs to"),
    _column("is_subscriber", _B, "isSubscriber", _BEHAVIOUR, "subscribed to broadcasts"),
    _column("is_online", _B, "isOnline", _BEHAVIOUR, "online when it was read", presence=True),
    _column("user_interacted", _B, "userInteracted", _BEHAVIOUR, "the contact has written or clicked"),
    _column("is_contact", _B, "isContact", _NONE, "true for a contact, false for a lead or chat"),
    _column("is_imported", _B, "isImported", _NONE, "came by import"),
    _column("is_migrated", _B, "isMigrated", _NONE, "came by migration"),
    _column("is_live_chat_active", _B, "isLiveChatActive", _BEHAVIOUR, "a live chat is open"),
    _column("is_paid", _B, "isPaid", _NONE, "counts against the paid quota"),
    _column("website_visits", _I, "websiteVisits", _BEHAVIOUR, "visits counted by the API", presence=True),
    _column("unread_messages", _I, "unreadMessages", _BEHAVIOUR, "messages not yet read", presence=True),
    _column("last_message_by", _T, "lastMessage.by", _BEHAVIOUR, "user, bot or agent"),
    _column("last_message_at", _AT, "lastMessage.at", _BEHAVIOUR, "time of the last message"),
    _column("last_message_text", _T, "lastMessage.text", _CONTENT, "preview of the last message"),
    _column("has_ordered", _B, "hasOrdered.status", _BEHAVIOUR, "has placed an order"),
    _column("last_ordered_at", _AT, "hasOrdered.lastAt", _BEHAVIOUR, "time of the last order"),
    _column("last_seen_at", _AT, "lastSeenAt", _BEHAVIOUR, "last activity, by the API; may lie in the future"),
    _column("created_at", _AT, "createdAt", _BEHAVIOUR, "creation, by the API"),
    _column("updated_at", _AT, "updatedAt", _BEHAVIOUR, "last change, by the API"),
    _column("document_version", _I, "__v", _NONE, "the API's __v"),
    _column("extra", Kind.JSON, "", _CONTENT, "every non-empty field of the answer that has no column, as JSON"),
    _column("row_hash", _T, "", _NONE, "fingerprint of the content without the fields of presence"),
    _column("observed_at", _AT, "", _NONE, "T0 of the run that wrote this row, by the server's clock"),
    _column("seq", _I, "", _NONE, "sequence number of the run that wrote this row"),
)

STAMPED = ("observed_at", "seq")
"""Columns whose values are known only when a run is published; parts do not have them."""

ROW_HASH = "row_hash"

READ: tuple[Column, ...] = tuple(column for column in CONTACTS if column.path)
"""The columns taken directly from the API's contact."""

CONTENT: tuple[Column, ...] = tuple(
    column
    for column in CONTACTS
    if not column.presence and column.name not in {"account", "contact_id", ROW_HASH, *STAMPED}
)
"""The columns whose change makes a new version of a contact."""

NORMALIZED_SCHEMA = pa.schema(
    [column.arrow for column in CONTACTS if column.name not in {ROW_HASH, *STAMPED}] + [pa.field("read_no", pa.int64())]
)
"""Normalized contacts as read. `read_no` numbers the rows of a run in reading order and is unique in it."""

PART_SCHEMA = NORMALIZED_SCHEMA.append(pa.field(ROW_HASH, pa.string()))
"""A part: normalized contacts with the fingerprint of each."""

CONTACTS_SCHEMA = pa.schema([column.arrow for column in CONTACTS])

REJECTS: tuple[Column, ...] = (
    _column("account", _T, "", _NONE, "name of the account"),
    _column("seq", _I, "", _NONE, "sequence number of the last run that saw the contact"),
    _column("observed_at", _AT, "", _NONE, "T0 of that run"),
    _column("contact_id", _T, "", _DIRECT, "its id, if it could be read"),
    _column("reason", _T, "", _NONE, "why the contact could not be kept"),
    _column("path", _T, "", _NONE, "the field that is at fault"),
    _column("raw", _T, "", _CONTENT, "the contact as the server sent it"),
    _column("first_seq", _I, "", _NONE, "sequence number of the first run that saw the contact"),
    _column("last_seq", _I, "", _NONE, "the same as seq"),
    _column("seen", _I, "", _NONE, "how many runs saw the contact"),
)
"""Each rejected contact once: by account and id or, without an id, by account and raw JSON."""

REJECTS_STAMPED = ("seq", "observed_at", "first_seq", "last_seq", "seen")
"""Columns of REJECTS whose values are known only when a run is published; parts do not have them."""

REJECT_PART_SCHEMA = pa.schema([column.arrow for column in REJECTS if column.name not in REJECTS_STAMPED])


def column_names(columns: tuple[Column, ...] = CONTACTS) -> tuple[str, ...]:
    """The names of `columns`, in order."""
    return tuple(column.name for column in columns)


WINDOWS_SCHEMA = pa.schema(
    [
        pa.field("account", pa.string()),
        pa.field("field", pa.string()),  # createdAt or lastSeenAt
        pa.field("is_contact", pa.bool_()),  # which of the two lists
        pa.field("start", TIME),  # inclusive; null: open
        pa.field("end", TIME),  # exclusive; null: open
        pa.field("rows", pa.int32()),
        pa.field("request", pa.int64()),  # number of the request that was accepted
        pa.field("attempts", pa.int16()),
        pa.field("level", pa.string()),
    ]
)
"""An accepted window: its range, the request that proves it, and the result of that request."""


def describe(column: Column) -> dict[str, str]:
    """The documentation of one column, as text."""
    return {
        "name": column.name,
        "type": column.kind.value,
        "sql_type": column.sql,
        "path": ".".join(column.path),
        "privacy": column.privacy.value,
        "meaning": column.meaning,
    }
