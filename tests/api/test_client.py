"""The client: its bound on requests in flight, retries, waits and counters, over a plain function in virtual time."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.api.cap import ON_ITS_WAY, Cap
from etl.api.client import Client, PageRefused, Quota, RequestFailed, TransportError
from etl.api.request import Body, Query
from etl.api.response import ApiFailure, FailureKind, HttpResponse, Page
from etl.api.retry import ATTEMPTS, LONGEST_WAIT
from etl.errors import AuthError, ContractError, EtlError, SourceUnavailable
from tests.simulation.loop import run

EVERYTHING = Query(is_contact=True)
NOON = 1_736_164_800
PAGE = json.dumps({"success": True, "data": [{"_id": "a"}]}).encode()
REFUSED = b'{"success":false,"message":"Unauthorized"}'
"""The API's own response to a token that it rejects."""
HTML = b"<html>Just a moment...</html>"

Answer = HttpResponse | TransportError | float
"""One step of a scripted server: a response, a transport error, or a delay in seconds before a good response."""


def good(**headers: str) -> HttpResponse:
    """A good page."""
    return HttpResponse(200, headers, PAGE)


def bad(status: int, body: bytes = b"", **headers: str) -> HttpResponse:
    """A response with this failing status."""
    return HttpResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@dataclass(slots=True)
class Script:
    """A transport that plays back a script, repeats the last step for ever, and records the time of each request."""

    answers: Sequence[Answer]
    latency: float = 0.0
    asked_at: list[float] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0

    async def __call__(self, body: Body) -> HttpResponse:
        """The next scripted response."""
        answer = self.answers[min(len(self.bodies), len(self.answers) - 1)]
        self.asked_at.append(anyio.current_time())
        self.bodies.append(body)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await anyio.sleep(answer if isinstance(answer, float) else self.latency)
        finally:
            self.in_flight -= 1
        if isinstance(answer, TransportError):
            raise answer
        return good() if isinstance(answer, float) else answer

    def client(self, concurrency: int = 4, jitter: float = 0.5) -> Client:
        """A client over this transport."""
        return Client(self, account="main", concurrency=concurrency, jitter=lambda: jitter)


def read(script: Script, **settings: float) -> Page:
    """Read one page from the script."""
    return run(script.client(**settings).read(EVERYTHING))


def failure(script: Script) -> EtlError:
    """The error that reading one page from the script raises."""
    with pytest.raises(EtlError) as caught:
        read(script)
    return caught.value


def together(*jobs: Callable[[], Awaitable[object]]) -> Coroutine[object, object, None]:
    """Run all jobs concurrently."""

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(job)

    return main()


def test_a_page_comes_with_one_request() -> None:
    """A good response takes one request and no waiting."""
    script = Script([good()])
    client = script.client()
    assert run(client.read(EVERYTHING, 3)).body == PAGE
    assert script.bodies == [EVERYTHING.body(3)]
    seen = client.statistics()
    assert (seen.sent, seen.retried, seen.in_flight, seen.peak_in_flight, seen.waited) == (1, 0, 0, 1, 0.0)


def test_pages_are_counted_as_the_server_counts() -> None:
    """If the probe found that pages start at 0, page 3 is requested as number 2 (A15)."""
    script = Script([good()])
    client = script.client()
    client.adopt(first_page=0)
    run(client.read(EVERYTHING, 3))
    assert script.bodies[0]["page"] == 2


EMPTY_MANNERS = [{}, {"success": None}, {"success": True, "code": 1}, {"success": True, "status": "timeout"}]


