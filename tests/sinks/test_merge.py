"""Deduplication and merge against earlier snapshots, without a sink: DuckDB, and the snapshot in memory."""

# ruff: noqa: S608 - the SQL consists of the column table, constant names and quoted literals.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl import schema
from etl.errors import EtlError, TargetCorrupt
from etl.model import AccountYield, Counts, Merged, Mode, Publication, RunRecord, Span, union
from etl.sinks import merge
from etl.storage import duck
from etl.storage.row_hash import FORMER_SQL
from tests.support.publishing import EVERYTHING, Row, brought, contact, day, publication

Key = tuple[str, str]
_STRIKES = pa.schema(
    [("account", pa.string()), ("contact_id", pa.string()), ("strikes", pa.int8()), ("seq", pa.int64())]
)
_REJECTS = pa.schema([column.arrow for column in schema.REJECTS])


@dataclass
class Snapshot:
    """The state of a sink: contacts and strikes by (account, contact_id), all versions, the last runs."""

    contacts: dict[Key, Row] = field(default_factory=dict)
    strikes: dict[Key, Row] = field(default_factory=dict)
    versions: list[Row] = field(default_factory=list)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    rejects: dict[Key, Row] = field(default_factory=dict)

    def merge(self, publication: Publication) -> Merged:
        """Merge a publication and apply its result."""
        with duck.connect() as connection:
            connection.register("contacts", pa.Table.from_pylist(list(self.contacts.values()), schema.CONTACTS_SCHEMA))
            connection.register("strikes", pa.Table.from_pylist(list(self.strikes.values()), _STRIKES))
            connection.register("rejects", pa.Table.from_pylist(list(self.rejects.values()), _REJECTS))
            merged = merge.prepare(connection, publication, self.runs)

            def rows(relation: str) -> list[dict[str, object]]:
                return connection.sql(f"SELECT * FROM {relation}").to_arrow_table().to_pylist()

            self.versions += rows("versions")
            upserts, outgoing, strikes = rows("upserts"), rows("outgoing"), rows("next_strikes")
            rejects = rows("next_rejects")
        for row in outgoing:
            if row["verdict"] == "deleted":
                del self.contacts[_key(row)]
        for row in upserts:
            self.contacts[_key(row)] = {name: row[name] for name in schema.column_names()}
        self.strikes = {_key(row): row for row in strikes}
        assert len(strikes) == len(self.strikes)
        for row in rejects:
            known = row.pop("known")
            key = str(row["account"]), str(row["contact_id"] or row["raw"])
            assert (key in self.rejects) is known
            self.rejects[key] = row
        self.runs |= {brought.record.account: brought.record for brought in publication.accounts}
        return merged


def _key(row: Row) -> Key:
    return str(row["account"]), str(row["contact_id"])


