"""`etl verify --live` reads random windows again and checks that their contacts were published."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import pytest

from tests.support.live import Account, Ended, Job, Live, live
from tests.support.old_targets import age
from tests.support.publishing import day

CONTACTS = 120
SMALL = {"contacts": CONTACTS, "nasty_share": 0.0, "small": True}


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """A small account without oddities."""
    return Account(tmp_path_factory.mktemp("account"), SMALL)


def verified(job: Job) -> Ended:
    """`etl verify` over all windows of a small account."""
    return job.call("verify", "CONFIG", "--live", "50", "--json")


def told(ended: Ended) -> str:
    """The result of the live comparison."""
    [finding] = [check for check in ended.document["checks"] if check["check"] == "live"]
    return f"{finding}"


@pytest.mark.parametrize("sinks", [("duckdb",), ("parquet",), ("duckdb", "parquet")])
def test_what_was_published_agrees_with_the_account(
    sinks: tuple[str, ...], account: Account, server: Live, tmp_path: Path
) -> None:
    """A published account passes the comparison; contacts created since the run are ignored."""
    job = account.job(server, tmp_path, *sinks)
    server.change(lambda w, now: w.insert(now))
    ended = verified(job)
    assert ended.code == 0, told(ended)
    assert f"{CONTACTS} contacts, 0 of them missing" in told(ended)


def test_a_contact_that_is_missing_is_found(job: Job, server: Live) -> None:
    """An old contact that appeared after the last run is reported as missing, with exit 13 and a hint."""
    late = min(json.loads(raw)["createdAt"] for raw in server.truth().values())
    raw = json.dumps({"_id": "late", "isContact": True, "createdAt": late}).encode()
    server.change(lambda w, now: w.adopt(raw, now))
    ended = verified(job)
    assert (ended.code, "1 of them missing" in told(ended), "--full" in told(ended)) == (13, True, True)


def test_who_stays_deleted_or_rejected_is_not_missing(tmp_path: Path) -> None:
    """A contact that stays listed as DELETED and a rejected one are not reported as missing."""
    twice = b'{"_id":"one","_id":"other","isContact":true,"createdAt":"2025-03-01T10:00:00.000Z"}'
    with live(**SMALL, soft_delete="listed") as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings="[guard]\nmax_reject_share = 1\n")
        server.change(lambda w, now: w.adopt(twice, now))
        [gone, *_] = server.ids()
        job.run()
        server.change(lambda w, now: w.delete(gone, now))
        for _ in range(2):
            job.run(full=True)
        assert job.rows("select count(*) from contacts where contact_id = ?", gone) == [(0,)]
        ended = verified(job)
    assert ended.code == 0, told(ended)


def test_the_target_that_was_published_is_compared(account: Account, server: Live, tmp_path: Path) -> None:
    """If one of two targets was removed, the other is compared."""
    job = account.job(server, tmp_path, "duckdb", "parquet")
    job.duckdb.unlink()
    assert f"{CONTACTS} contacts, 0 of them missing" in told(verified(job))


def test_a_server_that_ignores_its_filters_cannot_be_compared_with(tmp_path: Path) -> None:
    """A server that ignores its filters is exit 13, and all other checks are still reported."""
    with live(**SMALL, applicable_filters="ignored") as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        job.run(allow_unproven=True)
        ended = verified(job)
    assert (ended.code, "does not honour its time filters" in told(ended)) == (13, True)
    assert {check["check"] for check in ended.document["checks"]} >= {"manifests", "contents"}


def test_a_filtered_export_cannot_be_compared(tmp_path: Path) -> None:
    """The comparison of a filtered export is exit 2, as all contacts outside the filter would count as missing."""
    with live(**SMALL) as server:
        settings = "[extract.filters]\nuserInteracted = true\n"
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings=settings)
        assert job.run().exit_code == 0
        ended = verified(job)
    assert (ended.code, "a filtered export" in told(ended)) == (2, True)


@pytest.mark.parametrize("kind", ["duckdb", "parquet"])
def test_a_target_of_an_older_format_is_read_and_then_upgraded(
    kind: str, account: Account, server: Live, tmp_path: Path
) -> None:
    """Targets that have a row in `rejects` per run show each contact once, before and after their upgrade."""
    nameless = {"account": "main", "contact_id": None, "reason": "null_id", "path": "_id", "raw": '{"_id":null}'}
    job = account.job(server, tmp_path, kind)
    job.run()
    target = job.duckdb if kind == "duckdb" else job.parquet
    age(target, [{**nameless, "seq": seq, "observed_at": day(seq)} for seq in (1, 2)])
    query = "select account, raw, seq, first_seq, last_seq, seen from rejects"
    row = {"account": "main", "raw": '{"_id":null}', "seq": 2, "first_seq": 1, "last_seq": 2, "seen": 2}
    for _ in range(2):
        ended = verified(job)
        assert (ended.code, job.call("status", "CONFIG", "--json").code) == (0, 0), ended.out
        assert job.call("sql", "CONFIG", query, "--json").document == [row]
        assert job.run().exit_code == 0
    assert job.call("account", "rename", "CONFIG", "main", "shop", "--json").code == 0
    assert job.call("sql", "CONFIG", query, "--json").document == [row]


ERASED = {
    "everywhere": ("contacts", "contact_versions", "rejects"),
    "from the contacts": ("contacts",),
    "from the versions": ("contact_versions",),
}


@pytest.mark.parametrize("tables", ERASED.values(), ids=ERASED)
def test_whoever_was_erased_by_hand_is_not_called_back(tables: tuple[str, ...], job: Job) -> None:
    """After a manual deletion, `verify` reports differences with 22, and never advises to restore a backup."""
    with duckdb.connect(str(job.duckdb)) as connection:
        [who] = connection.execute("select min(contact_id) from contacts").fetchone() or ()
        for table in tables:
            connection.execute(f"delete from {table} where contact_id = ?", [who])  # noqa: S608 - our own names
    said = [job.call("verify", "CONFIG")]
    for full in (False, True):
        assert job.run(full=full).exit_code == 0
        said.append(job.call("verify", "CONFIG"))
    assert [ended.code for ended in said[:2]] == [22, 22] if "contact_versions" in tables else said[0].code == 22
    for ended in said:
        assert not re.search("backup|restore", (ended.out + ended.err).lower()), ended.out
    assert said[-1].code == (22 if "contact_versions" in tables else 0), said[-1].out


def test_cells_emptied_by_hand_are_told_without_the_old_copy(job: Job) -> None:
    """A contact that was anonymised by UPDATE is reported as different, without advice to restore a backup."""
    with duckdb.connect(str(job.duckdb)) as connection:
        connection.execute("update contacts set email = null, name = 'erased' where seq = 1")
    ended = job.call("verify", "CONFIG")
    assert (ended.code, "FAIL contents" in ended.out) == (22, True), ended.out
    assert not re.search("backup|restore", ended.out.lower())
