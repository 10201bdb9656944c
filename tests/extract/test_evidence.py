"""Evidence: pages that were read and never received are noted."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from etl.api.request import Query
from etl.api.response import Page, Row
from etl.extract.evidence import MOST_HELD, Evidence

QUERY = Query(is_contact=True)


def page_of(contact_id: str) -> Page:
    """A page with one contact."""
    return Page(b"", [Row(msgspec.Raw(contact_id.encode()))])


async def test_only_pages_that_are_neither_received_nor_recorded_are_noted() -> None:
    """Copies of a page are the same page, and empty pages show nothing."""
    received, noted = list[Page](), list[Page]()

    async def receive(page: Page) -> None:
        received.append(page)

    evidence, pages = Evidence(receive), [page_of(f'"{number}"') for number in range(4)]
    for page in (*pages, Page(b"", ())):
        evidence.observe(QUERY, page)
    evidence.release()  # It is not known yet how to note them.
    await evidence.receive(replace(pages[0], number=2))
    evidence.discard(pages[1])
    evidence.note = lambda _, page: noted.append(page)
    evidence.release()
    assert ([page.ids for page in received], noted) == ([pages[0].ids], pages[2:])


async def test_few_pages_are_held_at_once() -> None:
    """The oldest are noted first."""
    noted, pages = list[Page](), [page_of(f'"{number}"') for number in range(3 * MOST_HELD)]

    async def receive(_: Page) -> None:
        raise AssertionError

    evidence = Evidence(receive)
    evidence.note = lambda _, page: noted.append(page)
    for page in pages:
        evidence.observe(QUERY, page)
    assert noted == pages[:-MOST_HELD]
    evidence.release()
    assert noted == pages
