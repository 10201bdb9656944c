"""One run against a live account: published data, reported results, and failures that change nothing."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import duckdb
import pytest

from etl.api.rate import Pace
from etl.cli.render import render_run
from etl.extract.account import pace_of
from tests.support import expected_rows
from tests.support.campaign import campaign
from tests.support.live import TOKEN, Job, Live, Row, live

SECOND = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
MALFORMED, UNKNOWN_TOKEN = "not-a-token", "0" * 24
LENIENT = "[guard]\nmax_reject_share = 1\n"


@pytest.fixture
def server() -> Iterator[Live]:
    """An account of 150 contacts without oddities."""
    with live(contacts=150, nasty_share=0, small=True) as running:
        yield running


@pytest.fixture
def job(server: Live, tmp_path: Path) -> Job:
    """A job for that account."""
    return Job(tmp_path, {"main": server.url}, sinks=("duckdb",))


# --- the truth, field by field ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """A first run of 3,000 contacts from the command line; 5 % of the contacts are odd."""

    job: Job
    document: Any
    truth: dict[str, bytes]
    stats: Row


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The exported account, shared by all tests of this module."""
    with live(contacts=3000, nasty_share=0.05, no_created_at_share=0.01, seed=3) as server:
        job = Job(tmp_path_factory.mktemp("truth"), {"main": server.url}, settings=LENIENT)
        ended = job.command("run", "CONFIG", "--json")
        assert ended.code == 40, ended.err
        yield Exported(job, ended.document, server.truth(), server.stats())


def expected(truth: dict[str, bytes]) -> dict[str, Row]:
    """The rows that `contacts` must hold, by id."""
    rows = {}
    for raw in truth.values():
        try:
            row = expected_rows.row(raw, "main")
        except expected_rows.Unusable:
            continue
        rows[row["contact_id"]] = row
    return rows


def comparable(row: Row) -> Row:
    """A row as read, with `extra` parsed and the map as a dict."""
    extra = None if row["extra"] is None else expected_rows.parse(row["extra"].encode())
    return {**row, "extra": extra, "attributes": None if row["attributes"] is None else dict(row["attributes"])}


@pytest.mark.parametrize("sink", ["duckdb", "parquet"])
def test_contacts_equal_the_truth_field_by_field(sink: str, exported: Exported) -> None:
    """Every contact with a usable id has exactly one row, and every cell has the value sent (A23, A25-A40, S10)."""
    read = exported.job.in_duckdb() if sink == "duckdb" else exported.job.in_parquet(1)
    found = {row["contact_id"]: comparable(row) for row in read}
    wanted = expected(exported.truth)
    assert len(found) == len(read)
    assert found.keys() == wanted.keys()
    wrong = [
        (identity, column, found[identity][column], cell)
        for identity, row in wanted.items()
        for column, cell in row.items()
        if found[identity][column] != cell
    ]
    assert not wrong, wrong[:5]


def test_both_sinks_hold_the_same_rows(exported: Exported) -> None:
    """DuckDB and Parquet agree in every column, including the fingerprint (S10)."""
    by_sink = [
        {row["contact_id"]: row for row in rows} for rows in (exported.job.in_duckdb(), exported.job.in_parquet(1))
    ]
    assert by_sink[0] == by_sink[1]


def test_the_sum_is_conserved(exported: Exported) -> None:
    """Received is new + changed + unchanged + folded + rejected, and contacts not kept are in `rejects` (A25)."""
    counts, odd = exported.document["accounts"][0]["counts"], len(exported.truth) - len(expected(exported.truth))
    assert counts["received"] == sum(counts[name] for name in ("new", "changed", "unchanged", "folded", "rejected"))
    assert (counts["contacts"], counts["rejected"]) == (len(expected(exported.truth)), odd)
    assert exported.job.rows("select count(*) from rejects") == [(odd,)]


