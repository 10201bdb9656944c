"""Sources that show part of the account, another account, or pages of several sizes: never silently wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl.sandbox.contacts import Contact
from etl.sandbox.world import World
from tests.support.campaign import campaign
from tests.support.live import Account, Job, Live, live

CONTACTS = 700
HIDDEN: dict[str, Callable[[Contact, int], bool]] = {
    "nine in ten": lambda contact, _: contact.serial % 10 > 0,
    "a third": lambda contact, _: contact.serial % 3 == 0,
    "the older half": lambda contact, median: (contact.created or 0) < median,
    "one list": lambda contact, _: not contact.is_contact,
}
"""Which contacts are hidden: by serial, by creation time compared with the median, or by list."""


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """An account without oddities."""
    return Account(tmp_path_factory.mktemp("account"), {"contacts": CONTACTS, "nasty_share": 0, "small": True})


def held(job: Job) -> set[str]:
    """The ids in `contacts`."""
    return {contact_id for (contact_id,) in job.rows("select contact_id from contacts")}


def hide(who: str) -> Callable[[World, float], int]:
    """Hide some contacts, as from a token that lost some of its rights; returns their number."""

    def narrow(world: World, _: float) -> int:
        everyone = world.account.living().values()
        median = sorted(contact.created or 0 for contact in everyone)[len(everyone) // 2]
        world.account.narrow(lambda contact: not HIDDEN[who](contact, median))
        return sum(HIDDEN[who](contact, median) for contact in everyone)

    return narrow


def test_contacts_that_no_range_returns_are_never_taken_for_deleted(tmp_path: Path) -> None:
    """The server lists them, but its filters do not match their dates, which may be stored as text: exit 13 (A41)."""
    unmatched = {"kind": "unmatched", "ranged": True, "of": 50}
    with live(contacts=CONTACTS, nasty_share=0, small=True, page_size=20, faults=(unmatched,)) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        result = job.run()
    assert result.exit_code == 13
    assert "are listed, but in no range of createdAt" in str(result.error)


def test_contacts_that_stop_matching_are_not_deleted_by_a_run_that_sees_them(tmp_path: Path) -> None:
    """After the first strike, a cross-check that sees them contradicts the second (A41)."""
    settings = '[extract]\nscrub_runs = 1\nwitness_every = "1h"\n'
    unmatched = {"kind": "unmatched", "ranged": True, "of": 50, "from": 250}
    with live(contacts=CONTACTS, nasty_share=0, small=True, page_size=20, faults=(unmatched,)) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings=settings)
        assert job.run().exit_code == 0
        before, ended = held(job), set[int]()
        assert server.stats()["requests"] < 250
        for _ in range(5):
            server.ahead += 3700
            ended.add(job.run().exit_code)
            assert held(job) == before
    assert ended == {0, 13}


@pytest.mark.parametrize("who", ["nine in ten", campaign("a third"), campaign("the older half"), "one list"])
def test_a_narrowed_listing_ends_every_run_with_14(who: str, job: Job, server: Live) -> None:
    """A41: a scrub that misses many of its contacts makes the run read everything, which trips the guard."""
    before = job.fingerprint()
    hidden = server.change(hide(who))
    assert hidden > 100
    report = job.run()
    assert report.exit_code == 14
    assert f"{hidden} of {CONTACTS} contacts are gone" in str(report.error)
    assert "--allow-shrink" in str(report.error)
    assert [job.run().exit_code for _ in range(2)] == [14, 14]
    assert job.run(full=True).exit_code == 14
    assert job.fingerprint() == before


@pytest.mark.parametrize(("share", "request_number"), [(2, 8), (4, 25), (25, 70), (50, 90)])
def test_a_listing_that_is_narrowed_during_a_first_run_ends_it_with_13(
    share: int, request_number: int, tmp_path: Path
) -> None:
    """A41: neither the pages read before nor the counts at the end allow that so many were deleted meanwhile."""
    with live(contacts=1500, nasty_share=0, small=True, page_size=20, latency=0.02) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings="[extract]\nconcurrency = 2\n")
        with job.start("run", "CONFIG") as process:
            while server.stats()["requests"] < request_number:
                pass
            server.change(lambda world, _: world.account.narrow(lambda contact: contact.serial % share > 0))
            process.communicate()
    assert process.returncode == 13


def test_contacts_that_were_hidden_while_a_first_run_read_them_are_read_after_all(tmp_path: Path) -> None:
    """A replica that catches up, or rights that come back: at its end, the list has more contacts than were read."""
    with live(contacts=1500, nasty_share=0, small=True, page_size=20, latency=0.02) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings="[extract]\nconcurrency = 2\n")
        late = server.ids()[::30]
        for contact_id in late:
            server.change(lambda world, now, contact_id=contact_id: world.delete(contact_id, now))
        with job.start("run", "CONFIG") as process:
            while server.stats()["requests"] < 100:
                pass
            for contact_id in late:
                server.change(lambda world, now, contact_id=contact_id: world.restore(contact_id, now))
            process.communicate()
        assert process.returncode == 0
        assert held(job) == set(server.ids())


def test_a_mass_deletion_has_a_way_through(job: Job, server: Live) -> None:
    """S23: with --allow-shrink the first run strikes and the second one deletes, without --full."""
    gone = [name for number, name in enumerate(server.ids()) if number % 10]
    server.change(lambda world, now: [world.delete(name, now) for name in gone])
    assert job.run().exit_code == 14
    found = [job.run(allow_shrink=True).accounts[0].record for _ in range(2)]
    assert [record.counts.deleted for record in found if record] == [0, len(gone)]
    assert held(job) == set(server.ids())


def test_a_few_deletions_cost_a_few_requests(job: Job, server: Live) -> None:
    """M2: a deleted contact is found by the scrub, requested twice in both lists by the next run, and then removed."""
    job.settings = '[extract]\nscrub_every = "1s"\n'
    server.ahead += 5
    usual = job.run().accounts[0].requests.sent
    gone = server.ids()[::200]
    server.change(lambda world, now: [world.delete(name, now) for name in gone])
    server.ahead += 5
    struck = job.run().accounts[0]
    server.ahead += 5
    confirmed = job.run().accounts[0]
    assert (struck.struck, struck.record.counts.deleted) == (len(gone), 0)
    assert confirmed.record.counts.deleted == len(gone)
    assert confirmed.record.requests.sent <= usual + 4 * len(gone) + 6


@pytest.mark.parametrize(("every", "runs"), [("4h", 4), ("1h", 1)])
def test_everything_is_read_again_within_the_time_of_the_scrub(every: str, runs: int, job: Job, server: Live) -> None:
    """A deletion is found within `scrub_every` and one run, whatever the interval of runs: here an hour."""
    job.settings = f'[extract]\nscrub_every = "{every}"\n'
    gone = server.ids()[::50]
    server.change(lambda world, now: [world.delete(name, now) for name in gone])
    deleted = 0
    for _ in range(runs + 1):
        server.ahead += 3600
        deleted += job.run().accounts[0].record.counts.deleted
    assert deleted == len(gone)


def test_the_number_of_runs_still_divides_the_scrub(job: Job) -> None:
    """`scrub_runs`, the older form, is accepted and reported as deprecated."""
    job.settings = "[extract]\nscrub_runs = 2\n"
    assert job.run().exit_code == 0
    assert "extract.scrub_runs is deprecated" in job.call("doctor", "CONFIG").out


def test_another_account_under_the_old_name_is_refused(job: Job, tmp_path: Path) -> None:
    """If no known contact is there, every run exits with 14 and publishes no contact of the other account."""
    before = job.fingerprint()
    with live(contacts=CONTACTS, nasty_share=0, small=True, seed=2) as other:
        moved = Job(tmp_path, {"main": other.url}, sinks=("duckdb",))
        assert [moved.run().exit_code for _ in range(2)] == [14, 14]
        assert moved.run(full=True).exit_code == 14
    assert job.fingerprint() == before


def adopted(customer: str) -> Callable[[World, float], None]:
    """Five contacts of a customer appear."""

    def appear(world: World, now: float) -> None:
        for number in range(1, 6):
            contact = {"_id": f"{number:024x}", "_customer": customer, "isContact": True, "status": "OPEN"}
            times = dict.fromkeys(("createdAt", "updatedAt", "lastSeenAt"), f"2025-01-0{number}T10:00:00.000Z")
            world.adopt(json.dumps(contact | times).encode(), now)

    return appear


def test_contacts_of_another_customer_are_refused_though_few(tmp_path: Path) -> None:
    """The customer of the contacts is stored and compared: no contact of another customer is published (exit 14)."""
    with live(contacts=0) as one, live(contacts=0) as other, live(contacts=0) as host:
        one.change(adopted("c" * 24))
        host.change(adopted("c" * 24))
        other.change(adopted("d" * 24))
        job = Job(tmp_path, {"main": one.url}, sinks=("duckdb",))
        assert job.run().exit_code == 0
        # The same contacts from another host of the vendor are the same account.
        assert Job(tmp_path, {"main": host.url}, sinks=("duckdb",)).run().exit_code == 0
        report = Job(tmp_path, {"main": other.url}, sinks=("duckdb",)).run()
        assert report.exit_code == 14
        assert "another account" in str(report.error)
        assert "drop main" in str(report.error)


MIXED: dict[str, list[dict[str, Any]]] = {
    "half": [{"kind": "page_size", "size": 20, "rate": 0.5, "from": 60}],
    "nearly as large": [{"kind": "page_size", "size": 47, "rate": 0.5, "from": 60}],
    "three sizes": [
        {"kind": "page_size", "size": 20, "rate": 0.3, "from": 60},
        {"kind": "page_size", "size": 35, "rate": 0.4, "from": 60},
    ],
    "from the start": [{"kind": "page_size", "size": 20, "rate": 0.5}],
}


@pytest.mark.parametrize("sizes", [campaign("half"), campaign("nearly as large"), "three sizes", "from the start"])
def test_pages_of_several_sizes_hide_nobody(sizes: str, tmp_path: Path) -> None:
    """A17, A52: whatever server answers, a run that exits with 0 has every contact and deletes no existing one."""
    draw = random.Random(sizes)
    with live(contacts=CONTACTS, nasty_share=0, small=True, faults=tuple(MIXED[sizes])) as server:
        job = Job(tmp_path, {"main": server.url}, settings='[extract]\nscrub_every = "20s"\n', sinks=("duckdb",))
        proven = 0
        for _ in range(6):
            server.ahead += 10
            known = set(server.ids())
            if job.run().exit_code == 0:
                proven += 1
                assert known <= held(job)
                assert not job.rows("select * from contact_versions where op = 'delete'")

            def happen(world: World, now: float) -> None:
                for number in range(30):
                    world.insert(now + number / 100)
                for name in draw.sample(list(world.contacts(now)), 30):
                    world.touch(name, now + 0.5)

            server.change(happen)
        assert proven > 0
