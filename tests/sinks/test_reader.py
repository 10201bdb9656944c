"""A query cannot write: two locks, each tested without the other, and every reading query still works."""

# ruff: noqa: S608 - the SQL contains only paths chosen by the tests.

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from etl.errors import UsageError
from etl.sinks import SinkKind, open_readonly, select
from etl.sinks.published import PublishedFiles
from etl.storage import duck
from tests.support.publishing import brought, contact, publication, sink_at

CONTACTS = 20


@dataclass(frozen=True, slots=True)
class Target:
    """A published target, and the folder around it, which must not change."""

    kind: SinkKind
    path: Path
    around: Path

    def files(self) -> dict[str, bytes]:
        """Every file in and around the target."""
        return {str(path): path.read_bytes() for path in sorted(self.around.rglob("*")) if path.is_file()}

    def victims(self) -> list[str]:
        """Paths that a query might write to: published files, their neighbours, and files that do not exist."""
        found = [path for path in self.around.rglob("*") if path.is_file() and path.suffix in {".parquet", ".json"}]
        new = [self.around / "new.csv", self.path.with_name("new.parquet"), self.around / "folder" / "new.csv"]
        logs = [f"{self.path}{end}" for end in (".wal", ".wal.checkpoint", ".wal.recovery", ".tmp")]
        inside = [self.path / "new.parquet", self.path / "current" / "seq=00000001" / "new.parquet"]
        names = [PublishedFiles.name(self.path, path) for path in found if path.suffix == ".parquet"]
        return [*map(str, (*found, self.path, *new, *inside)), *logs, *names, "published://new.csv", "new.csv"]