def test_every_row_carries_the_run_that_wrote_it(exported: Exported) -> None:
    """Every row has the run's T0 and `seq`, and each contact has one version."""
    [account] = exported.document["accounts"]
    stamps = exported.job.rows(
        "select distinct seq, strftime(observed_at, '%Y-%m-%dT%H:%M:%SZ'), account from contacts"
    )
    assert stamps == [(1, account["t0"], "main")]
    versions = exported.job.rows("select op, count(*), count(distinct contact_id) from contact_versions group by op")
    assert versions == [("upsert", *[account["counts"]["contacts"]] * 2)]


# --- the documents ---------------------------------------------------------------------------------------------------

RUN = {"exit": int, "seconds": float, "accounts": list, "sinks": dict, "error": (dict, type(None))}
ACCOUNT = {
    "account": str,
    "mode": str,
    "seq": int,
    "t0": str,
    "watermark": str,
    "proof": dict,
    "counts": dict,
    "requests": dict,
}
PROOF = {"level": str, "windows": int, "unproven": list}
COUNTS = dict.fromkeys(
    ("received", "new", "changed", "unchanged", "deleted", "folded", "rejected", "contacts"),
    int,
)
REQUESTS = {"sent": int, "retried": int}
ERROR = {"code": int, "message": str, "where": str, "hint": str}


def assert_shape(document: Any, shape: dict[str, Any], *, more: frozenset[str] = frozenset()) -> None:
    """Check for exactly these keys (and `more`), each with its type."""
    assert document.keys() - more == shape.keys()
    assert {name: type(document[name]) for name in shape if not isinstance(document[name], shape[name])} == {}


def test_run_prints_the_pinned_document(exported: Exported) -> None:
    """The `--json` document of `run` has the fixed keys and types, times with `Z`, and the numbers of `runs`."""
    document, job = exported.document, exported.job
    assert_shape(document, RUN)
    [account] = document["accounts"]
    assert_shape(account, ACCOUNT, more=frozenset({"error"}))
    for part, shape in (("proof", PROOF), ("counts", COUNTS), ("requests", REQUESTS)):
        assert_shape(account[part], shape)
    assert SECOND.fullmatch(account["t0"])
    assert account["watermark"].endswith("Z")
    assert datetime.fromisoformat(account["watermark"]) <= datetime.fromisoformat(account["t0"])
    assert (account["mode"], account["seq"], document["error"]) == ("full", 1, None)
    assert document["sinks"] == {
        "duckdb": {"path": str(job.duckdb), "seq": 1},
        "parquet": {"path": str(job.parquet), "seq": 1},
    }
    assert account["requests"]["sent"] == exported.stats["requests"]
    [recorded] = job.call("sql", "CONFIG", "select * from runs", "--json").document
    assert {name: recorded[name] for name in COUNTS} == account["counts"]


def test_only_reads_are_sent(exported: Exported) -> None:
    """Nothing but `POST /inbox/users` with `isExport` "none" is sent (M11)."""
    assert exported.stats["violations"] == {}


def test_everything_made_is_private(exported: Exported) -> None:
    """Files are 0600 and folders 0700; only locks and attempts are left in the temporary folder (X3)."""
    made = [exported.job.folder / "data", *(exported.job.folder / "data").rglob("*")]
    assert {stat.S_IMODE(p.stat().st_mode) for p in made if p.is_dir()} == {0o700}
    assert {stat.S_IMODE(p.stat().st_mode) for p in made if p.is_file()} == {0o600}
    assert {p.suffix for p in exported.job.temporary.iterdir()} == {".lock", ".jsonl"}


# --- failures: one document, the right code, nothing changed ---------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A way to fail: the settings of the server, the job and the command, and the exit code."""

    code: int
    sandbox: Row
    token: str = TOKEN
    settings: str = ""
    words: tuple[str, ...] = ()


def status(number: int, **spec: Any) -> Row:
    """Settings of a server that returns this status for every request."""
    return {"faults": ({"kind": "status", "status": number, **spec},)}


