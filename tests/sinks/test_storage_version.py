"""The storage version of the DuckDB file: old clients can open it, and newer files are converted completely."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from etl.errors import SinkError, UsageError
from etl.sinks import DuckDBSink
from tests.support.publishing import brought, contact, publication

OLD = Path(__file__).parents[2] / ".venv" / "old-duckdb"
CLIENTS = sorted(lock.stem for lock in (Path(__file__).parents[1] / "old_duckdb").glob("*.lock"))
NUMBERS = {"v1.0.0": 64, "v1.2.0": 65, "v1.3.0": 66, "v1.4.0": 67, "v1.5.0": 68}
ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import duckdb
with duckdb.connect(sys.argv[2], read_only=True) as connection:
    rows = [connection.execute(query).fetchone()[0] for query in sys.argv[3:]]
print(json.dumps([duckdb.__version__, *rows]))
"""
FULL = contact(1, name="Zoë", tags=["a"], attributes=[("k", "v")], notes=[{"title": "t"}], extra='{"a": 1}')


def number(path: Path) -> int:
    """The version in the file's header."""
    head = path.read_bytes()[:20]
    assert head[8:12] == b"DUCK"
    return int.from_bytes(head[12:20], "little")


def publish(path: Path, seq: int, *rows: dict[str, object], version: str = "v1.2.0") -> None:
    """Publish a whole run into the file."""
    run = publication(brought(path.parent / "parts", "main", rows or (FULL, contact(2)), seq=seq))
    sink = DuckDBSink(path, storage_version=version)
    sink.open()
    try:
        sink.prepare(run)
        sink.publish(run)
    finally:
        sink.discard()


def sql(path: Path, *statements: str, version: str = "v2.0.0") -> None:
    """Execute a user's statements, on a new file of this version if none exists."""
    with duckdb.connect() as connection:
        option = "" if path.exists() else f"(STORAGE_VERSION '{version}')"
        connection.execute(f"ATTACH '{path}' AS theirs {option}")
        connection.execute("USE theirs")
        for statement in statements:
            connection.execute(statement)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="no wheel of these clients for this Python")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("came_down", [False, True])
def test_an_old_client_reads_the_published_file(client: str, came_down: bool, tmp_path: Path) -> None:
    """Old clients read tables, macro and state of a file made at the configured version or converted to it."""
    path = tmp_path / "contacts.duckdb"
    if came_down:
        publish(path, 1, version="v2.0.0")
        sql(path, "CREATE VIEW open AS FROM contacts WHERE status = 'OPEN'", "CREATE MACRO twice(a) AS 2 * a")
    else:
        publish(path, 1)
        sql(path, "CREATE VIEW open AS FROM contacts WHERE status = 'OPEN'", "CREATE MACRO twice(a) AS 2 * a")
    publish(path, 2, FULL, contact(2, name="new"), contact(3))
    queries = (
        *(f"SELECT count(*) FROM {table}" for table in ("contacts", "contact_versions", "runs", "rejects", "open")),  # noqa: S608
        "SELECT count(*) FROM contacts_as_of(TIMESTAMPTZ '2999-01-01')",
        "SELECT count(*) FROM contacts_as_of(TIMESTAMPTZ '2026-01-02 12:00:00+00')",
        "SELECT name || attributes['k'][1] || notes[1].title || (extra->>'a') FROM contacts WHERE name = 'Zoë'"
        if client < "1.3"
        else "SELECT name || attributes['k'] || notes[1].title || (extra->>'a') FROM contacts WHERE name = 'Zoë'",
        "SELECT detail->>'page_size' FROM runs WHERE seq = 2",
        "SELECT max(seq) + twice(1) FROM etl.manifests",
        "SELECT count(hash(contact_versions)) FROM contact_versions",
    )
    command = [sys.executable, "-I", "-c", ASK, str(OLD / client), str(path), *queries]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [client, 3, 4, 2, 0, 3, 3, 2, "Zoëvt1", "50", 4, 4]


@pytest.mark.parametrize("version", NUMBERS)
def test_a_new_file_is_written_at_the_floor(version: str, tmp_path: Path) -> None:
    """The header of a new file has the configured version, after the first run and after the next."""
    path = tmp_path / "contacts.duckdb"
    for seq in (1, 2):
        publish(path, seq, version=version)
        assert number(path) == NUMBERS[version]


def test_a_file_at_or_below_the_floor_stays_as_it_is(tmp_path: Path) -> None:
    """A file with an older version keeps it, since its users have clients that need it."""
    path = tmp_path / "contacts.duckdb"
    sql(path, "CREATE TABLE mine AS SELECT 1 AS id", version="v1.0.0")
    publish(path, 1, version="v1.4.0")
    assert number(path) == NUMBERS["v1.0.0"]
    publish(path, 2, version="v1.0.0")
    assert number(path) == NUMBERS["v1.0.0"]