@pytest.mark.parametrize("said", EMPTY_MANNERS)
def test_an_empty_list_counts_as_one_in_a_manner_that_is_known(said: dict[str, object]) -> None:
    """N8, A55: servers fail with a 200 and an empty list; once the success envelope is known, any other is retried."""
    odd, empty = (
        HttpResponse(200, {}, json.dumps({**told, "data": []}).encode()) for told in (said, {"success": True})
    )
    client = Script([good(), empty, odd, odd, empty, odd]).client()

    async def ask() -> list[Page]:
        before = [await client.read(EVERYTHING) for _ in range(3)]
        assert client.learn_signatures(before[0]) == (before[0].signature,)
        return [*before, await client.read(EVERYTHING)]

    assert [len(page.rows) for page in run(ask())] == [1, 0, 0, 0]
    assert client.statistics().retried == 1
    with pytest.raises(ContractError, match="an empty list in an envelope that no other response had"):
        run(client.read(EVERYTHING))


def test_a_server_whose_envelopes_all_differ_tells_nothing_by_them() -> None:
    """If every envelope has a different number, envelopes are not used to detect failures."""
    numbered = [{"success": True, "code": number, "data": [{"_id": "a"}] * (number < 5)} for number in range(1, 7)]
    client = Script([HttpResponse(200, {}, json.dumps(told).encode()) for told in numbered]).client()
    *_, last = [run(client.read(EVERYTHING)) for _ in range(4)]
    assert client.learn_signatures(last) == ()
    assert [len(run(client.read(EVERYTHING)).rows) for _ in range(2)] == [0, 0]


FAILURES = [
    (bad(401, REFUSED), FailureKind.AUTH, AuthError),
    (bad(403, REFUSED), FailureKind.AUTH, AuthError),
    (bad(401, HTML), FailureKind.BLOCKED, SourceUnavailable),
    (bad(403, HTML), FailureKind.BLOCKED, SourceUnavailable),
    (bad(406), FailureKind.BLOCKED, SourceUnavailable),
    (bad(407), FailureKind.UNREACHABLE, SourceUnavailable),
    (bad(404), FailureKind.CONTRACT, PageRefused),
    (bad(302, Location="https://elsewhere.example.com/"), FailureKind.CONTRACT, PageRefused),
    (bad(200, b"<html>"), FailureKind.GARBLED, ContractError),
    (bad(200, PAGE[:-2]), FailureKind.GARBLED, ContractError),
    (bad(500), FailureKind.UNAVAILABLE, RequestFailed),
    (bad(429), FailureKind.THROTTLED, SourceUnavailable),
    (bad(503), FailureKind.THROTTLED, SourceUnavailable),
    (TransportError("reset"), FailureKind.UNAVAILABLE, RequestFailed),
    (TransportError("a bomb", kind=FailureKind.GARBLED), FailureKind.GARBLED, ContractError),
    (TransportError("no such host", kind=FailureKind.UNREACHABLE), FailureKind.UNREACHABLE, SourceUnavailable),
    (TransportError("closed before", kind=FailureKind.STALE), FailureKind.STALE, SourceUnavailable),
]


@pytest.mark.parametrize(("answer", "kind", "error"), FAILURES)
def test_a_lasting_failure_ends_after_its_attempts(answer: Answer, kind: FailureKind, error: type[EtlError]) -> None:
    """Each kind of failure raises its own error after its own number of attempts (N4, N7, N15, A1, A4)."""
    script = Script([answer])
    caught = failure(script)
    assert type(caught) is error
    assert len(script.bodies) == ATTEMPTS[kind]
    assert caught.where == f"account main, isContact true, everything, page 1, attempt {ATTEMPTS[kind]}"


@pytest.mark.parametrize(("answer", "kind"), [(answer, kind) for answer, kind, _ in FAILURES if ATTEMPTS[kind] > 1])
def test_a_passing_failure_is_got_over(answer: Answer, kind: FailureKind) -> None:
    """A failure that lasts one attempt less than allowed is retried within the run (N1, N4, N5, N7, A8)."""
    script = Script([answer] * (ATTEMPTS[kind] - 1) + [good()])
    assert read(script).body == PAGE
    assert all(body == EVERYTHING.body(1) for body in script.bodies)