FAILURES = {
    "A1 unknown token": Failure(10, {}, token=UNKNOWN_TOKEN),
    "A48 malformed token": Failure(10, {}, token=MALFORMED),
    "A4 forbidden": Failure(10, status(403)),
    "A2 token expires": Failure(10, {"token_expires_after": 12}),
    "A49 authtype lost": Failure(10, status(401)),
    "A6 endless Retry-After": Failure(11, status(429, retry_after="100000")),
    "P28 deadline": Failure(11, {"latency": 0.5}, settings='[extract]\ndeadline = "1s"\n'),
    "A4 not found": Failure(12, status(404)),
    "A4 bad request": Failure(12, status(400)),
    "N18 redirect": Failure(12, {"faults": ({"kind": "redirect"},)}),
    "N15 HTML": Failure(12, {"faults": ({"kind": "html"},)}),
    "N7 truncated": Failure(12, {"faults": ({"kind": "truncated_json"},)}),
    "N8 an object": Failure(12, {"faults": ({"kind": "envelope", "shape": "object"},)}),
    "A12 no content": Failure(12, {"faults": ({"kind": "no_content"},)}),
    "A11 success false": Failure(12, {"faults": ({"kind": "success_false", "code": 422},)}),
    "A20 filter lost": Failure(12, {"faults": ({"kind": "ignore_dates", "from": 20},)}),
    "A50 filters ignored": Failure(13, {"applicable_filters": "ignored"}),
    "A25 too many rejects": Failure(14, {"nasty_share": 0.5, "nasty_kinds": ("id_null",)}),
    "filter unknown": Failure(2, {}, settings='[extract.filters]\ntag = ["vip"]\n'),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_first_run_leaves_no_target(name: str, tmp_path: Path) -> None:
    """A failed first run prints one document with one error, exits with its code, and publishes nothing."""
    failure = FAILURES[name]
    with live(contacts=150, small=True, **failure.sandbox) as server:
        job = Job(tmp_path, {"main": server.url}, {"main": failure.token}, failure.settings)
        document = job.run(*failure.words).document()
    assert_shape(document, RUN)
    assert document["exit"] == failure.code, document
    assert_shape(document["error"], ERROR)
    assert document["error"]["code"] == failure.code
    assert all(document["error"].values())
    assert document["sinks"] == {}
    assert not job.duckdb.exists()
    assert not job.parquet.exists()


@pytest.mark.parametrize("name", ["A1 unknown token", "N15 HTML", "A50 filters ignored", "A25 too many rejects"])
def test_a_failed_later_run_changes_nothing(name: str, tmp_path: Path) -> None:
    """SFO: a failed run leaves every byte of the DuckDB file and of the Parquet files unchanged."""
    failure = FAILURES[name]
    with live(contacts=150, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url})
        assert job.run().exit_code == 0
    before = job.fingerprint()
    with live(contacts=150, small=True, **failure.sandbox) as server:
        job.urls, job.tokens["main"] = {"main": server.url}, failure.token
        assert job.run(full=True).exit_code == failure.code
    assert job.fingerprint() == before


def test_no_output_holds_the_token_or_a_contact(tmp_path: Path) -> None:
    """Neither a successful nor a failed run prints the token or a value of a contact (X1, X2)."""
    with live(contacts=50, nasty_share=0.3, seed=9) as server:
        truth = server.truth()
        job = Job(tmp_path, {"main": server.url}, settings=LENIENT)
        said = [job.command("run", "CONFIG", "--json"), job.command("run", "CONFIG", "--full")]
        job.tokens["main"] = "5eed" * 5 + "ffff"
        said.append(job.command("run", "CONFIG"))
    text = "".join(ended.out + ended.err for ended in said)
    assert TOKEN not in text
    assert "5eed5eed" not in text
    contacts = [json.loads(raw.decode(errors="replace")) for raw in truth.values()]
    mails = [
        mail for c in contacts if (mail := c.get("profile", {}).get("userDetails", {}).get("contact", {}).get("email"))
    ]
    assert len(mails) > 10
    assert not [mail for mail in mails if str(mail) in text]


# --- several accounts, filters, proofs -------------------------------------------------------------------------------


