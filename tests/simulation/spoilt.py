"""The faulty code of the planted bugs: each function here makes a faulty function from a sound one.

`Any` is the type of values that are passed through: a wrapper must not depend on the code it wraps.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import etl.extract.fetch
import etl.extract.landmarks
import etl.extract.ordered
import etl.extract.strategy
import etl.extract.sweep
import etl.sinks.merge
from etl.api.client import Client
from etl.api.request import Query
from etl.api.response import Page
from etl.errors import EtlError
from etl.extract.agreement import Agreement
from etl.extract.capabilities import PageSizes
from etl.extract.checkpoint import ExtractionStart
from etl.extract.crosscheck import CrossCheck
from etl.extract.evidence import Evidence
from etl.extract.fetch import IndivisibleRead, WindowReader
from etl.extract.history import History, Timing
from etl.extract.plan import remaining
from etl.extract.strategy import Extraction
from etl.extract.windows import LEADS_FIRST, Window
from etl.times import milliseconds
from tests.simulation import schedule

Change = tuple[Any, str, Callable[[Any], Any]]
"""A module or class, the name of an attribute, and a function that makes the faulty value from the sound one."""
Settle = Callable[[Any, Any, Window], Awaitable[Sequence[Window]]]
"""The sound `settle`, the reader, the window."""


def instead(owner: Any, name: str, other: Any) -> Change:
    """Replace the attribute by `other`."""
    return owner, name, lambda _: other


# --- one account's reading, with other arguments or results --------------------------------------------------------


def arguments(change: Callable[[History, Timing], tuple[History, Timing]]) -> Change:
    """`extract` with a changed history or changed margins."""

    def spoil(sound: Any) -> Any:
        async def extract(client: Client, history: History, timing: Timing, *rest: Any, **more: Any) -> Extraction:
            extraction: Extraction = await sound(client, *change(history, timing), *rest, **more)
            return extraction

        return extract

    return schedule, "extract", spoil


def results(change: Callable[[Extraction, Client, Sequence[Page]], Extraction]) -> Change:
    """`extract` with a changed result; the change also gets the pages received."""

    def spoil(sound: Any) -> Any:
        async def extract(
            client: Client, history: Any, timing: Any, receive: Any, *rest: Any, **more: Any
        ) -> Extraction:
            pages: list[Page] = []

            async def keep(page: Page) -> None:
                pages.append(page)
                await receive(page)

            extraction: Extraction = await sound(client, history, timing, keep, *rest, **more)
            return change(extraction, client, pages)

        return extract

    return schedule, "extract", spoil


def findings(**found: Any) -> Change:
    """The probe with changed findings; a callable computes one from the sound one."""

    def spoil(sound: Any) -> Any:
        async def probe(*args: Any, **more: Any) -> Any:
            sound_findings = await sound(*args, **more)
            changed = {
                name: value(getattr(sound_findings, name)) if callable(value) else value
                for name, value in found.items()
            }
            return replace(sound_findings, **changed)

        return probe

    return etl.extract.strategy, "probe", spoil


def unpadded(**pads: int) -> Change:
    """Windows requested without the padding that the probe found necessary."""
    return findings(created=lambda bounds: replace(bounds, **pads), seen=lambda bounds: replace(bounds, **pads))


def shorter_lookback(share: float) -> Change:
    """Only a share of the lookback."""
    return arguments(lambda history, timing: (history, replace(timing, lookback=int(timing.lookback * share))))


def latest_seen(run: Extraction, _: Client, pages: Sequence[Page]) -> Extraction:
    """The largest `lastSeenAt` as the watermark, a common mistake."""
    seen = [at for page in pages for row in page.rows if (at := milliseconds(row.last_seen_at)) is not None]
    return replace(run, watermark=max(seen, default=run.watermark))


def end_of_run(run: Extraction, client: Client, _: Sequence[Page]) -> Extraction:
    """The end of the run as the watermark, which ignores changes while it reads."""
    return replace(run, watermark=client.server_now or run.watermark)


def read_everywhere(run: Extraction, *_: object) -> Extraction:
    """Coverage of ranges that were not read."""
    return replace(run, coverage=((None, run.watermark),))


def never_onwards(run: Extraction, *_: object) -> Extraction:
    """A scrub that starts from the beginning every time."""
    return replace(run, scrub_after=None)


def _never(_: Any) -> Any:
    return lambda *_, **__: False


NO_CROSS_CHECK: Change = (History, "cross_check_is_due", _never)
"""Disables the cross-check, which detects most losses of a first run before the oracle does."""


def begins_now(sound: Any) -> Any:
    """A resumed run takes the time of its resumption as the watermark."""

    async def resume(client: Client, start: ExtractionStart) -> ExtractionStart:
        start = await sound(client, start)
        return replace(start, watermark=client.server_now or start.watermark)

    return resume


def untouched_alone(windows: Iterable[Window], done: Sequence[Window]) -> Iterator[Window]:
    """Only the windows of which a killed run has read nothing."""
    for window in windows:
        if list(remaining([window], done)) == [window]:
            yield window


# --- windows -------------------------------------------------------------------------------------------------------


def settling(settle: Settle) -> Change:
    """A window reader with a different `settle`."""
    return WindowReader, "settle", lambda sound: lambda reader, window, **_: settle(sound, reader, window)


async def accept_full(_: Any, reader: Any, window: Window) -> Sequence[Window]:
    """Page 1 is accepted as the whole window."""
    page = await reader._client.read(window.query(reader.bounds[window.field]))
    await reader._accept_window(window, page)
    return ()


async def resume(_: Any, reader: Any, window: Window) -> Sequence[Window]:
    """A full window is continued on its next pages instead of being split."""
    for number in itertools.count(1):
        page = await reader._client.read(window.query(reader.bounds[window.field]), number)
        await reader._accept_window(window, page)
        if len(page.rows) < reader.sizes.of(window.is_contact):
            break
    return ()


async def swallow(sound: Any, reader: Any, window: Window) -> Sequence[Window]:
    """A window that cannot be read is skipped."""
    try:
        parts: Sequence[Window] = await sound(reader, window)
    except EtlError:
        return ()
    return parts


async def last_part(sound: Any, reader: Any, window: Window) -> Sequence[Window]:
    """Only the newest part of a full window is read again."""
    parts: Sequence[Window] = await sound(reader, window)
    return parts[-1:]


def _later(window: Window) -> Window:
    """The window without its first millisecond."""
    return window if window.start is None else replace(window, start=window.start + 1)


def split_with_gaps(sound: Callable[..., Sequence[Window]]) -> Callable[..., Sequence[Window]]:
    """Parts with gaps between them."""

    def split(*args: Any, **more: Any) -> Sequence[Window]:
        parts = sound(*args, **more)
        return [*parts[:1], *map(_later, parts[1:])]

    return split


def plan_with_gaps(sound: Callable[..., Iterator[Window]]) -> Callable[..., Iterator[Window]]:
    """Planned windows with gaps between them."""
    return lambda *args, **more: map(_later, sound(*args, **more))


def plan_of_the_known(sound: Callable[..., Iterator[Window]]) -> Callable[..., Iterator[Window]]:
    """A plan that ends at the creation time of the last contact known beforehand."""

    def plan(times: Sequence[int], **more: Any) -> Iterator[Window]:
        return sound(times, **more | {"end": min(more["end"], (times[-1] if times else more["end"]) + 1)})

    return plan


def repeats_end(sound: Any) -> Any:
    """An indivisible window that ends at any repeated page, even a full one."""
    return lambda client, query, page_size, **more: sound(client, query, page_size + 1, **more)


async def one_read(client: Client, query: Query, page_size: int, receive: Any, *, alone: bool) -> IndivisibleRead:
    """An indivisible window is accepted after one read."""
    pages = await etl.extract.fetch.read_in_order(client, query, page_size, alone=alone) or []
    for page in pages:
        await receive(page)
    return IndivisibleRead(sum(len(page.rows) for page in pages), 1)


def largest_of_both(sizes: PageSizes, _: bool) -> int:
    """One page size for both lists."""
    return max(1, sizes.contacts, sizes.leads)


def unchecked(*_: object) -> None:
    """Every row is accepted."""


def generous(sound: Any) -> Any:
    """A client that sends two more concurrent requests than configured."""
    return lambda wire, *, concurrency, **more: sound(wire, concurrency=concurrency + 2, **more)


def without_budget(_: object) -> bool:
    """One more retry is always allowed."""
    return True


# --- the ordered read ----------------------------------------------------------------------------------------------


def times_in_any_order(page: Page) -> list[int]:
    """The creation times of a page, whatever their order."""
    return [time for row in page.rows if (time := milliseconds(row.created_at)) is not None]


async def _believed(*_: object) -> None:
    """Nothing is checked."""


NO_EVIDENCE = instead(Evidence, "observe", lambda *_: None)
"""What other answers show does not count."""
NO_AGREEMENT = instead(Agreement, "differing", lambda _: {})
"""The sweeps are not compared."""


async def never_listed(*_: object) -> list[str]:
    """Contacts that no range returns are taken for deleted."""
    return []


NEVER_LISTED = instead(CrossCheck, "_still_listed", never_listed)


async def nobody_doubtful(_: WindowReader) -> list[Window]:
    """The page size is never checked again."""
    return []


CONTACTS_FIRST: tuple[Change, ...] = (
    (etl.extract.ordered, "segments", lambda sound: lambda landmarks: reversed([*sound(landmarks)])),
    (etl.extract.ordered, "_may_be_read", lambda _: lambda *_: True),
)
"""The segments of contacts come first, and do not wait for those of leads."""
UNORDERED: tuple[Change, ...] = (
    instead(etl.extract.landmarks, "creation_times", times_in_any_order),
    instead(etl.extract.ordered, "creation_times", times_in_any_order),
    instead(etl.extract.strategy, "may_be_sorted", lambda capabilities: capabilities.windows),
)
"""Every server is taken to sort its lists, and no page is checked."""
UNCOUNTED: tuple[Change, ...] = (
    instead(etl.extract.ordered.OrderedRead, "_check_count", _believed),
    instead(etl.extract.ordered.OrderedRead, "_compare", _believed),
    instead(etl.extract.ordered.OrderedRead, "_check_ends", _believed),
    instead(WindowReader, "doubtful", nobody_doubtful),
    NO_EVIDENCE,
)
"""Segments are not counted, and no range is read again."""


# --- the sweep -----------------------------------------------------------------------------------------------------


async def open_first(reader: Any, name: Any, *, since: int, until: int) -> None:
    """Read the open rest before the closed past."""
    for is_contact in LEADS_FIRST:
        await etl.extract.sweep._open_rest(reader, Window(name, is_contact, max(since, until), None))
    for is_contact in LEADS_FIRST:
        await reader.read([Window(name, is_contact, since, until)])


def into_the_future(sound: Any) -> Any:
    """A closed part that ends a minute in the future."""

    async def sweep(reader: Any, name: Any, *, until: int, **more: Any) -> None:
        await sound(reader, name, until=until + 60_000, **more)

    return sweep


def only(leg: str) -> Callable[[Any], Any]:
    """The sweep over only one of the two time fields."""

    def spoil(sound: Any) -> Any:
        async def sweep(reader: Any, name: str, **more: Any) -> None:
            if name == leg:
                await sound(reader, name, **more)

        return sweep

    return spoil


async def no_sweep(*_: Any, **__: Any) -> None:
    """Nothing is swept."""


async def one_pass(reader: Any, window: Window) -> None:
    """Contacts that do not fit the first open slice are not read."""
    await reader.settle(window)


async def side_by_side(reader: Any, window: Window) -> None:
    """The slices of the open rest are read concurrently."""
    await reader.read([window])


# --- the merge -----------------------------------------------------------------------------------------------------


def sql(old: str, new: str, steps: str = "_STEPS") -> Change:
    """The merge with part of its SQL, in `steps`, replaced; raises LookupError if they do not contain `old`."""

    def spoil(steps: Sequence[str]) -> tuple[str, ...]:
        if not any(old in step for step in steps):
            raise LookupError(old)
        return tuple(step.replace(old, new) for step in steps)

    return etl.sinks.merge, steps, spoil
