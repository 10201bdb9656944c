"""The sweep: what was created or touched since a moment, with an open end.

A touch moves a contact forward in `lastSeenAt`, out of a slice not yet read. So the closed past is read first (many
windows at once: whoever leaves them is then younger than all of them), and the open rest last and alone, page 1 only,
slice by slice forward, until the open slice itself fits a page. For each part the list of leads is read before the list
of contacts, so that a lead that becomes a contact meanwhile is seen in one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from etl.api.request import TimeField
from etl.extract.capabilities import SMALLEST_PAGE
from etl.extract.fetch import WindowReader
from etl.extract.windows import Window

PASSES = 200
"""Slices of the open rest before the sweep gives up: then the account changes faster than it can be read."""


async def sweep(reader: WindowReader, field: TimeField, *, since: int, until: int, lists: Sequence[bool]) -> None:
    """Read every contact whose `field` is `since` or later; `until` (ms) parts the closed past from the open rest."""
    if since < until:
        for is_contact in lists:
            await reader.complete([Window(field, is_contact, since, until)])
    for is_contact in lists:
        await _open_rest(reader, Window(field, is_contact, max(since, until), None))


async def _open_rest(reader: WindowReader, window: Window) -> None:
    slices = [window]
    for _ in range(PASSES):
        parts = await reader.settle(slices.pop(), most=SMALLEST_PAGE)
        # The last part is the open one: it is read when the parts before it are done.
        slices.extend(reversed(parts))
        if not slices:
            return
    reader.unproven.append(
        f"contacts change faster than they can be read: {PASSES} slices of {window.field} did not reach the end"
    )