def test_an_account_that_fails_does_not_stop_the_others(server: Live, tmp_path: Path) -> None:
    """If one account gets a 401, the other is published, the exit code is 10, and the next run catches up."""
    job = Job(tmp_path, {"one": server.url, "two": server.url}, {"one": UNKNOWN_TOKEN})
    document = job.run().document()
    one, two = document["accounts"]
    assert (document["exit"], document["error"]["code"]) == (10, 10)
    assert "one" in document["error"]["where"]
    assert (one["seq"], two["seq"]) == (None, 1)
    assert job.rows("select account, count(*) from contacts group by 1") == [("two", 150)]
    job.tokens.clear()
    assert job.run().exit_code == 0
    assert job.rows("select account, count(*) from contacts group by 1 order by 1") == [("one", 150), ("two", 150)]
    modes = job.rows("select seq, account, mode from runs order by all")
    assert modes == [(1, "two", "full"), (2, "one", "full"), (2, "two", "incremental")]


def test_the_exit_code_is_that_of_the_first_failing_account_in_the_file(server: Live, tmp_path: Path) -> None:
    """The first failing account in the configuration sets the exit code, not the first one in time."""
    with live(contacts=10, latency=0.05, faults=({"kind": "html"},)) as broken:
        job = Job(tmp_path, {"a": broken.url, "b": server.url, "c": server.url}, {"b": UNKNOWN_TOKEN})
        report = job.run()
    assert (report.exit_code, [account.error and account.error.exit_code for account in report.accounts]) == (
        12,
        [12, 10, None],
    )


def test_a_filtered_export_is_a_snapshot_of_what_matches(server: Live, tmp_path: Path) -> None:
    """A filtered run has no proof and no strikes, exits with 0, and replaces the last result by the current matches."""
    job = Job(tmp_path, {"main": server.url}, settings='[extract.filters]\nstatus = ["OPEN"]\n')
    document = job.run().document()
    assert (document["exit"], document["accounts"][0]["mode"]) == (0, "filtered")
    opened = {row["contact_id"] for row in expected(server.truth()).values() if row["status"] == "OPEN"}
    assert {row["contact_id"] for row in job.in_duckdb()} == opened
    closing = sorted(opened)[:3]
    server.change(lambda w, now: [w.delete(identity, now) for identity in closing])
    assert job.run().exit_code == 0
    assert {row["contact_id"] for row in job.in_duckdb()} == opened - set(closing)
    assert {row["contact_id"] for row in job.in_parquet(2)} == opened - set(closing)


FILTERS: dict[str, tuple[str, Any]] = {
    "list": ('status = ["OPEN", "CLOSED"]', lambda row: row["status"] in {"OPEN", "CLOSED"}),
    "tag": ('tags = ["vip"]', lambda row: "vip" in row["tags"]),
    "flag": ("isSubscriber = true", lambda row: row["is_subscriber"]),
    "flag false": ("userInteracted = false", lambda row: not row["user_interacted"]),
    "list of leads": ("isContact = false", lambda row: not row["is_contact"]),
    "text": (
        'searchText = "ada"',
        lambda row: "ada" in f"{row['name']} {row['user_provided_name']} {row['email']}".lower(),
    ),
    "time": (
        'createdAt = { startAt = "2025-06-01T00:00:00.000Z", endsAt = "" }',
        lambda row: row["created_at"] >= JUNE,
    ),
    "two": ('status = ["OPEN"]\ntags = ["vip"]', lambda row: row["status"] == "OPEN" and "vip" in row["tags"]),
}
JUNE = datetime(2025, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "applicable"),
    [*((name, "named") for name in FILTERS), ("list", "free"), ("two", "free"), ("time", "free")],
)
def test_a_filtered_export_holds_what_matches_and_nothing_else(name: str, applicable: str, tmp_path: Path) -> None:
    """Every kind of filter works, on servers that need it named in `applicableFilters` and on others."""
    toml, matches = FILTERS[name]
    with live(contacts=400, nasty_share=0, applicable_filters=applicable, lists_named=applicable == "named") as server:
        job = Job(tmp_path, {"main": server.url}, settings=f"[extract.filters]\n{toml}\n", sinks=("duckdb",))
        assert job.run().exit_code == 0
        wanted = {identity for identity, row in expected(server.truth()).items() if matches(row)}
    assert 0 < len(wanted) < 400
    assert {row["contact_id"] for row in job.in_duckdb()} == wanted


