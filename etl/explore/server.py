"""The explorer's server: who may ask, and what every answer forbids.

It listens on the loopback address alone. Whoever knows the random token of the printed address gets a cookie that only
requests from its own pages carry; everyone else gets nothing. The Host header must be its own, so that no foreign name
can be bound to it. No page may run a script, load anything or send a form elsewhere, and nothing is stored.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from threading import Timer
from typing import TypeVar
from urllib.parse import urlencode

import duckdb
from aiohttp import web

from etl.commands.diff import compare
from etl.commands.explain import explain_contact
from etl.commands.report import Drawn, live_report
from etl.commands.sql import rows_of
from etl.commands.unexpected import as_error
from etl.config import Config
from etl.errors import UsageError
from etl.explore import views
from etl.explore.contacts import Row, Search, browse, versions
from etl.explore.csv import as_csv
from etl.pages.document import policy
from etl.sinks import select
from etl.sinks.targets import reading

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LOOPBACK = "127.0.0.1"
QUERY_SECONDS = 30.0
MOST_ROWS = 10_000
MOST_BYTES = 100_000
"""Of a request's body."""
SHOWN_CHANGES = 100
_HEADERS = {
    "Content-Security-Policy": policy("form-action 'self'", "frame-ancestors 'none'"),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # without one, a browser hides even from us which page sent a form
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Explorer:
    """The pages of one configuration; each request reads the newest published state."""

    def __init__(self, config: Config, token: str, *, query_seconds: float = QUERY_SECONDS) -> None:
        self._config, self._token = config, token
        self._query_seconds = query_seconds
        self.hosts: set[str] = set()
        """The Host headers that are its own."""
        self._cookie = ""
        self._drawing = asyncio.Lock()
        self._drawn: Drawn | None = None

    def application(self) -> web.Application:
        """The routes, behind the guard."""
        app = web.Application(middlewares=[self.guard], client_max_size=MOST_BYTES)
        app.add_routes(
            [
                web.get("/", self.report),
                web.get("/contacts", self.contacts),
                web.get("/contact", self.contact),
                web.get("/diff", self.diff),
                web.get("/sql", self.sql),
                web.post("/sql", self.sql),
                web.post("/sql.csv", self.csv),
            ]
        )
        return app

    def listens_on(self, port: int) -> None:
        """Learn the port: cookies are shared by all ports of a host, so it is part of their name."""
        self.hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
        self._cookie = f"etl-{port}"

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse foreign requests, and give every answer its headers."""
        try:
            answer = await self._admitted(request, handler)
        except web.HTTPException as error:
            answer = self._page(views.failure(self._config.name, f"{error.status}", error.reason), status=error.status)
        except Exception as caught:  # noqa: BLE001 - a bug, too, is a page with all headers
            told = as_error(caught)
            status = 400 if isinstance(told, UsageError) else 500
            answer = self._page(views.failure(self._config.name, "This did not work", str(told)), status=status)
        answer.headers.update(_HEADERS)
        return answer

    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.host not in self.hosts:
            raise web.HTTPMisdirectedRequest(reason="This is not the address of etl explore.")
        if "token" in request.query and _same(request.query["token"], self._token):
            rest = {name: value for name, value in request.query.items() if name != "token"}
            answer = web.Response(status=303, headers={"Location": f"{request.path}?{urlencode(rest)}".rstrip("?")})
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="Strict", path="/")
            return answer
        if not _same(request.cookies.get(self._cookie, ""), self._token):
            raise web.HTTPForbidden(reason="Open the address that etl explore printed.")
        own = {f"http://{host}" for host in self.hosts}
        foreign = request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}
        if request.method == "POST" and (foreign or request.headers.get("Origin", min(own)) not in own):
            raise web.HTTPForbidden(reason="This form was sent from another page.")
        return await handler(request)

    async def report(self, _: web.Request) -> web.Response:
        """The report, live."""
        async with self._drawing:  # drawn once, however many ask
            self._drawn = await asyncio.to_thread(live_report, self._config, views.LINKS[1:], self._drawn)
        return self._page(self._drawn[1].decode())

    async def contacts(self, request: web.Request) -> web.Response:
        """The contacts that a search finds, a page of them."""
        asked = request.query
        search = Search(
            find=asked.get("find", "").strip()[:200],
            status=asked.get("status", ""),
            channel=asked.get("channel", ""),
            run=_number(asked.get("run", ""), 0),
            page=max(1, _number(asked.get("page", ""), 1)),
        )
        found = await self._read(partial(browse, search=search))
        if search.run >= found.newest:
            # A bookmark without the run shows the newest state, whenever it is opened.
            return web.Response(status=303, headers={"Location": views.address(search, run=0)})
        return self._page(views.contacts(self._config.name, search, found))

    async def contact(self, request: web.Request) -> web.Response:
        """One contact and its versions."""
        account, contact_id = request.query.get("account", ""), request.query.get("id", "")
        explained = await asyncio.to_thread(explain_contact, self._config, contact_id)
        found = await self._read(partial(versions, account=account, contact_id=contact_id))
        return self._page(views.contact(self._config.name, account, explained, found))

    async def diff(self, request: web.Request) -> web.Response:
        """The changes between two published states."""
        before, after = request.query.get("a", "-2"), request.query.get("b", "-1")
        try:
            work = partial(compare, before=before, after=after, rows=SHOWN_CHANGES, values=True)
            found, trouble = await self._read(work), ""
        except UsageError as error:
            found, trouble = None, str(error)
        return self._page(views.diff(self._config.name, before, after, found, trouble))

    async def sql(self, request: web.Request) -> web.Response:
        """A form for one query, and its first rows."""
        if request.method == "GET":
            return self._page(
                views.sql(self._config.name, "select status, count(*) as contacts from contacts group by 1")
            )
        query = str((await request.post()).get("query", ""))
        try:
            columns, rows, cut = await self._ask(query)
        except UsageError as error:
            return self._page(views.sql(self._config.name, query, trouble=error.message), status=400)
        return self._page(views.sql(self._config.name, query, columns, rows, cut=cut))

    async def csv(self, request: web.Request) -> web.Response:
        """The rows of a query as a file."""
        query = str((await request.post()).get("query", ""))
        try:
            columns, rows, _ = await self._ask(query)
        except UsageError as error:
            return self._page(views.sql(self._config.name, query, trouble=error.message), status=400)
        name = {"Content-Disposition": 'attachment; filename="etl.csv"'}
        return web.Response(body=as_csv(columns, rows), content_type="text/csv", charset="utf-8", headers=name)

    async def _ask(self, query: str) -> tuple[list[str], list[Row], bool]:
        """The columns and rows of the answer, and whether there are more."""

        def work(connection: duckdb.DuckDBPyConnection) -> tuple[list[str], list[Row], bool]:
            late = Timer(self._query_seconds, connection.interrupt)
            late.start()
            try:
                found = select(connection, query, most=MOST_ROWS + 1)
            except UsageError as error:
                if "INTERRUPT" in error.message:
                    limit = f"{self._query_seconds:g} s"
                    raise UsageError(f"the query was stopped: it took longer than {limit}", where="query") from None
                raise
            finally:
                late.cancel()
            rows = rows_of(found.slice(0, MOST_ROWS))
            return [*rows[0]] if rows else found.column_names, [*rows], found.num_rows > MOST_ROWS

        return await self._read(work)

    async def _read(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Do the work in a thread, on a connection to the newest published state."""

        def done() -> T:
            with reading(self._config) as connection:
                return work(connection)

        return await asyncio.to_thread(done)

    def _page(self, text: str, status: int = 200) -> web.Response:
        return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(), known.encode())


def _number(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


@asynccontextmanager
async def serve(config: Config, port: int = 0, *, query_seconds: float = QUERY_SECONDS) -> AsyncIterator[str]:
    """A server until the block ends; its address has the token. Raises `OSError` if the port is taken."""
    token = secrets.token_urlsafe(32)
    explorer = Explorer(config, token, query_seconds=query_seconds)
    runner = web.AppRunner(explorer.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, port).start()
        taken = runner.addresses[0][1]
        explorer.listens_on(taken)
        yield f"http://{LOOPBACK}:{taken}/?token={token}"
    finally:
        await runner.cleanup()


def run(config: Config, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready` with the address as soon as requests are answered."""

    async def until_stopped() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        async with serve(config, port) as address:
            ready(address)
            await stop.wait()

    asyncio.run(until_stopped())
