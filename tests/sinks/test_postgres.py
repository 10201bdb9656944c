"""The PostgreSQL sink alone: its schema on the server, what it refuses, and servers that fail while it publishes."""

# ruff: noqa: S608 - the SQL consists of constant names.

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from etl import schema
from etl.errors import OutcomeUnknown, PublishConflict, SinkError, TargetCorrupt, UsageError
from etl.model import Publication
from etl.sinks.postgres import PostgresSink
from etl.sinks.postgres_server import ConnectionLost
from etl.storage.duck import literal
from tests.support.campaign import campaign
from tests.support.postgres import PASSWORD, Server, running
from tests.support.proxy import proxied
from tests.support.publishing import Row, brought, contact, day, publication

SCHEMA = "etl"


class Warehouse:
    """A database of its own, and sinks on it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.database = server.create_database()

    def sink(self, **dsn: Any) -> PostgresSink:
        """A sink as a new process has it."""
        options = {"database": self.database, **dsn}
        return PostgresSink(lambda: self.server.dsn(**options), SCHEMA, self.folder / "data" / "postgres")

    def bring(self, seq: int, *rows: Row, **options: Any) -> Publication:
        """A run of one account."""
        return publication(brought(self.folder / "parts", "main", rows, seq=seq, **options))

    def publish(self, run: Publication) -> None:
        """Publish a whole run."""
        sink = self.sink()
        sink.open()
        sink.prepare(run)
        sink.publish(run)

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Execute statements on the database, by another client."""
        return self.server.sql(*statements, database=self.database)

    def published(self) -> list[int]:
        """The numbers of the published runs."""
        return [seq for (seq,) in self.sql(f"SELECT seq FROM {SCHEMA}.etl_manifests ORDER BY seq")]


@pytest.fixture
def warehouse(postgres: Server, tmp_path: Path) -> Warehouse:
    """An empty database."""
    return Warehouse(postgres, tmp_path)


def test_the_schema_tells_what_it_holds(warehouse: Warehouse) -> None:
    """Columns have the promised types, tables and columns their comments, and every table of state its key."""
    warehouse.publish(warehouse.bring(1, contact(1)))
    types = dict(
        warehouse.sql(
            "SELECT column_name, data_type FROM information_schema.columns"
            f" WHERE table_schema = '{SCHEMA}' AND table_name = 'contacts'"
        )
    )
    assert list(types) == list(schema.column_names())
    assert (types["tags"], types["created_at"], types["seq"]) == ("ARRAY", "timestamp with time zone", "bigint")
    assert (types["attributes"], types["notes"], types["extra"]) == ("jsonb", "jsonb", "json")
    comment = f"SELECT col_description('{SCHEMA}.contacts'::regclass, attnum) FROM pg_attribute WHERE attname = 'email'"
    assert warehouse.sql(f"{comment} AND attrelid = '{SCHEMA}.contacts'::regclass") == [
        ("e-mail address, verbatim [direct]",)
    ]
    assert warehouse.sql(f"SELECT obj_description('{SCHEMA}.runs'::regclass)") == [
        ("one row per account and published run, with its proof",)
    ]
    keys = warehouse.sql(
        f"SELECT conname FROM pg_constraint WHERE contype = 'p' AND connamespace = '{SCHEMA}'::regnamespace"
    )
    assert {f"{name}_pkey" for name in ("contacts", "contact_versions", "runs")} <= {name for (name,) in keys}


def test_the_function_on_the_server_shows_the_contacts_that_a_run_left(warehouse: Warehouse) -> None:
    """`contacts_as_of` answers any client, as the macro of the other sinks does."""
    for seq, rows in enumerate([[contact(1), contact(2)], [contact(2, name="b")], [contact(2)]], start=1):
        warehouse.publish(warehouse.bring(seq, *rows))

    def as_of(moment: float) -> list[tuple[Any, ...]]:
        return warehouse.sql(f"SELECT name, seq FROM {SCHEMA}.contacts_as_of('{day(moment)}') ORDER BY contact_id")

    assert as_of(0.9) == []
    assert as_of(1) == [(None, 1), (None, 1)]
    assert as_of(2.5) == [(None, 1), ("b", 2)]
    assert as_of(9) == [(None, 3)]


