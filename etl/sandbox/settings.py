"""Everything that is unknown about the API, as settings of the simulated server.

Only the standard library is imported, and only plain types are used, because the same class is a section of the TOML
configuration. A default is the LIKELY behaviour of the real server; every other value is a possible one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

FaultSpec = dict[str, str | int | float | bool | list[int]]
"""One fault as data: its `kind`, when it strikes, and its own parameters; `faults.py` has the table of kinds."""

Sort = Literal["created_desc", "created_asc", "created_second_desc", "id_desc", "last_seen_desc", "shuffled"]
Partition = Literal["disjoint", "overlap", "same"]
Bound = Literal["inclusive", "exclusive"]
Granularity = Literal["ms", "s", "day"]
SoftDelete = Literal["none", "listed", "hidden"]
Total = Literal["none", "exact", "wrong", "doubled", "capped", "zero", "negative", "null", "text", "per_page"]


def unknown(what: str, word: str, known: Iterable[str]) -> ValueError:
    """The error for a word that is none of the known ones, naming the nearest."""
    near = get_close_matches(word, list(known), 1)
    return ValueError(f"there is no {what} {word!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


SHARES = ("nasty_share", "no_created_at_share", "latency_jitter")
AT_LEAST_ONE = ("page_size", "import_size", "total_cap")
NOT_NEGATIVE = (
    "leads_page_size",
    *("contacts", "ties", "late", "lag", "token_expires_after", "latency", "keep_alive", "rate_limit"),
    *("max_in_flight_allowed", "inserts", "touches", "deletes", "flips", "edits", "imports", "import_backdated"),
)


@dataclass(frozen=True)
class Settings:
    """One simulated account and the behaviour of the server in front of it.

    Raises `ValueError` naming every field that is out of its range.
    """

    # --- the account ---------------------------------------------------------------------------------------------
    contacts: int = 2000
    """Contacts (and leads) that exist at the start; 0 or more."""
    seed: int = 1
    """Determines every random choice: the same seed and clock give the same bytes."""
    small: bool = False
    """Contacts of a few fields (about 0.4 KB): a world of 100 is built in a millisecond or two."""
    nasty_share: float = 0.01
    """Share of contacts with something odd that was seen, or must be expected, in real answers; 0 to 1."""
    nasty_kinds: tuple[str, ...] = ()
    """Which oddities (`nasty.KINDS`); empty means all of them."""
    no_created_at_share: float = 0.0
    """Share of contacts without `createdAt`, which no window on it can reach; 0 to 1."""
    ties: int = 0
    """How many of the first contacts share one `createdAt`, as after a bulk import; 0 or more."""
    state: str = ""
    """File that stores when the account started, so that it persists between processes; "" = starts now."""

    # --- lists and pages -----------------------------------------------------------------------------------------
    page_size: int = 50
    """Rows of a full page; 1 or more. UNKNOWN in the real API, at least 14."""
    leads_page_size: int = 0
    """The same of the false list, whose pages may be of another size; 0 = the same."""
    sort: Sort = "created_desc"
    """Order of the list; `created_second_desc` leaves the order within a second open, `shuffled` is another order for
    every request."""
    is_contact: Partition = "disjoint"
    """The two lists: true = contacts (with `same`, all); false = leads | all | all."""
    page_base: Literal[0, 1] = 1
    """Number of the first page."""
    page_zero: Literal["error", "first"] = "error"
    """If pages start at 1: page 0 is a 400, or the same as page 1."""
    ignore_page: bool = False
    """Every page is the first one."""
    past_end: Literal["empty", "repeat", "404", "400"] = "empty"
    """A page beyond the end: no rows, the last page once more, or an error."""
    total: Total = "none"
    """Whether the answer reports the number of matches, and how reliably."""
    total_cap: int = 10_000
    """Largest reported total if `total` is `capped`; 1 or more."""

    # --- filters -------------------------------------------------------------------------------------------------
    applicable_filters: Literal["free", "named", "ignored"] = "free"
    """Date filters are honoured always | only if named in `applicableFilters` | never, silently."""
    lists_named: bool = False
    """List filters (tags, status, ...) are honoured only if named in `applicableFilters`."""
    start_bound: Bound = "inclusive"
    """Whether a contact exactly at `startAt` (in the resolution of it) is in the window."""
    end_bound: Bound = "inclusive"
    """Whether a contact exactly at `endsAt` (in the resolution of it) is in the window."""
    granularity: Granularity = "ms"
    """Granule to which contacts and bounds are floored before they are compared."""
    zone_offset_minutes: int = 0
    """The account's zone: determines when its days begin and the meaning of a date without a time; -840 to 840."""
    require_all_fields: bool = True
    """A body without one of the documented fields is a 400, as newer vendor documentation says."""

    # --- visibility and deletion ---------------------------------------------------------------------------------
    late: float = 0.0
    """Seconds until a new contact becomes visible; the vendor documents up to 900."""
    lag: float = 0.0
    """Seconds until a change of a known contact becomes visible, its times being those of the change."""
    soft_delete: SoftDelete = "none"
    """A deleted contact vanishes | stays listed with status DELETED | is shown only to a filter on that status."""

    # --- access --------------------------------------------------------------------------------------------------
    token: str = "5eed5eed5eed5eed5eed5eed"  # noqa: S105 - invented, and only good for this simulator
    """The accepted token. Any other is a 401, or the KNOWN 400 if it is not 24 hex digits."""
    token_expires_after: int = 0
    """Requests with a good token after which it is a 401; 0 = never."""
    token_next: str = ""
    """The token accepted after that; "" = none."""
    require_authtype: bool = True
    """401 without the header `authtype: Key`."""

    # --- pace ----------------------------------------------------------------------------------------------------
    latency: float = 0.0
    """Seconds a request takes; its one atomic read of the account happens half way."""
    latency_jitter: float = 0.0
    """Share of the latency that varies from request to request, so that answers overtake each other; 0 to 1."""
    rate_limit: float = 0.0
    """Requests a second before a 429; 0 = none."""
    max_in_flight_allowed: int = 0
    """Requests at once before a 429; 0 = none."""
    retry_after: str = "1"
    """The `Retry-After` of such a 429, verbatim; "" = no such header."""
    gzip: bool = False
    """Compress answers for clients that accept it."""
    keep_alive: float = 5.0
    """Seconds after which an idle connection is closed. KNOWN: 5."""

    # --- churn, events a second for the whole account ------------------------------------------------------------
    inserts: float = 0.0
    """New contacts a second."""
    touches: float = 0.0
    """Contacts a second that are active again: `lastSeenAt`, `updatedAt` and the last message move."""
    deletes: float = 0.0
    """Contacts deleted a second."""
    flips: float = 0.0
    """Contacts a second whose `isContact` changes, by which they move from one list to the other."""
    edits: float = 0.0
    """Contacts a second whose status changes while `lastSeenAt` does not move."""
    imports: float = 0.0
    """Bulk imports a second, each of `import_size` contacts with one `createdAt`."""
    import_size: int = 100
    """Contacts of one bulk import; 1 or more."""
    import_backdated: float = 0.0
    """Seconds by which the `createdAt` of a bulk import lies in the past."""

    # --- faults --------------------------------------------------------------------------------------------------
    faults: tuple[FaultSpec, ...] = ()
    """Faults as data, for example `{"kind": "status", "status": 500, "every": 10}`; see `faults.py`."""

    def __post_init__(self) -> None:
        """Reject values out of range, all together."""
        wrong = [
            *(f"{name} must be between 0 and 1" for name in SHARES if not 0 <= getattr(self, name) <= 1),
            *(f"{name} must be 1 or more" for name in AT_LEAST_ONE if getattr(self, name) < 1),
            *(f"{name} must not be negative" for name in NOT_NEGATIVE if getattr(self, name) < 0),
        ]
        if not -840 <= self.zone_offset_minutes <= 840:
            wrong.append("zone_offset_minutes must be between -840 and 840")
        if wrong:
            raise ValueError("; ".join(wrong))