def test_waits_between_attempts_double() -> None:
    """The wait between attempts starts at up to half a second, with jitter, and doubles each time (N1)."""
    script = Script([bad(500)])
    failure(script)
    gaps = [later - earlier for earlier, later in zip(script.asked_at, script.asked_at[1:], strict=False)]
    assert gaps == pytest.approx([0.25, 0.5, 1.0, 2.0])


def test_a_closed_connection_is_no_failure() -> None:
    """A request that hits an already closed connection is sent again at once and does not count as a retry (N21)."""
    stale = TransportError("closed before", kind=FailureKind.STALE)
    script = Script([stale, good()] * 100)

    async def main(client: Client) -> None:
        for _ in range(100):
            await client.read(EVERYTHING)
        assert anyio.current_time() == 0.0

    client = script.client()
    run(main(client))
    assert (client.statistics().sent, client.statistics().retried, client.statistics().waited) == (100, 0, 0.0)


def test_retries_are_budgeted_over_the_whole_run() -> None:
    """A server that fails every second request uses up the retry budget of ten plus ten percent (A8)."""
    script = Script([bad(500), good()] * 100)
    client = script.client()

    async def main() -> None:
        while True:
            await client.read(EVERYTHING)

    with pytest.raises(SourceUnavailable, match="retry budget is spent; last: HTTP 500"):
        run(main())
    seen = client.statistics()
    assert seen.retried <= 10 + 0.1 * seen.sent
    assert seen.sent == len(script.bodies)


@given(
    answers=st.lists(st.sampled_from([good(), bad(500), bad(429), TransportError("reset"), bad(200, b"")]), max_size=60)
)
@settings(deadline=None)
def test_the_bounds_hold_whatever_happens(answers: list[Answer]) -> None:
    """Attempts, retries and requests in flight stay bounded, and all slots are free afterwards (A8)."""
    script = Script([*answers, good()], latency=0.1)
    client = script.client(concurrency=3)

    async def job() -> None:
        for _ in range(5):
            try:
                await client.read(EVERYTHING)
            except EtlError:
                return

    run(together(*[job] * 6))
    seen = client.statistics()
    assert script.peak <= 3
    assert seen.peak_in_flight == script.peak
    assert seen.in_flight == 0
    assert seen.sent == len(script.bodies)
    assert seen.retried <= 10 + 0.1 * seen.sent


def test_no_more_than_the_bound_is_under_way() -> None:
    """A hundred concurrent reads keep at most `concurrency` requests in flight, and reach that number."""
    script = Script([good()], latency=1.0)
    client = script.client(concurrency=7)

    async def job() -> None:
        await client.read(EVERYTHING)

    run(together(*[job] * 100))
    assert script.peak == client.statistics().peak_in_flight == 7


@pytest.mark.parametrize("header", ["5", "5.0", formatdate(NOON + 5, usegmt=True)])
def test_a_wait_holds_back_the_whole_client(header: str) -> None:
    """After a 429 the whole client, not only the refused request, waits until the time the server named (A5)."""
    refused = bad(429, Retry_After=header, Date=formatdate(NOON, usegmt=True))
    script = Script([refused, good()])
    client = script.client(concurrency=4, jitter=0.0)

    async def job() -> None:
        await client.read(EVERYTHING)

    async def late() -> None:
        await anyio.sleep(1)
        await client.read(EVERYTHING)

    run(together(job, late, late))
    assert script.asked_at[0] == 0.0
    assert len(script.asked_at) == 4
    assert min(script.asked_at[1:]) >= 5.0
    assert client.statistics().waited >= 5.0


@pytest.mark.parametrize("header", ["601", "1000000000", formatdate(NOON + 3600, usegmt=True)])
def test_an_endless_wait_ends_the_run(header: str) -> None:
    """A wait of more than ten minutes is not obeyed: the run ends at once and reports the value (A6)."""
    script = Script([bad(429, Retry_After=header, Date=formatdate(NOON, usegmt=True))])
    caught = failure(script)
    assert isinstance(caught, SourceUnavailable)
    assert f"more than {LONGEST_WAIT:.0f} s" in caught.message
    assert len(script.bodies) == 1


