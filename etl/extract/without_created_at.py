"""Extracts from a page the contacts that no createdAt window can return. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from etl.api.response import Page
from etl.normalize.pages import raw_contacts
from etl.times import milliseconds


def without_creation_time(page: Page) -> Page | None:
    """The part of `page` that no createdAt window can return; None if there is none."""
    without_created_at = [milliseconds(row.created_at) is None for row in page.rows]
    if not any(without_created_at):
        return None
    try:
        contacts = raw_contacts(page.body)
    except msgspec.DecodeError:
        # Only a tolerant parser can split this page: return all of it, duplicates are removed later.
        return page
    kept = [raw for raw, wanted in zip(contacts, without_created_at, strict=True) if wanted]
    rows = [row for row, wanted in zip(page.rows, without_created_at, strict=True) if wanted]
    return replace(page, body=b'{"data":[' + b",".join(kept) + b"]}", rows=rows)
