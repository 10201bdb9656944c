"""`etl diff`: what changed between two published states, against a brute-force comparison and in both sinks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import etl
from etl import schema
from etl.commands.diff import compare
from etl.sinks import tables
from etl.storage import duck
from tests.support.live import Job, live

HISTORIES = 200
CONTENT = {
    "status": [None, "OPEN", "CLOSED"],
    "name": ["Ada", "ada", "Grace"],
    "tags": [None, [], ["a", "b"], ["b", "a"]],
    "attributes": [None, [("k", "1")], [("k", "2")], [("k", None)]],
    "extra": [None, '{"a":1}', '{"a":2}'],
    "last_seen_at": [None, datetime(2026, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)],
}
PRESENCE = {"website_visits": [None, 1, 2], "is_online": [True, False]}
Contact = dict[str, Any]
State = dict[tuple[str, str], Contact]


def content(contact: Contact) -> Contact:
    """The columns that count as changes."""
    return {name: contact[name] for name in CONTENT}


@dataclass
class History:
    """Random runs over a few contacts of two accounts, their versions, and the state that each run left."""

    seed: int
    runs: list[tuple[int, str, datetime]] = field(default_factory=list)
    versions: list[Contact] = field(default_factory=list)
    states: dict[tuple[str, int], State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Draw the runs; the server's clock goes back at times, and some versions repeat the one before."""
        random, now = Random(self.seed), datetime(2026, 1, 1, tzinfo=UTC)
        current: dict[str, State] = {"main": {}, "shop": {}}
        for seq in range(1, random.randint(2, 9)):
            now += timedelta(hours=random.choice([1, 1, 1, -3]))
            for account in random.sample(["main", "shop"], random.randint(1, 2)):
                before = current[account]
                after = current[account] = dict(before)
                for number in range(6):
                    key = (account, f"c{number}")
                    if random.random() < 0.5:
                        pool = {**CONTENT, **PRESENCE}
                        after[key] = {name: random.choice(values) for name, values in pool.items()}
                    elif random.random() < 0.3:
                        after.pop(key, None)
                    self._version(random, seq, now, key, before.get(key), after.get(key))
                self.runs.append((seq, account, now))
                self.states[account, seq] = after

    def _version(
        self, random: Random, seq: int, now: datetime, key: tuple[str, str], was: Contact | None, now_is: Contact | None
    ) -> None:
        """Record the version that the run wrote, if it wrote one."""
        repeated = was is not None and random.random() < 0.1
        if now_is and (was is None or content(was) != content(now_is) or repeated):
            text = json.dumps(content(now_is), default=str)
            fingerprint = random.choice(["", "2:"]) + hashlib.sha256(text.encode()).hexdigest()
            stamped = {"row_hash": fingerprint, "op": "upsert", **now_is}
        elif was and not now_is:
            stamped = {"row_hash": "", "op": "delete", **was}
        else:
            return
        self.versions.append({"account": key[0], "contact_id": key[1], "seq": seq, "observed_at": now, **stamped})

    def last(self, account: str, named: int | datetime) -> int:
        """The account's last run in the state of this name."""
        kept = [
            seq
            for seq, name, at in self.runs
            if name == account and named >= (at if isinstance(named, datetime) else seq)
        ]
        return max(kept, default=0)

    def expected(self, before: int | datetime, after: int | datetime) -> dict[str, Any]:
        """The difference, by comparing whole states contact by contact."""
        counts = dict.fromkeys(("new", "changed", "deleted", "changed_back", "came_and_went"), 0)
        found: dict[str, Any] = {**counts, "columns": {}, "rows": []}
        for account in sorted({name for _, name, _ in self.runs}):
            bounds = self.last(account, before), self.last(account, after)
            old, new = (self.states.get((account, seq), {}) for seq in bounds)
            between = [v for v in self.versions if v["account"] == account and min(bounds) < v["seq"] <= max(bounds)]
            for contact_id in sorted({version["contact_id"] for version in between}):
                was, is_now = old.get((account, contact_id)), new.get((account, contact_id))
                columns = [name for name in CONTENT if was and is_now and was[name] != is_now[name]]
                if was and is_now:
                    change = "changed" if columns else "changed_back"
                else:
                    change = "deleted" if was else "new" if is_now else "came_and_went"
                found[change] += 1
                for name in columns:
                    found["columns"][name] = found["columns"].get(name, 0) + 1
                if change in {"new", "changed", "deleted"}:
                    found["rows"].append((account, contact_id, change, set(columns)))
        return found

    def published(self) -> duckdb.DuckDBPyConnection:
        """A connection with the tables that this history left."""
        connection = duck.connect()
        connection.execute(tables.create("contact_versions", tables.VERSIONS))
        connection.execute(tables.create("runs", tables.RUNS))
        rows = pa.Table.from_pylist(self.versions, schema.CONTACTS_SCHEMA.append(pa.field("op", pa.string())))
        connection.register("rows", rows)
        connection.execute(f"insert into contact_versions by name select {tables.names(tables.VERSIONS)} from rows")  # noqa: S608 - our names
        connection.executemany("insert into runs (seq, account, observed_at) values (?, ?, ?)", self.runs)
        return connection


