"""Planted bugs: errors in the protocol, each of which the oracle must catch.

A plant replaces an attribute of production code (nothing else in the tests does) and names the traits under which the
bug has an effect. It is caught when a schedule breaks a promise that the sound code keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from etl.api import retry
from etl.extract import crosscheck, fetch, ordered, plan, scrub, strategy, sweep
from etl.extract.capabilities import PageSizes
from etl.extract.fetch import WindowReader
from etl.extract.windows import Window
from tests.simulation import schedule, spoilt
from tests.simulation.fold import Fold, Model
from tests.simulation.personality import personality
from tests.simulation.schedule import Report, play
from tests.simulation.spoilt import NO_CROSS_CHECK, Change, findings, instead, results, settling, sql
from tests.simulation.warehouse import Warehouse


@dataclass(frozen=True, slots=True)
class Plant:
    """One bug."""

    name: str
    changes: tuple[Change, ...]
    traits: Mapping[str, Any] = field(default_factory=dict)
    """Traits under which it has an effect; the others are drawn as usual."""
    fold: Callable[[], Fold] = Model

    @contextmanager
    def grown(self) -> Iterator[None]:
        """Production code has the bug inside the context."""
        with ExitStack() as held:
            for owner, name, spoil in self.changes:
                sound = getattr(owner, name)
                held.callback(setattr, owner, name, sound)
                setattr(owner, name, spoil(sound))
            yield

    def catch(self, most: int) -> Report | None:
        """The first schedule that breaks a promise because of this bug; None if none of `most` schedules does."""
        for seed in range(most):
            who = personality(seed, **self.traits)
            with self.grown():
                report = play(who, self.fold)
            if any(map(_is_harm, report.broken)) and not play(who, self.fold).broken:
                return report
        return None


def _is_harm(broken: str) -> bool:
    """Whether the oracle reports it, not a crash caused by the bug."""
    return not broken.startswith(("CRASH", "ENDLESS"))


Traits = dict[str, Any]
_CALM: Traits = {
    "without_created_at": 0.0,
    "faults": (),
    "page_size_drop": None,
    "narrowed": None,
    "swapped": None,
    "mixed_pages": None,
    "scrub_every": 0,
    "sort": "created_desc",
    "past_end": "empty",
    "ignore_page": False,
    "ordered_from": None,
}
_LIVELY: Traits = {**_CALM, "churn": 0.06, "gap_events": 30, "concurrency": 4, "seconds": 0.3}
_CHAIN: Traits = {**_LIVELY, "chain": "iii", "lookback": 5000}
_TOUCHED: Traits = {
    **_CHAIN,
    "mix": "touches",
    "pages": 10,
    "page_size": 4,
    "gap_events": 80,
    "gap_seconds": 120.0,
    "scrub_runs": 30,
}
_LATE: Traits = {**_CHAIN, "lookback": 60_000, "lateness": 0.9, "mix": "inserts", "scrub_runs": 30, "churn": 0.03}
_CROWDED: Traits = {**_LIVELY, "ties": 2.5}
_ORDERED: Traits = {**_LIVELY, "ordered_from": 2, "pages": 20, "concurrency": 4, "killed": None, "chain": ""}
_WITH_LISTS = (crosscheck, plan, scrub, strategy, sweep)
"""The modules that say in which order the two lists are read."""
_FAILING = {"kind": "status", "status": 500, "rate": 0.3, "from": 30}
_CACHED = {"kind": "duplicate_page", "rate": 0.05, "from": 30}

PLANTS = (
    Plant(
        "the padding of an exclusive end is lost",
        (spoilt.unpadded(end_pad=0), spoilt.NEVER_LISTED),
        {**_CROWDED, "end_bound": "exclusive"},
    ),
    Plant(
        "the padding of an exclusive start is lost",
        (spoilt.unpadded(start_pad=0), spoilt.NEVER_LISTED),
        {**_LIVELY, "start_bound": "exclusive"},
    ),
    Plant("the watermark is the largest lastSeenAt", (results(spoilt.latest_seen),), {**_CHAIN, "oddities": 0.5}),
    Plant(
        "the watermark is the end of the run",
        (results(spoilt.end_of_run),),
        {**_TOUCHED, "churn": 0.03, "lookback": 1000, "visibility_lag": 1000, "gap_events": 0, "slowness": 0.0},
    ),
    Plant(
        "a full page is accepted",
        # Otherwise such windows would be read again at the end of a run, forever.
        (settling(spoilt.accept_full), instead(WindowReader, "doubtful", spoilt.nobody_doubtful)),
        _LIVELY,
    ),
    Plant(
        "a full window is resumed at its next page",
        (settling(spoilt.resume), instead(WindowReader, "doubtful", spoilt.nobody_doubtful), NO_CROSS_CHECK),
        {**_LIVELY, "mix": "deletes"},
    ),
    Plant(
        "a run that goes on with a killed one forgets the time between",
        ((strategy, "resume", spoilt.begins_now), NO_CROSS_CHECK),
        {**_TOUCHED, "killed": 60, "pages": 20, "page_size": 3, "churn": 0.01, "gap_events": 0},
    ),
    Plant(
        "a window that overlaps what a killed run read counts as read",
        (instead(fetch, "remaining", spoilt.untouched_alone), NO_CROSS_CHECK),
        {**_TOUCHED, "killed": 45, "pages": 20, "page_size": 3},
    ),
    Plant("of a full window only a part is read again", (settling(spoilt.last_part),), _LIVELY),
    Plant(
        "the error of one window is swallowed",
        (settling(spoilt.swallow), NO_CROSS_CHECK),
        {**_CALM, "faults": (_FAILING,)},
    ),
    Plant(
        "contacts are read before leads",
        (*(instead(part, "LEADS_FIRST", (True, False)) for part in _WITH_LISTS), NO_CROSS_CHECK),
        {
            **_LIVELY,
            "mix": "flips",
            "is_contact": "disjoint",
            "leads": 0.4,
            "slowness": 0.0,
            "churn": 0.03,
            "pages": 20,
            "page_size": 5,
            "concurrency": 2,
        },
    ),
    Plant(
        "one list is taken for both",
        tuple(instead(part, "LEADS_FIRST", (False,)) for part in _WITH_LISTS),
        {**_LIVELY, "is_contact": "disjoint"},
    ),
    Plant("nothing is swept", (instead(strategy, "sweep", spoilt.no_sweep),), _CHAIN),
    Plant(
        "the sweep forgets createdAt",
        ((strategy, "sweep", spoilt.only("lastSeenAt")), spoilt.NO_AGREEMENT),
        {**_CHAIN, "oddities": 0.5, "mix": "inserts"},
    ),
    Plant(
        "the sweep forgets lastSeenAt", ((strategy, "sweep", spoilt.only("createdAt")), spoilt.NO_AGREEMENT), _TOUCHED
    ),
    Plant("the sweep reads its open slice first", (instead(strategy, "sweep", spoilt.open_first),), _TOUCHED),
    Plant(
        "the sweep reads its open slices at once",
        (instead(sweep, "_open_rest", spoilt.side_by_side),),
        {**_TOUCHED, "churn": 0.15, "gap_events": 30, "pages": 20, "page_size": 3},
    ),
    Plant("the sweep reads its open slice once", (instead(sweep, "_open_rest", spoilt.one_pass),), _TOUCHED),
    Plant(
        "the closed sweep ends in the future",
        ((strategy, "sweep", spoilt.into_the_future), spoilt.NO_EVIDENCE),
        _TOUCHED,
    ),
    Plant("no lookback", (spoilt.shorter_lookback(0.0), spoilt.NO_AGREEMENT), _LATE),
    Plant("a lookback shorter than contacts are late", (spoilt.shorter_lookback(0.3), spoilt.NO_AGREEMENT), _LATE),
    Plant(
        "the page size is believed to be larger",
        (
            findings(page_sizes=lambda sizes: PageSizes(sizes.contacts + 5, sizes.leads + 5)),
            instead(WindowReader, "doubtful", spoilt.nobody_doubtful),
            NO_CROSS_CHECK,
        ),
        _LIVELY,
    ),
    Plant(
        "what is a page of one list is one of the other",
        (instead(PageSizes, "of", spoilt.largest_of_both), NO_CROSS_CHECK),
        {**_CHAIN, "leads_page": 0.4, "is_contact": "disjoint", "mix": "flips", "gap_events": 80},
    ),
    Plant(
        "the page size is not looked at again",
        (instead(WindowReader, "doubtful", spoilt.nobody_doubtful), NO_CROSS_CHECK),
        {**_LIVELY, "page_size_drop": (0.5, 30), "pages": 10},
    ),
    Plant(
        "an indivisible window is read once",
        (instead(fetch, "read_indivisible", spoilt.one_read), findings(honours_page=True), NO_CROSS_CHECK),
        {
            **_CROWDED,
            "mix": "deletes",
            "ties": 8.0,
            "pages": 20,
            "page_size": 3,
            "churn": 0.05,
            "chain": "",
            "is_contact": "same",
            "lateness": 0.0,
            "slowness": 0.0,
        },
    ),
    Plant(
        "an indivisible window is believed on a server without pages",
        (findings(honours_page=True), (fetch, "read_in_order", spoilt.repeats_end), NO_CROSS_CHECK),
        {**_CROWDED, "ignore_page": True},
    ),
    Plant("split leaves out a millisecond", ((fetch, "split", spoilt.split_with_gaps), NO_CROSS_CHECK), _LIVELY),
    Plant(
        "the plan leaves out a millisecond",
        ((plan, "plan_windows", spoilt.plan_with_gaps), NO_CROSS_CHECK),
        {**_LIVELY, "chain": "ff"},
    ),
    Plant(
        "the plan ends at the last contact known",
        ((plan, "plan_windows", spoilt.plan_of_the_known),),
        {**_LIVELY, "chain": "f", "witness_every": 10**10, "mix": "inserts"},
    ),
    Plant(
        "a row outside its window is let through",
        (instead(Window, "check", spoilt.unchecked), NO_CROSS_CHECK),
        {**_LIVELY, "faults": (_CACHED,)},
    ),
    Plant(
        "the order of a page is not checked",
        (*spoilt.UNORDERED, *spoilt.UNCOUNTED, NO_CROSS_CHECK),
        {**_ORDERED, "sort": "last_seen_desc"},
    ),
    Plant(
        "the contacts of a segment are not counted",
        (*spoilt.UNCOUNTED, NO_CROSS_CHECK),
        {**_ORDERED, "mixed_pages": (0.7, 0.4, 30), "page_size": 20},
    ),
    Plant(
        "the gaps of pages are not read again",
        (instead(ordered, "gap", lambda *_: None), *spoilt.UNCOUNTED, NO_CROSS_CHECK),
        {**_ORDERED, "sort": "id_desc", "mix": "everything", "page_size": 5, "ties": 2.5},
    ),
    Plant(
        "contacts are read in order before leads",
        (*spoilt.CONTACTS_FIRST, *spoilt.UNCOUNTED, NO_CROSS_CHECK),
        {
            **_ORDERED,
            "mix": "flips",
            "is_contact": "disjoint",
            "leads": 0.4,
            "slowness": 0.0,
            "lateness": 0.0,
            "churn": 0.02,
            "page_size": 5,
            "concurrency": 1,
        },
    ),
    Plant("absence counts where nothing was read", (results(spoilt.read_everywhere),), {**_CHAIN, "scrub_runs": 30}),
    Plant(
        "the scrub never goes on",
        (results(spoilt.never_onwards),),
        # Few deletions, so that no scrub becomes suspicious and reads everything.
        {
            **_CHAIN,
            "chain": "iiiiiiii",
            "scrub_runs": 3,
            "mix": "deletes",
            "pages": 20,
            "page_size": 5,
            "churn": 0.0,
            "gap_events": 4,
            "gap_seconds": 120.0,
        },
    ),
    Plant(
        "the first strike deletes",
        (
            sql("THEN 1\n                WHEN a.again", "THEN 2\n                WHEN a.again"),
            sql("ELSE 'struck' END", "ELSE 'deleted' END"),
        ),
        {**_CHAIN, "mix": "deletes", "scrub_runs": 1},
        Warehouse,
    ),
    Plant(
        "the fold keeps the first answer",
        (sql("DESC, read_no DESC", "ASC, read_no ASC", "_RECEIVED"),),
        _TOUCHED,
        Warehouse,
    ),
    Plant(
        "retries have no budget",
        (instead(retry.Budget, "allows_retry", spoilt.without_budget),),
        {**_CALM, "faults": ({"kind": "status", "rate": 0.4},)},
    ),
    Plant(
        "more requests are in flight than allowed",
        ((schedule, "Client", spoilt.generous),),
        {**_LIVELY, "concurrency": 2},
    ),
)