@pytest.mark.parametrize("header", ["-5", "0", "soon", "nan", formatdate(NOON - 60, usegmt=True), "600"])
def test_an_odd_wait_does_not_stop_the_run(header: str) -> None:
    """A wait that is in the past, unreadable or just within the limit leads to another attempt (A6)."""
    script = Script([bad(429, Retry_After=header, Date=formatdate(NOON, usegmt=True)), good()])
    assert read(script).body == PAGE


def test_the_servers_clock_is_followed() -> None:
    """The client keeps the `Date` of the last page or refusal; a response without one changes nothing (N25)."""
    dates = [formatdate(NOON, usegmt=True), formatdate(NOON + 3, usegmt=True)]
    script = Script([good(Date=dates[0]), bad(500, Date=dates[1]), good()])
    client = script.client()
    clocks = []

    async def main() -> None:
        for _ in range(3):
            await client.ask(EVERYTHING)
            clocks.append(client.server_now)

    run(main())
    assert clocks == [NOON * 1000, (NOON + 3) * 1000, (NOON + 3) * 1000]


def test_asking_once_tells_whatever_came() -> None:
    """`ask` makes one attempt and returns a refusal or a broken request as its result instead of raising."""
    client = Script([bad(404), TransportError("reset"), good()]).client()

    async def main() -> list[Page | ApiFailure]:
        return [await client.ask(EVERYTHING) for _ in range(3)]

    refused, broken, page = run(main())
    assert isinstance(refused, ApiFailure)
    assert refused.kind is FailureKind.CONTRACT
    assert isinstance(broken, ApiFailure)
    assert broken.message == "reset"
    assert isinstance(page, Page)


@pytest.mark.parametrize("moment", [0.05, 0.1, 0.45, 0.55, 1.0, 2.6])
def test_cancelling_gives_every_slot_back(moment: float) -> None:
    """A read cancelled in flight, during a wait or in the queue leaves all slots free for later reads (N10, P23)."""
    script = Script([bad(500), bad(429, Retry_After="2"), *[3.0] * 6, good()], latency=0.5)
    client = script.client(concurrency=2)

    async def job() -> None:
        await client.read(EVERYTHING)

    async def main() -> None:
        with anyio.move_on_after(moment):
            await together(*[job] * 6)
        assert client.statistics().in_flight == script.in_flight == 0
        script.peak = 0
        await together(*[job] * 6)

    run(main())
    assert script.peak == 2


@dataclass(slots=True)
class Gate:
    """A server that accepts one token and rejects it after a number of requests; a request takes a second."""

    accepted: int = 1
    lasts: int = 3
    status: int = 401
    told: bytes = REFUSED
    used: int = 1
    """The token that the client holds."""
    sent: int = 0
    looked: int = 0

    async def __call__(self, body: Body) -> HttpResponse:
        """A page, or 401."""
        del body
        self.sent += 1
        if self.sent > self.lasts:
            self.accepted = 2
        shown = self.used
        await anyio.sleep(1)
        return good() if shown == self.accepted else bad(self.status, self.told)

    def renew(self) -> bool:
        """Read the token's source again; it now holds the second token."""
        self.looked += 1
        before, self.used = self.used, 2
        return before != self.used


@pytest.mark.parametrize("told", [REFUSED, b"Unauthorized"])
@pytest.mark.parametrize("lasts", range(12))
def test_an_expired_token_is_read_again_once(lasts: int, told: bytes) -> None:
    """Whenever and however the token is rejected, its source is read once and all reads continue (A2, A3)."""
    gate = Gate(lasts=lasts, told=told)
    client = Client(gate, account="main", concurrency=4, renew=gate.renew, jitter=lambda: 0.5)

    async def job() -> None:
        for _ in range(3):
            await client.read(EVERYTHING)

    run(together(*[job] * 4))
    assert gate.looked == 1
    assert gate.sent <= 12 + 4 + 1


