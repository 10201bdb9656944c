"""`etl explore`: who may ask, what the pages show, and what neither can do."""

from __future__ import annotations

import csv
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from html import unescape
from io import StringIO
from urllib.parse import urlsplit

import aiohttp
import pytest

import etl
from etl.explore.csv import as_csv, guarded
from etl.explore.server import serve
from tests.support.live import Job, live

PATHS = ("/", "/contacts", "/contact?account=main&id=x", "/diff", "/sql")
ENDLESS = "select count(*) from range(9e9::bigint) a, range(9) b where a.range % 7 = b.range"
WRITING = (
    *("delete from contacts", "select 1; select 2", "select * from '/etc/passwd'", "attach 'x.db'", "selekt"),
    *("set lock_configuration = false", "copy contacts to 'x.csv'"),
)
NEWEST = "select contact_id from contacts order by last_seen_at desc nulls last, account, contact_id"


@pytest.fixture(scope="module", params=["duckdb", "parquet"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Two runs over 60 contacts, in one sink; between them one was edited, and one is new."""
    with live(contacts=60, nasty_share=0, seed=2) as server:
        done = Job(tmp_path_factory.mktemp("explore"), {"main": server.url}, sinks=(request.param,))
        assert done.run().exit_code == 0
        edited = server.ids()[0]
        server.change(lambda world, now: (world.edit(edited, now), world.insert(now)))
        server.ahead = 60
        assert done.run(full=True).exit_code == 0
        yield done


@asynccontextmanager
async def opened(
    job: Job, *, admitted: bool = True, **options: float
) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A client of a running explorer, with its cookie, and the server's address without the token."""
    async with serve(etl.load_config(job.config()), **options) as address:
        parts = urlsplit(address)
        jar = aiohttp.CookieJar(unsafe=True)  # it also keeps cookies of an address
        async with aiohttp.ClientSession(cookie_jar=jar) as client:
            if admitted:
                async with client.get(address, allow_redirects=False) as answer:
                    assert answer.status == 303
            yield client, f"{parts.scheme}://{parts.netloc}"


async def read(client: aiohttp.ClientSession, address: str, **form: str) -> tuple[int, str]:
    """Status and text of a page."""
    async with client.request("POST" if form else "GET", address, data=form or None) as answer:
        return answer.status, unescape(await answer.text())


def ids(job: Job, query: str = NEWEST) -> list[str]:
    """Ids of contacts, by SQL."""
    return [row["contact_id"] for row in job.call("sql", "CONFIG", query, "--json").document]


async def test_only_the_token_opens_it(job: Job) -> None:
    """Without the cookie no path answers; the token of the address gives it, for this site alone and no script."""
    async with opened(job, admitted=False) as (client, base):
        for path in (*PATHS, "/?token=", "/?token=wrong"):
            assert (await read(client, base + path))[0] == 403, path
        assert (await read(client, base + "/sql", query="select 1"))[0] == 403
    async with serve(etl.load_config(job.config())) as address, aiohttp.ClientSession() as client:
        async with client.get(address, allow_redirects=False) as answer:
            cookie = answer.headers["Set-Cookie"]
            assert "token" not in answer.headers["Location"]
        assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in cookie.split(";")}
        async with serve(etl.load_config(job.config())) as other:
            assert other.partition("token=")[2] != address.partition("token=")[2]


async def test_a_foreign_name_does_not_reach_it(job: Job) -> None:
    """The Host header must be the server's own: a name that an attacker binds to this address gets nothing."""
    async with opened(job) as (client, base):
        port = urlsplit(base).port
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}"):
            async with client.get(f"{base}/contacts", headers={"Host": host}) as answer:
                assert answer.status == 421, host


async def test_a_foreign_page_cannot_send_a_form(job: Job) -> None:
    """A query that another page sends is refused, whatever the cookie."""
    async with opened(job) as (client, base):
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ):
            async with client.post(f"{base}/sql", data={"query": "select 1"}, headers=headers) as answer:
                assert answer.status == 403, headers


async def test_every_answer_forbids_what_it_does_not_need(job: Job) -> None:
    """Pages, errors and redirects are not stored, not framed, and run, load and send nothing."""
    async with opened(job) as (client, base):
        for path in (*PATHS, "/none", "/?token=wrong"):
            async with client.get(base + path, allow_redirects=False) as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; style-src 'sha256-"), path
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert "<script" not in await answer.text()


async def test_it_listens_on_this_machine_alone(job: Job) -> None:
    """The socket is bound to the loopback address."""
    async with opened(job) as (_, base):
        port = urlsplit(base).port
        others = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None)}
        for other in others - {"127.0.0.1", "::1"}:
            with pytest.raises(OSError, match=r"."):
                socket.create_connection((other, port), timeout=2).close()