ODD = contact(
    1,
    attributes=[("later", "1"), ("a", None), ("", "\u0001\"'\\")],
    notes=[{"title": "\u2028", "description": None, "_id": "n"}, None],
    extra='{"z":1e400,"a":[1,null],"a":"\\u0000"}',
    tags=["{", "NULL", None, '"'],
    name="\ufffd\U0001f600",
)


def test_what_is_stored_still_has_its_fingerprint(warehouse: Warehouse) -> None:
    """Keys in another order than that of jsonb, 1e400, escapes and nulls keep `row_hash` right (S10)."""
    warehouse.publish(warehouse.bring(1, ODD, contact(2, attributes=[("a", "1"), ("bb", "2")])))
    assert warehouse.sql(
        f"SELECT attributes ->> 'later', extra::text FROM {SCHEMA}.contacts ORDER BY contact_id LIMIT 1"
    ) == [("1", ODD["extra"])]
    assert warehouse.sql(f"SELECT keys FROM {SCHEMA}.etl_attribute_orders") == [(["later", "a", ""],)]
    with warehouse.sink().reading() as connection:
        from etl.commands.verify import _CHECKS  # noqa: PLC0415

        assert connection.execute(_CHECKS["contents"]).fetchone()[0] == 0  # type: ignore[index]
        [row] = connection.execute("SELECT attributes, notes FROM contacts ORDER BY contact_id LIMIT 1").fetchall()
    assert (list(row[0].items()), row[1]) == (ODD["attributes"], ODD["notes"])


def test_columns_that_the_user_added_are_kept(warehouse: Warehouse) -> None:
    """A note on a contact survives a change of the contact, and a renamed account."""
    warehouse.publish(warehouse.bring(1, contact(1), contact(2)))
    warehouse.sql(f"ALTER TABLE {SCHEMA}.contacts ADD COLUMN note text", f"UPDATE {SCHEMA}.contacts SET note = 'call'")
    warehouse.publish(warehouse.bring(2, contact(1, name="changed"), contact(2), contact(3)))
    query = f"SELECT account, note FROM {SCHEMA}.contacts ORDER BY contact_id"
    assert warehouse.sql(query) == [("main", "call"), ("main", "call"), ("main", None)]
    part = warehouse.folder / "part.parquet"
    assert warehouse.sink().copy_contacts("main", "shop", part) == 3
    ended, begun = (
        brought(warehouse.folder / "parts", name, [contact(n) for n in range(3)], seq=3) for name in ("main", "shop")
    )
    ended = replace(ended, parts=(), record=replace(ended.record, mode="dropped", counts=type(ended.record.counts)()))
    begun = replace(begun, parts=(part,), record=replace(begun.record, mode="renamed", detail={"renamed_from": "main"}))
    warehouse.publish(publication(ended, begun))
    assert warehouse.sql(query) == [("shop", "call"), ("shop", "call"), ("shop", None)]


def test_a_reject_with_nul_is_stored_once(warehouse: Warehouse) -> None:
    """PostgreSQL has no text with NUL: it becomes U+FFFD in `raw`, and the contact is still recognized (S20)."""
    reject = {"contact_id": None, "reason": "not_json", "path": None, "raw": "{\0}"}
    for seq in (1, 2):
        warehouse.publish(warehouse.bring(seq, contact(1), rejects=[reject]))
    assert warehouse.sql(f"SELECT raw, last_seq FROM {SCHEMA}.rejects") == [("{\ufffd}", 2)]