THEIRS = (
    "ALTER TABLE contacts ADD COLUMN note VARCHAR DEFAULT 'none'",
    "UPDATE contacts SET note = 'call back'",
    "CREATE INDEX by_name ON contacts (name)",
    "CREATE SCHEMA own",
    "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "CREATE SEQUENCE numbers START 5",
    "CREATE TABLE parent (id INTEGER PRIMARY KEY, mood mood DEFAULT 'bad', name VARCHAR NOT NULL CHECK (name <> ''))",
    "INSERT INTO parent (id, name) VALUES (1, 'x'), (2, 'y')",
    "CREATE TABLE own.child (id INTEGER DEFAULT nextval('numbers'), parent INTEGER)",
    "INSERT INTO own.child (parent) VALUES (1), (2)",
    "CREATE TABLE big AS SELECT range AS i, 'v' || range AS v FROM range(100_000)",
    "CREATE VIEW own.pairs AS SELECT p.name, c.id FROM parent p JOIN own.child c ON c.parent = p.id",
    "CREATE VIEW named AS SELECT * FROM own.pairs",
    "CREATE TABLE gone AS SELECT 1 AS a",
    "CREATE VIEW broken AS SELECT * FROM gone",
    "DROP TABLE gone",
    "CREATE MACRO own.plus(a, b := 2) AS a + b",
    "CREATE MACRO mapped(l) AS list_transform(l, lambda x: x + 1)",
    "CREATE MACRO first_few(n) AS TABLE SELECT * FROM range(n)",
    "COMMENT ON TABLE parent IS 'theirs'",
    "COMMENT ON COLUMN contacts.note IS 'what to do'",
)
LEFT = {
    "SELECT note, count(*) FROM contacts GROUP BY note ORDER BY note": [("call back", 2), ("none", 1)],
    "SELECT index_name FROM duckdb_indexes()": [("by_name",)],
    "SELECT id, mood, name FROM parent ORDER BY id": [(1, "bad", "x"), (2, "bad", "y")],
    "SELECT name, id FROM named ORDER BY id": [("x", 5), ("y", 6)],
    "SELECT last_value FROM duckdb_sequences()": [(6,)],
    "SELECT count(*), max(v) FROM big": [(100_000, "v99999")],
    "SELECT own.plus(1), mapped([1, 2])": [(3, [2, 3])],
    "SELECT count(*) FROM first_few(4)": [(4,)],
    "SELECT count(*) FROM duckdb_views() WHERE view_name = 'broken'": [(1,)],
    "SELECT comment FROM duckdb_tables() WHERE table_name = 'parent'": [("theirs",)],
    "SELECT comment FROM duckdb_columns() WHERE column_name = 'note'": [("what to do",)],
    "SELECT count(*) FROM duckdb_constraints() WHERE table_name = 'parent'": [(4,)],
    "SELECT count(*) FROM contact_versions": [(3,)],
    "SELECT count(*) FROM etl.manifests": [(2,)],
}


def test_a_newer_file_comes_down_once_with_everything_in_it(tmp_path: Path) -> None:
    """The conversion keeps user columns, tables, views, macros, indexes, types, sequences, defaults, comments."""
    path = tmp_path / "contacts.duckdb"
    publish(path, 1, version="v2.0.0")
    assert number(path) > max(NUMBERS.values())
    sql(path, *THEIRS)
    publish(path, 2, FULL, contact(2), contact(3))
    assert number(path) == NUMBERS["v1.2.0"]
    with duckdb.connect(str(path), read_only=True) as connection:
        assert {query: connection.execute(query).fetchall() for query in LEFT} == LEFT
    publish(path, 3)
    assert number(path) == NUMBERS["v1.2.0"]


def test_what_the_floor_does_not_know_is_told_and_the_file_left_alone(tmp_path: Path) -> None:
    """If a type is unknown to the version, exit 20 names the reason and the key; a later version works."""
    path = tmp_path / "contacts.duckdb"
    publish(path, 1, version="v2.0.0")
    sql(path, "CREATE TABLE loose AS SELECT 1::VARIANT AS anything")
    before = path.read_bytes()
    with pytest.raises(SinkError, match="VARIANT") as refused:
        publish(path, 2)
    assert "sinks.duckdb.storage_version" in refused.value.hint
    assert not isinstance(refused.value, UsageError)
    assert path.read_bytes() == before
    assert sorted(found.name for found in path.parent.iterdir()) == [".etl", "contacts.duckdb", "parts"]
    publish(path, 2, version="v1.5.0")
    assert number(path) == NUMBERS["v1.5.0"]
