"""The server without a network: access, rate limit, faults and routes as synchronous code; time is a parameter.

A virtual-time test can use it directly; `server` puts it behind a socket.
"""

import gzip
import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate

from etl.sandbox import people
from etl.sandbox.answer import Answer, refusal
from etl.sandbox.settings import Settings
from etl.sandbox.strikes import Plan
from etl.sandbox.world import World

MALFORMED_TOKEN = "Argument passed in must be a single String of 12 bytes or a string of 24 hex characters"  # noqa: S105
"""KNOWN: the message of the 400 for a malformed token."""
_OBJECT_ID = re.compile(r"[0-9a-fA-F]{24}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in any case, if the mapping supports that; in a plain dict, spelled as the client sends them."""
    body: bytes = b""


@dataclass(slots=True)
class Stats:
    """Counters of the server so far."""

    requests: int = 0
    """Requests for contacts, including rejected ones."""
    by_status: Counter[int] = field(default_factory=Counter)
    by_page: Counter[int] = field(default_factory=Counter)
    """Good answers by page number."""
    max_in_flight: int = 0
    max_per_second: int = 0
    """The maximum number of requests that arrived within any second."""
    bytes: int = 0
    """Bytes of bodies, before a transport fault truncates them."""
    violations: Counter[str] = field(default_factory=Counter)
    """Requests that a careful client never makes: a write, an export, or a path that does not exist."""

    _latest: deque[float] = field(default_factory=deque)
    """When the requests of the last second arrived."""

    def arrive(self, now: float) -> None:
        """Count a request that has arrived."""
        self._latest.append(now)
        while self._latest[0] <= now - 1:
            self._latest.popleft()
        self.max_per_second = max(self.max_per_second, len(self._latest))

    def as_dict(self) -> dict[str, object]:
        """For JSON; the keys of counters become text."""
        counters = ("by_status", "by_page", "violations")
        plain = {name: getattr(self, name) for name in ("requests", "max_in_flight", "max_per_second", "bytes")}
        return plain | {name: {str(key): n for key, n in getattr(self, name).items()} for name in counters}


class Service:
    """Answers requests about one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.settings: Settings = world.settings
        self.stats = Stats()
        self.plan = Plan(world.settings)
        self._accepted = 0
        self._allowance = 1.0
        self._refilled = world.start
        self._last_good = b""

    def handle(self, request: Request, now: float, in_flight: int = 1) -> Answer:
        """The answer at `now`, with `in_flight` requests in flight, including this one."""
        self.stats.max_in_flight = max(self.stats.max_in_flight, in_flight)
        answer = self._routed(request, now, in_flight)
        self.stats.by_status[answer.status] += 1
        self.stats.bytes += len(answer.body)
        return answer

    def _routed(self, request: Request, now: float, in_flight: int) -> Answer:
        route = (request.method, request.path)
        if route == ("POST", "/inbox/users"):
            return self._users(request, now, in_flight)
        if route == ("GET", "/inbox/segments"):
            return self._dated(self._refused(request.headers) or self._segments(), now)
        self.stats.violations[f"{request.method} {request.path}"] += 1
        return self._dated(refusal(404, f"Cannot {request.method} {request.path}"), now)

    def _users(self, request: Request, now: float, in_flight: int) -> Answer:
        self.stats.requests += 1
        number, body = self.stats.requests, _decoded(request.body)
        strike = self.plan.strike(number, body if isinstance(body, dict) else {})
        if isinstance(body, dict) and body.get("isExport", "none") != "none":
            self.stats.violations["isExport"] += 1
        answer = self._paced(now, in_flight) or self._refused(request.headers)
        if answer is None:
            seen = strike.body(body) if isinstance(body, dict) else body
            answer = self.world.answer(seen, now, page_size=strike.page_size(), reshape=strike.page)
        answer = self._remembered(answer, body, repeat=strike.repeats())
        answer = strike.answer(self._dated(answer, now))
        return self._packed(answer, request.headers)

    def _remembered(self, answer: Answer, body: object, *, repeat: bool) -> Answer:
        if answer.status != 200:
            return answer
        if repeat and self._last_good:
            return replace(answer, body=self._last_good)
        self._last_good = answer.body
        self.stats.by_page[body["page"] if isinstance(body, dict) else 0] += 1
        return answer

    def _refused(self, headers: Mapping[str, str]) -> Answer | None:
        """The rejection of a caller whose headers do not allow reading; None if they do."""
        if self.settings.require_authtype and headers.get("authtype") != "Key":
            return refusal(401, "Unauthorized")
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            return refusal(401, "Unauthorized")
        if token == self._token():
            self._accepted += 1
            return None
        known = token in (self.settings.token, self.settings.token_next)
        return refusal(401, "Unauthorized") if known or _OBJECT_ID.fullmatch(token) else refusal(400, MALFORMED_TOKEN)

    def _token(self) -> str:
        """The token that is valid now."""
        expired = 0 < self.settings.token_expires_after <= self._accepted
        return self.settings.token_next if expired else self.settings.token

    def _paced(self, now: float, in_flight: int) -> Answer | None:
        """A 429 if there are too many requests at once or per second; else None."""
        allowed, rate = self.settings.max_in_flight_allowed, self.settings.rate_limit
        if not (allowed and in_flight > allowed) and not (rate and self._too_fast(now, rate)):
            return None
        answer, wait = refusal(429, "Too many requests"), self.settings.retry_after
        return replace(answer, headers={**answer.headers, "Retry-After": wait}) if wait else answer

    def _too_fast(self, now: float, rate: float) -> bool:
        """A token bucket of one second's requests, refilled at the rate."""
        filled = self._allowance + max(0.0, now - self._refilled) * rate
        self._allowance, self._refilled = min(filled, max(1.0, rate)), now
        if self._allowance < 1:
            return True
        self._allowance -= 1
        return False

    def _segments(self) -> Answer:
        rows = [
            {"_id": segment, "_customer": people.CUSTOMER, "segmentName": f"Segment {n}", "filters": {"tags": ["vip"]}}
            for n, segment in enumerate(people.SEGMENTS)
        ]
        return Answer(200, json.dumps({"success": True, "message": "ok", "code": 200, "data": rows}).encode())

    def _dated(self, answer: Answer, now: float) -> Answer:
        return replace(answer, headers={**answer.headers, "Date": formatdate(int(now), usegmt=True)})

    def _packed(self, answer: Answer, headers: Mapping[str, str]) -> Answer:
        wanted = self.settings.gzip and "gzip" in headers.get("Accept-Encoding", "")
        if not wanted or "Content-Encoding" in answer.headers:
            return answer
        packed = {**answer.headers, "Content-Encoding": "gzip"}
        return replace(answer, body=gzip.compress(answer.body, 1), headers=packed)

    def truth(self, now: float) -> Iterator[bytes]:
        """Lines of NDJSON: every living contact, every deleted one, and a summary.

        `{"id": ..., "contact": <verbatim JSON>}`, then `{"id": ..., "deleted_at": seconds}`, then
        `{"summary": {"now", "start", "living", "deleted", "events": {kind: count}}}`.
        """
        contacts, gone = self.world.contacts(now), self.world.truth.deleted()
        for identity, raw in contacts.items():
            yield b'{"id":' + json.dumps(identity).encode() + b',"contact":' + raw + b"}\n"
        for identity, at in gone.items():
            yield json.dumps({"id": identity, "deleted_at": at}).encode() + b"\n"
        summary = {"now": self.world.now, "start": self.world.start, "living": len(contacts), "deleted": len(gone)}
        yield json.dumps({"summary": {**summary, "events": self.world.truth.counts}}).encode() + b"\n"


def _decoded(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None