@pytest.mark.parametrize("later", ["", '[extract.filters]\nstatus = ["CLOSED"]\n'])
def test_a_target_made_with_other_filters_is_refused(later: str, server: Live, tmp_path: Path) -> None:
    """Other filters than those of the target are exit 2 and change nothing, so that a target is never a mixture."""
    job = Job(tmp_path, {"main": server.url}, settings='[extract.filters]\nstatus = ["OPEN"]\n')
    assert job.run().exit_code == 0
    before, job.settings = job.fingerprint(), later
    assert job.run().exit_code == 2
    assert job.fingerprint() == before


def test_a_full_target_is_not_filtered_later(job: Job) -> None:
    """Filters on a target with all contacts are exit 2 and change nothing."""
    assert job.run().exit_code == 0
    before = job.fingerprint()
    assert job.run("extract.filters.tags=['vip']").exit_code == 2
    assert job.fingerprint() == before


@pytest.mark.parametrize("command", ["plan", "doctor"])
@pytest.mark.parametrize("filters", ["extract.filters.tags=['vip']", "extract.filters.statu=['OPEN']"])
def test_what_a_run_would_refuse_is_told_beforehand(command: str, filters: str, job: Job) -> None:
    """`plan` and `doctor` report filters that the target was not made with, and unknown filters."""
    assert job.run().exit_code == 0
    assert job.call(command, "CONFIG").code == 0
    assert job.call(command, "CONFIG", "--set", filters).code == 2


def test_a_link_to_a_database_stays_one(job: Job) -> None:
    """If the path is a symbolic link, the file it points to is replaced."""
    job.sinks = ("duckdb",)
    real = job.folder / "elsewhere" / "real.duckdb"
    assert job.run(f"sinks.duckdb.path={real}").exit_code == 0
    job.duckdb.parent.mkdir(exist_ok=True)
    job.duckdb.symlink_to(real)
    assert job.run().exit_code == 0
    assert job.duckdb.is_symlink()
    with duckdb.connect(str(real), read_only=True) as connection:
        assert connection.execute("select max(seq) from runs").fetchall() == [(2,)]


def test_allow_unproven_publishes_and_says_so(tmp_path: Path) -> None:
    """`--allow-unproven` publishes with exit 0 instead of 13, and the proof lists the gaps (A50, A51)."""
    with live(contacts=150, nasty_share=0, small=True, applicable_filters="ignored") as server:
        job = Job(tmp_path, {"main": server.url})
        document = job.run(allow_unproven=True).document()
        assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids())
    proof = document["accounts"][0]["proof"]
    assert (document["exit"], proof["level"], len(proof["unproven"])) == (0, "pages", 1)
    assert job.rows("select proof_level, unproven from runs") == [("pages", proof["unproven"])]


def test_after_an_unproven_run_everything_is_read_again(tmp_path: Path) -> None:
    """A full run follows an unproven one, because an incremental run would not find older contacts that it missed."""
    settings = {"contacts": 90, "nasty_share": 0, "small": True}
    with live(**settings, applicable_filters="ignored") as server:
        job = Job(tmp_path, {"main": server.url})
        assert job.run(allow_unproven=True).exit_code == 0
    with live(**settings) as server:
        job.urls = {"main": server.url}
        [told] = job.call("plan", "CONFIG", "--json").document["accounts"]
        runs = [job.run(allow_shrink=True).document()["accounts"][0] for _ in range(2)]
        ids = set(server.ids())
    assert told["mode"] == "full"
    assert [(run["mode"], run["proof"]["unproven"]) for run in runs] == [("full", []), ("incremental", [])]
    assert ids <= {row["contact_id"] for row in job.in_duckdb()}