def test_a_token_that_did_not_change_is_refused_for_good() -> None:
    """If the source still holds the same token, the run ends without flooding the server (A1, A2, A3)."""
    gate = Gate(accepted=3, lasts=100, used=2)
    client = Client(gate, account="main", concurrency=4, renew=gate.renew)

    async def job() -> None:
        while True:
            await client.read(EVERYTHING)

    with pytest.raises(ExceptionGroup) as caught:
        run(together(*[job] * 4))
    assert caught.group_contains(AuthError)
    assert gate.sent <= 4


@pytest.mark.parametrize(("status", "doubts"), [(401, 1), (403, 4)])
@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_a_token_that_expires_for_good_causes_no_storm(concurrency: int, status: int, doubts: int) -> None:
    """One request retries for all that were refused together; after a few more the run ends (A2, A3)."""
    gate = Gate(accepted=1, lasts=30, status=status)
    client = Client(gate, account="main", concurrency=concurrency, jitter=lambda: 0.5)

    async def job() -> None:
        while True:
            await client.read(EVERYTHING)

    with pytest.raises(ExceptionGroup) as caught:
        run(together(*[job] * concurrency))
    assert caught.group_contains(AuthError)
    assert 0 < gate.sent - 30 <= concurrency + doubts


@pytest.mark.parametrize("body", [REFUSED, HTML, b""])
@pytest.mark.parametrize(("status", "together_with"), [(401, 1), (403, 1), (403, 4)])
def test_a_refusal_amid_good_answers_is_asked_again(status: int, body: bytes, together_with: int) -> None:
    """A rejection amid good responses, by a firewall or one node of many, is retried (A2, A3, A4)."""
    odd = [bad(status, body)] * together_with
    script = Script([*[good()] * 8, *odd, *[good()] * 20, *odd, good()], latency=0.1)
    client = script.client()

    async def job() -> None:
        for _ in range(12):
            await client.read(EVERYTHING)

    run(together(*[job] * 4))
    assert client.statistics().retried == len(script.bodies) - 48 == 2 * together_with


def test_what_a_firewall_refuses_is_asked_more_slowly() -> None:
    """Firewalls reject fast clients too: the whole client slows down and obeys `Retry-After` (A5)."""
    script = Script([good(), bad(403, HTML, Retry_After="7"), good()])
    client = script.client(jitter=0.0)

    async def job() -> None:
        for _ in range(2):
            await client.read(EVERYTHING)

    run(job())
    assert (client.statistics().throttled, script.asked_at[-1]) == (1, 7.0)


def test_an_error_tells_what_to_do_about_it() -> None:
    """The hint of a refusal is kept, even if the retry budget ends the run."""
    assert "firewall" in failure(Script([bad(403, HTML)])).hint
    script = Script([bad(403, HTML), good()] * 40)

    async def main(client: Client) -> None:
        while True:
            await client.read(EVERYTHING)

    with pytest.raises(SourceUnavailable, match="retry budget is spent; last: HTTP 403: something in front") as caught:
        run(main(script.client()))
    assert "firewall" in caught.value.hint


