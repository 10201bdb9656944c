"""The page of a report from plain figures: what it says, and that nothing on it can run, load or break out."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from etl.pages.document import style
from etl.pages.figures import (
    AccountFigures,
    AttemptFigures,
    ColumnFigures,
    ContactFigures,
    DataFigures,
    Figures,
    ProofFigures,
    RunFigures,
    fold_small,
)
from etl.pages.sections import report

T0 = datetime(2026, 11, 29, 4, 9, 6, tzinfo=UTC)
HOSTILE = '</text></svg><script>alert("x")</script><img src=//evil.example/x onerror=alert(1)>\u202e\x1b[31m\ufffe\x00'
VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The tags of a page in order, its ids, its addresses and its text; raises if the tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a tag."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag without content."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost tag."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        if self.open[-1:] != ["style"]:
            self.text += data


def run(seq: int, **known: object) -> RunFigures:
    """A run of one account."""
    plain = RunFigures(
        seq=seq,
        at=T0 + timedelta(days=seq),
        modes=("incremental",),
        contacts=1000 + seq,
        new=7,
        changed=5,
        deleted=3,
        rejected=0,
        requests={"probe": 17, "sweep": 30 + seq},
        seconds_by={"probe": 0.1, "sweep": 3.0},
        seconds=4.2,
        throttled=0,
        proof="windows",
        proven=True,
    )
    return replace(plain, **known)


def attempt(exit_code: int = 0, message: str = "") -> AttemptFigures:
    """An attempt that took four seconds."""
    return AttemptFigures(T0, 4.0, exit_code, 99, message, "somewhere", "Do something.")


def figures(**known: object) -> Figures:
    """A page about two runs."""
    account = AccountFigures(
        account="main",
        seq=2,
        mode="incremental",
        contacts=1002,
        at=T0,
        watermark=T0,
        proof="windows",
        unproven=(),
        by_windows=1.0,
        proven_since=T0,
        cross_checked=T0,
        server={"page size": "50 contacts"},
    )
    plain = Figures(
        name="nightly",
        made=T0 + timedelta(hours=3),
        version="0.1.0",
        attempts=(attempt(), attempt(11, "no connection")),
        runs=(run(1, new=1001, changed=0, deleted=0, modes=("full",)), run(2)),
        accounts=(account,),
        contacts=ContactFigures(
            total=1002,
            channels=(("WHATSAPP", 600), ("other", 402)),
            statuses=(("OPEN", 1002),),
            months=((datetime(2026, 10, 1, tzinfo=UTC), 900), (datetime(2026, 11, 1, tzinfo=UTC), 100)),
            later=2,
            week=((1, 0, 5), (7, 23, 900)),
        ),
        proof=ProofFigures(((1, 900), (2, 102)), ((3, 1), (49, 20)), 50, 21, "ab" * 32),
        data=DataFigures(
            (ColumnFigures("status", 1.0, 0.0), ColumnFigures("uuid", 0.25, -0.02), ColumnFigures("city", 0.0, None)),
            (("missing_id", 6),),
            (("loyalty.level", 71),),
        ),
    )
    return replace(plain, **known)


def test_a_page_loads_nothing_and_allows_nothing() -> None:
    """Its policy allows one style by hash, and it has no script, image or foreign address."""
    text = report(figures())
    page = Page(text)
    assert text.lower().startswith("<!doctype html><html")
    digest = b64encode(sha256(style().encode()).digest()).decode()
    [shown] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert shown == style()
    [policy] = [value for name, value in page.attributes if name == "content" and "style-src" in (value or "")]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not {"script", "img", "link", "iframe", "object", "form", "image", "use"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on") or name in {"style", "src", "xlink:href"}}
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_page_says_what_happened() -> None:
    """Verdict, counts, ages, failures, drift, rejects and the server are there as text, not only as drawings."""
    text = Page(report(figures())).text
    for said in (
        *(
            "1,002 contacts, none missing",
            "This is run 2 (incremental), as of 1 Dec 2026, 04:09 UTC: 7 new, 5 changed, 3 deleted",
        ),
        *("+4 by the last run", "3 h old when this page was made", "every contact, window by window"),
        *("exit code 0", "no connection", "Run 1, which brought all 1,001, is left out", "sweep 32"),
        *("2 are dated after the run began", "The most are on Sunday from 23:00, 900"),
        *("900 contacts by run 1, all others later", "the fullest has 49 rows of a page of 50", "ab" * 32),
        *("1 column moved by a percentage point or more", "▼ 2.0", "missing_id", "loyalty.level", "never filled"),
        *("50 contacts", "It never asked to slow down"),
    ):
        assert said in text, said


def test_text_from_outside_stays_text() -> None:
    """Names, errors and groups with markup, control characters and marks of direction are shown, and do nothing."""
    account = replace(figures().accounts[0], unproven=(HOSTILE,), server={HOSTILE: HOSTILE})
    contacts = replace(
        figures().contacts, channels=[(HOSTILE, 9)], statuses=fold_small([(HOSTILE, 9)], 8), countries=[(HOSTILE, 9)]
    )
    data = DataFigures((), ((HOSTILE, 9),), ((HOSTILE, 9),))
    text = report(
        figures(name=HOSTILE, accounts=[account], contacts=contacts, data=data, attempts=[attempt(11, HOSTILE)])
    )
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert "alert(" in page.text
    assert not {"\u202e", "\x1b"} & set(text)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"runs": (), "accounts": (), "attempts": ()}, "Nothing has been published yet"),
        ({"runs": (), "accounts": (), "attempts": (attempt(10, "bad token"),)}, "The first run failed"),
        ({"attempts": (attempt(13, "moved"), attempt())}, "The last run failed"),
        ({"runs": (run(1, new=1001),)}, "from the second run on"),
        ({"runs": (run(1), run(2, rejected=4))}, "none missing; 4 rejected"),
        ({"contacts": ContactFigures(), "proof": ProofFigures(), "data": DataFigures()}, "Not recorded"),
        ({"runs": tuple(run(seq, contacts=0, new=0, deleted=0) for seq in range(1, 400))}, "399 published runs"),
    ],
)
def test_every_state_has_a_page(known: dict[str, object], said: str) -> None:
    """Nothing published, failures, a single run, an empty target and long histories have their page, too."""
    page = Page(report(figures(**known)))
    assert said in page.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unproven": ["it moved"]}, "published without proof"),
        ({"mode": "filtered"}, "match the filters"),
        ({"by_windows": 0.25}, "25 % by windows"),
        ({"proven_since": None}, "every contact, by earlier runs"),
    ],
)
def test_what_is_not_proven_is_not_called_so(changed: dict[str, object], said: str) -> None:
    """Without a complete proof the verdict says what there is instead."""
    assert said in Page(report(figures(accounts=[replace(figures().accounts[0], **changed)]))).text


def test_several_accounts_have_a_table() -> None:
    """With several accounts, the top lists each, and the weakest decides the verdict."""
    first = figures().accounts[0]
    text = Page(report(figures(accounts=[first, replace(first, account="shop", unproven=["it moved"])]))).text
    assert "Accounts" in text
    assert "published without proof" in text


def test_small_groups_are_not_named() -> None:
    """Groups under five are counted together, and so are those beyond the largest; the sum stays."""
    groups = [("a", 100), (None, 50), ("b", 5), ("c", 4), ("d", 1), ("x" * 99, 30)]
    folded = fold_small(groups, 3)
    assert folded == [("a", 100), ("not given", 50), ("x" * 19 + "…", 30), ("other", 10)]
    assert fold_small([("c", 4)], 3) == [("other", 4)]
    assert fold_small([], 3) == []