def test_allow_unproven_forgives_nothing_else(tmp_path: Path) -> None:
    """`--allow-unproven` does not override other exit codes."""
    with live(contacts=150, small=True, nasty_share=0.5, nasty_kinds=("id_null",)) as server:
        job = Job(tmp_path, {"main": server.url})
        assert job.run(allow_unproven=True).exit_code == 14


# --- other servers ---------------------------------------------------------------------------------------------------

PERSONALITIES: dict[str, Row] = {
    "A50 filters named": {"applicable_filters": "named"},
    "A21 start exclusive": {"start_bound": "exclusive"},
    "A21 end exclusive": {"end_bound": "exclusive"},
    "A21 seconds, both exclusive": {"granularity": "s", "start_bound": "exclusive", "end_bound": "exclusive"},
    "A21 days of another zone": {"granularity": "day", "zone_offset_minutes": 330},
    "A13 last page repeated": {"past_end": "repeat"},
    "A14 404 past the end": {"past_end": "404"},
    "A15 pages from 0": {"page_base": 0},
    "A15 page 0 is page 1": {"page_zero": "first"},
    "A16 page ignored": {"ignore_page": True},
    "A19 total capped": {"total": "capped", "total_cap": 100},
    "A19 total as text": {"total": "text"},
    "A22 shuffled": {"sort": "shuffled"},
    "A22 oldest first": {"sort": "created_asc"},
    "A42 nobody": {"contacts": 0},
    "A52 less than a page": {"contacts": 20},
    "leads are everyone": {"is_contact": "overlap"},
    "both lists the same": {"is_contact": "same"},
    "M5 one creation time": {"ties": 120},
    "A27 page 1 without creation times": {"no_created_at_share": 0.4, "sort": "created_asc", "page_size": 20},
    "A27 no creation time": {"no_created_at_share": 0.1},
    "gzip": {"gzip": True},
    "14 a page": {"page_size": 14},
}


@pytest.mark.parametrize("name", PERSONALITIES)
def test_whatever_the_server_is_like_nobody_is_missing(name: str, tmp_path: Path) -> None:
    """On every kind of server, a first run and a run after changes are proven and equal to the truth."""
    with live(**{"contacts": 300, "nasty_share": 0, "small": True, **PERSONALITIES[name]}) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        assert_complete(job, server)
        ids = server.ids()
        server.change(lambda w, now: [w.touch(identity, now) for identity in ids[:7]])
        server.change(lambda w, now: [w.insert(now) for _ in range(5)])
        server.change(lambda w, now: [(w.flip(identity, now), w.touch(identity, now)) for identity in ids[7:9]])
        assert_complete(job, server)


def test_a_server_that_counts_people_it_does_not_list_is_given_up_soon(tmp_path: Path) -> None:
    """A total above the number of listed contacts is exit 13, without a search for single contacts (A19)."""
    with live(contacts=600, nasty_share=0, total="doubled") as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        assert job.run().exit_code == 13
        assert server.stats()["requests"] < 300
        assert job.run(allow_unproven=True).exit_code == 0
        assert {row["contact_id"] for row in job.in_duckdb()} >= set(server.ids())


def assert_complete(job: Job, server: Live) -> None:
    """Run, and check that the result is proven and equal to the truth."""
    report = job.run()
    assert report.exit_code == 0, report.error
    found, wanted = {row["contact_id"]: comparable(row) for row in job.in_duckdb()}, expected(server.truth())
    assert found.keys() == wanted.keys()
    assert not [i for i, row in wanted.items() for column, cell in row.items() if found[i][column] != cell]


