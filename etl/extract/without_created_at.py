"""The contacts of a page that no createdAt window can reach, as a page of their own. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from etl.api.response import Page
from etl.extract.windows import milliseconds


def without_creation_time(page: Page) -> Page | None:
    """The part of `page` that no createdAt window can reach; None when there is none."""
    without_created_at = [milliseconds(row.created_at) is None for row in page.rows]
    if not any(without_created_at):
        return None
    try:
        contacts = _raw_contacts(page.body).data
    except msgspec.DecodeError:
        # Something in it that only the tolerant reader can take apart: the whole page will do, it is folded later.
        return page
    kept = [raw for raw, wanted in zip(contacts, without_created_at, strict=True) if wanted]
    rows = [row for row, wanted in zip(page.rows, without_created_at, strict=True) if wanted]
    return replace(page, body=b'{"data":[' + b",".join(kept) + b"]}", rows=rows)


class _RawContacts(msgspec.Struct):
    data: list[msgspec.Raw]


_raw_contacts = msgspec.json.Decoder(_RawContacts).decode