@dataclass(slots=True)
class Crowded:
    """A server with a limit on concurrent requests and on requests per second; it refuses the rest with 429."""

    at_once: float = float("inf")
    per_second: float = float("inf")
    latency: float = 0.05
    spread: float = 0.0
    """The fraction by which latency varies at random."""
    later: tuple[int, float] | None = None
    """After this number of responses the concurrency limit changes to the second value."""
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    in_flight: int = 0
    refused: list[int] = field(default_factory=list)
    served: int = 0
    allowance: float = 1.0
    """Requests saved up within the rate limit, ten at most."""
    _since: float = 0.0

    async def __call__(self, body: Body) -> HttpResponse:
        """A page, or 429 without `Retry-After`."""
        del body
        now = anyio.current_time()
        if self.per_second != float("inf"):
            self.allowance = min(10.0, self.allowance + (now - self._since) * self.per_second)
        self._since = now
        if self.in_flight >= self.at_once or self.allowance < 1:
            self.refused.append(self.served)
            return bad(429)
        if self.per_second != float("inf"):
            self.allowance -= 1
        self.in_flight += 1
        try:
            await anyio.sleep(self.latency * self.chance.uniform(1 - self.spread, 1 + self.spread))
        finally:
            self.in_flight -= 1
        self.served += 1
        if self.later and self.served == self.later[0]:
            self.at_once = self.later[1]
        return good()


@pytest.mark.parametrize(
    "limits", [{"at_once": 1}, {"at_once": 3}, {"at_once": 10}, {"per_second": 20}, {"per_second": 200}]
)
def test_a_hidden_limit_is_found(limits: dict[str, float]) -> None:
    """A server that refuses without naming a wait slows the client down without using up its retries (A7)."""
    server = Crowded(**limits)
    client = Client(server, account="main", concurrency=16, jitter=lambda: 0.5)

    async def job() -> None:
        for _ in range(50):
            await client.read(EVERYTHING)

    run(together(*[job] * 16))
    seen = client.statistics()
    assert server.served == 800
    assert seen.throttled
    assert seen.retried <= 10 + 0.1 * seen.sent


@pytest.mark.parametrize(
    "limits",
    [
        *({"at_once": at_once} for at_once in (1, 2, 3, 5, 10, 14)),
        *({"per_second": per_second} for per_second in (5, 20, 50, 100)),
    ],
)
def test_the_rate_settles_at_the_hidden_limit(limits: dict[str, float]) -> None:
    """After 200 requests the throughput is within 10 % of the server's limit (A7)."""
    server = Crowded(**limits)
    client = Client(server, account="main", concurrency=16, jitter=lambda: 0.5)
    done: list[float] = []

    async def job() -> None:
        for _ in range(100):
            await client.read(EVERYTHING)
            done.append(anyio.current_time())

    run(together(*[job] * 16))
    settled = done[200:1500]
    rate = (len(settled) - 1) / (settled[-1] - settled[0])
    allowed = limits.get("per_second") or limits["at_once"] / server.latency
    assert 0.9 * allowed <= rate <= 1.1 * allowed


async def read_all(server: Crowded, requests: int, workers: int = 16) -> tuple[Client, list[float], int]:
    """The client after at least this number of reads, their completion times, and the most attempts of one read."""
    client = Client(server, account="main", concurrency=16, jitter=random.Random(1).random)
    done: list[float] = []
    attempts: list[int] = []

    async def job() -> None:
        while len(done) + client.statistics().in_flight < requests:
            attempts.append((await client.read(EVERYTHING)).attempt)
            done.append(anyio.current_time())

    await together(*[job] * workers)
    return client, done, max(attempts)


def rate(done: Sequence[float]) -> float:
    """Requests per second, from completion times."""
    return (len(done) - 1) / (done[-1] - done[0])


@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize("latency", [0.005, 0.05, 0.3])
@pytest.mark.parametrize("requests", [60, 200, 1000])
def test_one_request_at_a_time_is_learned(requests: int, latency: float, spread: float) -> None:
    """If a second concurrent request is refused, no read fails, refusals are few and little time is lost (A7, A8)."""
    server = Crowded(at_once=1, latency=latency, spread=spread)
    client, done, _ = run(read_all(server, requests))
    seen = client.statistics()
    assert seen.retried <= 10
    assert seen.retried == len(server.refused)
    assert done[-1] <= 3 + 1.15 * requests * latency


