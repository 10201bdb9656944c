"""The PostgreSQL sink: one schema of a database, changed in one transaction.

Data, history, state and manifest are written in a transaction that stays open until everything is checked; `publish`
is its COMMIT. An advisory lock in the same transaction keeps a second publication out. If the answer to the COMMIT is
lost, the manifest decides, read on a new connection after the old transaction has ended.
"""

# ruff: noqa: S608 - SQL is built from our own names, numbers and quoted literals.

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from etl import schema
from etl.errors import OutcomeUnknown, PublishConflict, SinkError, Unreachable
from etl.model import SNAPSHOTS, AccountYield, Merged, Publication, SinkState, Span
from etl.sinks import checks, manifest, merge, postgres_tables, queries, tables
from etl.sinks.postgres_copy import copy, load
from etl.sinks.postgres_reader import answer, attached, open_postgres
from etl.sinks.postgres_server import ConnectionLost, Dsn, Retryable, Session, session
from etl.sinks.postgres_write import Writer
from etl.sinks.sink import SinkKind
from etl.storage import duck, files, preflight, staging

_KEPT = {"account", "contact_id", "created_at", "row_hash", *(each.name for each in schema.CONTACTS if each.presence)}
_NARROW = tuple(column for column in tables.CONTACTS if column[0] in _KEPT)
"""The columns of published contacts that a merge compares."""
_REJECT = tuple(column for column in tables.REJECTS if column[0] not in {"reason", "path", "seq", "last_seq"})
"""The columns of published rejects that it compares."""
_KEY: tables.Columns = (("account", "VARCHAR"), ("contact_id", "VARCHAR"))
_LOCK = "hashtextextended($1 || ' etl', 0)"
"""The key of the advisory lock on a schema, given its name."""
_LIMITS = (
    "SET LOCAL lock_timeout = '60s'",
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
)
"""For the transaction of a run: it waits for other sinks, but never long for a lock."""
_SELF = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2"

_POSSIBLE = """
WITH home AS (SELECT to_regnamespace(quote_ident($1)) AS oid)
SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean, current_setting('server_encoding'),
       CASE WHEN oid IS NULL THEN has_database_privilege(current_database(), 'CREATE')
            ELSE has_schema_privilege(oid, 'CREATE') END,
       has_database_privilege(current_database(), 'TEMPORARY') AND NOT EXISTS (
           SELECT FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) needed
           WHERE c.relnamespace = home.oid AND c.relname = ANY($2) AND NOT has_table_privilege(c.oid, needed))
FROM home
"""
"""What keeps a run from publishing: a read-only server, another encoding, missing rights to create or to write."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An open transaction with everything written."""

    server: Session
    process: tuple[object, ...]
    """The server's process: its number, and when it began."""
    seq: int
    document: str
    """The manifest."""


