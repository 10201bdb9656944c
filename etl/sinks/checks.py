"""Checks that all file sinks share: before a merge, after it, and when the engine fails."""

# ruff: noqa: S608 - SQL is built from the column table, our own names and quoted literals.

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import duckdb

from etl.errors import EtlError, PublishConflict, SinkError, TargetCorrupt, UsageError
from etl.model import Merged, Publication, SinkState
from etl.sinks import manifest
from etl.sinks.readback import ReadBackError, read_back
from etl.sinks.sink import Sink
from etl.storage import duck, files

_ABOUT_FILES = (
    duckdb.IOException,
    duckdb.OutOfMemoryException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.TransactionException,
)
_INTERRUPTED = os.strerror(errno.EINTR)
_DAMAGE = re.compile("corrupt|checksum|magic bytes|TProtocol|zstd", re.IGNORECASE)


class OutOfMemory(SinkError):
    """The engine needs more memory than it was given."""


def with_memory_fallback(limit: int, work: Callable[[int], Merged]) -> Merged:
    """Run `work` with little memory, and again with the whole limit (bytes) if that is not enough.

    `work` starts from scratch each time. It is also repeated once if the system interrupted a call of the engine, which
    does not retry it (P11).
    """
    try:
        return work(min(limit, duck.FRUGAL))
    except OutOfMemory:
        if limit <= duck.FRUGAL:
            raise
        return work(limit)
    except SinkError as error:
        if _INTERRUPTED not in str(error.__cause__):
            raise
        return work(min(limit, duck.FRUGAL))


def refuse_other_filters(sink: Sink, state: SinkState, filters: Mapping[str, object]) -> None:
    """Raise `UsageError` if the target was made with other filters: a target holds the export of one set of filters."""
    if state.seq and dict(state.filters) != dict(filters):
        raise UsageError(
            f"the target was made with {'other' if state.filters else 'no'} filters",
            where=f"sinks.{sink.name}: {sink.location}",
            hint="Name a new target for this export, or restore extract.filters.",
        )


def check_compatible(sink: Sink, previous: SinkState, publication: Publication) -> None:
    """Raise `UsageError` if the target was made with other filters, `PublishConflict` if the run number is taken."""
    refuse_other_filters(sink, previous, publication.filters)
    if publication.seq <= previous.seq:
        message = f"run {publication.seq} comes after run {previous.seq}, which is already published"
        raise PublishConflict(message, where=sink.location)


def is_damage(error: duckdb.Error) -> bool:
    """Whether the target is at fault, not the query."""
    asked = isinstance(error, (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException))
    return not asked and _DAMAGE.search(str(error)) is not None


def words(error: duckdb.Error) -> str:
    """The engine's message on one line, without the marker under the query; for a traceback, only its last line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if "Traceback (most recent call last)" in str(error):
        return lines[-1]
    return "; ".join(line for line in lines if line.strip("^"))


def translate(error: duckdb.Error, target: Path | str) -> EtlError:
    """Translate an engine error to one of ours.

    Messages about files and names are included; messages about values could reveal a contact.
    """
    text = str(error).splitlines()[0] if isinstance(error, _ABOUT_FILES) else type(error).__name__
    if is_damage(error):
        return TargetCorrupt(f"the target is damaged: {text}", where=str(target))
    if isinstance(error, duckdb.OutOfMemoryException):
        hint = "Raise extract.memory_limit or free space on the disk of the target, then run again."
        return OutOfMemory(f"DuckDB ran out of memory: {text}", where=str(target), hint=hint)
    return SinkError(f"DuckDB failed: {text}", where=str(target))


def read_back_whole(setup: Sequence[str], merged: Merged, publication: Publication, written: Path) -> None:
    """Have another process check the written data: row counts match, each contact once, all versions present.

    `setup` limits the engine and creates the relations `contacts` and `contact_versions`. Raises `SinkError` on any
    difference.
    """
    queries = (
        "SELECT account, count(*) FROM contacts GROUP BY account",
        """SELECT count(*) FROM (
               SELECT 1 FROM contacts GROUP BY account, contact_id HAVING count(*) > 1)""",
        f"SELECT count(*) FROM contact_versions WHERE seq = {publication.seq}",
    )
    try:
        with files.translate_os_errors("start another process", written):
            contacts, [[repeated]], [[versions]] = read_back(setup, queries)
    except ReadBackError as error:
        raise SinkError(f"the written data cannot be read back: {error}", where=str(written)) from error
    found = {str(account): rows for account, rows in contacts}
    refuse_difference(found, repeated, versions, merged, str(written))


def refuse_difference(
    found: Mapping[str, object], repeated: object, versions: object, merged: Merged, where: str
) -> None:
    """Raise `SinkError` unless the written data is what the merge counted.

    `found` are the contacts by account, `repeated` those that are there twice, `versions` the new ones.
    """
    wanted = {account: counts.contacts for account, counts in merged.counts.items()}
    differing = [account for account, rows in wanted.items() if found.get(account, 0) != rows]
    wanted_versions = sum(counts.new + counts.changed + counts.deleted for counts in merged.counts.values())
    if differing or repeated or versions != wanted_versions:
        raise SinkError(
            f"the written data reads back differently: accounts {differing}, {repeated} contacts twice,"
            f" {versions} versions instead of {wanted_versions}",
            where=where,
        )


def refuse_published(sink: Sink, state: SinkState) -> None:
    """Raise `UsageError` unless nothing was published into the target yet."""
    if state.seq:
        hint = "A copy fills a new target: name another one, or move this one away."
        raise UsageError(f"sink {sink.name} already holds state {state.seq}", where=sink.location, hint=hint)


def last_state(found: Sequence[Sequence[object]], where: str) -> SinkState:
    """The state in the row (seq, digest, document) of a target's last manifest; raises `TargetCorrupt`."""
    if not found:
        raise TargetCorrupt("the target has no manifest", where=where)
    seq, digest, document = found[0]
    try:
        state = manifest.sink_state(str(document).encode())
    except ValueError as error:
        raise TargetCorrupt(f"manifest {seq} cannot be read: {error}", where=where) from error
    if state.digest != digest or state.seq != seq:
        raise TargetCorrupt(f"manifest {seq} was altered", where=where)
    return state


def sync_published(folder: Path) -> None:
    """Sync a folder after publishing; a failure is a separate outcome: see `not_durable`."""
    try:
        files.sync(folder)
    except SinkError as error:
        raise not_durable(error, str(folder)) from error


def not_durable(error: SinkError, where: str) -> PublishConflict:
    """The error of a run that is published, but whose durability is unknown because of `error`."""
    return PublishConflict(
        f"published, but it is not known whether it survives a power loss: {error.message}",
        where=where,
        hint="Check the disk, then run again: the next run starts from the published state.",
    )