@pytest.fixture(scope="module", params=["duckdb", "parquet"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A target after two runs; the module only reads it."""
    kind: SinkKind = request.param
    folder = tmp_path_factory.mktemp(kind)
    around = folder / "data"
    path = around / ("contacts.duckdb" if kind == "duckdb" else "contacts [1]*")
    for seq in (1, 2):
        rows = [contact(number, name=f"name {seq}", city="AB"[number % 2]) for number in range(CONTACTS)]
        run = publication(brought(folder / "parts", "main", rows, seq=seq))
        sink = sink_at(kind, path)
        sink.open()
        sink.prepare(run)
        sink.publish(run)
    return Target(kind, path, around)


@pytest.fixture
def connection(target: Target) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection as users get it."""
    with open_readonly(target.kind, target.path) as connection:
        yield connection


@pytest.fixture
def unlocked() -> Iterator[duckdb.DuckDBPyConnection]:
    """An engine that may write anywhere, with a table to damage: only the first lock protects it."""
    with duck.connect() as connection:
        connection.execute("CREATE TABLE contacts AS SELECT 1 AS id, 'A' AS city")
        yield connection


def _in_a_string(text: str) -> str:
    return text.replace("'", "''")


def writing(copy: str) -> dict[str, str]:
    """Queries that would execute the statement `copy`, or break out of a surrounding query."""
    text = _in_a_string(f"WITH x AS ({copy}) SELECT 1 AS b FROM x")
    serialized = f"system.main.json_execute_serialized_sql(json_serialize_sql('{text}'))"
    return {
        "with": f"WITH x AS ({copy}) SELECT * FROM x",
        "unused": f"WITH x AS ({copy}) SELECT 1",
        "materialized": f"WITH x AS MATERIALIZED ({copy}) FROM x",
        "second": f"WITH y AS (SELECT 1), x AS NOT MATERIALIZED ({copy}) FROM x, y",
        "comment": f"WITH x AS (/* ( */ {copy} -- )\n) SELECT * FROM x",
        "nested": f"WITH y AS (WITH x AS ({copy}) FROM x) FROM y",
        "subquery": f"SELECT * FROM (WITH x AS ({copy}) FROM x)",
        "scalar": f"SELECT (WITH x AS ({copy}) SELECT count(*) FROM x)",
        "union": f"SELECT 1 UNION ALL (WITH x AS ({copy}) SELECT 2 FROM x)",
        "describe": f"DESCRIBE WITH x AS ({copy}) FROM x",
        "summarize": f"SUMMARIZE WITH x AS ({copy}) FROM x",
        "pivot in": f"WITH x AS ({copy}) PIVOT contacts ON city IN ('A') USING count(*)",
        "pivot": f"WITH x AS ({copy}) PIVOT (SELECT 'a' AS b FROM x) ON b USING count(*)",
        "pivot inside": f"FROM (PIVOT (WITH x AS ({copy}) SELECT 'a' AS b FROM x) ON b USING count(*))",
        "query": f"FROM query('{text}')",
        "query pivot": f"PIVOT (FROM query('{text}')) ON b USING count(*)",
        "serialized": f"FROM {serialized}",
        "serialized in pivot": f"PIVOT (FROM {serialized}) ON b USING count(*)",
        "alone": copy,
        "second statement": f"SELECT 1; {copy}",
        "closed": f"SELECT 1) AS t; {copy}; SELECT * FROM (SELECT 1",
        "closed by a line": f"SELECT 1 --\n) AS t; {copy}; --",
        "closed by a comment": f"SELECT 1 /* */) AS t; {copy} /*",
        "opened": f"SELECT 1 /* ; {copy}",
        "zero": f"SELECT 1\0; {copy}",
        "explain": f"EXPLAIN ANALYZE {copy}",
        "prepare": f"PREPARE p AS {copy}",
        "of a pivot": copy.replace("(SELECT 1 AS id, 'B' AS city)", "(PIVOT contacts ON city USING count(*))"),
    }


FORMS = (
    "(FORMAT csv)",
    "(FORMAT parquet)",
    "(FORMAT csv, USE_TMP_FILE false)",
    "(FORMAT parquet, PARTITION_BY (city))",
)
COPY = "COPY (SELECT 1 AS id, 'B' AS city) TO '{path}' {form}"


@pytest.mark.parametrize("form", FORMS)
def test_the_first_lock_alone_refuses_what_copies(
    form: str, unlocked: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """`select` executes no COPY, however it is wrapped, even if the engine would (X4)."""
    for name, query in writing(COPY.format(path=tmp_path / "stolen", form=form)).items():
        with pytest.raises(UsageError):
            select(unlocked, query)
        assert list(tmp_path.iterdir()) == [], name


DML = (
    "INSERT INTO contacts VALUES (2, 'B') RETURNING *",
    "UPDATE contacts SET city = 'B' RETURNING *",
    "DELETE FROM contacts RETURNING *",
)


@pytest.mark.parametrize("statement", DML)
def test_the_first_lock_alone_refuses_what_changes_rows(statement: str, unlocked: duckdb.DuckDBPyConnection) -> None:
    """`select` executes no INSERT, UPDATE or DELETE, however it is wrapped (X4)."""
    for name, query in writing(statement).items():
        with pytest.raises(UsageError):
            select(unlocked, query)
        assert unlocked.sql("FROM contacts").fetchall() == [(1, "A")], name


@pytest.mark.parametrize("form", FORMS)
def test_the_second_lock_alone_lets_nothing_be_written(
    form: str, target: Target, connection: duckdb.DuckDBPyConnection
) -> None:
    """A read-only connection writes no file, whatever is executed on it, and can still read afterwards (X4)."""
    before = target.files()
    for path in target.victims():
        copy = COPY.format(path=_in_a_string(path), form=form)
        for query in (copy, writing(copy)["with"], writing(copy)["serialized"], writing(copy)["pivot"]):
            with pytest.raises(duckdb.Error):
                connection.execute(query).fetchall()
    assert target.files() == before
    assert not Path("new.csv").exists()
    assert connection.sql("SELECT count(*) FROM contacts").fetchall() == [(CONTACTS,)]


def test_the_second_lock_alone_keeps_the_engine_shut(target: Target, connection: duckdb.DuckDBPyConnection) -> None:
    """No other database, extension, setting, log or file can be opened, and the target does not change (X4)."""
    before = target.files()
    new = target.around / "new.duckdb"
    statements = (
        *(f"ATTACH '{path}' AS other" for path in (new, f"{target.path}.wal", f"published://{new.name}")),
        f"ATTACH '{target.path}' AS again (READ_ONLY)", "INSTALL httpfs", "LOAD httpfs",
        *(f"EXPORT DATABASE '{folder}'" for folder in (target.around / "e", "published://e")),
        "SET disabled_filesystems = ''", "RESET disabled_filesystems", "SET enable_external_access = true",
        "SET lock_configuration = false", f"SET allowed_paths = ['{new}']", "SET temp_directory = 'spill'",
        "PRAGMA enable_logging", "CALL enable_logging(storage = 'file')", f"SET profiling_output = '{new}'",
        "FROM read_text('/etc/hostname')", "FROM '/etc/hostname'", "FROM glob('/etc/*')", "FROM glob('published://*')",
        "FROM sniff_csv('/etc/passwd')", "FROM read_text('published:///etc/hostname')",
        f"FROM read_blob('{target.path}')", f"FROM read_text('{target.path}/manifests/00000001.json')",
        "DELETE FROM contacts", "UPDATE contact_versions SET name = 'x'", "DROP TABLE contacts",
        "INSERT INTO runs SELECT * FROM runs", "DELETE FROM runs",
    )  # fmt: skip
    for statement in statements:
        with contextlib.suppress(duckdb.Error):
            assert connection.execute(statement).fetchall() == [], statement
    assert target.files() == before
    assert connection.sql("SELECT count(*) FROM contacts").fetchall() == [(CONTACTS,)]
    assert connection.sql("SELECT count(*) FROM runs").fetchall() == [(2,)]


def test_a_refused_query_says_why(target: Target, connection: duckdb.DuckDBPyConnection) -> None:
    """The error says which queries are allowed, and has no traceback."""
    copy = COPY.format(path=target.around / "new.csv", form="")
    for name, words in {
        "with": "only one reading statement",
        "alone": "only one reading statement",
        "pivot": "only one .* PIVOT",
        "serialized": "Permission",
    }.items():
        with pytest.raises(UsageError, match=words) as refused:
            select(connection, writing(copy)[name])
        assert "Traceback" not in refused.value.message


READING = {
    "SELECT count(*) FROM contacts": 1,
    "FROM contacts": CONTACTS,
    "TABLE contacts": CONTACTS,
    "VALUES (1), (2)": 2,
    "(SELECT 1)": 1,
    "WITH x AS MATERIALIZED (FROM contacts) SELECT * FROM x": CONTACTS,
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3) FROM t": 3,
    "DESCRIBE contacts": None,
    "DESCRIBE SELECT 1": 1,
    "SHOW TABLES": None,
    "SHOW ALL TABLES": None,
    "SUMMARIZE contacts": None,
    "SUMMARIZE SELECT 1": 1,
    "PIVOT contacts ON city IN ('A', 'B') USING count(*) GROUP BY status": 1,
    "PIVOT contacts ON city USING count(*) GROUP BY status": 1,
    "FROM (PIVOT contacts ON city USING count(*) GROUP BY status)": 1,
    "UNPIVOT (SELECT 1 AS a, 2 AS b) ON a, b INTO NAME name VALUE value": 2,
    "FROM contacts_as_of(TIMESTAMPTZ '2999-01-01')": CONTACTS,
    "FROM query('SELECT 1')": 1,
    "FROM query_table('runs')": 2,
    "SELECT 'copy' AS verb, ';' AS mark, '--' AS dash": 1,
    "SELECT 1;": 1,
    "SELECT 1; -- done": 1,
    "SELECT 'é' /* ; */ ;; /* ; */ -- ; ü": 1,
    "-- first\nSELECT 1 -- last": 1,
    "SELECT account, account, contact_id FROM contacts ORDER BY contact_id DESC LIMIT 3": 3,
    "SELECT count(*) FROM contacts a JOIN contact_versions b USING (account, contact_id, seq)": 1,
}


@pytest.mark.parametrize(("query", "rows"), READING.items())
def test_what_reads_is_answered(query: str, rows: int | None, connection: duckdb.DuckDBPyConnection) -> None:
    """Every reading statement of DuckDB works, with comments and semicolons around it."""
    found = select(connection, query).num_rows
    assert found == rows if rows is not None else found > 0


def test_a_broken_query_is_told_as_it_was_written(connection: duckdb.DuckDBPyConnection) -> None:
    """The line number in an error message is that of the user's query."""
    with pytest.raises(UsageError, match=r'"nothing" not found(.|\n)*LINE 1'):
        select(connection, "SELECT nothing\nFROM contacts")


def test_what_is_no_text_is_refused(connection: duckdb.DuckDBPyConnection) -> None:
    """A query that is not valid UTF-8 is refused."""
    with pytest.raises(UsageError, match="UTF-8"):
        select(connection, "SELECT '\udcff'")


def test_order_and_names_are_those_of_the_query(connection: duckdb.DuckDBPyConnection) -> None:
    """Checking a query does not change the order or the names of its result."""
    found = select(connection, "SELECT contact_id AS a, seq AS a FROM contacts ORDER BY contact_id DESC")
    assert found.column_names == ["a", "a"]
    assert found.column(0).to_pylist() == sorted(found.column(0).to_pylist(), reverse=True)


def test_many_threads_read_one_published_file(tmp_path: Path) -> None:
    """Each thread has a separate position in the file, as DuckDB needs."""
    path = tmp_path / "part.parquet"
    path.write_bytes(bytes(range(256)) * 64)
    opened = PublishedFiles(tmp_path, [path]).open("published://part.parquet")

    def right(place: int) -> bool:
        for _ in range(50):
            opened.seek(place)
            if opened.read(2) + opened.read(2) != bytes(n % 256 for n in range(place, place + 4)):
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(0, 16_000, 100)))
    opened.seek(256 * 64 - 1)
    with pytest.raises(OSError, match="corrupt"):
        opened.read(2)