async def test_contacts_are_found_and_paged(job: Job) -> None:
    """Pages of 25, those seen last first; text is searched in names, numbers and ids; status and channel filter."""
    async with opened(job) as (client, base):
        expected = ids(job)
        shown = []
        for page in (1, 2, 3):
            status, text = await read(client, f"{base}/contacts?page={page}")
            assert status == 200
            shown += [one for one in expected if f">{one}</code>" in text]
        assert shown == expected
        assert len(shown) == 61
        status, text = await read(client, f"{base}/contacts?find={expected[7].upper()}")
        assert "1 to 1 of 1 contact," in text
        for column, name, value in (("status", "status", "OPEN"), ("platforms[1]", "channel", "WHATSAPP")):
            query = f"select count(*) as n from contacts where {column} = '{value}'"  # noqa: S608
            [row] = job.call("sql", "CONFIG", query, "--json").document
            _, text = await read(client, f"{base}/contacts?{name}={value}")
            assert f"of {row['n']} contacts," in text
        _, text = await read(client, f"{base}/contacts?find=nobody-has-this")
        assert "No contact matches." in text
        _, text = await read(client, f"{base}/contacts?run=1&page=-4&status=&channel=")
        assert "1 to 25 of 60 contacts, as run 1 left them" in text
        async with client.get(f"{base}/contacts?run=2&find=a", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/contacts?find=a")


async def test_a_contact_has_its_versions(job: Job) -> None:
    """Each version shows what it changed, before and after; an unknown contact has none."""
    [edited] = ids(job, "select contact_id from contact_versions group by 1 having count(*) > 1")
    async with opened(job) as (client, base):
        _, text = await read(client, f"{base}/contact?account=main&id={edited}")
        assert "Run 2, " in text
        assert "column changed" in text or "columns changed" in text
        assert "in contacts as run 2 wrote it" in text
        _, text = await read(client, f"{base}/contact?account=main&id=%3Cscript%3E")
        assert "no run has ever received it" in text


async def test_the_difference_is_shown(job: Job) -> None:
    """By default between the last two runs; an unknown state is told."""
    async with opened(job) as (client, base):
        assert "1 new, 1 changed, 0 deleted, from run 1 to run 2." in (await read(client, f"{base}/diff"))[1]
        assert (
            "61 new, 0 changed, 0 deleted, from nothing to run 2." in (await read(client, f"{base}/diff?a=0&b=-1"))[1]
        )
        assert "there is no run 99" in (await read(client, f"{base}/diff?a=99&b=-1"))[1]


async def test_sql_reads_and_nothing_else(job: Job) -> None:
    """A reading statement has its rows, in order; others, and files of this machine, are refused with the reason."""
    async with opened(job) as (client, base):
        status, text = await read(client, f"{base}/sql", query="select seq, mode from runs order by seq desc -- all")
        assert status == 200
        assert text.index('<td class="text">2</td>') < text.index('<td class="text">1</td>')
        for query in (
            "delete from contacts",
            "select 1; select 2",
            "select * from '/etc/passwd'",
            "selekt",
            "attach 'x.db'",
        ):
            status, text = await read(client, f"{base}/sql", query=query)
            assert status == 400, query
            assert 'role="alert"' in text
        assert (await read(client, f"{base}/sql?query=select+1"))[1].count("<td") == 0


async def test_a_query_has_limits(job: Job) -> None:
    """A result has at most 10,000 rows, and a query that takes too long is stopped."""
    async with opened(job, query_seconds=0.5) as (client, base):
        _, text = await read(client, f"{base}/sql", query="select * from range(100000) order by 1 desc")
        assert "The first 10,000 rows, 200 shown; CSV has all" in text
        assert "99999" in text
        async with client.post(f"{base}/sql.csv", data={"query": "from range(100000)"}) as answer:
            assert len((await answer.text()).splitlines()) == 10_001
        status, text = await read(
            client,
            f"{base}/sql",
            query=ENDLESS,
        )
        assert status == 400
        assert "it took longer than 0.5 s" in text


async def test_csv_holds_no_formula(job: Job) -> None:
    """The download has every column and row, and text that a spreadsheet could calculate begins with an apostrophe."""
    async with opened(job) as (client, base):
        query = "select '=1+1' as \"=a\", ' @x' as b, -5 as c, 'a,\"b\"' as d, ['-x'] as e, null as f"
        async with client.post(f"{base}/sql.csv", data={"query": query}) as answer:
            assert answer.headers["Content-Disposition"] == 'attachment; filename="etl.csv"'
            text = (await answer.read()).decode("utf-8-sig")
        assert list(csv.reader(StringIO(text))) == [
            ["'=a", "b", "c", "d", "e", "f"],
            ["'=1+1", "' @x", "-5", 'a,"b"', '["-x"]', ""],
        ]


@pytest.mark.parametrize(
    "text", ["=1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1", "\u00a0=1", "\ufeff=1", "|x", "%x"]
)
def test_formulas_are_guarded(text: str) -> None:
    """Whatever begins a formula in some spreadsheet is kept as text; numbers stay numbers."""
    assert guarded(text) == f"'{text}"
    assert [guarded(value) for value in (-1, -1.5, None, True, "a=1")] == [-1, -1.5, None, True, "a=1"]
    assert as_csv(["a"], []) == b"\xef\xbb\xbfa\r\n"


def test_a_port_that_is_taken_is_a_usage_error(job: Job) -> None:
    """The command says so in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = job.call("explore", "CONFIG", "--port", str(taken.getsockname()[1]))
    assert done.code == 2
    assert "cannot listen on port" in done.err


async def test_before_the_first_run_pages_say_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a published state there is the report's page, and the others name the reason."""
    job = Job(tmp_path_factory.mktemp("empty"), {"main": "http://127.0.0.1:9"})
    async with opened(job) as (client, base):
        assert "Nothing has been published yet" in (await read(client, base))[1]
        status, text = await read(client, f"{base}/contacts")
        assert status == 400
        assert "Run `etl run` first." in text
