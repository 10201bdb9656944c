"""Sweep: reads the contacts created or updated since a given time, with an open end.

An update moves a contact forward in `lastSeenAt`, perhaps out of a slice not yet read. So the closed past is read first
(many windows concurrently: a contact that leaves them is then newer than all of them), then the open rest sequentially,
page 1 only, slice by slice forward, until the open slice fits one page. In each part leads are read before contacts, so
that a lead that becomes a contact in between is seen in one of the lists.
"""

from __future__ import annotations

from collections.abc import Mapping

from etl.api.request import TimeField
from etl.extract.agreement import Agreement
from etl.extract.capabilities import SMALLEST_PAGE
from etl.extract.fetch import WindowReader
from etl.extract.windows import LEADS_FIRST, Window, around

MOST_ASKED_AGAIN = 20
"""The maximum number of creation times that are requested again, of contacts not shown by both sweeps."""
PASSES = 600
"""Maximum slices of the open rest; if more are needed, the account changes faster than it can be read."""


async def sweep(reader: WindowReader, field: TimeField, *, since: int, until: int) -> None:
    """Read every contact whose `field` is `since` or later; `until` (ms) divides the closed past from the open rest."""
    if since < until:
        for is_contact in LEADS_FIRST:
            await reader.complete([Window(field, is_contact, since, until)])
    for is_contact in LEADS_FIRST:
        await _open_rest(reader, Window(field, is_contact, max(since, until), None))


async def ask_again(reader: WindowReader, differing: Mapping[bytes, int]) -> None:
    """Request contacts (id to creation time) that a sweep has not shown, and doubt that sweep if they still exist."""
    again = Agreement(0, max(differing.values()) + 1)
    instants = sorted({*differing.values()})[:MOST_ASKED_AGAIN]
    resolution = reader.bounds["createdAt"].resolution
    with reader.noting(again.note):
        for is_contact in LEADS_FIRST:
            await reader.read(around(created, is_contact, resolution) for created in instants)
    if alive := differing.keys() & again.differing().keys():
        reader.doubt(f"{len(alive)} new contacts were listed, but not returned by both sweeps")


async def _open_rest(reader: WindowReader, window: Window) -> None:
    slices = [window]
    for _ in range(PASSES):
        window = slices.pop()
        # Only the open slice must be small; a closed one is read like the closed past.
        parts = await reader.settle(window, most=SMALLEST_PAGE if window.end is None else None)
        # The last part is the open one: it is read after the parts before it.
        slices.extend(reversed(parts))
        if not slices:
            return
    reader.doubt(
        f"contacts change faster than they can be read: {PASSES} slices of {window.field} did not reach the end"
    )