@pytest.mark.parametrize(
    "start", [pytest.param(start, marks=[pytest.mark.campaign] if start else []) for start in range(0, HISTORIES, 50)]
)
def test_a_difference_is_that_of_the_whole_states(start: int) -> None:
    """Over random histories, counts, columns and contacts agree with a brute-force comparison, in both directions."""
    for history in map(History, range(start, start + 50)):
        random, seqs = Random(history.seed), sorted({seq for seq, _, _ in history.runs})
        times = [at + timedelta(minutes=random.choice([-1, 0, 1])) for _, _, at in history.runs]
        pairs = [(-2, -1), (0, -1), random.sample([0, *seqs], 2), (-1, times[0]), (random.choice(times), times[-1])]
        with history.published() as connection:
            for before, after in (pair for pair in pairs if len(seqs) > 1 or -2 not in pair):
                found = compare(connection, str(before), str(after), rows=99)
                named = [seqs[one] if isinstance(one, int) and one < 0 else one for one in (before, after)]
                expected = history.expected(*named)
                rows = [(row.account, row.contact_id, row.change, set(row.columns)) for row in found.rows]
                told = {name: getattr(found, name) for name in expected} | {
                    "columns": dict(found.columns),
                    "rows": rows,
                }
                assert told == expected, (history.seed, before, after)
                assert list(found.columns.values()) == sorted(found.columns.values(), reverse=True)


@pytest.fixture(scope="module", params=["duckdb", "parquet"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Three runs, in one sink; between the first two, contacts were added, changed and deleted."""
    with live(contacts=60, nasty_share=0, seed=2) as server:
        done = Job(tmp_path_factory.mktemp("diff"), {"main": server.url}, sinks=(request.param,))
        assert done.run().exit_code == 0
        added, edited, deleted = range(4), server.ids()[:5], server.ids()[-2:]
        server.change(lambda world, now: [world.insert(now) for _ in added])
        server.change(lambda world, now: [world.edit(one, now) for one in edited])
        server.change(lambda world, now: [world.delete(one, now) for one in deleted])
        server.ahead = 60
        assert [done.run(full=True).exit_code for _ in range(2)] == [0, 0]
        yield done


def test_the_difference_is_what_the_runs_counted(job: Job) -> None:
    """Between neighbouring runs, the counts are those of the later run's summary."""
    counted = {row["seq"]: row for row in job.call("status", "CONFIG", "--json").document["runs"]}
    for before, after, run in ((1, 2, 2), (-2, -1, 3), (0, 1, 1)):
        found = job.call("diff", "CONFIG", str(before), str(after), "--json").document
        assert {name: found[name] for name in ("new", "changed", "deleted")} == {
            name: counted[run][name] for name in ("new", "changed", "deleted")
        }
        assert (found["before"]["seq"], found["after"]["seq"]) == (run - 1, run)
    assert job.call("diff", "CONFIG", "1", "-1").out.startswith("+4 ~5 -2 contacts from run 1 (")


def test_a_time_means_what_as_of_shows(job: Job) -> None:
    """A state named by a time is that of the last run up to it; before the first run it is empty."""
    found = job.call("diff", "CONFIG", "2000-01-01", "2999-01-01", "--json").document
    assert (found["before"], found["after"]["seq"], found["new"]) == ({"seq": 0, "observed_at": None}, 3, 62)
    assert job.call("diff", "CONFIG", "2000-01-01", "2000-01-02").out == "+0 ~0 -0 contacts from nothing to nothing\n"


def test_contacts_are_listed_with_columns_and_values(job: Job) -> None:
    """`--rows` lists contacts with their changed columns, and `--values` shows these before and after."""
    plain = job.call("diff", "CONFIG", "1", "2", "--rows", "99")
    assert plain.out.count("\n+ main ") == 4
    assert plain.out.count("\n~ main ") == 5
    assert "->" not in plain.out
    with_values = job.call("diff", "CONFIG", "1", "2", "--rows", "99", "--values", "--json").document
    changed = [row for row in with_values["rows"] if row["change"] == "changed"]
    for row in changed:
        assert sorted(row["values"]) == sorted(row["columns"])
        assert all(pair["before"] != pair["after"] for pair in row["values"].values())
    query = f"select * from contact_versions where contact_id = '{changed[0]['contact_id']}' order by seq"  # noqa: S608
    versions = job.call("sql", "CONFIG", query, "--json")
    old, new = versions.document
    assert all(
        changed[0]["values"][name] == {"before": old[name], "after": new[name]} for name in changed[0]["columns"]
    )


@pytest.mark.parametrize("state", ["4", "-4", "yesterday evening", "2026-13-01", "99999999999999999999"])
def test_an_unknown_state_is_a_usage_error(job: Job, state: str) -> None:
    """A run that does not exist, or text that is neither a number nor a time, exits with 2 and a hint."""
    done = job.call("diff", "CONFIG", state, "-1")
    assert (done.code, done.out) == (2, "")
    assert "-1: the newest" in done.err


def test_a_misspelt_option_is_not_a_state(job: Job) -> None:
    """Because negative numbers are operands, unknown options are refused by the command itself."""
    done = job.call("diff", "CONFIG", "--row", "3", "-1")
    assert done.code == 2
    assert "no option --row" in done.err


def test_a_program_gets_the_values(job: Job) -> None:
    """`etl.diff` returns the same difference, typed."""
    found = etl.diff(etl.load_config(job.config()), -2, -1, rows=5)
    assert isinstance(found, etl.Difference)
    assert (found.new, found.changed, found.deleted, len(found.rows)) == (0, 0, 2, 2)
    assert found.document() == job.call("diff", "CONFIG", "-2", "-1", "--rows", "5", "--json").document
