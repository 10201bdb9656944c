"""Output is safe: it cannot control the terminal, keeps names readable, and does not repeat a misplaced token."""

from __future__ import annotations

import json
import sys
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.cli.streams import harden, steering
from etl.display import lines, printable, redacted

STEERING = [
    *(chr(number) for number in (*range(0x20), *range(0x7F, 0xA0))),
    *"\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff",
]
NAMES = [
    "Zdeňka Kanárková-Quist",
    "e\u0301le\u0300ve",
    "नमस्ते क्\u200dष",
    "می\u200cخواهم",  # noqa: RUF001 - Persian
    "עדה לאבלייס",
    "محمد",
    "ᠮᠣᠩᠭᠣᠯ",
    "👩\u200d👩\u200d👧\u200d👦 ❤\ufe0f 🏴\U000e0067\U000e0062\U000e007f",
    "東京 中村",
]


@pytest.mark.parametrize("character", STEERING, ids=lambda one: f"{ord(one):04x}")
def test_what_steers_a_terminal_is_spelled(character: str) -> None:
    """Controls, direction marks and zero-width characters are escaped as in JSON."""
    text = printable(f"a{character}b")
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(f'"{text}"') == f"a{character}b"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_any_script_stays_as_it_is(name: str) -> None:
    """Names in any script, with combining marks, joiners and composite emoji, are printed unchanged."""
    assert printable(name) == name


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_line_stays_one_line(texts: list[str]) -> None:
    """A text with line breaks is still printed on one line."""
    assert len(lines(["first", *texts, "last"]).splitlines()) == len(texts) + 2


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_a_document_is_equal_to_the_one_that_was_written(document: object) -> None:
    """Escaping the output does not change any value of a JSON document."""
    written = json.dumps(document, ensure_ascii=False)
    assert json.loads(printable(written, keep="\n")) == document


def test_the_streams_let_nothing_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything printed to stdout and stderr is escaped, except through `steering`."""
    out, err = StringIO(), StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    harden()
    print("one\x1b[2J\n\x9bthree\u202e", flush=True)
    print("\r\x07", file=sys.stderr)
    print("\x1b[2K", end="", file=steering(sys.stderr))
    assert out.getvalue() == "one\\u001b[2J\n\\u009bthree\\u202e\n"
    assert err.getvalue() == "\\r\\u0007\n\x1b[2K"


@pytest.mark.parametrize(
    "name",
    [
        *("ELEAPI_TOKEN", "TOKEN_MAIN", "T", "OTHER", "eleapi_token_2", "EleApiToken", "Shop2"),
        *("extract.concurency", "sinks.duckbd.path", "accounts.0.token", "--no-such-flag", "dance", ""),
        *("configs/eleapi.toml", "/srv/etl/etl.toml", "it's [a] *test* ü #1", "../data 20261123/contacts.duckdb"),
    ],
)
def test_a_name_is_shown(name: str) -> None:
    """Names of variables, settings, options and paths are shown, also if mistyped, so that users can find them."""
    assert redacted(name) == name


@pytest.mark.parametrize(
    "token",
    [
        *("65aa00000000000ca0a41e00", "deadbeefdeadbeefdeadbeef", "FEEDFACECAFEBEEFFEEDFACE", "9d41f7c0e8b2a6537d1c"),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
        *("sk_live_51H8abcdEFGHijkl", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "xoxb-123456789012-abcdefghijkl"),
        *("2f1d7a1e-5b7c-4c43-9d3e-0a4f6f4f2b1d", "AKIAIOSFODNN7EXAMPLE", 'Kanarie~7Qx/Zv+9"Wm%=Ty\\uR3s&5'),
        *("qwertzuiopasdfghjklyxcvbnmqwertz", "Bearer 65aa00000000000ca0a41e00", "--65aa00000000000ca0a41e00"),
    ],
)
def test_what_may_be_a_token_is_not(token: str) -> None:
    """A text that may be a token is replaced by its length (X1)."""
    assert redacted(token) == f"<{len(token)} characters, not shown>"
