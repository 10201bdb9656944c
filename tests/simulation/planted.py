"""Planted bugs: ways to get the protocol wrong, each of which the oracle must catch.

A plant puts something else in the place of an attribute of production code, here and nowhere else in the tests, and names
the traits under which it does harm. It is caught when a schedule breaks a promise that the sound code keeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import etl.api.retry
import etl.extract
import etl.fetch
import etl.merge
import etl.sweep
from etl.api.answer import Page, Row
from etl.api.client import Client
from etl.api.request import Query
from etl.errors import EtlError
from etl.extract import Extraction, History, Timing
from etl.fetch import Crowd, WindowReader
from etl.probe import Capabilities
from etl.window import Bounds, Window, milliseconds
from tests.simulation import schedule
from tests.simulation.fold import Fold, Model
from tests.simulation.personality import personality
from tests.simulation.schedule import Report, play
from tests.simulation.warehouse import Warehouse

Change = tuple[Any, str, Callable[[Any], Any]]
"""A module or class, one of its attributes, and what makes the false one from the sound one."""


@dataclass(frozen=True, slots=True)
class Plant:
    """One bug."""

    name: str
    changes: tuple[Change, ...]
    traits: Mapping[str, Any] = field(default_factory=dict)
    """Where it does harm; the other traits are drawn as ever."""
    fold: Callable[[], Fold] = Model

    @contextmanager
    def grown(self) -> Iterator[None]:
        """While the context lasts, production code has the bug."""
        with ExitStack() as held:
            for owner, name, spoil in self.changes:
                sound = getattr(owner, name)
                held.callback(setattr, owner, name, sound)
                setattr(owner, name, spoil(sound))
            yield

    def catch(self, most: int) -> Report | None:
        """The first schedule that breaks a promise by this bug; None when `most` of them let it pass."""
        for seed in range(most):
            who = personality(seed, **self.traits)
            with self.grown():
                report = play(who, self.fold)
            if any(map(_is_harm, report.broken)) and not play(who, self.fold).broken:
                return report
        return None


def _is_harm(broken: str) -> bool:
    """Whether it is the oracle that complains, and not the program that stumbles over its own bug."""
    return not broken.startswith(("CRASH", "ENDLESS"))


# --- the reading of one account, with its findings or its arguments changed --------------------------------------------


def _extracting(
    before: Callable[[History, Timing], tuple[History, Timing]] = lambda history, timing: (history, timing),
    after: Callable[[Extraction, Client, Sequence[Page]], None] = lambda *_: None,
) -> Change:
    """`extract` with other arguments, or with an extraction that was tampered with."""

    def spoil(sound: Callable[..., Awaitable[Extraction]]) -> Callable[..., Awaitable[Extraction]]:
        async def extract(
            client: Client, history: History, timing: Timing, receive: Any, *rest: Any, **more: Any
        ) -> Extraction:
            pages: list[Page] = []

            async def keep(page: Page) -> None:
                pages.append(page)
                await receive(page)

            run = await sound(client, *before(history, timing), keep, *rest, **more)
            after(run, client, pages)
            return run

        return extract

    return schedule, "extract", spoil


def _probing(**found: object) -> Change:
    """The probe with other findings; a callable makes one from the sound one."""

    def spoil(sound: Callable[..., Awaitable[Capabilities]]) -> Callable[..., Awaitable[Capabilities]]:
        async def probe(*args: Any, **more: Any) -> Capabilities:
            capabilities = await sound(*args, **more)
            changed = {name: v(getattr(capabilities, name)) if callable(v) else v for name, v in found.items()}
            return replace(capabilities, **changed)

        return probe

    return etl.extract, "probe", spoil


def _latest_seen(run: Extraction, client: Client, pages: Sequence[Page]) -> None:
    seen = [at for page in pages for row in page.rows if (at := milliseconds(row.last_seen_at)) is not None]
    run.watermark = max(seen, default=run.watermark)


def _end_of_run(run: Extraction, client: Client, pages: Sequence[Page]) -> None:
    run.watermark = client.server_now or run.watermark


def _everywhere(run: Extraction, client: Client, pages: Sequence[Page]) -> None:
    run.coverage = ((None, run.watermark),)


def _never_onwards(run: Extraction, client: Client, pages: Sequence[Page]) -> None:
    run.scrub_after = None


def _lookback(share: float) -> Callable[[History, Timing], tuple[History, Timing]]:
    return lambda history, timing: (history, replace(timing, lookback=int(timing.lookback * share)))


# --- windows -----------------------------------------------------------------------------------------------------------


def _unpadded(**pads: int) -> Change:
    """Windows that ask without the padding that the probe found to be needed."""
    return _probing(created=lambda bounds: replace(bounds, **pads), seen=lambda bounds: replace(bounds, **pads))


def _witness_is_silent(sound: Any) -> Any:
    """Without the witness, which brings most losses of a first run to light before the oracle has to."""

    async def never(reading: Any) -> bool:
        return False

    return never


_NO_WITNESS: Change = (etl.extract._Reading, "_walk_witness", _witness_is_silent)


def _reader(settle: Callable[..., Awaitable[Sequence[Window]]]) -> Change:
    """A window reader that settles windows in another way; `settle` gets the sound one as its first argument."""
    return (
        WindowReader,
        "settle",
        lambda sound: lambda reader, window: settle(sound, reader, window),
    )


async def _accept_full(sound: Any, reader: Any, window: Window) -> Sequence[Window]:
    page = await reader._client.read(window.query(reader._bounds[window.field]))
    await reader._accept(window, page)
    return ()


async def _resume(sound: Any, reader: Any, window: Window) -> Sequence[Window]:
    """A full window is continued with its next pages instead of being cut."""
    for number in itertools.count(1):
        page = await reader._client.read(window.query(reader._bounds[window.field]), number)
        await reader._accept(window, page)
        if len(page.rows) < reader._page_size:
            break
    return ()


async def _swallow(sound: Any, reader: Any, window: Window) -> Sequence[Window]:
    try:
        return await sound(reader, window)
    except EtlError:
        return ()


async def _lose_parts(sound: Any, reader: Any, window: Window) -> Sequence[Window]:
    """Of a full window only the newest part is read again."""
    return (await sound(reader, window))[-1:]


def _gap(sound: Callable[..., Sequence[Window]]) -> Callable[..., Sequence[Window]]:
    def split(*args: Any, **more: Any) -> Sequence[Window]:
        first, *rest = sound(*args, **more) or (None,)
        return (first, *(replace(part, start=part.start + 1) for part in rest)) if first else ()

    return split


def _plan_gap(sound: Callable[..., Iterator[Window]]) -> Callable[..., Iterator[Window]]:
    return lambda *args, **more: (w if w.start is None else replace(w, start=w.start + 1) for w in sound(*args, **more))


def _plan_short(sound: Callable[..., Iterator[Window]]) -> Callable[..., Iterator[Window]]:
    """The plan ends where the last contact known beforehand was created."""

    def plan(times: Sequence[int], **more: Any) -> Iterator[Window]:
        return sound(times, **more | {"end": min(more["end"], (times[-1] if times else more["end"]) + 1)})

    return plan


async def _one_read(client: Client, query: Query, receive: Any) -> Crowd | None:
    """A crowd is believed after one read."""
    pages = await etl.fetch.read_in_order(client, query)
    for page in pages:
        await receive(page)
    return Crowd(sum(len(page.rows) for page in pages), 1)


async def _nobody_doubtful(reader: WindowReader) -> list[Window]:
    return []


def _unchecked(window: Window, rows: Sequence[Row], bounds: Bounds) -> None:
    """Whatever comes is taken."""


def _generous(sound: Any) -> Any:
    """A client that sends two requests more at a time than it was told."""
    return lambda wire, *, concurrency, **more: sound(wire, concurrency=concurrency + 2, **more)


# --- the sweep ---------------------------------------------------------------------------------------------------------


async def _open_first(reader: Any, name: Any, *, since: int, until: int, lists: Sequence[bool]) -> None:
    for is_contact in lists:
        await etl.sweep._open_rest(reader, Window(name, is_contact, max(since, until), None))
    for is_contact in lists:
        await reader.read([Window(name, is_contact, since, until)])


def _sweeping(**shift: int) -> Callable[[Any], Any]:
    """The sweep with `since` or `until` moved by so many milliseconds."""

    def spoil(sound: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def sweep(reader: Any, name: Any, *, lists: Any, **bounds: int) -> None:
            await sound(reader, name, lists=lists, **{key: at + shift.get(key, 0) for key, at in bounds.items()})

        return sweep

    return spoil


def _only(leg: str) -> Callable[[Any], Any]:
    """The sweep over one of the two times alone."""

    def spoil(sound: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def sweep(reader: Any, name: str, **more: Any) -> None:
            if name == leg:
                await sound(reader, name, **more)

        return sweep

    return spoil


async def _no_sweep(*args: Any, **more: Any) -> None:
    """Nothing is swept."""


async def _one_pass(reader: Any, window: Window) -> None:
    await reader.settle(window)


async def _all_at_once(reader: Any, window: Window) -> None:
    """The slices of the open rest are read side by side."""
    await reader.read([window])


# --- the fold ----------------------------------------------------------------------------------------------------------


def _sql(old: str, new: str) -> Change:
    """The merge with some of its SQL replaced."""

    def spoil(steps: Sequence[str]) -> tuple[str, ...]:
        if not any(old in step for step in steps):
            raise LookupError(f"no step of the merge says {old!r}")
        return tuple(step.replace(old, new) for step in steps)

    return etl.merge, "_STEPS", spoil


_CALM = {
    "undated": 0.0,
    "faults": (),
    "page_size_drop": None,
    "sort": "created_desc",
    "past_end": "empty",
    "ignore_page": False,
}
_LIVELY = {**_CALM, "churn": 0.06, "gap_events": 30, "concurrency": 4, "seconds": 0.3}
_CHAIN = {**_LIVELY, "chain": "iii", "lookback": 5000}
_TOUCHED = {
    **_CHAIN,
    "mix": "touches",
    "pages": 10,
    "gap_events": 80,
    "gap_seconds": 120.0,
    "scrub_runs": 30,
    "page_size": 4,
}
_LATE = {**_CHAIN, "lookback": 60_000, "lateness": 0.9, "mix": "inserts"}
_CROWDED = {**_LIVELY, "ties": 2.5}
_UNWITNESSED = {"chain": "f", "witness_every": 10**10}
_POISON = {"kind": "status", "status": 500, "covers": "2025-03-01T00:00:00.000Z"}

PLANTS = (
    Plant("the padding of an exclusive end is lost", (_unpadded(end_pad=0),), {**_CROWDED, "end_bound": "exclusive"}),
    Plant(
        "the padding of an exclusive start is lost", (_unpadded(start_pad=0),), {**_LIVELY, "start_bound": "exclusive"}
    ),
    Plant("the watermark is the largest lastSeenAt", (_extracting(after=_latest_seen),), {**_CHAIN, "oddities": 0.5}),
    Plant(
        "the watermark is the end of the run",
        (_extracting(after=_end_of_run),),
        {**_TOUCHED, "churn": 0.03, "lookback": 1000, "visibility_lag": 1000, "gap_events": 0, "slowness": 0.0},
    ),
    Plant("a full page is accepted", (_reader(_accept_full),), _LIVELY),
    Plant("a full window is resumed at its next page", (_reader(_resume), _NO_WITNESS), {**_LIVELY, "mix": "deletes"}),
    Plant("of a full window only a part is read again", (_reader(_lose_parts),), _LIVELY),
    Plant("the error of one window is swallowed", (_reader(_swallow), _NO_WITNESS), {**_CALM, "faults": (_POISON,)}),
    Plant(
        "contacts are read before leads",
        ((etl.extract, "LEADS_FIRST", lambda _: (True, False)), _NO_WITNESS),
        {**_LIVELY, "mix": "flips", "is_contact": "disjoint", "leads": 0.4, "slowness": 0.0},
    ),
    Plant("one list is taken for both", (_probing(lists="false holds both"),), {**_LIVELY, "is_contact": "disjoint"}),
    Plant("nothing is swept", ((etl.extract, "sweep", lambda _: _no_sweep),), _CHAIN),
    Plant(
        "the sweep forgets createdAt",
        ((etl.extract, "sweep", _only("lastSeenAt")),),
        {**_CHAIN, "oddities": 0.5, "mix": "inserts"},
    ),
    Plant("the sweep forgets lastSeenAt", ((etl.extract, "sweep", _only("createdAt")),), _TOUCHED),
    Plant("the sweep reads its open slice first", ((etl.extract, "sweep", lambda _: _open_first),), _TOUCHED),
    Plant(
        "the sweep reads its open slices side by side", ((etl.sweep, "_open_rest", lambda _: _all_at_once),), _TOUCHED
    ),
    Plant("the sweep reads its open slice once", ((etl.sweep, "_open_rest", lambda _: _one_pass),), _TOUCHED),
    Plant("the closed sweep ends in the future", ((etl.extract, "sweep", _sweeping(until=60_000)),), _TOUCHED),
    Plant("no lookback", (_extracting(before=_lookback(0.0)),), _LATE),
    Plant("a lookback shorter than contacts are late", (_extracting(before=_lookback(0.3)),), _LATE),
    Plant(
        "the page size is believed to be larger",
        (_probing(page_size=lambda size: size + 5), (WindowReader, "doubtful", lambda _: _nobody_doubtful)),
        _LIVELY,
    ),
    Plant(
        "the page size is not looked at again",
        ((WindowReader, "doubtful", lambda _: _nobody_doubtful), _NO_WITNESS),
        {**_LIVELY, "page_size_drop": (0.5, 30), "pages": 10},
    ),
    Plant(
        "a crowd is read once",
        ((etl.fetch, "read_crowd", lambda _: _one_read), _probing(honours_page=True), _NO_WITNESS),
        {
            **_CROWDED,
            "mix": "deletes",
            "ties": 8.0,
            "pages": 20,
            "page_size": 3,
            "churn": 0.05,
            "is_contact": "same",
            "lateness": 0.0,
            "slowness": 0.0,
        },
    ),
    Plant(
        "a crowd is believed on a server without pages",
        (_probing(honours_page=True), _NO_WITNESS),
        {**_CROWDED, "ignore_page": True},
    ),
    Plant("split leaves out a millisecond", ((etl.fetch, "split", _gap), _NO_WITNESS), _LIVELY),
    Plant(
        "the plan leaves out a millisecond",
        ((etl.extract, "plan_windows", _plan_gap), _NO_WITNESS),
        {**_LIVELY, "chain": "ff"},
    ),
    Plant(
        "the plan ends at the last contact known",
        ((etl.extract, "plan_windows", _plan_short),),
        {**_LIVELY, **_UNWITNESSED, "mix": "inserts"},
    ),
    Plant(
        "a row outside its window is let through",
        ((Window, "check", lambda _: _unchecked), _NO_WITNESS),
        {**_LIVELY, "faults": ({"kind": "duplicate_page", "rate": 0.05, "from": 30},)},
    ),
    Plant("absence counts where nothing was read", (_extracting(after=_everywhere),), {**_CHAIN, "scrub_runs": 30}),
    Plant(
        "the scrub never goes on",
        (_extracting(after=_never_onwards),),
        {**_CHAIN, "chain": "iiiiiiii", "scrub_runs": 2, "mix": "deletes", "pages": 10, "gap_seconds": 5.0},
    ),
    Plant(
        "the first strike deletes",
        (
            _sql("s.contact_id IS NULL THEN 1 ELSE 2", "s.contact_id IS NULL THEN 2 ELSE 2"),
            _sql("ELSE 'struck' END", "ELSE 'deleted' END"),
        ),
        {**_CHAIN, "mix": "deletes", "scrub_runs": 1},
        Warehouse,
    ),
    Plant("the fold keeps the first answer", (_sql("arg_max(read_no", "arg_min(read_no"),), _TOUCHED, Warehouse),
    Plant(
        "retries have no budget",
        ((etl.api.retry.Budget, "allows_retry", lambda _: lambda budget: True),),
        {**_CALM, "faults": ({"kind": "status", "rate": 0.4},)},
    ),
    Plant(
        "more requests are in flight than allowed", ((schedule, "Client", _generous),), {**_LIVELY, "concurrency": 2}
    ),
)
