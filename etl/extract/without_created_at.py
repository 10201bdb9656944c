"""Extracts from a page the contacts that no createdAt window can return. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from etl.api.response import Page
from etl.times import milliseconds


def without_creation_time(page: Page) -> Page | None:
    """The part of `page` that no createdAt window can return; None if there is none."""
    without_created_at = [milliseconds(row.created_at) is None for row in page.rows]
    if not any(without_created_at):
        return None
    try:
        contacts = _raw_contacts(page.body).data
    except msgspec.DecodeError:
        # Only the tolerant parser can split this page: return all of it, duplicates are removed later.
        return page
    kept = [raw for raw, wanted in zip(contacts, without_created_at, strict=True) if wanted]
    rows = [row for row, wanted in zip(page.rows, without_created_at, strict=True) if wanted]
    return replace(page, body=b'{"data":[' + b",".join(kept) + b"]}", rows=rows)


class _RawContacts(msgspec.Struct):
    data: list[msgspec.Raw]


_raw_contacts = msgspec.json.Decoder(_RawContacts).decode
