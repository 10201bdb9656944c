"""Secrets stay secret: when a server fails, echoes and babbles, neither token nor contact turns up in any output."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import SecretStr
from wire import PAGE, answer, says, serve

from etl.api.client import Client
from etl.api.http import Credential, connect
from etl.api.request import Query
from etl.config import Account, Http, load, read_token
from etl.errors import EtlError
from etl.sources import Source, sources

CANARY = "9d41f7c0e8b2a6537d1c"
PERSON = ("Ada Canary-Lovelace", "ada.canary@example.com", "+44 7700 900123")
REPOSITORY = Path(__file__).parent.parent


def echo(status: str, *headers: str, **fields: object) -> bytes:
    """A failure whose body and headers repeat the token, and tell of a contact's e-mail and phone."""
    message = f"Bearer {CANARY} of {PERSON[1]}, {PERSON[2]} is not valid, {CANARY}"
    document = {"success": False, "message": message, "data": [message], **fields}
    return answer(json.dumps(document).encode(), f"X-Token: {CANARY}", *headers, status=status)


CAST_ERROR = "Argument passed in must be a single String of 12 bytes or a string of 24 hex characters"
BAD_PAGE = b"<html>" + f"{CANARY} {PERSON}".encode() + b"</html>"
FAILURES: dict[str, tuple[bytes, int]] = {
    "401": (echo("401 Unauthorized", f"WWW-Authenticate: Bearer {CANARY}"), 10),
    "400 with the cast error": (echo("400 Bad Request", message=f"{CAST_ERROR}: {CANARY}"), 10),
    "403": (echo("403 Forbidden"), 10),
    "422": (echo("422 Unprocessable"), 12),
    "a redirect": (echo("302 Found", f"Location: https://elsewhere.example.com/?token={CANARY}"), 12),
    "success false": (echo("200 OK"), 12),
    "code 401 under 200": (echo("200 OK", code=401), 10),
    "an endless wait": (echo("429 Too Many", "Retry-After: 99999"), 11),
    "html": (answer(BAD_PAGE), 12),
    "a page cut off": (answer(PAGE[:-2] + BAD_PAGE), 12),
    "no http": (f"HTTP/1.1 {CANARY} {PERSON[0]}\r\n\r\n".encode(), 12),
    "a header that is none": (f"HTTP/1.1 200 OK\r\n{CANARY} {PERSON[0]}\r\n\r\n".encode(), 12),
    "an encoding of its own": (answer(PAGE, f"Content-Encoding: {CANARY}"), 12),
}


def disguises(secret: str) -> list[str]:
    """The ways in which a secret could turn up: as it is, encoded, reversed, in pieces of eight."""
    pieces = [secret[start : start + 8] for start in range(len(secret) - 7)]
    encoded = b64encode(secret.encode()).decode().rstrip("=")
    return [
        secret,
        encoded,
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        secret[::-1],
        secret.encode().hex(),
        *pieces,
    ]


def assert_silent(text: str) -> None:
    """Neither the token in any disguise nor anything of the contact is in the text."""
    assert [one for one in disguises(CANARY) if one in text] == []
    assert [one for one in PERSON if one in text] == []


async def etl(folder: Path, *words: str) -> tuple[int, str, str]:
    """One command in a process of its own, in `folder`: exit code, stdout, stderr."""
    environ = {**os.environ, "ELEAPI_TOKEN": CANARY, "PYTHONPATH": str(REPOSITORY)}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "etl", *words),
        cwd=folder,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


def configure(folder: Path, url: str) -> None:
    """A configuration for the server at `url`, with its token in the environment."""
    folder.mkdir()
    (folder / "etl.toml").write_text(
        f'[[accounts]]\nname = "main"\nbase_url = "{url}"\ntoken_env = "ELEAPI_TOKEN"\n[sinks.parquet]\npath = "out"\n'
    )


def contents(folder: Path) -> str:
    """Everything that stands in a folder, names included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "\n".join(f"{path}\n{path.read_bytes().decode('utf-8', errors='replace')}" for path in files)


@pytest.mark.parametrize(("content", "code"), FAILURES.values(), ids=FAILURES)
async def test_no_error_tells_the_token(content: bytes, code: int) -> None:
    """Neither an error nor its fields, causes or traceback hold token or contact, however the server fails (X1, X2)."""
    credential = Credential(SecretStr(CANARY))
    async with serve(says(content)) as wire, connect(wire.url, credential, Http(), concurrency=1) as send:
        client = Client(send, account="main", concurrency=1, jitter=lambda: 0.0)
        with pytest.raises(EtlError) as caught:
            await client.read(Query(is_contact=True))
    assert CANARY.encode() in wire.requests[0]
    error = caught.value
    assert error.exit_code == code
    assert_silent("".join(traceback.format_exception(error)))
    assert_silent(f"{error!r} {error} {error.document()} {error.__cause__!r} {error.__context__!r}")


@pytest.mark.parametrize("failure", ["401", "success false", "no http"])
async def test_no_failing_run_tells_the_token(tmp_path: Path, failure: str) -> None:
    """Stdout, stderr, the JSON document and every file of a failed run are free of token and contact (X1, X2)."""
    content, code = FAILURES[failure]
    async with serve(says(content)) as wire:
        configure(tmp_path / "a", wire.url)
        exit_code, out, err = await etl(tmp_path / "a", "run", "--json")
    assert (exit_code, json.loads(out)["error"]["code"]) == (code, code), err
    assert_silent(out + err + contents(tmp_path))


async def test_no_doctor_tells_the_token(tmp_path: Path) -> None:
    """What the doctor finds out about a refused token does not contain it (X1)."""
    async with serve(says(FAILURES["401"][0])) as wire:
        configure(tmp_path / "a", wire.url)
        code, out, err = await etl(tmp_path / "a", "doctor")
    assert code == 10
    assert_silent(out + err)


async def test_nothing_prints_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value that carries the token shows it when it is printed (X1)."""
    configure(tmp_path / "a", "https://x.example.com")
    monkeypatch.setenv("ELEAPI_TOKEN", CANARY)
    config = load(tmp_path / "a" / "etl.toml")
    async with sources(config) as found:
        (source,) = found
        assert isinstance(source, Source)
        assert source.credential.token.get_secret_value() == CANARY
        assert_silent(f"{config!r} {source!r} {source.credential!r} {source.credential.token}")
    assert_silent(repr(read_token(Account(token_env="ELEAPI_TOKEN"))))  # noqa: S106 - the name of a variable


async def test_a_broken_token_file_is_not_quoted(tmp_path: Path) -> None:
    """A token that cannot be used is refused without being shown (X1)."""
    async with serve(says(FAILURES["401"][0])) as wire:
        configure(tmp_path / "a", wire.url)
        (tmp_path / "a" / "token").write_text(f"{CANARY}\n{CANARY}\n")
        words = ("--set", "accounts.0.token_env=", "--set", "accounts.0.token_file=token")
        code, out, err = await etl(tmp_path / "a", "run", "--json", *words)
    assert (code, wire.requests) == (2, [])
    assert_silent(out + err)
