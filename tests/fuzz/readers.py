"""The fuzzed readers, each with the properties that must hold for any input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from etl.api.response import ApiFailure, HttpResponse, Page, parse_response
from etl.config import Config, load
from etl.errors import UsageError
from etl.model import NormalizedBatch, RawPage
from etl.normalize.assembly import part_of_rows, rejects_table
from etl.normalize.normalizer import Normalizer
from etl.normalize.pages import contacts_of
from etl.normalize.rowwise import read_rows
from etl.sinks import manifest

Reader = Callable[[bytes], None]

HEADERS = (
    {},
    {"Content-Type": "application/json; charset=latin-1", "Date": "Mon, 05 Jan 2026 10:00:00 GMT"},
    {"Content-Type": "text/html", "Retry-After": "-1", "Date": "yesterday"},
)
ACCOUNT = "main"


def answers(data: bytes) -> None:
    """A response with any status is a page or a failure; a page can be normalized, and none of its contacts is lost."""
    for status in (200, 204, 302, 400, 429, 500):
        for headers in HEADERS:
            found = parse_response(HttpResponse(status, headers, data, secret="5eed"))  # noqa: S106 - invented
            assert isinstance(found, Page | ApiFailure)
            if isinstance(found, ApiFailure):
                assert "5eed5eed" not in found.message
                assert found.message.isprintable()
            else:
                assert status == 200
                assert len(found.ids) <= len(found.rows)
    page = parse_response(HttpResponse(200, {}, data))
    if isinstance(page, Page):
        normalized(page.body, len(page.rows))


def contacts(data: bytes) -> None:
    """The same for one contact among others."""
    answers(b'{"success":true,"data":[{"_id":"before"},' + data + b',{"_id":"after"}]}')


def normalized(body: bytes, rows: int) -> None:
    """In bulk, in bulk again, and one by one: the rows are the same, and each contact is kept or rejected."""
    page = RawPage(body, rows, 0)
    normalizer = Normalizer(ACCOUNT)
    first, again = normalizer([page]), normalizer([page])
    for batch in (first, again):
        batch.contacts.validate(full=True)
        batch.rejects.validate(full=True)
        assert len(batch.contacts) + len(batch.rejects) == batch.counts["received"] == rows
    assert _told(first) == _told(again) == _told(_one_by_one(page))


def _one_by_one(page: RawPage) -> NormalizedBatch:
    found = contacts_of([page])
    result = read_rows(found.raws, found.numbers)
    return NormalizedBatch(part_of_rows(ACCOUNT, result.rows), rejects_table(ACCOUNT, result.rejects))


def _told(batch: NormalizedBatch) -> tuple[list[str], list[str]]:
    """As text, because NaN is not equal to itself."""
    return sorted(map(repr, batch.contacts.to_pylist())), sorted(map(repr, batch.rejects.to_pylist()))


def manifests(data: bytes) -> None:
    """A valid manifest is written as it was read; any other input raises ValueError and no other error."""
    try:
        found = manifest.decode(data)
    except ValueError:
        return
    assert manifest.decode(manifest.encode(found)).state == found.state
    assert manifest.sink_state(data).seq == found.seq


def configurations(data: bytes) -> None:
    """Any input is a configuration, or gives one message that names its faults."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            assert isinstance(load(Path(file.name), environ={}), Config)
        except UsageError as error:
            told = error
        else:
            return
    assert told.message
    assert told.hint


READERS: Mapping[str, Reader] = MappingProxyType(
    {reader.__name__: reader for reader in (answers, contacts, manifests, configurations)}
)
