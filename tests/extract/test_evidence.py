"""Evidence: pages that were read and never received are kept."""

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


async def test_only_pages_that_are_neither_received_nor_recorded_are_kept() -> None:
    """Copies of a page are the same page, and empty pages show nothing."""
    received, kept = list[Page](), list[Page]()

    async def receive(page: Page) -> None:
        received.append(page)

    async def keep(query: Query, page: Page) -> None:
        assert query is QUERY
        kept.append(page)

    evidence, pages = Evidence(receive), [page_of(f'"{number}"') for number in range(4)]
    for page in (*pages, Page(b"", ())):
        evidence.observe(QUERY, page)
    await evidence.receive(replace(pages[0], number=2))
    evidence.settle(pages[1])
    await evidence.release(keep)
    assert ([page.ids for page in received], kept) == ([pages[0].ids], pages[2:])
    await evidence.release(keep)
    assert kept == pages[2:]


async def test_few_pages_are_held_at_once() -> None:
    """A long run keeps pages while it reads; before it is known what to do with them, they are held."""
    kept = 0

    async def receive(_: Page) -> None:
        """Nothing is needed."""

    async def keep(_query: Query, _page: Page) -> None:
        nonlocal kept
        kept += 1

    evidence = Evidence(receive)
    await evidence.release(keep)
    for number in range(3 * MOST_HELD):
        evidence.observe(QUERY, page_of(f'"{number}"'))
        await evidence.receive(page_of('"x"'))
        assert number - kept <= MOST_HELD
    await evidence.release(keep)
    assert kept == 3 * MOST_HELD
