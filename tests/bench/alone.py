"""Parts of `etl` alone, each in a separate process: prints the work done and the CPU seconds it took."""

from __future__ import annotations

import json
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

BATCH = 32
"""Pages normalized at once, as a run does."""
PAGE = 50
CAPACITY = 49


@dataclass(frozen=True, slots=True)
class Done:
    """One measurement."""

    what: str
    contacts: int
    cpu: float
    """Seconds; the part runs on one core."""
    windows: int = 0


def normalizer(contacts: int) -> Iterator[Done]:
    """The normalizer on clean contacts, with a few oddities, and with a field that drifted in all contacts."""
    from etl.model import RawPage  # noqa: PLC0415 - the planner needs none of it
    from etl.normalize.normalizer import Normalizer  # noqa: PLC0415
    from etl.sandbox.settings import Settings  # noqa: PLC0415
    from etl.sandbox.world import World  # noqa: PLC0415

    def pages(odd: float, spoil: Callable[[bytes], bytes]) -> list[RawPage]:
        world = World(Settings(contacts=contacts, nasty_share=odd), time.time())
        raws = [spoil(contact.raw) for contact in world.account.living().values()]
        chunks = ((start, raws[start : start + PAGE]) for start in range(0, len(raws), PAGE))
        return [RawPage(b'{"data":[' + b",".join(chunk) + b"]}", len(chunk), start) for start, chunk in chunks]

    def measured(what: str, pages: Sequence[RawPage]) -> Done:
        normalize, kept = Normalizer("bench"), 0
        began = time.process_time()
        for start in range(0, len(pages), BATCH):
            batch = normalize(pages[start : start + BATCH])
            kept += batch.contacts.num_rows + batch.rejects.num_rows
        done = Done(what, kept, time.process_time() - began)
        assert kept == contacts, f"{what}: {kept} of {contacts} contacts"
        return done

    yield measured("normalizer, clean contacts", pages(0, bytes))
    yield measured("normalizer, 1 % of contacts odd", pages(0.01, bytes))
    yield measured("normalizer, a field drifted in every contact", pages(0, _drifted))


def _drifted(raw: bytes) -> bytes:
    """Change a number to a text."""
    return raw.replace(b'"unreadMessages":0', b'"unreadMessages":"0"')


def planner(contacts: int) -> Iterator[Done]:
    """The planner over sorted creation times, a second and a half apart on average."""
    from etl.extract.plan import plan_windows  # noqa: PLC0415

    gaps = (serial * 7919 % 3000 for serial in range(contacts))
    times = array("q", accumulate(gaps))
    began = time.process_time()
    windows = plan_windows(times, field="createdAt", is_contact=True, start=None, end=times[-1] + 1, capacity=CAPACITY)
    count = sum(1 for _ in windows)
    yield Done("planner, creation times", contacts, time.process_time() - began, count)


PARTS: dict[str, Callable[[int], Iterator[Done]]] = {"normalizer": normalizer, "planner": planner}

if __name__ == "__main__":
    print(json.dumps([asdict(done) for done in PARTS[sys.argv[1]](int(sys.argv[2]))]))
