"""Report and explorer in a real browser: hostile contacts run nothing and request nothing, at any width."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest

from tests.support.browser import MODES, WIDTHS, browsing, focused, needs_browser, overflows
from tests.support.live import Job, live

pytestmark = needs_browser

LEAK = "http://leak.example/seen"
MARKUP = (
    f'"><script>document.title="owned"</script><img src={LEAK} onerror="alert(1)"><svg onload=alert(2)>'
    f"<style>*{{background:url({LEAK})}}</style>"
)
HOSTILE = {
    "markup": MARKUP,
    "attribute": f"' onmouseover='alert(3)' style='background:url({LEAK})",
    "scheme": "javascript:alert(4)",
    "formula": f'=HYPERLINK("{LEAK}","click")',
    "bidi": "\u202eevil\u2066\u200f",
    "long": "long " + "x" * 10_000,
    "template": "{{7*7}}${7*7}<%=7*7%>",
    "entity": "&lt;script&gt;alert(5)&lt;/script&gt;&#0;",
    "closing": "</textarea></title></style></table></main><plaintext>",
}
AT = "2025-01-01T00:00:00.000Z"


def contact(number: int, value: str) -> bytes:
    """A contact with this value wherever a person can put text."""
    details = {
        "name": value,
        "userProvidedName": value,
        "city": value,
        "country": "Nowhere" + value,
        "picture": LEAK,
        "tags": [value],
        "contact": {"email": value},
        "attributes": [{"key": value, "value": value}],
    }
    return json.dumps(
        {
            "_id": f"hostile-{number}",
            "platform": ["WEBSITE"],
            "status": value,
            "profile": {"userDetails": details, "notes": [{"title": value, "description": value}]},
            "isContact": True,
            "lastMessage": {"by": "user", "at": AT, "text": value},
            f"key {value}"[:300]: {value[:300]: 1},
            "lastSeenAt": "2027-01-01T00:00:00.000Z",
            "createdAt": f"2025-01-01T00:00:{number:02}.000Z",
            "updatedAt": AT,
        }
    ).encode()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Two runs over ordinary and hostile contacts: each value in five contacts, so that reports name its groups."""
    with live(contacts=60, nasty_share=0, seed=2) as server:
        done = Job(tmp_path_factory.mktemp("browser"), {"main": server.url})
        assert done.run().exit_code == 0
        values = [value for value in HOSTILE.values() for _ in range(5)]
        raw = [contact(number, value) for number, value in enumerate(values)]
        server.change(lambda world, now: [world.adopt(one, now) for one in raw])
        server.ahead = 60
        assert done.run(full=True).exit_code == 0
        yield done


@contextmanager
def exploring(job: Job) -> Iterator[str]:
    """The printed address of a running `etl explore`."""
    with job.start("explore", "CONFIG", "--json") as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def test_hostile_contacts_do_nothing(job: Job) -> None:
    """Every page shows the values as text: nothing runs, nothing is requested elsewhere, nothing breaks out."""
    assert job.call("report", "CONFIG", "-o", "page.html").code == 0
    with exploring(job) as address, browsing() as (page, seen):
        base = address.partition("/?")[0]
        page.goto(address)
        for path in (
            "/",
            "/contacts",
            "/diff",
            "/diff?a=0&b=-1",
            f"/contacts?find={quote(MARKUP)}&status={quote(MARKUP)}",
        ):
            page.goto(base + path)
            assert page.locator("footer").is_visible(), path
        for number in range(0, len(HOSTILE) * 5, 5):
            page.goto(f"{base}/contact?account=main&id=hostile-{number}")
            assert page.locator("footer").is_visible()
        page.goto(f"{base}/contact?account={quote(MARKUP)}&id={quote(MARKUP)}")
        page.goto(f"{base}/sql")
        page.fill("textarea", "select * from contacts where contact_id like 'hostile%'")
        page.click("button:has-text('Run')")
        assert page.locator("caption").inner_text() == "45 rows"
        assert page.locator("textarea").input_value().startswith("select *")
        page.goto(f"file://{job.folder}/page.html")
        assert page.locator("footer").is_visible()
        assert [url for url in seen.requests if not url.startswith((f"{base}/", "file:"))] == []
        assert seen.messages == []
        assert "owned" not in page.title()


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_the_screen(job: Job, width: int) -> None:
    """At both widths and in both modes no page is wider than the window, and the console stays silent."""
    with exploring(job) as address:
        base = address.partition("/?")[0]
        for mode in MODES:
            with browsing(width, mode) as (page, seen):
                page.goto(address)
                for path in ("/", "/contacts", "/contact?account=main&id=hostile-25", "/diff", "/sql"):
                    page.goto(base + path)
                    assert not overflows(page), (path, mode)
                assert seen.messages == []


def test_the_keyboard_goes_through_in_order(job: Job) -> None:
    """Tab leads from the skip link through the navigation to the form; Enter searches and opens; nothing traps it."""
    with exploring(job) as address, browsing() as (page, _):
        page.goto(address)
        page.goto(address.partition("/?")[0] + "/contacts")
        order = []
        for _ in range(10):
            page.keyboard.press("Tab")
            order.append(focused(page))
        links = ["Skip to the content", "Report", "Contacts", "Diff", "SQL"]
        assert order == [*links, "find", "status", "channel", "run", "Show"]
        page.focus("input[name=find]")
        page.keyboard.type("hostile-7")
        page.keyboard.press("Enter")
        page.wait_for_url("**find=hostile-7")
        assert page.locator("tbody tr").count() == 1
        page.focus("tbody a")
        page.keyboard.press("Enter")
        page.wait_for_url("**/contact?**")
        assert page.locator("h1").inner_text() == "Contact hostile-7"


def test_a_screen_reader_finds_names_and_regions(job: Job) -> None:
    """Pages have one main heading, landmarks, labels on every control, captions on tables, and silent drawings."""
    with exploring(job) as address, browsing() as (page, _):
        page.goto(address)
        for path in ("/", "/contacts", "/diff", "/sql"):
            page.goto(address.partition("/?")[0] + path)
            assert page.locator("h1").count() == 1
            assert page.locator("html[lang=en] main").count() == 1
            assert page.locator("nav").count() >= 1
            controls = page.locator("input, select, textarea")
            for place in range(controls.count()):
                assert controls.nth(place).evaluate("one => one.labels.length") == 1
            assert page.locator("table").count() == page.locator("table > caption").count()
            assert page.locator("svg:not([aria-hidden=true])").count() == 0