@pytest.mark.parametrize("latency", [0.005, 0.05])
@pytest.mark.parametrize("per_second", [1.5, 3, 5])
def test_a_rate_far_below_what_the_answers_suggest_is_learned(per_second: float, latency: float) -> None:
    """A rate limit far below the pace of an initial burst is learned before the retries run out (A7, A8)."""
    server = Crowded(per_second=per_second, latency=latency, allowance=10.0)
    client, done, _ = run(read_all(server, 300))
    seen = client.statistics()
    assert seen.retried <= 10 + 0.1 * seen.sent
    assert rate(done[100:]) == pytest.approx(per_second, rel=0.1)


@pytest.mark.parametrize("workers", [2, 3, 16])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_attempts_of_a_request_are_not_spent_on_trials(at_once: int, workers: int) -> None:
    """A refused request completes before higher concurrency is tried again, so none is refused three times (A7)."""
    _, _, attempts = run(read_all(Crowded(at_once=at_once, latency=0.005, spread=0.8), 1000, workers))
    assert attempts <= 3


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 8, 14])
def test_the_number_at_once_settles_where_answers_take_their_time_by_chance(at_once: int) -> None:
    """After 200 requests concurrency settles at the server's limit, although latencies are random (A7)."""
    server = Crowded(at_once=at_once, spread=0.8)
    _, done, _ = run(read_all(server, 1200))
    assert rate(done[200:]) == pytest.approx(at_once / server.latency, rel=0.1)


@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize(("before", "after"), [(1, 10), (3, 10), (10, 1), (10, 3)])
def test_a_limit_that_changes_is_found_again(before: int, after: int, spread: float) -> None:
    """If the limit changes in the middle of a run, the pace matches the new one within 500 requests (A7, A8)."""
    server = Crowded(at_once=before, later=(500, after), spread=spread)
    client, done, _ = run(read_all(server, 2000))
    seen = client.statistics()
    assert seen.retried <= 10 + 0.1 * seen.sent
    assert rate(done[1000:]) == pytest.approx(after / server.latency, rel=0.1)


def test_a_server_that_is_away_is_asked_slowly_until_it_is_back() -> None:
    """Many failures in a row open the breaker: one request per second finds out when the server is back (A8)."""
    asked: list[float] = []

    async def away(body: Body) -> HttpResponse:
        del body
        await anyio.sleep(0.1)
        if 10 <= anyio.current_time() <= 30:
            asked.append(anyio.current_time())
            return bad(500)
        return good()

    client = Client(away, account="main", concurrency=16, jitter=lambda: 0.5)

    async def job() -> None:
        for _ in range(300):
            await client.read(EVERYTHING)

    run(together(*[job] * 16))
    assert 10 <= len(asked) <= 40
    assert client.statistics().retried == len(asked)


@pytest.mark.parametrize("concurrency", [1, 2, 3])
async def test_a_single_refusal_slows_nothing_down_for_good(concurrency: int) -> None:
    """With only one to three concurrent requests, one refusal leaves the interval below a second (A7)."""
    script = Script([good(), good(), bad(503), *[good()] * 100])
    client = Client(script, account="main", concurrency=concurrency, jitter=lambda: 0.0)
    for _ in range(60):
        await client.read(EVERYTHING)
    assert client.statistics().interval < 1


@pytest.mark.parametrize("every", [200, 100, 50])
def test_refusals_that_no_pace_avoids_do_not_stop_a_run(every: int) -> None:
    """A server that is sometimes busy at any request rate costs a bounded amount of time (A7, A8)."""
    asked = 0

    async def busy(body: Body) -> HttpResponse:
        nonlocal asked
        del body
        asked += 1
        number = asked
        await anyio.sleep(0.1)
        return bad(503) if number % every == 0 else good()

    client = Client(busy, account="main", concurrency=16, jitter=lambda: 0.5)
    ended = 0.0

    async def job() -> None:
        nonlocal ended
        for _ in range(200):
            await client.read(EVERYTHING)
        ended = anyio.current_time()

    run(together(*[job] * 16))
    assert client.statistics().throttled > 5
    assert ended < 5 * 3200 * 0.1 / 16


