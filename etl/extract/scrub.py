"""Scrub: reads a share of all windows again, and requests contacts with a strike, to find deletions and silent edits.

Both also check whether the server still shows the whole account: contacts that it hides must not look deleted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from etl.extract.capabilities import SMALLEST_PAGE, Capabilities
from etl.extract.fetch import WindowReader
from etl.extract.history import History, Timing
from etl.extract.plan import others_in, plan_lists, ranges_around, scrub_span
from etl.extract.windows import LEADS_FIRST, Window
from etl.log import log
from etl.model import NOTHING, Look

COMPANY, NEIGHBOURS = 6, 3
"""Maximum and desired number of other known contacts in a range that is requested because of strikes.

The maximum is far below any page size. If none of the others is listed, the server may not be showing the account."""


@dataclass(frozen=True, slots=True)
class Strikes:
    """The contacts with a strike, requested directly."""

    ranges: Sequence[tuple[int, int]]
    near: Look
    """The other contacts that these ranges should hold; absent are those in ranges that listed no contact at all."""


@dataclass(frozen=True, slots=True)
class Scrub:
    """The share of all windows that was read again."""

    start: int | None
    end: int
    look: Look
    """The known contacts in that share."""
    escalated: Look | None
    """The check that missed too many contacts, so that everything was read."""
    late: int
    """Contacts found that a run in the order of the lists should have seen."""


def next_scrub(history: History, timing: Timing, capabilities: Capabilities, until: int) -> tuple[int | None, int]:
    """The range of createdAt up to `until` (ms) that the next incremental run reads again.

    It holds at least one window's worth of contacts; three if any contact has a strike, because the scrub also checks
    whether the server shows the whole account, and a small sample is not enough to delete contacts.
    """
    windows = 3 if history.snapshot.struck() else 1
    return scrub_span(
        history.snapshot.created(None),
        after=history.scrub_after,
        end=until,
        share=timing.scrub_share(capabilities.t0 - history.t0),
        capacity=windows * max(map(capabilities.capacity, LEADS_FIRST)),
    )


def strike_ranges(history: History, capabilities: Capabilities) -> list[tuple[int, int]]:
    """The ranges of createdAt that the next run requests because of contacts with a strike."""
    snapshot, resolution = history.snapshot, capabilities.resolution
    return ranges_around(
        snapshot.struck(), snapshot.created(None), resolution=resolution, company=COMPANY, neighbours=NEIGHBOURS
    )


async def confirm_strikes(reader: WindowReader, history: History, capabilities: Capabilities) -> Strikes:
    """Request every contact with a strike in a range small enough for a page of any size.

    The server may not be showing a range that lists no contact at all, although others should be in it.
    """
    struck, created = history.snapshot.struck(), history.snapshot.created(None)
    ranges = strike_ranges(history, capabilities)
    for is_contact in LEADS_FIRST:
        windows = [Window("createdAt", is_contact, start, end) for start, end in ranges]
        for _ in range(2):  # One answer is not enough to delete a contact.
            await reader.read(windows, most=SMALLEST_PAGE)
    near, shown = NOTHING, reader.starts_of_shown()
    for start, end in ranges:
        looked = others_in(start, end, struck, created)
        silent = bisect_left(shown, start) == bisect_left(shown, end)
        near += Look(looked, looked if silent else 0)
    return Strikes(ranges, near)


async def scrub(
    reader: WindowReader,
    history: History,
    timing: Timing,
    capabilities: Capabilities,
    near_strikes: Look,
    *,
    until: int,
    since: int,
    shrink_share: float,
) -> Scrub:
    """Read the next share of all windows up to `until` (ms) again.

    If more than `shrink_share` of the known contacts are absent, or of those near contacts with a strike, the server
    may show only part of the account: then everything is read. So it is if there are contacts last seen before `since`
    (ms) that the first run should have seen in the order of the lists.
    """
    snapshot = history.snapshot
    start, end = next_scrub(history, timing, capabilities, until)
    await reader.complete(plan_lists(capabilities, snapshot.created, start, end))
    look = await snapshot.look(start, end)
    looks = (look, look + history.look, near_strikes)
    escalated = next((look for look in looks if look.is_suspicious(shrink_share)), None)
    late = await snapshot.unknown(start, end, since) if history.by_windows < 1.0 else 0
    if late:
        log.warning("order.doubted", reason=f"a scrub found {late} contacts that the first run should have seen")
    if escalated is not None or late:
        if start is not None:
            await reader.complete(plan_lists(capabilities, snapshot.created, None, start))
        await reader.complete(plan_lists(capabilities, snapshot.created, end, until))
        start, end = None, until
    return Scrub(start, end, look, escalated, late)
