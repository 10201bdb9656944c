"""Draws a personality from a seed: one server, one account, the way it changes and the way it is read.

Every trait has a separate generator, so a new trait, or a new value of one, does not change the others of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType
from typing import Any

from etl.extract.capabilities import SMALLEST_PAGE
from etl.extract.history import Timing
from etl.sandbox.contacts import Contact
from etl.sandbox.settings import Settings
from tests.simulation.contact import Version
from tests.simulation.spared import spared

Value = Any
SECOND = 1000

NARROWINGS: Mapping[str, Callable[[Contact | Version, float], bool]] = MappingProxyType(
    {
        "a tenth": lambda contact, _: Random(contact.id).random() < 0.1,
        "half": lambda contact, _: Random(contact.id).random() < 0.5,
        "the young": lambda contact, median: (contact.created or 0) >= median,
        "the old": lambda contact, median: (contact.created or 0) < median,
        "one list": lambda contact, _: contact.is_contact,
    }
)
"""Whether a contact stays listed when a token's permissions are narrowed, given the median creation time."""

TRAITS: Mapping[str, Sequence[tuple[int, Value]]] = MappingProxyType(
    {
        # the account
        "pages": ((1, 1), (1, 3), (3, 6), (5, 10), (1, 20)),
        "page_size": ((2, 3), (3, 4), (4, 5), (4, 7), (3, 10), (1, 14), (1, 20), (1, 50)),
        # size of a page of leads relative to a page of contacts
        "leads_page": ((6, 1.0), (1, 0.4), (1, 0.7), (1, 1.5), (1, 3.0)),
        "ties": ((8, 0.0), (2, 0.8), (1, 2.5)),
        "leads": ((3, 0.0), (3, 0.4)),
        "oddities": ((8, 0.0), (2, 0.1), (1, 0.5)),
        "without_created_at": ((10, 0.0), (1, 0.1)),
        # the server
        "sort": (
            *((5, "created_desc"), (1, "created_asc"), (2, "last_seen_desc"), (1, "shuffled")),
            *((2, "id_desc"), (2, "created_second_desc")),
        ),
        "is_contact": ((6, "disjoint"), (2, "overlap"), (1, "same")),
        "applicable_filters": ((6, "free"), (4, "named")),
        "start_bound": ((3, "inclusive"), (1, "exclusive")),
        "end_bound": ((2, "inclusive"), (1, "exclusive")),
        "granularity": ((10, "ms"), (4, "s"), (1, "day")),
        "zone_offset_minutes": ((4, 0), (1, 330), (1, -480)),
        "past_end": ((5, "empty"), (2, "repeat"), (1, "404"), (1, "400")),
        "page_base": ((6, 1), (1, 0)),
        "page_zero": ((3, "error"), (1, "first")),
        "ignore_page": ((15, False), (1, True)),
        "total": ((4, "none"), (2, "exact"), (1, "wrong"), (1, "zero"), (1, "null"), (1, "per_page"), (1, "text")),
        "soft_delete": ((4, "none"), (2, "listed"), (1, "hidden")),
        # how late changes become visible, as shares of the reader's margins
        "lateness": ((6, 0.0), (2, 0.3), (2, 0.9)),
        "slowness": ((6, 0.0), (2, 0.3), (2, 0.9)),
        # how it changes: share that changes per second of a run; events and seconds between runs; kinds of events
        "churn": ((2, 0.0), (3, 0.01), (4, 0.03), (6, 0.08), (1, 0.3)),
        "gap_events": ((2, 0), (3, 8), (3, 30), (1, 80)),
        "gap_seconds": ((2, 5.0), (3, 120.0), (2, 3600.0), (1, 86_400.0)),
        "mix": (
            (4, "everything"),
            (2, "touches"),
            (4, "deletes"),
            (1, "inserts"),
            (3, "flips"),
            (1, "edits"),
            (1, "imports"),
        ),
        "malice": ((3, 0.0), (1, 0.1), (1, 0.4)),
        # how it is read
        "concurrency": ((3, 1), (4, 2), (4, 4), (1, 8), (1, 16)),
        "seconds": ((1, 0.05), (4, 0.3), (5, 0.8), (1, 2.0)),
        "visibility_lag": ((3, 2 * SECOND), (1, SECOND), (1, 5 * SECOND)),
        "lookback": ((2, 5 * SECOND), (2, 60 * SECOND), (1, 1800 * SECOND)),
        "witness_every": ((2, 0), (3, 10**10)),
        "scrub_runs": ((1, 1), (2, 2), (3, 3), (2, 30)),
        # by time; 0: by the number of runs
        "scrub_every": ((4, 0), (1, 60 * SECOND), (1, 600 * SECOND), (2, 86_400 * SECOND)),
        # pages from which a first run relies on the order of the lists
        "ordered_from": ((1, None), (2, 2), (2, 3)),
        "shuffled_tasks": ((1, False), (1, True)),
        # the request at which a run is killed, to be resumed by the next process
        "killed": ((12, None), (1, 12), (1, 25), (1, 60), (1, 120)),
        # the runs after the first: i an incremental one, f a full one
        "chain": (*((4, ""), (5, "i"), (3, "ii"), (1, "f"), (1, "if"), (1, "iif"), (1, "iii"), (1, "iiii")),),
        # faults
        "faults": (
            (10, ()),
            (1, ({"kind": "status", "status": 503, "rate": 0.02},)),
            (1, ({"kind": "retry_after", "retry_after": "3", "rate": 0.02},)),
            (1, ({"kind": "reset", "rate": 0.02}, {"kind": "close_mid_body", "rate": 0.01})),
            (1, ({"kind": "status", "status": 500, "rate": 0.02}, {"kind": "truncated_json", "rate": 0.01})),
            (1, ({"kind": "delay", "seconds": 20.0, "rate": 0.02},)),
        ),
        # living contacts that are no longer listed: which stay listed, from which run and request on
        "narrowed": (
            (60, None),
            *((1, (who, run, request)) for who in NARROWINGS for run, request in ((1, 0), (1, 30), (2, 10), (0, 40))),
        ),
        # the run from which on another account responds under the same name
        "swapped": ((60, None), (1, 1), (1, 2), (1, 3)),
        # some responses have a smaller page: share of a page, share of the requests, from which request on
        "mixed_pages": ((40, None), (1, (0.4, 0.5, 0)), (1, (0.4, 0.5, 150)), (1, (0.7, 0.2, 60)), (1, (0.3, 0.8, 90))),
        "page_size_drop": ((20, None), (1, (0.8, 60)), (1, (0.5, 40)), (1, (0.7, 150))),
    }
)
"""The values of every trait with their weights."""