def _refused(dsn: str, folder: Path) -> SinkError:
    sink = PostgresSink(lambda: dsn, SCHEMA, folder / "postgres")
    with pytest.raises(SinkError) as caught:
        sink.open()
    return caught.value


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("Pa55", "WrongPa55"), "does not accept the password"),
        (("/postgres", "/nothing"), "no such database"),
        (("127.0.0.1", "no-such-host.invalid"), "the host of the DSN is not known"),
        (("etl:", "nobody:"), "does not accept the password"),
        (("etl:Pa55", "etl:Pa55@"), "the host of the DSN is not known"),
        (("postgresql://", "Pa55 Pa55"), "cannot connect"),
        (("/postgres", "/postgres?sslmode=require"), "does not support TLS"),
        (("/postgres", "/postgres?sslmode=Pa55"), "cannot connect"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_and_the_password_is_not(
    postgres: Server, tmp_path: Path, edit: tuple[str, str], message: str
) -> None:
    """Each fault of a DSN is exit 20 with one message, in which no part of the DSN is repeated (X1)."""
    error = _refused(postgres.dsn().replace(*edit), tmp_path)
    assert message in error.message
    told = f"{error} {error.document()} {error!r} {error.__cause__!r}"
    assert not any(secret in told for secret in (PASSWORD, "Pa55", "127.0.0.1", "invalid"))


def test_a_server_that_does_not_listen_cannot_be_reached(tmp_path: Path) -> None:
    """A refused connection is exit 20, and leaves nothing behind."""
    error = _refused("postgresql://etl:Pa55@127.0.0.1:1/x", tmp_path)
    assert "connection refused" in error.message
    assert error.exit_code == 20


def test_a_missing_driver_names_its_extra(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the first use is exit 2 with one line that names it."""
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql.dbapi", None)
    with pytest.raises(UsageError, match="adbc-driver-postgresql") as caught:
        warehouse.sink().open()
    assert "etl[postgres]" in caught.value.hint


def _as_user(warehouse: Warehouse, *statements: str) -> Callable[[], PostgresSink]:
    """Make a user without rights, then these statements; returns how to make its sinks."""
    user = f"user_{warehouse.database}"
    warehouse.sql(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'", *(each.format(user) for each in statements))
    return partial(warehouse.sink, user=user)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ((), "may not create tables"),
        (("CREATE SCHEMA etl",), "may not create tables"),
        (("CREATE SCHEMA etl AUTHORIZATION {0}", "ALTER ROLE {0} SET default_transaction_read_only = on"), "read-only"),
    ],
)
def test_a_user_without_the_rights_is_told_before_anything_is_fetched(
    warehouse: Warehouse, statements: tuple[str, ...], message: str
) -> None:
    """A missing right and a read-only server are exit 20, and nothing is created (S20)."""
    sink_of = _as_user(warehouse, *statements)
    with pytest.raises(SinkError, match=message) as caught:
        sink_of().open()
    assert caught.value.exit_code == 20
    assert warehouse.sql("SELECT count(*) FROM pg_class WHERE relname = 'contacts'") == [(0,)]


def test_a_user_who_owns_the_schema_needs_no_other_right(warehouse: Warehouse) -> None:
    """A DBA creates the schema for a user; readers get their rights from the DBA as well."""
    sink_of = _as_user(warehouse, "CREATE SCHEMA etl AUTHORIZATION {0}")
    run = warehouse.bring(1, contact(1))
    sink = sink_of()
    sink.open()
    sink.prepare(run)
    sink.publish(run)
    warehouse.sql(f"ALTER TABLE {SCHEMA}.runs OWNER TO etl")
    with pytest.raises(SinkError, match="may not write"):
        sink_of().open()


@pytest.mark.parametrize("statement", ["CREATE TABLE etl.contacts (id int)", "CREATE VIEW etl.runs AS SELECT 1 AS seq"])
def test_a_foreign_table_under_our_name_is_refused(warehouse: Warehouse, statement: str) -> None:
    """A foreign table with a reserved name is exit 22 with its name, and nothing is written."""
    warehouse.sql("CREATE SCHEMA etl", statement, "CREATE TABLE etl.orders AS SELECT 1 AS id")
    with pytest.raises(TargetCorrupt, match=r"contacts|runs"):
        warehouse.sink().open()
    with pytest.raises(TargetCorrupt):
        warehouse.sink().prepare(warehouse.bring(1, contact(1)))
    assert len(warehouse.sql("SELECT relname FROM pg_class WHERE relnamespace = 'etl'::regnamespace")) == 2


@pytest.mark.parametrize(
    ("statement", "hint"),
    [
        ("ALTER TABLE etl.contacts DROP COLUMN city", 'ADD COLUMN "city" text'),
        ("ALTER TABLE etl.runs ALTER COLUMN windows TYPE text", "ALTER COLUMN windows TYPE bigint"),
        ("DROP TABLE etl.etl_strikes", "Restore it from a backup"),
        ("UPDATE etl.etl_manifests SET document = replace(document, 'run-1', 'run-7')", "Restore it from a backup"),
        ("DELETE FROM etl.etl_manifests", "Restore it from a backup"),
    ],
)
def test_an_altered_schema_is_refused_with_the_mend(warehouse: Warehouse, statement: str, hint: str) -> None:
    """A missing or retyped column, as an older schema has, a missing table and an edited manifest are exit 22 (S6)."""
    warehouse.publish(warehouse.bring(1, contact(1)))
    warehouse.sql(statement)
    with pytest.raises(TargetCorrupt) as caught:
        warehouse.sink().open()
    assert hint in caught.value.hint


# A connection or a server that fails while a run is published.


@pytest.fixture
def second(warehouse: Warehouse) -> Publication:
    """A run after the first one, which is published."""
    warehouse.publish(warehouse.bring(1, contact(1)))
    return warehouse.bring(2, *(contact(number, extra=f'{{"x":"{number * 99}"}}') for number in range(1, 300)))


@pytest.mark.parametrize("passing", [False, True])
@pytest.mark.parametrize("later", range(4))
def test_a_lost_answer_to_the_commit_is_decided_by_the_manifest(
    warehouse: Warehouse, second: Publication, later: int, passing: bool
) -> None:
    """Cut around any message of the COMMIT: published without an error, or not published with one (S19)."""
    with proxied(warehouse.server.port, at=b"COMMIT\0", later=later, passing=passing) as proxy:
        sink = warehouse.sink(port=proxy.port)
        sink.prepare(second)
        try:
            sink.publish(second)
        except ConnectionLost:
            seen = [1]
        else:
            seen = [1, 2]
        assert proxy.cut == 1
    assert warehouse.published() == seen
    if later != 2:  # The driver prepares the statement before it executes it.
        assert seen == ([1, 2] if later > 2 else [1])
    warehouse.publish(warehouse.bring(3, contact(1), contact(2)))


def test_a_lost_answer_that_cannot_be_asked_for_is_an_outcome_of_its_own(
    warehouse: Warehouse, second: Publication
) -> None:
    """If the server is gone after the COMMIT, exit 20 says that the outcome is unknown, and the next run finds it."""
    with proxied(warehouse.server.port, at=b"COMMIT\0", later=1, refusing=True) as proxy:
        sink = warehouse.sink(port=proxy.port)
        sink.prepare(second)
        with pytest.raises(OutcomeUnknown, match="the answer to the commit was lost"):
            sink.publish(second)
    assert warehouse.sink().open().seq in {1, 2}


@pytest.mark.parametrize("cuts", [8, campaign(60)])
def test_a_connection_cut_anywhere_is_tried_once_more(warehouse: Warehouse, second: Publication, cuts: int) -> None:
    """Cut after any number of bytes that are sent: the second attempt prepares the run; nothing is visible (S18)."""
    with proxied(warehouse.server.port) as proxy:
        sink = warehouse.sink(port=proxy.port)
        sink.prepare(second)
        sink.discard()
        whole = proxy.sent
    for position in range(0, whole, max(1, whole // cuts)):
        with proxied(warehouse.server.port, after_bytes=position) as proxy:
            sink = warehouse.sink(port=proxy.port)
            assert sink.prepare(second).counts["main"].new == 298
            sink.discard()
            assert proxy.cut == 1
    assert warehouse.published() == [1]
    warehouse.publish(second)
    assert warehouse.sql("SELECT count(*) FROM etl.contacts") == [(299,)]


def test_a_session_killed_in_copy_is_tried_once_more(warehouse: Warehouse, second: Publication) -> None:
    """An administrator who ends the session costs a second attempt, no more (S18, S20)."""
    stop = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not stop.is_set() and len(killed) < 1:
            found = warehouse.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = {literal(warehouse.database)} AND query LIKE 'COPY %contacts%FROM STDIN%'"
            )
            killed.extend(1 for _ in found)
            time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        sink = warehouse.sink()
        while not killed:
            sink.prepare(second)
        sink.prepare(second)
        sink.publish(second)
    finally:
        stop.set()
        thread.join()
    assert warehouse.published() == [1, 2]


@pytest.mark.parametrize(
    ("state", "times", "message"),
    [
        ("40001", 1, ""),
        ("40P01", 1, ""),
        ("40001", 2, "because of another one"),
        ("53100", 2, "the disk of the server is full"),
        ("57014", 2, "the server cancelled the statement"),
        ("23514", 2, "SQLSTATE 23514"),
    ],
)
def test_a_statement_that_fails_is_told_by_its_state(
    warehouse: Warehouse, second: Publication, state: str, times: int, message: str
) -> None:
    """A conflict is tried once more; any other failure is exit 20, in our words, without a value of a row (S20)."""
    warehouse.sql(
        "CREATE SEQUENCE etl.failures",
        f"""CREATE FUNCTION etl.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('etl.failures') <= {times} THEN
                RAISE EXCEPTION 'secret of %', NEW.contact_id USING ERRCODE = '{state}'; END IF;
            RETURN NEW; END $$""",
        "CREATE TRIGGER fail BEFORE INSERT ON etl.contacts FOR EACH ROW EXECUTE FUNCTION etl.fail()",
    )
    sink = warehouse.sink()
    if not message:
        sink.prepare(second)
        sink.publish(second)
        assert warehouse.published() == [1, 2]
        return
    with pytest.raises(SinkError, match=message) as caught:
        sink.prepare(second)
    assert caught.value.exit_code == 20
    if state == "23514":
        assert "secret" not in str(caught.value)
    assert warehouse.published() == [1]
    assert warehouse.sql("SELECT count(*) FROM etl.contacts") == [(1,)]


def test_a_server_that_is_killed_keeps_the_old_state(tmp_path: Path) -> None:
    """A crash before the COMMIT is an unknown outcome; after the recovery of the server, all is as before (S19)."""
    with running(fsync="on") as server:
        warehouse = Warehouse(server, tmp_path)
        warehouse.publish(warehouse.bring(1, contact(1)))
        run = warehouse.bring(2, contact(1), contact(2))
        sink = warehouse.sink()
        sink.prepare(run)
        server.stop(signal.SIGQUIT)
        with pytest.raises(OutcomeUnknown, match="connection refused"):
            sink.publish(run)
        server.start()
        assert warehouse.published() == [1]
        warehouse.publish(run)
        assert warehouse.published() == [1, 2]


def test_two_machines_cannot_publish_at_once(warehouse: Warehouse, second: Publication) -> None:
    """While one run is publishing, another one is exit 21; afterwards, its number is taken (P17)."""
    one, two = warehouse.sink(), warehouse.sink()
    one.prepare(second)
    with pytest.raises(PublishConflict, match="another run is publishing"):
        two.prepare(second)
    one.publish(second)
    with pytest.raises(PublishConflict, match="already published"):
        two.prepare(second)
