"""Landmarks: pages read before the windows, whose number gives the rank of a creation time.

The page with number p of a sorted list has `page size * (p - 1)` contacts before it. A landmark is a time between two
contacts of such a page: it cuts the account into segments, and says how many contacts each segment must have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

from etl.api.client import Client
from etl.api.request import Query
from etl.api.response import Page
from etl.extract.capabilities import Capabilities
from etl.extract.gather import gather
from etl.extract.pages import page_or_empty
from etl.times import milliseconds

MARGIN = 2000
"""Milliseconds by which a list sorted by `_id`, or by whole seconds, may differ from the order of creation times."""
SHORTEST = 2.5
"""Pages of the shortest segment, as a multiple of the fewest pages of an ordered read."""
LONGEST_LIST = 1 << 24
"""More pages than any list has: a server that shows still more of them repeats itself."""
LONGEST_PIECE = 64
"""The most pages that one chain reads, and that follow the last landmark: the chains stay close to each other in time,
so that their contacts do, too, in the files of the run."""
AT_ONCE = 3
"""Landmarks that are read at the same moment, before their distance doubles."""


@dataclass(frozen=True, slots=True)
class Landmark:
    """A creation time (ms), and how many contacts of its list were created then or later, when `page` was read."""

    page: int
    cut: int
    rank: int


Landmarks = tuple[tuple[Landmark, ...], tuple[Landmark, ...]]
"""Of leads and of contacts, indexed by `is_contact`; the newest first."""


class NotSorted(Exception):
    """Why the server's lists cannot be relied on to be sorted by creation time."""


def may_be_sorted(capabilities: Capabilities) -> bool:
    """Whether the probe saw nothing that speaks against lists sorted by creation time, with pages of one size."""
    return (
        capabilities.windows
        and capabilities.newest_first
        and capabilities.honours_page is True
        and capabilities.page_size_agreed
        and capabilities.past_end != "repeats"
        and capabilities.resolution < MARGIN
        and not capabilities.page_sizes.mixed
    )


def creation_times(page: Page) -> list[int]:
    """The creation times on a page, in its order. Raises `NotSorted` if one is missing, or if they do not fall.

    One in a format that only the normalizer reads is taken to be that of the contact before it.
    """
    if lacks_creation_times(page):
        message = "some contacts have no createdAt"
        raise NotSorted(message)
    known = [milliseconds(row.created_at) for row in page.rows]
    first = next((time for time in known if time is not None), 0)
    times = list(accumulate(known, lambda before, time: before if time is None else time, initial=first))[1:]
    if disorder(times) > MARGIN:
        message = "the server does not list the newest contacts first"
        raise NotSorted(message)
    return times


def lacks_creation_times(page: Page) -> bool:
    """Whether some contacts on a page have no creation time, so that no range lists them."""
    return any(row.created_at is None or row.created_at == "" for row in page.rows)


def disorder(times: Sequence[int]) -> int:
    """The largest number of milliseconds by which a time is later than one before it."""
    return max((time - lowest for time, lowest in zip(times, accumulate(times, min), strict=True)), default=0)


def rank_on(page: Page, cut: int, size: int) -> int | None:
    """How many contacts of the list were created at `cut` or later; None if the cut is on another page."""
    times = creation_times(page)
    later = sum(time >= cut for time in times)
    if (later == 0 and page.number > 1) or later == size or any(time >= cut for time in times[later:]):
        return None
    return (page.number - 1) * size + later


async def find_landmarks(client: Client, capabilities: Capabilities, until: int, fewest: int) -> Landmarks | None:
    """The landmarks of both lists, the first at the time `until` (ms); None if neither list has `fewest` pages.

    Raises `NotSorted` if a page shows that the lists are not sorted by creation time.
    """
    # Contacts first: usually there are more of them.
    for is_contact in (True, False):
        if (await page_or_empty(client, Query(is_contact), fewest)).rows:
            break
    else:
        return None
    find = partial(_find_in_list, client, capabilities, until, fewest)
    return await gather(partial(find, is_contact=False), partial(find, is_contact=True))


async def _find_in_list(
    client: Client, capabilities: Capabilities, until: int, fewest: int, *, is_contact: bool
) -> tuple[Landmark, ...]:
    """The landmarks of a list: at `until`, on pages at distances that double after every `AT_ONCE`, and near its end.

    Contacts that are created between two reads change the ranks, so several pages are read at the same moment.
    """
    size, step = capabilities.page_sizes.of(is_contact), int(SHORTEST * fewest)
    found = [await renewed(client, is_contact, Landmark(1, until, 0), size)]
    last, beyond, oldest = 0, LONGEST_LIST, until
    while beyond - last > LONGEST_PIECE:
        if beyond == LONGEST_LIST:
            numbers = [last + step * distance for distance in range(1, AT_ONCE + 1)]
            step *= 2
        else:
            numbers = [(last + beyond) // 2]
        pages = await gather(*(partial(page_or_empty, client, Query(is_contact), number) for number in numbers))
        for number, page in zip(numbers, pages, strict=True):
            times = creation_times(page)
            if not times:
                beyond = number
                break
            if times[0] > oldest + MARGIN or number > LONGEST_LIST:
                message = "the pages do not follow each other in order"
                raise NotSorted(message)
            last, oldest = number, min([oldest, *times])
            # In the widest gap between two contacts, near which fewest contacts are created at once.
            newer, older = max(pairwise(times), key=lambda pair: pair[0] - pair[1], default=(0, 0))
            cut = newer - newer % capabilities.resolution
            rank = rank_on(page, cut, size) if older < cut < found[-1].cut else None
            if rank is not None:
                found.append(Landmark(page.number, cut, rank))
    return tuple(found)


async def renewed(client: Client, is_contact: bool, landmark: Landmark, size: int) -> Landmark:
    """A landmark with its current page and rank; one request if it is still on its page. Raises `NotSorted`."""
    number, step, low, high = landmark.page, 1, 0, LONGEST_LIST
    while high - low > 1:
        page = await page_or_empty(client, Query(is_contact), number)
        rank = rank_on(page, landmark.cut, size) if page.rows or number == 1 else None
        if rank is not None:
            return Landmark(number, landmark.cut, rank)
        is_later = bool(page.rows) and creation_times(page)[-1] >= landmark.cut
        low, high = (number, high) if is_later else (low, number)
        number, step = page_between(low, high, step), 2 * step
    return Landmark(high, landmark.cut, low * size)


def page_between(low: int, high: int, step: int) -> int:
    """The next page to look at for one between two others: halfway, or `step` further if one of them is not known.

    The lower one is not known if it is 0, the upper one if it is `LONGEST_LIST`.
    """
    if high == LONGEST_LIST:
        return low + step
    return (low + high) // 2 if low else max(1, high - step)
