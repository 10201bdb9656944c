"""API client of one account: limits, retries, paces and counts requests over any transport.

The client makes no decisions: `response` classifies a response, `retry` decides whether and when to retry. Its slots
are the only limit on requests in flight. It does not know HTTP: a transport is a function.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import anyio

from etl.api.cap import Cap, Passage
from etl.api.rate import Pace
from etl.api.request import Body, Query
from etl.api.response import ApiFailure, EnvelopeSignature, FailureKind, HttpResponse, Page, parse_response, server_time
from etl.api.retry import ATTEMPTS, LONGEST_WAIT, TRUSTED_ATTEMPTS, Budget, backoff, retry_after
from etl.errors import AuthError, ContractError, EtlError, SourceUnavailable

MOST_SIGNATURES = 2
"""If non-empty pages have more signatures than this, the server's signatures prove nothing."""

Transport = Callable[[Body], Awaitable[HttpResponse]]
"""Sends one request body to `/inbox/users` and returns the complete response; raises `TransportError`."""


class TransportError(Exception):
    """A request without a complete response: refused, reset, truncated, timed out."""

    def __init__(self, reason: str, *, kind: FailureKind = FailureKind.UNAVAILABLE, hint: str = "") -> None:
        self.failure = ApiFailure(kind, reason, hint=hint)
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters of a client so far."""

    sent: int
    """Attempts, including the first of each request."""
    retried: int
    in_flight: int
    peak_in_flight: int
    throttled: int
    """How often the pace was cut because the server reported that requests were too fast."""
    waited: float
    """Seconds that requests waited because the server asked for it or before a retry."""
    held: float
    """Seconds that requests waited for the quota."""
    at_once: int
    """The concurrency that the server seems to allow, as far as tested."""
    interval: float
    """The interval between two requests in seconds; 0 if requests are not delayed."""


@dataclass(frozen=True, slots=True, eq=False)
class Quota:
    """The cap on the requests of one token, shared by all clients that use the token."""

    cap: Cap
    turn: anyio.Lock = field(default_factory=anyio.Lock)
    """Held by the next request: requests are sent in order of arrival, across clients."""


class RequestFailed(SourceUnavailable):
    """The server fails on this request, however often it is retried; it may answer others."""


class PageRefused(ContractError):
    """The server rejects this request (400, 404, ...): some do so for a page past the end."""


_ERRORS: dict[FailureKind, type[EtlError]] = {
    FailureKind.AUTH: AuthError,
    FailureKind.BLOCKED: SourceUnavailable,
    FailureKind.CONTRACT: PageRefused,
    FailureKind.GARBLED: ContractError,
    FailureKind.THROTTLED: SourceUnavailable,
    FailureKind.UNAVAILABLE: RequestFailed,
    FailureKind.UNREACHABLE: SourceUnavailable,
    FailureKind.STALE: SourceUnavailable,
}


class Client:
    """Reads pages of one account with at most `concurrency` requests in flight."""

    def __init__(
        self,
        transport: Transport,
        *,
        account: str,
        concurrency: int,
        pace: Pace | None = None,
        quota: Quota | None = None,
        renew: Callable[[], bool] = lambda: False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`pace` is the state learned from this server before, `quota` the operator's limit, if any.

        `renew` reads the token again after a rejection, and returns whether it is a new one.
        """
        self.concurrency = concurrency
        self.first_page = 1
        """The server's number of its first page; see `adopt`."""
        self.server_now: int | None = None
        """The server's clock at its last response, milliseconds since the epoch."""
        self.signatures: frozenset[EnvelopeSignature] | None = None
        """The signatures accepted for empty pages; None until `learn_signatures` or `adopt`."""
        self._observe: Callable[[Query, Page], None] = lambda _query, _page: None
        self._filled: set[EnvelopeSignature] = set()
        """The signatures of non-empty pages."""
        self._empty: Counter[EnvelopeSignature] = Counter()
        """The signatures of empty pages, counted while any is accepted."""
        self._transport = transport
        self._account = account
        self._renew = renew
        self._tokens = 1
        """Tokens used so far."""
        self._trusted = 0
        """The number of the token that returned a page and was not finally rejected since; 0 if none."""
        self._doubt = anyio.Lock()
        """Held by the request that retries after its token was rejected."""
        self._jitter = jitter
        self._pace = pace or Pace(concurrency)
        self._quota = quota
        self._slots = anyio.CapacityLimiter(self._pace.at_once)
        self._budget = Budget()
        self._paused_until = -1.0
        self._in_flight = 0
        self._peak = 0
        self._waited = self._held = 0.0
        self._repeated = 0
        """Requests being retried: their attempts are not spent on trials of the pace."""

    def adopt(self, *, first_page: int, signatures: Iterable[EnvelopeSignature] = ()) -> None:
        """Adopt results of a probe: the number of the first page, and the signatures of empty pages if known."""
        self.first_page = first_page
        self.signatures = frozenset(signatures) or None

    def observe(self, observe: Callable[[Query, Page], None]) -> None:
        """From now on, call `observe` with every page that the server returns."""
        self._observe = observe

    @property
    def sent(self) -> int:
        """Attempts so far."""
        return self._budget.sent

    def seconds(self, requests: int, latency: float) -> float:
        """The least seconds that so many requests take, each answered after `latency` seconds.

        At full concurrency, and no faster than the pace and the quota are now.
        """
        least = requests * max(latency / self.concurrency, self._pace.interval)
        return max(least, self._quota.cap.seconds(requests, latency)) if self._quota else least

    def statistics(self) -> Statistics:
        """Counters so far."""
        return Statistics(
            sent=self._budget.sent,
            retried=self._budget.retried,
            in_flight=self._in_flight,
            peak_in_flight=self._peak,
            throttled=self._pace.throttled,
            waited=self._waited,
            held=self._held,
            at_once=self._pace.at_once,
            interval=self._pace.interval,
        )

    async def read(self, query: Query, page: int = 1) -> Page:
        """Page `page` of `query`, the first being 1.

        Raises AuthError, ContractError or SourceUnavailable if the failure is not retryable or the retries are used up.
        """
        token = self._tokens
        verdict = await self.ask(query, page)
        if isinstance(verdict, Page):
            return verdict if page == 1 else replace(verdict, number=page)
        self._repeated += 1
        try:
            # An expired token must not cause a storm: one request retries on behalf of all that were rejected.
            async with self._doubt if verdict.kind is FailureKind.AUTH else nullcontext():
                attempt = 1
                while not isinstance(verdict, Page):
                    rejected = verdict.kind is FailureKind.AUTH or verdict.status in TRUSTED_ATTEMPTS
                    if rejected and token == self._tokens and self._renew():
                        self._tokens += 1
                        self._budget.retried += 1
                    # With a newer token, read now or already for another request, the next attempt is a first one.
                    if not rejected or token == self._tokens:
                        place = f"isContact {str(query.is_contact).lower()}, {query.span()}, page {page}"
                        where = f"account {self._account}, {place}, attempt {attempt}"
                        await self._before_retry(verdict, attempt, where, trusted=token == self._trusted)
                        attempt += 1
                    token = self._tokens
                    verdict = await self.ask(query, page)
                return replace(verdict, number=page, attempt=attempt)
        finally:
            self._repeated -= 1

    async def ask(self, query: Query, page: int = 1) -> Page | ApiFailure:
        """Request page `page` of `query` once; raises SourceUnavailable if the server demands too long a wait."""
        body = query.body(page - 1 + self.first_page)
        slot = object()
        # A free slot is taken at once: yielding first costs a tenth of a request.
        try:
            self._slots.acquire_on_behalf_of_nowait(slot)
        except anyio.WouldBlock:
            await self._slots.acquire_on_behalf_of(slot)
        try:
            sent_at, passage = await self._turn()
            self._budget.sent += 1
            self._in_flight += 1
            among, token = self._in_flight, self._tokens
            self._peak = max(self._peak, among)
            try:
                verdict = await self._send(body)
                if passage is not None:
                    passage.answered(anyio.current_time())
                if isinstance(verdict, Page):
                    self._trusted = token
                    self._observe(query, verdict)
                self._adapt(verdict, sent_at, among)
                return verdict
            finally:
                self._in_flight -= 1
        finally:
            self._slots.release_on_behalf_of(slot)

    async def _send(self, body: Body) -> Page | ApiFailure:
        """Send one request; a page is returned as a failure if it is empty and its signature is not accepted."""
        try:
            response = await self._transport(body)
        except TransportError as error:
            return error.failure
        self.server_now = server_time(response.headers) or self.server_now
        page = parse_response(response)
        if not isinstance(page, Page):
            return page
        if page.rows:
            self._filled.add(page.signature)
        elif self.signatures is None:
            self._empty[page.signature] += 1
        elif page.signature not in self.signatures:
            # Some servers fail with an empty list, in an envelope that differs from that of a success.
            return ApiFailure(FailureKind.GARBLED, "an empty list in an envelope that no other response had")
        return page

    def learn_signatures(self, end: Page) -> tuple[EnvelopeSignature, ...]:
        """From now on, accept an empty list only with a signature of non-empty pages, or of most empty ones so far.

        `end` is a page past the end of a list, for which some servers have a separate signature. Returns () if the
        server's envelopes vary too much to prove anything.
        """
        if len(self._filled) <= MOST_SIGNATURES:
            common = {signature for signature, _ in self._empty.most_common(1)}
            self.signatures = frozenset(self._filled | common | {end.signature})
        return tuple(sorted(self.signatures or ()))

    def _adapt(self, verdict: Page | ApiFailure, sent_at: float, among: int) -> None:
        """Adapt the pace to the response to one of `among` requests in flight.

        After a rejection the whole client pauses for as long as the server asks, or else as the pace suggests.
        """
        now = anyio.current_time()
        if isinstance(verdict, Page):
            self._pace.succeeded(now, sent_at, self._in_flight, among, may_try=not self._repeated)
        elif verdict.kind in {FailureKind.THROTTLED, FailureKind.BLOCKED}:
            pause = self._pace.refused(now, sent_at, max(among, self._in_flight))
            server_now = None if self.server_now is None else self.server_now / 1000
            asked = retry_after(verdict.retry_after, server_now)
            if asked is not None and asked > LONGEST_WAIT:
                raise SourceUnavailable(
                    f"the server asks to wait {asked:.0f} s, more than {LONGEST_WAIT:.0f} s",
                    where=f"account {self._account}",
                )
            self._paused_until = max(self._paused_until, now + (pause if asked is None else asked))
        elif verdict.kind is FailureKind.UNAVAILABLE:
            self._pace.failed()
        self._slots.total_tokens = self._pace.at_once

    async def _turn(self) -> tuple[float, Passage | None]:
        """Wait for this request's turn, and for the end of any pause of the whole client.

        Returns the time then, and the passage under the quota, if there is one.
        """
        now = anyio.current_time()
        while True:
            cuts = self._pace.throttled
            now = await self._wait(self._pace.wait(now), now)
            if self._quota is None:
                if self._is_free(now, cuts):
                    return now, None
            else:
                async with self._quota.turn:
                    began, now = now, anyio.current_time()
                    while (seconds := self._quota.cap.wait(now)) > 0:
                        await anyio.sleep(seconds)
                        now = anyio.current_time()
                    self._held += now - began
                    if self._is_free(now, cuts):
                        return now, self._quota.cap.send(now)
            # Wait for a turn again: requests that waited together must not be sent together, nor at the previous pace.
            now = await self._wait(self._paused_until - now, now)

    def _is_free(self, now: float, cuts: int) -> bool:
        """Whether no pause is active and the pace was not cut since `cuts`."""
        return self._paused_until <= now and cuts == self._pace.throttled

    async def _wait(self, seconds: float, now: float) -> float:
        """Wait from `now` on; returns the time afterwards."""
        if seconds <= 0:
            return now
        self._waited += seconds
        await anyio.sleep(seconds)
        return anyio.current_time()

    async def _before_retry(self, failure: ApiFailure, attempt: int, where: str, *, trusted: bool) -> None:
        """Wait before the next attempt; raises the failure if there must be none."""
        doubtful = trusted and failure.kind is FailureKind.AUTH
        if attempt >= (TRUSTED_ATTEMPTS.get(failure.status, 1) if doubtful else ATTEMPTS[failure.kind]):
            self._trusted = 0 if doubtful else self._trusted
            raise _ERRORS[failure.kind](failure.message, where=where, hint=failure.hint)
        if failure.kind is FailureKind.STALE:
            # It never reached the server, so counters, budget and backoff ignore it.
            self._budget.sent -= 1
            return
        if not self._budget.allows_retry():
            message = f"the retry budget is spent; last: {failure.message}"
            raise SourceUnavailable(message, where=where, hint=failure.hint)
        self._budget.retried += 1
        await self._wait(backoff(attempt, self._jitter()), anyio.current_time())
