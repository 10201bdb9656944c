"""Publishes the manifests of an object log as commits of Delta tables.

    contacts/_delta_log/        the table `contacts`; its last commit of ours names the manifest that is published
    versions/ runs/ rejects/    further tables, committed before it
    manifests/00000003.<digest>.<digest of the one before>.json

Files are ours: a commit only adds and removes them. The log of a table accepts one commit for each version, so the
commit of `contacts` publishes or fails. The other tables are brought to the files of the manifest, whatever they hold:
what a killed run or one that lost has committed there is taken back by the next one. The only module that imports
deltalake, which belongs to the extra `delta`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from math import inf
from pathlib import Path
from time import sleep
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from etl.errors import OutcomeUnknown, SinkError, TargetCorrupt
from etl.sinks import checks, manifest, parquet_layout, tables
from etl.sinks.manifest import DataFile, Manifest
from etl.sinks.parquet_layout import Chain
from etl.storage import duck, files
from etl.storage.objects import NO_ANSWER, Missing, Store, as_sink_error, is_refused, reason_of

CONTACTS = "contacts"
_TABLES: dict[str, tables.Columns] = {
    "versions": tables.in_files(tables.VERSIONS),
    "rejects": tables.in_files(tables.REJECTS),
    "runs": tables.in_files(tables.RUNS),
    CONTACTS: tables.in_files(tables.CONTACTS),
}
"""The tables by their folders, in the order of their commits."""
_SIDE_TABLES = tuple(folder for folder in _TABLES if folder != CONTACTS)
_APP = "etl"
"""Our application id in the logs; its transaction version is the number of the last run."""
_MANIFEST_KEY = "etl.manifest"
_MANIFEST = parquet_layout.MANIFESTS["delta"]
_RUN = re.compile(r"seq=(\d+)/")
_Files = dict[str, dict[str, DataFile]]
"""The files of every table, by their paths in it."""
_PAUSES = (0.5, 1.0, 2.0, 4.0)
_HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)


class DeltaCommits:
    """See `parquet_commits.Commits`."""

    contacts = CONTACTS
    traceless = False

    def __init__(
        self,
        store: Store,
        options: Mapping[str, str],
        retention: timedelta,
        *,
        pause: Callable[[float], object] = sleep,
    ) -> None:
        """`options` are those of the library for the store (empty for a folder)."""
        self.retention = retention
        self._store = store
        self._options = dict(options)
        self._pause = pause
        self._table: DeltaTable | None = None
        """The table `contacts` as it was when the manifests were read."""

    def published(self, listed: Collection[str]) -> Sequence[str]:
        """See `Commits.published`; follows the digests back from the manifest that the last commit names."""
        parquet_layout.refuse_manifests("parquet", listed, self._store.url)
        self._table = self._load(CONTACTS)
        digest = self._published(self._table)
        known = {found[2]: found for found in map(_MANIFEST.fullmatch, listed) if found}
        names: list[str] = []
        while digest not in {"", "first"}:
            if digest not in known:
                where = self._store.where(f"manifests/*.{digest}.*.json")
                raise TargetCorrupt("a manifest is missing", where=where)
            names.append(known[digest][0])
            digest = known[digest][3]
        return names[::-1]

    def moved(self, names: Sequence[str]) -> bool:
        """See `Commits.moved`."""
        last = _MANIFEST.fullmatch(names[-1]) if names else None
        return self._published(self._load(CONTACTS)) != (last[2] if last else "")

    def check(self, chain: Chain) -> None:
        """See `Commits.check`: the table `contacts` holds the files of the last manifest."""
        held, files = set(_paths(self._table) if self._table else ()), chain.entries("current")
        if held != {file.path.partition("/")[2] for file in files}:
            message = "another program has changed the table contacts: it does not hold the files of the last run"
            hint = "Restore its version of the last run, or choose another path for a full export."
            raise TargetCorrupt(message, where=self._store.where(CONTACTS), hint=hint)

    def stage(self, folder: Path, written: Manifest) -> Manifest:
        """See `Commits.stage`: adds the rows of this run, which are a file of the table `runs`."""
        path = f"runs/seq={written.seq:08d}/part-000001.parquet"
        files.private_folder((folder / path).parent)
        rows = tables.run_rows(written.runs).cast(_schema("runs"))
        with files.translate_os_errors("write the runs", folder / path):
            pq.write_table(rows, folder / path, compression="zstd")
        files.make_private(folder / path)
        size = (folder / path).stat().st_size
        file = DataFile(path, rows.num_rows, size, files.sha256(folder / path))
        return replace(written, files=(*written.files, file))

    def publish(
        self,
        names: Sequence[str],  # noqa: ARG002 - see `Commits.publish`
        earlier: Sequence[Manifest],
        listed: Manifest,
        document: bytes,
    ) -> str | None:
        """See `Commits.publish`."""
        digest, table = manifest.digest(document), self._table
        name = f"manifests/{listed.seq:08d}.{digest}.{listed.previous or 'first'}.json"
        self._store.create(name, document)
        # Before the first run, whatever a killed copy has committed is taken back at once.
        wanted, last = _wanted([*earlier, listed]), earlier[-1].seq if earlier else inf
        for folder in _SIDE_TABLES:
            self._bring(folder, wanted[folder], listed, last)
        published = self._commit_contacts(table, wanted[CONTACTS], listed, digest)
        # What is left over, or cannot be read (`ValueError`: a manifest of another run), is for the next run to report.
        with suppress(SinkError, TargetCorrupt, ValueError):
            if published:
                for folder in _SIDE_TABLES:  # Takes back what killed runs and others of this number have committed.
                    self._bring(folder, wanted[folder], listed, listed.seq)
            else:
                self._retract(wanted, earlier, listed)
        return name if published else None

    def _retract(self, wanted: _Files, earlier: Sequence[Manifest], listed: Manifest) -> None:
        """Bring the other tables to what another run has published, without our files."""
        found = [manifest.decode(self._store.read(name)) for name in self.published(self._store.list("manifests"))]
        before, now = _wanted(earlier), _wanted(found)
        for folder in _SIDE_TABLES:
            ours = wanted[folder].keys() - before[folder].keys()
            self._bring(folder, now[folder], listed, found[-1].seq if found else 0, ours)

    def _bring(
        self, folder: str, wanted: Mapping[str, DataFile], listed: Manifest, last: float, ours: Collection[str] = ()
    ) -> None:
        """Have a table hold these files, and no others of runs up to `last`: later ones may yet be published.

        After a failed commit, which may be there all the same, the table is compared again.
        """
        failed: Exception | None = None
        for pause in (0.0, *_PAUSES):
            self._pause(pause)
            table = self._load(folder) or self._create(folder)
            later = [path for path in _paths(table) if _seq(path) > last and path not in ours]
            actions = _actions(table, wanted, later, listed)
            if not actions:
                return
            try:
                self._commit(table, actions, listed)
            except (DeltaError, OSError) as error:
                failed = error
            else:
                return
        raise self._error("commit to", folder, failed) from failed

    def _commit_contacts(
        self, table: DeltaTable | None, wanted: Mapping[str, DataFile], listed: Manifest, digest: str
    ) -> bool:
        """Commit the manifest after the version that it was built on; False if another commit has that place."""
        if table is None:
            table = self._create(CONTACTS)
            if found := self._published(table):  # Another first run was faster.
                return found == digest
        version, uncertain = table.version(), False
        for pause in _PAUSES:
            try:
                self._commit(table, _actions(table, wanted, (), listed), listed, {_MANIFEST_KEY: digest})
            except (DeltaError, OSError) as error:
                if not uncertain and is_refused(error):
                    raise self._error("commit to", CONTACTS, error) from error
            else:
                return True
            uncertain = True
            self._pause(pause)
            try:
                fresh = self._load(CONTACTS)
                if self._published(fresh) == digest:
                    return True
            except SinkError as error:
                raise OutcomeUnknown(f"it is not known whether the run was published: {error.message}") from error
            if fresh is None or fresh.version() != version:
                return False
            table = fresh
        raise OutcomeUnknown("it is not known whether the run was published", where=self._store.where(CONTACTS))

    def _commit(
        self,
        table: DeltaTable,
        actions: list[AddAction | RemoveAction],
        listed: Manifest,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Commit as the next version of the table as it was loaded; the library must not take a later one.

        If the commit is there, but could not be made private or durable, raises `PublishConflict` if it publishes (has
        `metadata`), else `SinkError`.
        """
        properties = CommitProperties(
            custom_metadata=metadata, max_commit_retries=0, app_transactions=[Transaction(_APP, listed.seq)]
        )
        table.create_write_transaction(
            actions, "append", table.schema(), commit_properties=properties, post_commithook_properties=_HOOKS
        )
        try:
            self._settle(table)
        except SinkError as error:
            if metadata:
                raise checks.not_durable(error, self._store.where(CONTACTS)) from error
            raise

    def _settle(self, table: DeltaTable) -> None:
        folder = table.table_uri.rstrip("/").rpartition("/")[2]
        self._store.settle(f"{folder}/_delta_log")

    def _published(self, table: DeltaTable | None) -> str:
        """The digest in the last commit of ours; empty if there is none."""
        version = table.version() if table is not None else -1
        if table is None or table.transaction_version(_APP) is None:
            return ""
        while version >= 0:
            try:
                log = self._store.read(f"{CONTACTS}/_delta_log/{version:020d}.json")
            except Missing as error:
                where = self._store.where(f"{CONTACTS}/_delta_log")
                raise TargetCorrupt("the commit of the last run is missing in the log", where=where) from error
            for info in (json.loads(line).get("commitInfo") for line in log.splitlines() if line.strip()):
                if info and _MANIFEST_KEY in info:
                    return str(info[_MANIFEST_KEY])
            version -= 1  # A commit of another program, such as a change of properties.
        return ""

    def _load(self, folder: str) -> DeltaTable | None:
        """The table as it is now; None if there is none."""
        if self._store.local is not None and not (self._store.local / folder).is_dir():
            return None
        try:
            return DeltaTable(self._uri(folder), storage_options=self._options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise self._error("read", folder, error) from error

    def _create(self, folder: str) -> DeltaTable:
        if self._store.local is not None:
            files.private_folder(self._store.local / folder)
        try:
            table = DeltaTable.create(
                self._uri(folder),
                schema=_schema(folder),
                mode="ignore",
                configuration={"delta.enableExpiredLogCleanup": "false", "delta.checkpointInterval": "10"},
                storage_options=self._options,
            )
        except (DeltaError, OSError) as error:
            raise self._error("create", folder, error) from error
        self._settle(table)
        return table

    def _uri(self, folder: str) -> str:
        # The library would take a relative path for a name of its own.
        home = self._store.url if self._store.local is None else self._store.local.absolute()
        return f"{home}/{folder}"

    def _error(self, what: str, folder: str, error: Exception | None) -> SinkError:
        message, where = f"cannot {what} the table {folder}: ", self._store.where(folder)
        # What concerns the store is an error of the system or has the code of the store; the rest concerns the log.
        found = reason_of(error) if error is not None and self._store.local is None else ""
        if found and (isinstance(error, OSError) or found != NO_ANSWER):
            return as_sink_error(found, message + found, where)
        reason = type(error).__name__ if error is not None else "others change it at the same time"
        return SinkError(message + reason, where=where)

    def orphans(self, listed: Collection[str], names: Sequence[str], last: int) -> list[str]:
        """See `Commits.orphans`."""
        found = filter(None, map(_MANIFEST.fullmatch, listed))
        return [one[0] for one in found if int(one[1]) <= last and one[0] not in names]


def options(endpoint: str) -> dict[str, str]:
    """The library's options for an object store; credentials come from the environment, as for `Objects`."""
    limits = {"connect_timeout": "5s", "timeout": "60s", "max_retries": "5", "retry_timeout": "60s"}
    address = {"endpoint": endpoint} if endpoint else {}
    return {**limits, **address, "allow_http": str(endpoint.startswith("http:")).lower()}


def _actions(
    table: DeltaTable, wanted: Mapping[str, DataFile], kept: Collection[str], listed: Manifest
) -> list[AddAction | RemoveAction]:
    """What makes the table hold the wanted files, and of others only those that are `kept`."""
    held, moment = set(_paths(table)), _moment(listed)
    added = [
        AddAction(path, file.bytes, {}, moment, data_change=True, stats=json.dumps({"numRecords": file.rows}))
        for path, file in wanted.items()
        if path not in held
    ]
    return [*added, *(RemoveAction(path, True, moment) for path in sorted(held - wanted.keys() - set(kept)))]


def _seq(path: str) -> int:
    """The number of the run that wrote a file."""
    found = _RUN.match(path)
    return int(found[1]) if found else 0


def _moment(listed: Manifest) -> int:
    """The time of a run in milliseconds, by the clock of the server."""
    return max((int(run.t0.timestamp() * 1000) for run in listed.runs), default=0)


def _wanted(manifests: Sequence[Manifest]) -> _Files:
    """The files of every table after these manifests."""
    found: _Files = {folder: {} for folder in _TABLES}
    for one in manifests:
        for folder in (CONTACTS, "rejects"):
            found[folder].clear()
        for file in one.files:
            folder, _, path = file.path.partition("/")
            if folder in found:
                found[folder][path] = file
    return found


def _paths(table: DeltaTable) -> Iterable[str]:
    return map(unquote, pa.table(table.get_add_actions()).column("path").to_pylist())


def _schema(folder: str) -> pa.Schema:
    """The columns of a table."""
    with duck.connect() as connection:
        return connection.sql(duck.scan((), _TABLES[folder])).to_arrow_table().schema