MIXES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "everything": {
            "touch": 8,
            "insert": 4,
            "delete": 4,
            "flip": 3,
            "edit": 3,
            "presence": 1,
            "import": 1,
            "backdated": 1,
            "restore": 1,
        },
        "touches": {"touch": 5, "delete": 1},
        "deletes": {"delete": 5, "insert": 4, "restore": 1},
        "inserts": {"insert": 4, "delete": 2},
        "flips": {"flip": 6, "lead": 5, "delete": 2, "touch": 1},
        "edits": {"edit": 4, "presence": 1, "touch": 2, "delete": 2},
        "imports": {"import": 3, "backdated": 3, "delete": 8, "touch": 6},
    }
)
"""Relative frequency of each event, by the name of the mix."""

ODDITIES = (
    *("seen_blank", "seen_null", "seen_garbage", "seen_epoch_s", "seen_future", "times_microseconds"),
    *("times_zoneless", "times_offset", "times_epoch_ms", "id_number", "id_upper", "id_null"),
)
"""Kinds of odd contacts that can affect the protocol: by their times and ids."""


@dataclass(frozen=True, slots=True)
class Personality:
    """Everything that determines a schedule."""

    seed: int
    traits: Mapping[str, Value]
    settings: Settings
    timing: Timing

    def __getitem__(self, name: str) -> Value:
        """One trait."""
        return self.traits[name]

    @property
    def rate(self) -> float:
        """Changes per second while the account is read."""
        return max(0.3, self["churn"] * self.settings.contacts) if self["churn"] else 0.0

    @property
    def most(self) -> int:
        """Maximum changes during one run; then the account stops changing."""
        return 50 + self.settings.contacts

    def draw(self, name: str) -> Random:
        """A generator for one purpose, determined by the seed."""
        return Random(f"{self.seed} {name}")


def drawn(seed: int) -> dict[str, Value]:
    """The traits of a seed."""
    return {name: _drawn(seed, name, options) for name, options in TRAITS.items()}


def personality(
    seed: int, traits: Mapping[str, Value] | None = None, *, unsparing: bool = False, **overrides: Value
) -> Personality:
    """The personality of a seed, with its drawn traits or the given ones, changed by `overrides`.

    `unsparing` also shows faults that are known and open.
    """
    # Traits that were added after a schedule was kept have their first value, the behaviour before they existed.
    found = ({name: options[0][1] for name, options in TRAITS.items()} | dict(traits)) if traits else drawn(seed)
    found = (found if unsparing else spared(found)) | overrides
    timing = Timing(
        visibility_lag=found["visibility_lag"],
        lookback=found["lookback"],
        cross_check_every=found["witness_every"],
        scrub_every=found["scrub_every"],
        scrub_runs=None if found["scrub_every"] else found["scrub_runs"],
    )
    return Personality(seed, found, _settings(seed, found, timing), timing)


def _drawn(seed: int, name: str, options: Sequence[tuple[int, Value]]) -> Value:
    weights = [weight for weight, _ in options]
    return Random(f"{seed} {name}").choices([value for _, value in options], weights)[0]


def _settings(seed: int, traits: Mapping[str, Value], timing: Timing) -> Settings:
    size = traits["page_size"]
    contacts = min(160, int(size * traits["pages"] * Random(f"{seed} contacts").uniform(0.4, 1.2)))
    margin = max(timing.visibility_lag, timing.lookback)
    own = {name: traits[name] for name in Settings.__dataclass_fields__ if name in traits and name != "faults"}
    return replace(
        Settings(small=True, require_all_fields=True),
        **own | {"ties": min(contacts, int(size * traits["ties"]))},
        contacts=contacts,
        leads_page_size=max(2, int(size * traits["leads_page"])),
        seed=seed,
        nasty_share=traits["oddities"],
        nasty_kinds=ODDITIES,
        no_created_at_share=traits["without_created_at"],
        late=traits["lateness"] * margin / SECOND,
        lag=traits["slowness"] * timing.visibility_lag / SECOND,
        faults=(
            *traits["faults"],
            *_drop(size, traits["page_size_drop"]),
            *_mixed(size, traits["mixed_pages"]),
        ),
    )


def _mixed(size: int, mixed: tuple[float, float, int] | None) -> tuple[dict[str, Any], ...]:
    """Another server responds to some of the requests, with smaller pages."""
    if mixed is None:
        return ()
    share, rate, request = mixed
    return ({"kind": "page_size", "size": max(SMALLEST_PAGE, int(size * share)), "rate": rate, "from": request},)


def _drop(size: int, drop: tuple[float, int] | None) -> tuple[dict[str, Any], ...]:
    """The server lowers its page size permanently, from a certain request on."""
    if drop is None:
        return ()
    share, request = drop
    return ({"kind": "page_size", "size": max(1, int(size * share)), "from": request},)
