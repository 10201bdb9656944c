"""Every fault of the simulated server and the conditions under which it strikes."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from etl.sandbox.faults import KINDS
from etl.sandbox.filters import EMPTY_BODY
from etl.sandbox.service import Request, Service
from etl.sandbox.settings import Settings
from etl.sandbox.strikes import Plan
from etl.sandbox.world import World

START = 1_760_000_000.0
TINY = Settings(contacts=120, small=True, nasty_share=0, is_contact="same")
HEADERS = {"Authorization": f"Bearer {TINY.token}", "authtype": "Key", "Content-Type": "application/json"}


def service(**changes: Any) -> Callable[..., Any]:
    """A service without a network, as a function of the time and the headers."""
    served = Service(World(replace(TINY, **changes), START))

    def handle(now: float = START, in_flight: int = 1, headers: dict[str, str] | None = None, **body: object) -> Any:
        request = Request(
            "POST", "/inbox/users", HEADERS if headers is None else headers, json.dumps({**EMPTY_BODY, **body}).encode()
        )
        return served.handle(request, now, in_flight)

    return handle


def struck(kind: str, **spec: object) -> Any:
    """The response to the first request under a fault, without a network."""
    return service(faults=({"kind": kind, **spec},), page_size=20)()


FAULTY_ANSWERS: list[tuple[str, dict[str, object], Callable[[Any], bool]]] = [
    ("status", {"status": 503, "as": "html"}, lambda a: a.status == 503 and b"<html" in a.body),
    ("status", {"status": 422}, lambda a: json.loads(a.body)["code"] == 422),
    ("retry_after", {"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, lambda a: a.headers["Retry-After"][:3] == "Wed"),
    ("html", {}, lambda a: a.status == 200 and a.headers["Content-Type"] == "text/html"),
    (
        "success_false",
        {"code": 401},
        lambda a: json.loads(a.body) | {"message": ""} == {"success": False, "message": "", "code": 401},
    ),
    ("envelope", {"shape": "bare_list"}, lambda a: len(json.loads(a.body)) == 20),
    ("envelope", {"shape": "status_message"}, lambda a: "status" in json.loads(a.body)),
    ("envelope", {"shape": "no_data"}, lambda a: "data" not in json.loads(a.body)),
    ("envelope", {"shape": "null_data"}, lambda a: json.loads(a.body)["data"] is None),
    ("envelope", {"shape": "object_data"}, lambda a: len(json.loads(a.body)["data"]["users"]) == 20),
    ("envelope", {"shape": "object"}, lambda a: a.body == b"{}"),
    ("envelope", {"shape": "list"}, lambda a: a.body == b"[]"),
    ("empty", {}, lambda a: (a.status, a.body) == (200, b"")),
    ("no_content", {}, lambda a: (a.status, a.body) == (204, b"")),
    ("truncated_json", {"at": 0.9}, lambda a: a.body.startswith(b'{"success"') and not a.body.endswith(b"}")),
    ("nan", {}, lambda a: b":NaN," in a.body),
    ("deep", {"depth": 500}, lambda a: a.body == b"[" * 500),
    ("charset", {}, lambda a: a.body.startswith(b"\xef\xbb\xbf{")),
    ("charset", {"charset": "utf-16"}, lambda a: a.body.startswith(b"\xff\xfe{\x00")),
    ("content_type", {"type": "text/plain"}, lambda a: a.headers["Content-Type"] == "text/plain"),
    ("bad_gzip", {}, lambda a: a.headers["Content-Encoding"] == "gzip" and a.body != b""),
    ("gzip_bomb", {"megabytes": 1}, lambda a: len(gzip.decompress(a.body)) > 2**20 > 40 * len(a.body)),
    ("huge", {"megabytes": 1}, lambda a: len(a.body) > 2**20 and len(json.loads(a.body)["data"]) == 20),
    ("redirect", {}, lambda a: a.status == 302 and "Location" in a.headers),
    ("date", {"seconds": -86_400}, lambda a: parsedate_to_datetime(a.headers["Date"]).timestamp() == START - 86_400),
    ("date", {"text": "today"}, lambda a: a.headers["Date"] == "today"),
    ("headers", {"count": 300}, lambda a: len(a.headers) > 300),
    ("empty_list", {}, lambda a: json.loads(a.body)["data"] == []),
    ("short_page", {"drop": 3}, lambda a: len(json.loads(a.body)["data"]) == 17),
    ("hole", {}, lambda a: len(json.loads(a.body)["data"]) == 19),
    ("torn", {}, lambda a: len({row["_id"] for row in json.loads(a.body)["data"]}) == 19),
    ("unmatched", {"of": 1}, lambda a: json.loads(a.body)["data"] == []),
    ("duplicate_row", {}, lambda a: len({row["_id"] for row in json.loads(a.body)["data"]}) == 20),
    (
        "reversed",
        {},
        lambda a: json.loads(a.body)["data"][0]["createdAt"] < json.loads(a.body)["data"][-1]["createdAt"],
    ),
    ("foreign_row", {"row": "5"}, lambda a: json.loads(a.body)["data"][-1] == 5),
    ("page_size", {"size": 7}, lambda a: len(json.loads(a.body)["data"]) == 7),
]


@pytest.mark.parametrize(
    ("kind", "spec", "holds"), FAULTY_ANSWERS, ids=lambda value: "" if callable(value) else str(value)[:40]
)
def test_faulty_answers(kind: str, spec: dict[str, object], holds: Callable[[Any], bool]) -> None:
    """Each fault of a page or response has the effect of its name.

    Covers N7, N8, N11-N18, N25, A4-A6, A11, A12, A17, A18, A23, A32, A33, A55.
    """
    assert holds(struck(kind, **spec))


def test_faulty_requests() -> None:
    """The server treats the request as a different one: no dates (A20), or always page 1 (A16)."""
    future = {"createdAt": {"startAt": "2999-01-01", "endsAt": ""}}
    blind = service(faults=({"kind": "ignore_dates"},))
    assert blind(**future).body == blind().body
    assert service()(**future).body != service()().body
    stuck = service(faults=({"kind": "ignore_page"},))
    assert stuck(page=2).body == stuck().body


def test_duplicate_page() -> None:
    """The response to another request is repeated (N24)."""
    handle = service(faults=({"kind": "duplicate_page", "nth": 2},))
    first, second, third = (handle(page=page).body for page in (1, 2, 2))
    assert first == second != third


WIRES = {
    *(
        "reset",
        "close",
        "close_after",
        "reset_mid_body",
        "close_mid_body",
        "chunk_cut",
        "chunked",
        "slow_body",
        "delay",
    ),
    "hang",
}
"""Network faults: the response is complete and says how its transfer fails."""


@pytest.mark.parametrize("kind", sorted(WIRES))
def test_faults_of_the_wire_are_values(kind: str) -> None:
    """A network fault leaves the response intact, so that a test without a network can act it out."""
    answer, whole = struck(kind), service(page_size=20)()
    assert (answer.status, answer.body) == (whole.status, whole.body)
    assert answer.wire != whole.wire


def test_every_kind_of_fault_is_tested() -> None:
    """The tables above cover every kind of fault."""
    others = {"ignore_dates", "ignore_page", "duplicate_page"}
    assert {kind for kind, _, _ in FAULTY_ANSWERS} | WIRES | others == KINDS


@pytest.mark.parametrize(
    ("when", "numbers"),
    [
        *(({}, [1, 2, 3, 4, 5, 6]), ({"nth": 2}, [2]), ({"nth": [1, 6]}, [1, 6]), ({"every": 3}, [3, 6])),
        *(({"from": 5}, [5, 6]), ({"until": 2}, [1, 2]), ({"from": 2, "times": 2}, [2, 3]), ({"page": 4}, [4])),
        *(
            ({"is_contact": False}, []),
            ({"covers": "2025-01-04T12:00:00.000Z"}, [4]),
            ({"rate": 1.0}, [1, 2, 3, 4, 5, 6]),
        ),
    ],
)
def test_conditions(when: dict[str, Any], numbers: list[int]) -> None:
    """A fault strikes if all its conditions hold (A9 is `covers`)."""
    plan = Plan(replace(TINY, faults=({"kind": "empty", **when},)))
    struck_at = []
    for number in range(1, 7):
        window = {"startAt": f"2025-01-0{number}T00:00:00.000Z", "endsAt": f"2025-01-0{number}T23:59:59.999Z"}
        if plan.strike(number, {**EMPTY_BODY, "page": number, "createdAt": window}).specs:
            struck_at.append(number)
    assert struck_at == numbers


def test_rates_of_faults_are_seeded() -> None:
    """A fault with a `rate` strikes about that often, and at the same requests for the same seed."""
    plans = [Plan(replace(TINY, faults=({"kind": "empty", "rate": 0.3},))) for _ in range(2)]
    hits = [[number for number in range(1000) if plan.strike(number, {}).specs] for plan in plans]
    assert hits[0] == hits[1]
    assert 240 < len(hits[0]) < 360


def test_unknown_kinds_are_refused() -> None:
    """An unknown fault is an error that suggests the nearest one."""
    with pytest.raises(ValueError, match="did you mean 'truncated_json'"):
        Plan(replace(TINY, faults=({"kind": "truncate_json"},)))
