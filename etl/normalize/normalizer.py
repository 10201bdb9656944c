"""Choose the path by which each contact is read, and ensure that none is lost.

1. Bulk: Arrow reads the whole batch and finds the fields that have no column.
2. If Arrow rejects the batch, the contacts are sorted by a strict row type. Arrow reads the clean ones again, now
   skipping the fields without a column (one of them may have changed its type); the others are read row by row.

After a rejected batch the next ones start with step 2, for a pause that doubles with every rejection in a row. A column
that has another type in many contacts drifts: from then on Arrow skips it, and `extras` reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from etl.errors import EtlError
from etl.model import NormalizedBatch, RawPage
from etl.normalize.assembly import in_reading_order, part, part_of_rows, rejects_table
from etl.normalize.columnar import Flat, Refused, flatten_contacts, flatten_pages, refused_contacts
from etl.normalize.extras import Extras, extras_of_contacts, extras_of_pages
from etl.normalize.pages import MAX_CONTACT_BYTES, Contacts, contacts_of, without_surrogates
from etl.normalize.rowwise import Reject, read_rows
from etl.normalize.shape import Path, pickable, strict_decoder
from etl.schema import ARROW, READ

_MAX_KNOWN = 64
"""The maximum of fields without a column read in bulk; a contact with any other is read separately."""
_MAX_PAUSE = 64
"""The maximum of batches that start with sorting before Arrow is tried with a whole one again."""
_FEW = 4
"""Up to this many contacts are read faster one by one than by Arrow."""
_DRIFT_SHARE = 8
"""A column drifts when more than one contact in this many has another type there."""
_SAMPLE = 16
"""Odd contacts read one by one first; if they have an unknown field, the other odd ones are then sorted again."""
_COLUMNS = frozenset(column.path for column in READ)
_TYPES = {column.name: ARROW[column.kind] for column in READ}
_ID = ("_id",)
"""Never drifts: a contact without it is a reject."""

_StrictDecoder = msgspec.json.Decoder[msgspec.Struct]


@dataclass(slots=True)
class _Work:
    """The results of a batch so far."""

    parts: list[pa.Table] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    misfits: Counter[Path] = field(default_factory=Counter)


class Normalizer:
    """Converts pages of one account to columns, and learns which path is the fastest.

    The learned state changes its speed and never its result. Not thread-safe: use one object per thread. It does no I/O
    and reads no clock.
    """

    def __init__(self, account: str) -> None:
        self._account = account
        self._known: frozenset[Path] = frozenset()
        """Fields without a column."""
        self._drifting: frozenset[Path] = frozenset()
        """Columns that Arrow skips."""
        self._repairs = False
        self._pause = 0
        self._refusals = 0

    def __call__(self, pages: Sequence[RawPage]) -> NormalizedBatch:
        """Every contact of `pages` once, in `contacts` (by read_no) or in `rejects`.

        Raises ContractError for a page that cannot be split into its contacts.
        """
        contacts, work = contacts_of(pages), _Work()
        if len(contacts) and not self._read_in_bulk(pages, contacts, work):
            self._read_sorted(contacts, work)
        # Remember the columns that drift; a few contacts of another type are cheaper read one by one.
        many = max(len(contacts) // _DRIFT_SHARE, _FEW)
        drifting = {path for path, count in work.misfits.items() if count > many and path != _ID}
        if not drifting <= self._drifting:
            self._drifting |= drifting
            self._pause = 0
        normalized, rejects = in_reading_order(work.parts), rejects_table(self._account, work.rejects)
        if len(normalized) + len(rejects) != len(contacts):
            message = f"{len(contacts)} contacts were read, {len(normalized)} normalized and {len(rejects)} rejected"
            raise EtlError(message, where=f"account {self._account}")
        counts = Counter(received=len(contacts), rejected=len(rejects)) + work.counts
        return NormalizedBatch(normalized, rejects, counts)

    def _read_in_bulk(self, pages: Sequence[RawPage], contacts: Contacts, work: _Work) -> bool:
        """Read the whole batch with Arrow; returns whether that was possible."""
        if self._pause:
            self._pause -= 1
            return False
        try:
            flat, readable, repaired = self._flatten(pages)
        except Refused:
            self._pause = min(2**self._refusals, _MAX_PAUSE)
            self._refusals += 1
            return False
        self._refusals = 0
        self._learn(flat.unknown)
        odd = _rows(flat.odd).union(repaired)
        unknown = {path: _rows([mask]) for path, mask in flat.unknown.items()}
        rows = frozenset(range(len(contacts)) if self._drifting else chain.from_iterable(unknown.values()))
        extras = extras_of_pages(readable, rows - odd, unknown, self._drifting)
        self._keep(flat, extras, odd, contacts, work)
        return True

    def _flatten(self, pages: Sequence[RawPage]) -> tuple[Flat, Sequence[RawPage], Collection[int]]:
        """The batch as columns, the pages they were read from, and the contacts whose lone surrogates were replaced.

        Every large account has such contacts: a preview truncated in the middle of an emoji.
        """
        if not self._repairs:
            try:
                return flatten_pages(pages, _MAX_KNOWN, self._drifting), pages, ()
            except Refused:
                pass
        sanitized, repaired = without_surrogates(pages)
        if not (self._repairs or repaired):
            raise Refused
        self._repairs = bool(repaired)
        return flatten_pages(sanitized, _MAX_KNOWN, self._drifting), sanitized, repaired

    def _read_sorted(self, contacts: Contacts, work: _Work) -> None:
        """Read the contacts that match a strict row type by columns, the others one by one."""
        known = frozenset(path for path in self._known if path[:-1] not in self._drifting)
        decoder = strict_decoder(known | self._drifting)
        clean: list[int] = []
        others: list[int] = []
        for row, raw in enumerate(contacts.raws):
            (clean if _is_clean(raw, decoder) else others).append(row)
        self._read_clean(contacts.take(clean), known, work)
        self._read_rows(contacts.take(others[:_SAMPLE]), work)
        rest = contacts.take(others[_SAMPLE:])
        if known >= {path for path in self._known if path[:-1] not in self._drifting}:
            self._read_rows(rest, work)
        else:
            self._read_sorted(rest, work)

    def _read_clean(self, contacts: Contacts, known: frozenset[Path], work: _Work) -> None:
        """Read clean contacts by columns, and those that Arrow still rejects (a repeated key) one by one.

        `known` are the fields without a column that they may have; Arrow skips them.
        """
        if len(contacts) <= _FEW:
            self._read_rows(contacts, work)
            return
        everyone = range(len(contacts))
        try:
            flat = flatten_contacts(contacts.raws, self._drifting)
        except Refused:
            refused = refused_contacts(contacts.raws, self._drifting)
            self._read_rows(contacts.take(refused), work)
            self._read_clean(contacts.take(sorted(set(everyone).difference(refused))), known, work)
        else:
            odd = _rows(flat.odd)
            extras = extras_of_contacts(contacts.raws, frozenset(everyone) - odd, known, self._drifting)
            self._keep(flat, extras, odd, contacts, work)

    def _keep(self, flat: Flat, extras: Extras, odd: frozenset[int], contacts: Contacts, work: _Work) -> None:
        """Keep the contacts that Arrow has read, and read the odd ones one by one."""
        odd = odd | extras.unread
        texts = pa.array(map(extras.texts.get, range(len(contacts))), pa.string(), size=len(contacts))
        drifting = {
            name: pa.array(map(cells.get, range(len(contacts))), _TYPES[name], size=len(contacts))
            for name, cells in extras.cells.items()
        }
        table = part(self._account, flat.columns | drifting, texts, pa.array(contacts.numbers, pa.int64()))
        if odd:
            table = table.take(pa.array(sorted(set(range(len(contacts))) - odd), pa.int64()))
        work.parts.append(table)
        work.counts.update(extras.counts)
        self._read_rows(contacts.take(sorted(odd)), work)

    def _read_rows(self, contacts: Contacts, work: _Work) -> None:
        if not len(contacts):
            return
        result = read_rows(contacts.raws, contacts.numbers)
        work.parts.append(part_of_rows(self._account, result.rows))
        work.rejects += result.rejects
        work.counts.update(result.counts)
        work.misfits.update(result.misfits)
        self._learn(result.unknown)

    def _learn(self, paths: Iterable[Path]) -> None:
        """Remember fields without a column, so that they do not make a contact odd again."""
        new = sorted(path for path in paths if path not in self._known | _COLUMNS and pickable(path))
        self._known |= frozenset(new[: _MAX_KNOWN - len(self._known)])


def _is_clean(raw: bytes, decoder: _StrictDecoder) -> bool:
    """Whether a contact has exactly the columns' types and nothing that Arrow would read differently."""
    if raw[:1] != b"{" or len(raw) > MAX_CONTACT_BYTES or (b"\\" in raw and b"\\u0000" in raw):
        return False
    try:
        raw.decode()  # msgspec does not validate the values that it skips
        decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def _rows(masks: Iterable[pa.BooleanArray]) -> frozenset[int]:
    """The positions that are true in any of `masks`."""
    return frozenset[int]().union(*(pc.indices_nonzero(mask).to_pylist() for mask in masks))