CAPS = st.sampled_from([0.25, 0.5, 1, 1.5, 2, 3, 7, 20])


@given(CAPS, st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([1, 4, 16]))
@settings(max_examples=60, deadline=None)
def test_a_cap_holds_in_every_second_that_the_server_sees(
    per_second: float, seed: int, clients: int, concurrency: int
) -> None:
    """The cap holds at the server despite network delays, retries, refusals and clients that share the token."""
    chance, arrived = random.Random(seed), list[float]()

    async def server(body: Body) -> HttpResponse:
        del body
        await anyio.sleep(chance.random() * ON_ITS_WAY)
        arrived.append(anyio.current_time())
        await anyio.sleep(chance.choice([0, 0.01, 3]) * chance.random())
        if chance.random() < 0.05:
            raise TransportError("reset")
        return chance.choices([good(), bad(429), bad(500)], [18, 1, 1])[0]

    quota = Quota(Cap(per_second))
    asking = [
        Client(server, account=f"a{n}", concurrency=concurrency, quota=quota, jitter=chance.random)
        for n in range(clients)
    ]

    async def ask(client: Client) -> None:
        for _ in range(6):
            with suppress(SourceUnavailable):
                await client.read(EVERYTHING)

    run(together(*[partial(ask, client) for client in asking for _ in range(concurrency)]))
    most, span = max(1, int(per_second)), max(1.0, 1 / per_second)
    assert all(later - earlier >= span for earlier, later in zip(arrived, arrived[most:], strict=False))


@pytest.mark.parametrize(("per_second", "latency"), [(20, 0.01), (5, 0.0), (1, 0.1), (0.5, 0.2), (1000, 0.05)])
def test_a_cap_costs_no_more_than_it_says(per_second: float, latency: float) -> None:
    """Requests under a cap take at least the predicted time, and only slightly more."""
    cap, requests = Cap(per_second), 80
    script = Script([good()], latency)
    client = Client(script, account="main", concurrency=16, quota=Quota(cap))

    async def job() -> None:
        for _ in range(requests // 16):
            await client.read(EVERYTHING)

    run(together(*[job] * 16))
    least, ended = cap.seconds(requests, latency), script.asked_at[-1] + latency
    assert requests / per_second <= least <= ended + 0.001 <= least + cap.span + 16 * latency
    assert client.statistics().held > 0


def test_a_client_that_is_paused_does_not_keep_the_turn_of_the_others() -> None:
    """While one account waits ten seconds for the server, another with the same token continues."""
    quota = Quota(Cap(2))
    told, other = Script([bad(429, Retry_After="10"), good()]), Script([good()])
    slow, quick = (Client(each, account="main", concurrency=4, quota=quota) for each in (told, other))

    async def read(client: Client, times: int) -> None:
        for _ in range(times):
            await client.read(EVERYTHING)

    run(together(lambda: read(slow, 2), lambda: read(slow, 2), lambda: read(quick, 10)))
    assert other.asked_at[-1] < 10 < told.asked_at[-1]


def test_a_hanging_request_does_not_use_up_the_cap() -> None:
    """Requests without a response hold back the next ones for half a second, not until they end."""
    quota = Quota(Cap(2))
    hanging, quick = Script([60.0]), Script([good()])
    both = [(Client(each, account="main", concurrency=4, quota=quota)) for each in (hanging, quick)]

    async def read(client: Client) -> None:
        for _ in range(10):
            await client.read(EVERYTHING)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(both[0].read, EVERYTHING)
            await read(both[1])
            tasks.cancel_scope.cancel()

    run(main())
    assert quick.asked_at[-1] < 15
