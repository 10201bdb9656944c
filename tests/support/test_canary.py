"""The search finds the canary in every encoding and in every place that must not contain it."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from tests.support.canary import EMAIL, NAME, NUMBER, RAW, TOKEN, files, leaks

DISGUISES: dict[str, Callable[[str], str]] = {
    "raw": str,
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64 after one letter": lambda text: b64encode(f"x{text}".encode()).decode(),
    "base64 after two letters": lambda text: b64encode(f"xy{text}z".encode()).decode(),
    "base64 for addresses": lambda text: urlsafe_b64encode(text.encode()).decode(),
    "address": quote,
    "address, no slashes": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "JSON": json.dumps,
    "JSON, not escaped": lambda text: json.dumps(text, ensure_ascii=False),
    "Python": repr,
    "hex": lambda text: text.encode().hex(),
    "hex, upper case": lambda text: text.encode().hex().upper(),
}
OF_A_TOKEN: dict[str, Callable[[str], str]] = {
    "reversed": lambda text: text[::-1],
    "eight letters": lambda text: text[11:19],
    "eight letters, reversed": lambda text: text[19:11:-1],
    "half of its base64": lambda text: b64encode(text.encode()).decode()[:20],
}


@pytest.mark.parametrize("name", DISGUISES | OF_A_TOKEN)
@pytest.mark.parametrize("place", ["stdout", ".etl/journal.jsonl", "contacts.duckdb", "part-000001.parquet"])
def test_a_token_is_found_everywhere(name: str, place: str) -> None:
    """A token is found in any encoding and in any output (X1)."""
    text = f"at 12:00 {(DISGUISES | OF_A_TOKEN)[name](TOKEN)}, 200 OK"
    assert leaks({place: text.encode()}) != []


@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("value", [NAME, EMAIL, NUMBER])
def test_a_contact_is_found_outside_of_data(name: str, value: str) -> None:
    """A value of a contact is accepted in data files and found anywhere else (X2)."""
    text = f"<{DISGUISES[name](value)}>".encode()
    assert leaks({"manifests/00000001.json": text}) != []
    assert leaks({"current/part-000001.parquet": text, "main/pages-000001.jsonl": text}) == []


def test_a_name_of_a_file_is_an_output(tmp_path: Path) -> None:
    """The search covers the files of all folders, hidden ones too, and their names (X1, X2)."""
    (tmp_path / ".etl" / "main").mkdir(parents=True)
    (tmp_path / ".etl" / "main" / EMAIL).write_bytes(b"")
    (tmp_path / ".etl" / "note").write_bytes(RAW)
    assert {leak.split(": ")[0] for leak in leaks(files(tmp_path))} == {f".etl/main/{EMAIL}", ".etl/note"}


def test_what_has_nothing_to_hide_is_clean() -> None:
    """Other texts are not taken for the canary."""
    assert leaks({"stdout": b"account main: 61 contacts, 0 changed, 07/00/2026 09:00:46.1 +44", "x.json": b"{}"}) == []
