"""The manifest: the record of one publication and the state the next run starts from, as one JSON document.

It is published with the data in the same atomic step. Each manifest carries the SHA-256 of the previous one, which
detects an older target put in place of a newer one, and its own as a seal, which detects a corrupted byte. Pure: bytes
in, values out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from etl import schema
from etl.model import Merged, Publication, RunRecord, SinkState

FORMAT = 4
"""Format 1 had no seal. Up to format 3, fingerprints are by the former definition (`etl.sinks.rehash`)."""
FORMAT_OF_SIGHTINGS = 2
"""Up to this format, `rejects` has a row per run that saw the contact (`etl.sinks.rejects`)."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A published file, relative to the target."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One publication."""

    seq: int
    run_id: str
    previous: str
    """Digest of the manifest before this one; "" for the first."""
    runs: tuple[RunRecord, ...]
    """The accounts of this run."""
    state: Mapping[str, RunRecord]
    """The last run of every account, carried forward until the account is dropped."""
    filters: Mapping[str, object] = field(default_factory=dict)
    files: tuple[DataFile, ...] = ()
    """Its files, including those linked from an earlier state; empty if the target is one file."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns of `contacts` and their SQL types."""
    format: int = FORMAT
    seal: str = ""
    """SHA-256 of the document with an empty seal."""


def follow(previous: SinkState, publication: Publication, merged: Merged) -> Manifest:
    """The manifest of `publication` after `previous`, with the counts that the merge found."""
    runs = tuple(
        replace(brought.record, counts=merged.counts[brought.record.account]) for brought in publication.accounts
    )
    return Manifest(
        seq=publication.seq,
        run_id=publication.run_id,
        previous=previous.digest,
        runs=runs,
        state={
            name: run
            for name, run in {**previous.runs, **{run.account: run for run in runs}}.items()
            if run.mode != "dropped"
        },
        filters=publication.filters,
        columns=columns(),
    )


def chained(runs: Mapping[int, Sequence[RunRecord]], filters: Mapping[str, object]) -> list[Manifest]:
    """A new chain for these runs by number, as if a target without files had published each."""
    chain: list[Manifest] = []
    state: dict[str, RunRecord] = {}
    for seq in sorted(runs):
        state |= {run.account: run for run in runs[seq]}
        state = {name: run for name, run in state.items() if run.mode != "dropped"}
        previous = digest(encode(chain[-1])) if chain else ""
        run_id = runs[seq][0].run_id if runs[seq] else ""
        chain.append(Manifest(seq, run_id, previous, tuple(runs[seq]), state, filters, columns=columns()))
    return chain


def joined(chain: Sequence[Manifest]) -> Manifest:
    """One manifest with all runs of a chain, as if its last run had published everything."""
    return replace(chain[-1], previous="", runs=tuple(run for one in chain for run in one.runs))


def rows(chain: Iterable[Manifest]) -> list[tuple[int, str, str]]:
    """Manifests as rows of the table of manifests."""
    return [(one.seq, digest(document), document.decode()) for one in chain for document in [encode(one)]]


def columns() -> dict[str, str]:
    """The current columns of `contacts`, with their SQL types."""
    return {column.name: column.sql for column in schema.CONTACTS}


def encode(manifest: Manifest) -> bytes:
    """The document; the same manifest gives the same bytes."""
    blank = msgspec.json.encode(replace(manifest, seal=""), order="deterministic")
    return msgspec.json.encode(replace(manifest, seal=digest(blank)), order="deterministic")


def decode(document: bytes) -> Manifest:
    """The manifest; raises `ValueError` if the document is not a valid manifest or has a newer format."""
    try:
        manifest = msgspec.json.decode(document, type=Manifest)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    if manifest.format > FORMAT:
        raise ValueError(f"format {manifest.format} is newer than this program knows ({FORMAT})")
    blank = document.replace(f'"seal":"{manifest.seal}"'.encode(), b'"seal":""', 1)
    if (manifest.seal or manifest.format > 1) and digest(blank) != manifest.seal:
        raise ValueError("it does not agree with its seal: it was damaged or edited")
    return manifest


def sink_state(document: bytes) -> SinkState:
    """The state for the next run; raises `ValueError` as `decode` does."""
    manifest = decode(document)
    return SinkState(manifest.seq, digest(document), manifest.state, manifest.filters)


def digest(document: bytes) -> str:
    """The SHA-256 that the next manifest carries."""
    return hashlib.sha256(document).hexdigest()