LIES: dict[str, Row] = {
    "A18 short pages, by the total": {"total": "exact", "faults": ({"kind": "short_page"},)},
    "A18 a short page now and then": {"faults": ({"kind": "short_page", "every": 7},)},
    "N24 somebody else's page": {"faults": ({"kind": "duplicate_page", "every": 6},)},
    "A43 nothing now and then": {"faults": ({"kind": "empty_list", "every": 9},)},
    "A43 nothing any more": {"faults": ({"kind": "empty_list", "from": 50},)},
    "N24 nothing new any more": {"faults": ({"kind": "duplicate_page", "from": 50},)},
    "A17 pages of half the size": {"faults": ({"kind": "page_size", "size": 25, "from": 25},)},
    "A17 pages of changing size": {"faults": ({"kind": "page_size", "size": 25, "every": 2},)},
    "A20 dates ignored now and then": {"faults": ({"kind": "ignore_dates", "every": 9},)},
    "A16 pages ignored later": {"faults": ({"kind": "ignore_page", "from": 20},)},
}


@pytest.mark.parametrize("name", LIES)
def test_a_server_that_hides_contacts_is_never_believed_in_silence(name: str, tmp_path: Path) -> None:
    """If a server hides contacts, the result is complete or the exit code is 12, 13 or 14 and nothing is published."""
    with live(contacts=400, nasty_share=0, small=True, **LIES[name]) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        code = job.run().exit_code
        if code == 0:
            assert {row["contact_id"] for row in job.in_duckdb()} == set(server.ids())
        else:
            assert code in {12, 13, 14}
            assert not job.duckdb.exists()


MISHAPS: dict[str, Row] = {
    "A8 500": {"kind": "status", "status": 500, "every": 25},
    "A5 429": {"kind": "retry_after", "retry_after": "0", "every": 25},
    "A7 429 without a word": {"kind": "status", "status": 429, "every": 25},
    "N4 reset": {"kind": "reset", "every": 25},
    "N5 cut": {"kind": "close_mid_body", "every": 25},
    "N6 chunk cut": {"kind": "chunk_cut", "every": 25},
    "N7 truncated": {"kind": "truncated_json", "every": 25},
    "N11 bad gzip": {"kind": "bad_gzip", "every": 25},
    "N12 gzip bomb": {"kind": "gzip_bomb", "megabytes": 200, "nth": 30},
    "N15 HTML": {"kind": "html", "every": 25},
    "N16 wrong type": {"kind": "content_type", "type": "text/plain"},
    "N17 BOM": {"kind": "charset", "charset": "utf-8-sig"},
    "N21 closed after": {"kind": "close_after", "every": 3},
    "A23 rows twice": {"kind": "duplicate_row", "every": 7},
    "A12 nothing": {"kind": "empty", "every": 25},
    "A11 busy under 200": {"kind": "success_false", "code": 503, "every": 25},
}


ALONE_HERE = ("N7 truncated", "N12 gzip bomb", "N15 HTML", "A23 rows twice")
"""Mishaps of which `tests/product/test_end_to_end.py` has none, or a smaller one."""


@pytest.mark.parametrize("name", [name if name in ALONE_HERE else campaign(name) for name in MISHAPS])
def test_a_passing_mishap_costs_a_request_and_nothing_else(name: str, tmp_path: Path) -> None:
    """After a transient fault the page is requested again, and the result is complete."""
    with live(contacts=300, nasty_share=0, small=True, faults=(MISHAPS[name],)) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        assert_complete(job, server)


@pytest.mark.parametrize("limits", [{"rate_limit": 40.0}, {"max_in_flight_allowed": 3}], ids=["a second", "at once"])
def test_a_server_that_allows_little_is_read_to_the_end(tmp_path: Path, limits: dict[str, Any]) -> None:
    """The summary and `runs` report how much the server throttled the run, and the limit it seems to have (A7)."""
    with live(contacts=400, nasty_share=0, small=True, latency=0.01, **limits) as server:
        report = Job(tmp_path, {"main": server.url}, sinks=("duckdb",)).run()
    assert report.error is None
    record = report.accounts[0].record
    assert record is not None
    assert record.requests.retried <= 10 + 0.1 * record.requests.sent
    pace = record.detail["pace"]
    assert pace["throttled"] >= 1
    assert pace["waited"] > 0
    assert f"slowed down {pace['throttled']} times by the server" in render_run(report)