class Account:
    """Runs of one account, one after another, against one snapshot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshot = Snapshot()
        self.seq = 0

    def run(
        self,
        *rows: Row,
        coverage: Sequence[Span] = EVERYTHING,
        mode: Mode = "full",
        rejects: Sequence[Row] = (),
    ) -> Counts:
        """Merge a run that read these rows, and return its counts."""
        self.seq += 1
        one = brought(self.folder, "main", rows, seq=self.seq, coverage=coverage, mode=mode, rejects=rejects)
        return self._merge(one)

    def again(self, *rows: Row, resumed: int = 7, rejects: Sequence[Row] = ()) -> Counts:
        """Merge a run that resumed the last one, and so has its T0."""
        t0 = self.snapshot.runs["main"].t0
        self.seq += 1
        one = brought(self.folder, "main", rows, seq=self.seq, rejects=rejects)
        return self._merge(replace(one, record=replace(one.record, t0=t0, detail={"resumed": resumed})))

    def _merge(self, one: AccountYield) -> Counts:
        self.merged = self.snapshot.merge(publication(one))
        return self.merged.counts["main"]

    def contact(self, number: int) -> Row | None:
        """The row of the contact in `contacts`."""
        return self.snapshot.contacts.get(("main", f"{number:024x}"))

    def versions(self, number: int) -> list[tuple[object, object]]:
        """(seq, op) of every version of the contact."""
        found = [row for row in self.snapshot.versions if row["contact_id"] == f"{number:024x}"]
        return [(row["seq"], row["op"]) for row in found]


@pytest.fixture
def account(tmp_path: Path) -> Account:
    """An account without earlier runs."""
    return Account(tmp_path)


def test_the_first_run_makes_every_contact_new(account: Account) -> None:
    """Each contact gets a version, T0 as `observed_at`, and the number of the run."""
    counts = account.run(contact(1), contact(2))
    assert (counts.received, counts.new, counts.contacts) == (2, 2, 2)
    row = account.contact(1)
    assert row is not None
    assert (row["observed_at"], row["seq"], row["account"]) == (day(1), 1, "main")
    assert account.versions(1) == [(1, "upsert")]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({"updated_at": day(3)}, {"updated_at": day(2)}, "first"),
        ({"updated_at": day(2)}, {"updated_at": day(3)}, "second"),
        ({"updated_at": day(2)}, {"updated_at": None}, "first"),
        ({"updated_at": None}, {"updated_at": day(2)}, "second"),
        ({"updated_at": day(2)}, {"updated_at": day(2)}, "second"),
        ({}, {}, "second"),
    ],
)
def test_the_fold_keeps_the_latest_update_else_the_latest_read(
    account: Account, first: Row, second: Row, kept: str
) -> None:
    """The row with the largest updated_at (nulls last), then read_no, is kept; the others are counted (A23, S7)."""
    counts = account.run(contact(1, name="first", **first), contact(1, name="second", **second))
    assert (counts.received, counts.new, counts.folded) == (2, 1, 1)
    row = account.contact(1)
    assert row is not None
    assert row["name"] == kept


def test_ids_that_look_alike_are_different_contacts(account: Account) -> None:
    """Ids that differ in case, spaces or Unicode form are different contacts (A24)."""
    ids = ("a", "A", "a ", "\u00e9", "e\u0301")
    assert account.run(*(contact(1) | {"contact_id": name} for name in ids)).new == 5


def test_a_second_run_tells_new_changed_presence_and_unchanged_apart(account: Account) -> None:
    """A change of content makes a version, a change of presence only updates the row, an equal row is not touched."""
    account.run(contact(1, name="a"), contact(2, unread_messages=1), contact(3, name="c"))
    counts = account.run(contact(1, name="b"), contact(2, unread_messages=2), contact(3, name="c"), contact(4))
    assert (counts.new, counts.changed, counts.unchanged, counts.contacts) == (1, 1, 2, 4)
    changed, moved, same = account.contact(1), account.contact(2), account.contact(3)
    assert changed is not None
    assert moved is not None
    assert same is not None
    assert (changed["name"], changed["seq"]) == ("b", 2)
    assert (moved["unread_messages"], moved["seq"], moved["observed_at"]) == (2, 2, day(2))
    assert (same["seq"], same["observed_at"]) == (1, day(1))
    assert account.versions(1) == [(1, "upsert"), (2, "upsert")]
    assert account.versions(2) == account.versions(3) == [(1, "upsert")]


_EMPTY: dict[schema.Kind, object] = {
    schema.Kind.TEXT: "",
    schema.Kind.JSON: "{}",
    schema.Kind.INTEGER: 0,
    schema.Kind.BOOLEAN: False,
    schema.Kind.TIME: day(99),
    schema.Kind.TEXTS: [],
    schema.Kind.ATTRIBUTES: [],
    schema.Kind.NOTES: [],
}


def test_null_and_empty_differ_in_every_column_of_content(account: Account) -> None:
    """A value that replaces null makes a version, and an equal value does not."""
    columns = list(enumerate(schema.CONTENT))
    account.run(*(contact(number) | {column.name: None} for number, column in columns))
    filled = [contact(number) | {column.name: _EMPTY[column.kind]} for number, column in columns]
    assert account.run(*filled).changed == len(columns)
    assert account.run(*filled).unchanged == len(columns)


def test_the_fingerprint_is_the_same_in_any_run_and_account(tmp_path: Path) -> None:
    """The fingerprint is pinned, as any other value would make a new version of every contact."""
    rows = [
        contact(1, name="Zo\u00eb", tags=["a", None], attributes=[("k", "v")], notes=[{"title": "t"}], extra='{"x":1}')
    ]
    snapshot = Snapshot()
    snapshot.merge(publication(brought(tmp_path, "a", rows, seq=1), brought(tmp_path, "b", rows, seq=1)))
    assert {row["row_hash"] for row in snapshot.contacts.values()} == {"2:cdc26923f00d0ba0ec69ed921c14d8e8"}
    with duckdb.connect() as connection:
        connection.register("contacts", pa.Table.from_pylist(list(snapshot.contacts.values()), schema.CONTACTS_SCHEMA))
        former = connection.execute(f"SELECT DISTINCT {FORMER_SQL} FROM contacts").fetchall()
    assert former == [("c9d6b30b4f14e6a5d33ed08e52c324ba",)]


def test_absence_deletes_on_the_second_strike(account: Account) -> None:
    """The first absence is a strike; the second, in a later run, deletes with a tombstone of the last values (A45)."""
    account.run(contact(1, name="last"), contact(2))
    assert account.run(contact(2)).deleted == 0
    assert account.merged.struck == {"main": 1}
    assert account.contact(1) is not None
    counts = account.run(contact(2))
    assert (counts.deleted, counts.contacts, account.merged.struck) == (1, 1, {"main": 0})
    assert account.contact(1) is None
    assert account.versions(1) == [(1, "upsert"), (3, "delete")]
    tombstone = account.snapshot.versions[-1]
    assert (tombstone["name"], tombstone["observed_at"]) == ("last", day(3))


@pytest.mark.parametrize("mode", ["full", "filtered"])
def test_a_contact_that_is_listed_and_cannot_be_kept_is_not_absent(account: Account, mode: Mode) -> None:
    """A rejected contact keeps its last row, also if its id is ambiguous; an unlisted one is absent (A25)."""
    account.run(*map(contact, range(1, 5)), mode=mode)
    large = {"contact_id": contact(2)["contact_id"], "reason": "too_large", "raw": "{}"}
    raw = f'{{"_id":"{contact(3)["contact_id"]}","_id":"other"}}'
    for _ in range(2):
        counts = account.run(
            contact(1), mode=mode, rejects=[large, {"contact_id": None, "reason": "conflicting_ids", "raw": raw}]
        )
    assert (counts.rejected, counts.contacts) == (2, 3)
    assert [account.contact(number) is not None for number in range(1, 5)] == [True, True, True, False]


def test_a_contact_that_stands_twice_in_the_target_is_damage(account: Account) -> None:
    """A duplicate contact in the target is damage (22), not an internal error (P26)."""
    account.run(contact(1), contact(2))
    twice = account.contact(1)
    assert twice is not None
    account.snapshot.contacts["main", "again"] = twice
    with pytest.raises(TargetCorrupt, match="1 contacts stand in the target more than once"):
        account.run(contact(1), contact(2))


def test_being_seen_again_clears_the_strike(account: Account) -> None:
    """A contact that appears in every other run is never deleted (A45)."""
    account.run(contact(1))
    for _ in range(3):
        account.run()
        account.run(contact(1))
    assert account.contact(1) is not None
    assert account.versions(1) == [(1, "upsert")]


def test_a_reading_that_the_sink_holds_already_is_no_second_strike(account: Account) -> None:
    """An absence counts once, however often a run killed between two sinks is resumed (P4, A45)."""
    account.run(contact(1), contact(2), contact(3))
    gone = contact(2, status="DELETED")
    account.run(gone, contact(3))
    for _ in range(2):
        assert account.again(gone, contact(3)).deleted == 0
        assert account.merged.struck == {"main": 2}
        assert [row["strikes"] for row in account.snapshot.strikes.values()] == [1, 1]
    assert account.run(gone, contact(3)).deleted == 2
    assert account.again(gone, contact(3)).contacts == 1
    assert sorted(row["strikes"] for row in account.snapshot.strikes.values()) == [2, 2]
    assert account.versions(1) == [(1, "upsert"), (5, "delete")]


def test_a_reading_gone_on_with_that_the_sink_does_not_hold_strikes_as_any_other(account: Account) -> None:
    """A resumed run counts as a new strike if the sink holds an earlier run only (P4)."""
    account.run(contact(1), contact(2))
    for struck, deleted in ((1, 0), (0, 1)):
        account.seq += 1
        one = brought(account.folder, "main", [contact(2)], seq=account.seq)
        merged = account.snapshot.merge(publication(replace(one, record=replace(one.record, detail={"resumed": 7}))))
        assert (merged.struck["main"], merged.counts["main"].deleted) == (struck, deleted)


def test_another_run_in_the_same_second_is_a_later_run(account: Account) -> None:
    """Two runs with the same T0 are two runs: an account that was read again can get a second strike (A45, N25)."""
    account.run(contact(1), contact(2))
    account.run(contact(2))
    assert account.again(contact(2), resumed=0).deleted == 1


def test_absence_means_nothing_outside_the_coverage(account: Account) -> None:
    """Spans are half-open, may overlap, and exclude contacts without a creation time (A27)."""
    account.run(*(contact(number) for number in range(1, 6)), contact(6, created_at=None))
    spans = (Span(day(2), day(3)), Span(day(2), day(4)), Span(day(5), day(5)))
    for _ in range(2):
        account.run(coverage=spans)
    assert [number for number in range(1, 7) if account.contact(number) is None] == [2, 3]


def test_a_soft_deleted_contact_goes_on_the_second_strike_and_stays_away(account: Account) -> None:
    """A contact listed as DELETED twice is deleted and stays so, until it is listed as living again (A54, M9)."""
    gone = contact(1, status="DELETED")
    account.run(contact(1))
    assert account.run(gone).changed == 1
    assert account.merged.struck == {"main": 1}
    counts = account.run(gone)
    assert (counts.deleted, counts.unchanged, counts.contacts) == (1, 1, 0)
    for rows in ([gone], [], [gone]):
        assert account.run(*rows).contacts == 0
    assert account.run(contact(1)).new == 1
    assert account.versions(1) == [(1, "upsert"), (2, "upsert"), (3, "delete"), (7, "upsert")]
    assert account.snapshot.strikes == {}


def test_a_contact_first_seen_as_deleted_is_kept_with_one_strike(account: Account) -> None:
    """A contact first seen as DELETED is new, and the next run deletes it."""
    assert account.run(contact(1, status="DELETED")).new == 1
    assert account.merged.struck == {"main": 0}
    assert account.run(contact(1, status="DELETED")).deleted == 1


def test_a_filtered_run_makes_contacts_exactly_what_matched(account: Account) -> None:
    """Contacts that do not match a filtered run are deleted at once, with a tombstone and without strikes."""
    account.run(contact(1), contact(2, created_at=None), contact(3, status="DELETED"), mode="filtered", coverage=())
    counts = account.run(contact(3, status="DELETED"), mode="filtered", coverage=())
    assert (counts.deleted, counts.unchanged, counts.contacts) == (2, 1, 1)
    assert account.versions(2) == [(1, "upsert"), (2, "delete")]
    assert account.snapshot.strikes == {}


def test_an_account_that_is_not_in_a_run_is_left_alone(tmp_path: Path) -> None:
    """An account that is not in a run keeps its contacts and strikes."""
    snapshot = Snapshot()
    snapshot.merge(publication(*(brought(tmp_path, name, [contact(1), contact(2)], seq=1) for name in "ab")))
    snapshot.merge(
        publication(brought(tmp_path, "a", [contact(1)], seq=2), brought(tmp_path, "b", [contact(1)], seq=2))
    )
    merged = snapshot.merge(publication(brought(tmp_path, "b", [contact(1)], seq=3)))
    assert (merged.previous, merged.counts["b"].deleted) == ({"b": 2}, 1)
    assert {key[0] for key in snapshot.contacts if key[1].endswith("2")} == {"a"}
    assert snapshot.strikes["a", f"{2:024x}"]["strikes"] == 1


def test_a_row_that_is_not_accounted_for_stops_the_run(tmp_path: Path) -> None:
    """A run stops if received is not new + changed + unchanged + folded + rejected."""
    one = brought(tmp_path, "main", [contact(1)], seq=1)
    lost = AccountYield(one.record, (), (), (), one.windows)
    with pytest.raises(EtlError, match="1 contacts were received and 0 accounted for") as caught:
        Snapshot().merge(publication(lost))
    assert caught.value.exit_code == 70


def test_a_resumed_run_sees_no_reject_twice(account: Account) -> None:
    """A resumed run does not count its rejects again; another run with the same data does."""
    reject = {"contact_id": "large", "reason": "too_large", "raw": "{}"}
    account.run(contact(1), rejects=[reject])
    account.again(contact(1), rejects=[reject])
    [row] = account.snapshot.rejects.values()
    assert (row["first_seq"], row["seq"], row["last_seq"], row["seen"]) == (1, 2, 2, 1)
    account.run(contact(1), rejects=[reject])
    [row] = account.snapshot.rejects.values()
    assert (row["first_seq"], row["last_seq"], row["seen"]) == (1, 3, 2)


def test_ranges_are_joined() -> None:
    """Overlapping and adjacent ranges are joined, and empty ones are removed."""
    ranges = [(day(3), day(4)), (day(1), day(2)), (day(2), day(3)), (day(7), day(6)), (day(8), day(9))]
    assert union(ranges) == [(day(1), day(4)), (day(8), day(9))]


# The same rules as a program over dicts, which the SQL must agree with.

_READS = st.tuples(
    st.integers(0, 4),
    st.sampled_from(["OPEN", "OPEN", "DELETED"]),
    st.sampled_from([None, "x"]),
    st.sampled_from([0, 1, None]),
    st.sampled_from([None, 1, 2]),
)
_RUNS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("ab"), st.lists(_READS, max_size=7), min_size=1),
        st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), max_size=2),
    ),
    min_size=1,
    max_size=6,
)


@dataclass
class Model:
    """A model of one account: contact number -> (read, seq), strikes, versions."""

    contacts: dict[int, tuple[tuple[object, ...], int]] = field(default_factory=dict)
    strikes: dict[int, int] = field(default_factory=dict)
    versions: list[tuple[int, int, str]] = field(default_factory=list)

    def run(
        self, seq: int, reads: Sequence[tuple[int, str, str | None, int | None, int | None]], covered: set[int]
    ) -> None:
        """Apply one run."""
        folded: dict[int, tuple[int, tuple[str, str | None, int | None, int | None]]] = {}
        for number, *rest in reads:
            if (rest[3] or 0) >= (folded[number][1][3] or 0 if number in folded else 0):
                folded[number] = (number, tuple(rest))
        for number in set(self.contacts) & covered - set(folded):
            self._strike(number, seq)
        for number, (_, read) in folded.items():
            if read[0] != "DELETED":
                self.strikes.pop(number, None)
            elif number in self.strikes:
                self._strike(number, seq)
                continue
            else:
                self.strikes[number] = 1
            self._keep(number, seq, read)

    def _strike(self, number: int, seq: int) -> None:
        self.strikes[number] = min(self.strikes.get(number, 0) + 1, 2)
        if self.strikes[number] == 2 and self.contacts.pop(number, None):
            self.versions.append((number, seq, "delete"))

    def _keep(self, number: int, seq: int, read: tuple[str, str | None, int | None, int | None]) -> None:
        old = self.contacts[number][0] if number in self.contacts else None
        if old == read:
            return
        self.contacts[number] = (read, seq)
        if old is None or (old[0], old[1], old[3]) != (read[0], read[1], read[3]):
            self.versions.append((number, seq, "upsert"))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=_RUNS)
def test_merging_agrees_with_the_rules_written_as_a_program(
    runs: list[tuple[Mapping[str, list], list]], tmp_path: Path
) -> None:
    """Any sequence of runs over two accounts gives the contacts, strikes and versions of the model."""
    snapshot, models = Snapshot(), {"a": Model(), "b": Model()}
    for seq, (reads, spans) in enumerate(runs, start=1):
        coverage = [Span(day(start), day(start + days)) for start, days in spans]
        covered = {number for number in range(5) for start, days in spans if start <= number < start + days}
        merged = snapshot.merge(
            publication(
                *(
                    brought(tmp_path, name, [_row(read) for read in rows], seq=seq, coverage=coverage)
                    for name, rows in reads.items()
                )
            )
        )
        for name, rows in reads.items():
            models[name].run(seq, rows, covered)
            assert merged.counts[name].contacts == len(models[name].contacts)
    for name, model in models.items():
        held = {number: (read, row_seq) for number, read, row_seq in _held(snapshot, name)}
        assert held == model.contacts
        assert {
            int(key[1], 16): row["strikes"] for key, row in snapshot.strikes.items() if key[0] == name
        } == model.strikes
        versions = [
            (int(str(row["contact_id"]), 16), row["seq"], row["op"])
            for row in snapshot.versions
            if row["account"] == name
        ]
        assert sorted(versions) == sorted(model.versions)


def _row(read: tuple[int, str, str | None, int | None, int | None]) -> Row:
    number, status, city, unread, updated = read
    return contact(number, status=status, city=city, unread_messages=unread, updated_at=updated and day(updated))


def _held(snapshot: Snapshot, name: str) -> list[tuple[int, tuple[object, ...], object]]:
    return [
        (int(key[1], 16), (row["status"], row["city"], row["unread_messages"], _number(row["updated_at"])), row["seq"])
        for key, row in snapshot.contacts.items()
        if key[0] == name
    ]


def _number(updated: object) -> int | None:
    return (updated - day(0)).days if isinstance(updated, datetime) else None