class PostgresSink:
    """Publishes into one schema of a PostgreSQL database."""

    kind: SinkKind = "postgres"

    def __init__(
        self, dsn: Dsn, home: str, path: Path, memory_limit: int = duck.MEMORY_LIMIT, name: str = "postgres"
    ) -> None:
        """`home` is the schema; `path` names the lock and the staged data on this machine."""
        self.name = name
        self.path = path
        self.location = f"schema {home} (sinks.{name})"
        self._dsn = dsn
        self._home = home
        self._space = duck.quoted(home)
        self._memory_limit = memory_limit
        self._prepared: _Prepared | None = None
        self._spill: Path | None = None

    def exists(self) -> bool:
        """Whether there may be something to read: only the server knows."""
        return True

    def open(self) -> SinkState:
        """Check that the schema can be written, remove leftovers, and return the state; raises as `state` does."""
        preflight.check_room(staging.create_temporary(self.path), copied=0)
        staging.collect_leftovers(self.path)
        with session(self._dsn, self.location) as server:
            state = self._read_state(server)
            self._refuse_unwritable(server, state)
        return state

    def state(self) -> SinkState:
        """Return the state of the schema; writes nothing.

        Raises `TargetCorrupt` if it has foreign tables under our names or ours were altered, `SinkError` if the server
        cannot be reached.
        """
        with session(self._dsn, self.location) as server:
            return self._read_state(server)

    def created_at(self, account: str) -> pa.Table:
        """Creation times of the account's published contacts in order, without nulls."""
        query = f"""
            SELECT c.created_at, c.is_contact, s.strikes IS NOT NULL AS struck
            FROM {self._space}.contacts c LEFT JOIN {self._space}.etl_strikes s
            ON c.account = s.account AND c.contact_id = s.contact_id
            WHERE c.account = $1 AND c.created_at IS NOT NULL ORDER BY c.created_at
        """
        wanted = pa.schema({"created_at": schema.TIME, "is_contact": pa.bool_(), "struck": pa.bool_()})
        with session(self._dsn, self.location) as server:
            if not self._read_state(server).seq:
                return wanted.empty_table()
            return server.table(query, account).cast(wanted)

    def copy_ids(self, account: str, file: Path, within: Span | None = None) -> None:
        """Write the ids of the account's published and deleted contacts to a new file; see `Sink.copy_ids`."""
        name, strikes = duck.literal(account), f"{self._space}.etl_strikes"
        query = f"""
            SELECT contact_id, coalesce(strikes, 0) AS strikes
            FROM {self._space}.contacts LEFT JOIN {strikes} USING (account, contact_id) WHERE account = {name}
        """
        if within is None:
            query += f" UNION ALL SELECT contact_id, strikes FROM {strikes} WHERE account = {name} AND strikes > 1"
        else:
            query += " AND created_at IS NOT NULL" + _within(within, "created_at")
        wanted = pa.schema({"contact_id": pa.string(), "strikes": pa.int8()})
        with session(self._dsn, self.location) as server, files.translate_os_errors("write the ids", file):
            published = self._read_state(server).seq
            with pq.ParquetWriter(files.private_file(file), wanted) as writer:
                for batch in server.stream(query) if published else ():
                    writer.write_batch(batch.cast(wanted))

    def copy_contacts(self, account: str, name: str, file: Path) -> int:
        """Write the account's published contacts to a new part of the account `name`; return their number."""
        with attached(self._dsn, self.location, self._home, self._memory_limit, self.path) as engine:
            return queries.copy_contacts(engine, account, name, file)

    def prepare(self, publication: Publication) -> Merged:
        """Write everything in a transaction that stays open, and have the server count it; readers do not see it.

        Raises `UsageError` if the target was made with other filters, `PublishConflict` if the run number is taken or
        another run is publishing.
        """
        work = partial(checks.with_memory_fallback, self._memory_limit, partial(self._prepare, publication))
        try:
            return work()
        except (Unreachable, Retryable):
            return work()

    def publish(self, publication: Publication) -> None:
        """Commit the prepared transaction.

        Raises `PublishConflict` if another run published this number, `OutcomeUnknown` if the answer was lost and the
        server can no longer be asked.
        """
        prepared = self._prepared
        if prepared is None or prepared.seq != publication.seq:
            raise SinkError(f"nothing is prepared for run {publication.seq}", where=self.location)
        try:
            prepared.server.execute("COMMIT")
            # A transaction that had failed is rolled back by COMMIT, which does not say so.
            found = self._document(prepared.server, prepared.seq)
        except ConnectionLost:
            found = self._settled(prepared)
        finally:
            self.discard()
        if found is None:
            raise ConnectionLost("the connection was lost before the commit", where=self.location)
        if found != prepared.document:
            raise PublishConflict(f"another process published run {publication.seq}", where=self.location)

    def discard(self) -> None:
        """Roll back the prepared transaction, if any."""
        if self._prepared is not None:
            self._prepared.server.close()
            self._prepared = None
        if self._spill is not None:
            files.remove_quietly(self._spill)
            self._spill = None

    def reading(self) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        """See `Sink.reading`; tables are streamed from the server when a query scans them."""
        return open_postgres(self._dsn, self.location, self._home)

    def select(self, query: str) -> pa.Table:
        """See `Sink.select`; the server runs the query, in its own dialect."""
        return answer(self._dsn, self.location, self._home, query)

    def _prepare(self, publication: Publication, memory: int) -> Merged:
        self.discard()
        self._spill = staging.next_folder(self.path)
        with self._transaction() as server:
            previous = self._read_state(server)
            checks.check_compatible(self, previous, publication)
            if not previous.seq:
                self._create(server)
            with self._engine(server, publication, memory) as engine:
                merged = merge.prepare(engine, publication, previous.runs, _held(engine, previous, publication))
                Writer(server, engine, self._home).write(publication, self._added(server))
                written = manifest.follow(previous, publication, merged)
                engine.register("this_run", tables.run_rows(written.runs))
                copy(server, engine, "this_run", tables.RUNS, "runs", self._home)
                self._check(server, engine, merged, publication)
            self._finish(server, [written])
        return merged

    def restore(self, source: duckdb.DuckDBPyConnection, history: Sequence[manifest.Manifest]) -> None:
        """Copy everything that `source` reads into new tables; see `Sink.restore`."""
        self.discard()
        with self._transaction() as server:
            checks.refuse_published(self, self._read_state(server))
            self._create(server)
            Writer(server, source, self._home).restore()
            self._finish(server, history)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Session]:
        """A new transaction that holds the lock on the schema; it stays open after the block."""
        server = Session(self._dsn, self.location)
        try:
            for statement in ("BEGIN", *_LIMITS):
                server.execute(statement)
            self._lock(server)
            yield server
        except BaseException:
            server.close()
            raise

    def _lock(self, server: Session) -> None:
        """Keep other runs out until the transaction ends. Raises `PublishConflict` if another one is publishing."""
        [[alone]] = server.rows(f"SELECT pg_try_advisory_xact_lock({_LOCK})", self._home)
        if not alone:
            raise PublishConflict("another run is publishing into this schema", where=self.location)

    def _finish(self, server: Session, manifests: Sequence[manifest.Manifest]) -> None:
        """Write the manifests, after which the transaction waits for `publish`."""
        rows = manifest.rows(manifests)
        for row in rows:
            server.execute(f"INSERT INTO {self._space}.etl_manifests VALUES ($1, $2, $3)", *row)
        [process] = server.rows(_SELF)
        seq, _, document = rows[-1]
        self._prepared = _Prepared(server, process, seq, document)

    def _create(self, server: Session) -> None:
        """Create our tables; the schema only if it is missing, because its owner need not own the database."""
        [[missing]] = server.rows("SELECT to_regnamespace(quote_ident($1)) IS NULL", self._home)
        schema_first = [f"CREATE SCHEMA {self._space}"] if missing else []
        for statement in (*schema_first, *postgres_tables.create(self._home)):
            server.execute(statement)

    @contextlib.contextmanager
    def _engine(self, server: Session, publication: Publication, memory: int) -> Iterator[duckdb.DuckDBPyConnection]:
        """An engine with the published state that a merge compares; translates engine errors to ours."""
        accounts = ", ".join(duck.literal(brought.record.account) for brought in publication.accounts)
        of_run = f"WHERE account IN ({accounts})"
        others = ", ".join(
            f"NULL::{kind} AS {duck.quoted(name)}" for name, kind in tables.CONTACTS if name not in _KEPT
        )
        try:
            with duck.connect(memory, self._spill) as engine:
                load(server, engine, "held", _NARROW, self._concerned(server, engine, publication))
                load(server, engine, "strikes", tables.STRIKES, f"{self._space}.etl_strikes")
                load(server, engine, "rejects", _REJECT, f"{self._space}.rejects {of_run}")
                engine.execute(f"CREATE TEMP VIEW contacts AS SELECT *, {others} FROM held")
                yield engine
        except duckdb.Error as error:
            raise checks.translate(error, self.path) from error

    def _check(
        self, server: Session, engine: duckdb.DuckDBPyConnection, merged: Merged, publication: Publication
    ) -> None:
        """Have the server count what was written; each contact is there once by its primary key.

        The contacts of accounts that were read or replaced as a whole are counted anew. Of others, only the rows of
        this run and the deleted ones are: the rest is as the former run counted it, because the lock keeps other runs
        out and every statement names its rows by their keys.
        """
        seq = publication.seq
        [[of_run]] = server.rows(f"SELECT count(*) FROM {self._space}.contact_versions WHERE seq = {seq}")
        replaced = _by_account(engine, "FROM upserts WHERE verdict <> 'new'")
        written = self._counted(server, f"contacts WHERE seq = {seq}")
        gone = self._counted(
            server,
            f"""contact_versions v WHERE seq = {seq} AND op = 'delete' AND NOT EXISTS (
                SELECT FROM {self._space}.contacts c WHERE c.account = v.account AND c.contact_id = v.contact_id)""",
        )
        found = {
            account: before + written.get(account, 0) - replaced.get(account, 0) - gone.get(account, 0)
            for account, before in merged.previous.items()
        }
        if whole := [brought.record.account for brought in publication.accounts if _is_whole(brought)]:
            names = ", ".join(map(duck.literal, whole))
            found |= dict.fromkeys(whole, 0) | self._counted(server, f"contacts WHERE account IN ({names})")
        checks.refuse_difference(found, 0, of_run, merged, self.location)

    def _counted(self, server: Session, rows: str) -> dict[str, int]:
        """The number of some rows of one of our tables, by account."""
        return dict(server.rows(f"SELECT account, count(*) FROM {self._space}.{rows} GROUP BY account"))

    def _concerned(self, server: Session, engine: duckdb.DuckDBPyConnection, publication: Publication) -> str:
        """The contacts that the publication can concern, as a source of the server.

        Those are the received ones, those in covered spans, and those with a strike; of an account that was read or is
        replaced as a whole, all of them.
        """
        columns = duck.listed((name for name, _ in _NARROW), "c")
        contacts = f"SELECT {columns} FROM {self._space}.contacts c"
        whole = [each for each in publication.accounts if _is_whole(each)]
        others = [each for each in publication.accounts if not _is_whole(each)]
        queries = [f"{contacts} WHERE c.account = {duck.literal(each.record.account)}" for each in whole]
        if others:
            server.execute("CREATE TEMP TABLE etl_received (account text, contact_id text) ON COMMIT DROP")
            received = duck.scan((part for each in others for part in each.parts), _KEY)
            copy(server, engine, f"({received})", _KEY, "etl_received")
            server.execute("ANALYZE etl_received")
            same = "c.account = n.account AND c.contact_id = n.contact_id"
            names = ", ".join(duck.literal(each.record.account) for each in others)
            parts = [
                f"{contacts} JOIN etl_received n ON {same}",
                f"{contacts} JOIN {self._space}.etl_strikes n ON {same} WHERE n.account IN ({names})",
                *(
                    f"{contacts} WHERE c.account = {duck.literal(each.record.account)}{_within(span, 'c.created_at')}"
                    for each in others
                    for span in each.coverage
                ),
            ]
            queries.append(" UNION ".join(parts))
        return f"({' UNION ALL '.join(f'({query})' for query in queries)}) concerned"

    def _added(self, server: Session) -> tuple[str, ...]:
        """The columns of `contacts` that the user added."""
        columns = postgres_tables.held(server.rows(postgres_tables.COLUMNS, self._home))["contacts"]
        return tuple(name for name in columns if name not in schema.column_names())

    def _read_state(self, server: Session) -> SinkState:
        found = postgres_tables.held(server.rows(postgres_tables.COLUMNS, self._home))
        if "etl_manifests" not in found:
            postgres_tables.refuse_foreign(found, self.location)
            return SinkState()
        postgres_tables.refuse_altered(found, self.location)
        last = f"SELECT seq, digest, document FROM {self._space}.etl_manifests ORDER BY seq DESC LIMIT 1"
        return checks.last_state(server.rows(last), self.location)

    def _refuse_unwritable(self, server: Session, state: SinkState) -> None:
        """Raise `SinkError` if a run could not publish into this schema."""
        names = list(postgres_tables.TABLES)
        [[replica, encoding, may_create, may_write]] = server.rows(_POSSIBLE, self._home, names)
        if replica:
            hint = "Name the primary server in the DSN, or let this user write, then run again."
            raise SinkError("the server is read-only", where=self.location, hint=hint)
        if encoding != "UTF8":
            hint = "Create a database with ENCODING 'UTF8', then name it in the DSN."
            raise SinkError(f"the database has the encoding {encoding}, not UTF8", where=self.location, hint=hint)
        if not state.seq and not may_create:
            hint = f"Let the DBA create it for this user: CREATE SCHEMA {self._space} AUTHORIZATION ..."
            raise SinkError(f"this user may not create tables in schema {self._home}", where=self.location, hint=hint)
        if state.seq and not may_write:
            hint = f"Let the DBA grant it: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {self._space}."
            raise SinkError(f"this user may not write into schema {self._home}", where=self.location, hint=hint)

    def _document(self, server: Session, seq: int) -> str | None:
        """The manifest of a run, if it is published."""
        [[known]] = server.rows("SELECT to_regclass($1) IS NOT NULL", f"{self._space}.etl_manifests")
        found = server.rows(f"SELECT document FROM {self._space}.etl_manifests WHERE seq = {seq}") if known else []
        return str(found[0][0]) if found else None

    def _settled(self, prepared: _Prepared) -> str | None:
        """The manifest of the run, if it is published, after its transaction has certainly ended."""
        try:
            with session(self._dsn, self.location) as server:
                for statement in ("BEGIN", *_LIMITS):
                    server.execute(statement)
                # A COMMIT that is still on its way must not arrive after the manifest was looked for.
                server.rows(_END, *prepared.process)
                server.rows(f"SELECT pg_advisory_xact_lock({_LOCK})", self._home)
                return self._document(server, prepared.seq)
        except SinkError as error:
            raise OutcomeUnknown(
                f"the answer to the commit was lost, and the server does not tell whether it happened: {error.message}",
                where=self.location,
            ) from error


def _is_whole(brought: AccountYield) -> bool:
    """Whether a publication can concern every contact of an account."""
    return brought.record.mode in (*SNAPSHOTS, "full")


def _held(engine: duckdb.DuckDBPyConnection, previous: SinkState, publication: Publication) -> dict[str, int]:
    """The published contacts by account: counted if the engine has all of them, else as the last run counted them."""
    held = _by_account(engine, "FROM contacts")
    for brought in publication.accounts:
        last = previous.runs.get(brought.record.account)
        if last is not None and not _is_whole(brought):
            held[last.account] = last.counts.contacts
    return held


def _by_account(engine: duckdb.DuckDBPyConnection, rows: str) -> dict[str, int]:
    return dict(engine.execute(f"SELECT account, count(*) {rows} GROUP BY account").fetchall())


def _within(span: Span, column: str) -> str:
    """Conditions that a time is in the span, each after AND; none for a span without ends."""
    bounds = ((span.start, ">="), (span.end, "<"))
    return "".join(f" AND {column} {sign} timestamptz '{at.isoformat()}'" for at, sign in bounds if at is not None)