def test_a_run_begins_at_the_pace_of_the_last(tmp_path: Path) -> None:
    """A run starts with the pace that the last run found (A7)."""
    with live(contacts=600, nasty_share=0, small=True, latency=0.01) as server:
        last = Job(tmp_path, {"main": server.url}, sinks=("duckdb",)).run().accounts[0].record
    assert last is not None
    pace = pace_of(last, concurrency=16)
    assert pace.at_once == last.detail["pace"]["at_once"] > Pace(16).at_once
    assert pace.interval == 0
    slow = replace(last, detail={"pace": {"at_once": 3, "per_second": 20.0}})
    assert (pace_of(slow, 16).at_once, pace_of(slow, 16).interval) == (3, 0.05)
    assert pace_of(None, 16) == pace_of(replace(last, detail={}), 16) == Pace(16)


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_clocks_that_differ_are_told(tmp_path: Path, ahead: float) -> None:
    """If the clocks differ, log, `runs` and summary have a warning, and no contact is lost (N25)."""
    with live(contacts=30, nasty_share=0, small=True) as server:
        job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",))
        server.ahead = ahead
        warned = job.call("run", "CONFIG")
        server.ahead = 0
        calm = job.call("run", "CONFIG")
    assert (warned.code, calm.code) == (0, 0)
    assert ("clocks.differ" in warned.err, "clocks.differ" in calm.err) == (True, False)
    [(found,), (none,)] = job.rows("select (detail->>'clock_ahead')::int from runs order by seq")
    assert abs(found - ahead) < 60
    assert abs(none) <= 2
    side = "ahead of" if ahead > 0 else "behind"
    assert re.search(rf"^clock .* is 3,[56]\d\d s {side} ours", warned.out, re.MULTILINE)
    assert " ours; " not in calm.out
    back = re.search(r"has gone back: T0 is 3,[56]\d\d s before", calm.out)  # 3,600 if both began within one second
    assert (back is not None, "clock.went_back" in calm.err) == (ahead > 0, ahead > 0)


@pytest.mark.campaign
def test_a_cap_on_requests_holds_whatever_is_asked_for(tmp_path: Path) -> None:
    """The request cap holds in every second: probes, cross-check, retries, accounts with one token, all commands."""
    faults = ({"kind": "status", "status": 503, "every": 25}, {"kind": "reset", "every": 40})
    with live(contacts=60, nasty_share=0, small=True, latency=0.02, latency_jitter=1.0, faults=faults) as server:
        job = Job(tmp_path, {"a": server.url, "b": server.url}, settings=CAPPED, sinks=("duckdb",))
        planned = job.call("plan", "CONFIG", "--json").document["accounts"]
        began = monotonic()
        assert job.run().exit_code == 0
        seconds, sent = monotonic() - began, sum(sent for (sent,) in job.rows("select requests_sent from runs"))
        for words in (("doctor", "CONFIG"), ("verify", "CONFIG", "--live", "2")):
            assert job.call(*words).code == 0
        assert 1 < server.stats()["max_per_second"] <= 40
    assert seconds >= sent / 40
    asked = sum(account["requests"] for account in planned)
    assert [account["sharing"] for account in planned] == [2, 2]
    assert all(account["seconds"] >= asked / 40 for account in planned)


CAPPED = "[extract]\nconcurrency = 16\nrequests_per_second = 40\n"


def test_accounts_with_different_tokens_have_a_cap_each(tmp_path: Path) -> None:
    """Only accounts with the same token share a cap, and `plan` says how many do."""
    with live(contacts=0) as server, live(contacts=0, token="b" * 24) as other:
        urls = {"a": server.url, "b": other.url, "c": server.url}
        job = Job(tmp_path, urls, {"b": "b" * 24}, settings="[extract]\nrequests_per_second = 50\n")
        told = job.call("plan", "CONFIG")
    found = re.findall(r" s at 50 requests a second(, which 2 accounts share)?;", told.out)
    assert [bool(shared) for shared in found] == [True, False, True]
    assert TOKEN not in told.out + told.err
