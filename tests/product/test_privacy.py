"""No output contains the token or contact data, however a server fails and whatever it echoes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import traceback
from base64 import b64encode
from io import StringIO
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from etl.api.client import Client
from etl.api.http import Credential, connect
from etl.api.request import Query
from etl.api.sources import Source, sources
from etl.cli import progress
from etl.cli.streams import harden
from etl.config import Account, Http, load, read_token
from etl.errors import EtlError
from etl.log import log, logger
from tests.support.canary import TOKEN as SPECIAL
from tests.support.live import Job
from tests.support.wire import PAGE, answer, says, serve

CANARY = "9d41f7c0e8b2a6537d1c"
PERSON = ("Ada Canary-Lovelace", "ada.canary@example.com", "+44 7700 900123")
NAME_IN_ANY_SCRIPT = "Ève_क्\u200dष_東京"
REPOSITORY = Path(__file__).parents[2]


def echo(status: str, *headers: str, **fields: object) -> bytes:
    """A failure whose body and headers repeat the token and a contact's e-mail and phone."""
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
    """The forms in which a secret could appear: raw, encoded, reversed, in pieces of eight."""
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
    """Neither the token in any form nor a value of the contact is in the text."""
    assert [one for one in disguises(CANARY) if one in text] == []
    assert [one for one in PERSON if one in text] == []


async def etl(folder: Path, *words: str) -> tuple[int, str, str]:
    """Run a command in a separate process, in `folder`: exit code, stdout, stderr."""
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
    """The contents of all files in a folder, paths included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "\n".join(f"{path}\n{path.read_bytes().decode('utf-8', errors='replace')}" for path in files)


@pytest.mark.parametrize(("content", "code"), FAILURES.values(), ids=FAILURES)
async def test_no_error_tells_the_token(content: bytes, code: int) -> None:
    """No error, field, cause or traceback contains the token or a contact, however the server fails (X1, X2)."""
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
    """The doctor's report on a rejected token does not contain it (X1)."""
    async with serve(says(FAILURES["401"][0])) as wire:
        configure(tmp_path / "a", wire.url)
        code, out, err = await etl(tmp_path / "a", "doctor")
    assert code == 10
    assert_silent(out + err)


async def test_nothing_prints_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that hold the token do not show it when they are printed (X1)."""
    configure(tmp_path / "a", "https://x.example.com")
    monkeypatch.setenv("ELEAPI_TOKEN", CANARY)
    config = load(tmp_path / "a" / "etl.toml")
    async with sources(config) as found:
        (source,) = found
        assert isinstance(source, Source)
        assert source.credential.token.get_secret_value() == CANARY
        assert_silent(f"{config!r} {source!r} {source.credential!r} {source.credential.token}")
    assert_silent(repr(read_token(Account(token_env="ELEAPI_TOKEN"))))  # noqa: S106 - the name of a variable


# --- a token in the wrong place ---------------------------------------------------------------------------------------

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
TOKENS = {"hex": "65aa7f13c0de12ca0a41e001", "JWT": JWT, "letters of all kinds": SPECIAL}
MISPLACED = [
    ("run", "CONFIG", "--set", "accounts.0.token_env=TOKEN"),
    ("doctor", "CONFIG", "--set", "accounts.0.token_env=TOKEN"),
    ("doctor", "CONFIG", "--set", "accounts.0.token_env=", "--set", "accounts.0.token_file=TOKEN"),
    ("plan", "CONFIG", "--set", "accounts.0.token_env=", "--set", "accounts.0.token_file=secrets/TOKEN"),
    ("run", "CONFIG", "--set", "TOKEN"),
    ("run", "CONFIG", "--set=TOKEN"),
    ("run", "CONFIG", "--set", "TOKEN=1"),
    ("run", "CONFIG", "--set", "TOKEN.a.b=1"),
    ("run", "CONFIG", "--set", "accounts.0.TOKEN=1"),
    ("run", "CONFIG", "--set", "accounts.TOKEN=1"),
    ("run", "CONFIG", "--set", "accounts.0.token_env.TOKEN=1"),
    ("run", "CONFIG", "--set", "extract.concurrency=TOKEN"),
    ("run", "CONFIG", "--set", "extract.filters.TOKEN=1"),
    ("run", "CONFIG", "--set", "sandbox.TOKEN=1"),
    ("status", "CONFIG", "--set", "accounts.0.base_url=TOKEN"),
    ("run", "TOKEN"),
    ("run", "CONFIG", "TOKEN"),
    ("run", "CONFIG", "--TOKEN"),
    ("run", "CONFIG", "--full=TOKEN"),
    ("verify", "CONFIG", "--live=TOKEN"),
    ("sandbox", "--set", "TOKEN"),
    ("sandbox", "--port", "TOKEN"),
    ("sql", "CONFIG", "select 1", "TOKEN"),
    ("TOKEN",),
    ("--TOKEN",),
]


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("words", MISPLACED, ids=" ".join)
def test_a_token_in_the_wrong_place_is_not_repeated(words: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    """A token given as variable or file name, `--set` value, key, option, command or path is not repeated (X1)."""
    token = TOKENS[kind]
    job = Job(tmp_path, {"main": "https://api.example.com"}, {"main": CANARY})
    for form in ((), ("--json",)):
        ended = job.call(*(word.replace("TOKEN", token) for word in words), *form)
        assert ended.code == 2, ended
        said = ended.out + ended.err
        assert [piece for piece in (token[start : start + 8] for start in range(len(token) - 7)) if piece in said] == []


def test_a_token_in_the_configuration_file_is_not_repeated(tmp_path: Path) -> None:
    """A token used as variable name or key is not repeated; a mistyped variable name is (X1)."""
    job = Job(tmp_path, {"main": "https://api.example.com"})
    config, text = tmp_path / "mine.toml", job.config().read_text()
    for token in TOKENS.values():
        quoted = json.dumps(token)
        for misplaced in (text.replace('"TOKEN_MAIN"', quoted), f"{quoted} = 1\n{text}"):
            config.write_text(misplaced)
            ended = job.call("run", str(config))
            assert ended.code == 2
            assert token[:8] not in ended.out + ended.err
            assert f"{len(token)} characters" in ended.err
    config.write_text(text.replace("TOKEN_MAIN", "TOKEN_MIAN"))
    assert "the variable TOKEN_MIAN contains no token" in job.call("run", str(config)).err


# --- cores and terminals ----------------------------------------------------------------------------------------------

CHILD = """
import resource, sys
from etl.__main__ import main
from etl.sinks.readback import read_back
sys.argv = ["etl", "columns", "--json"]
try:
    main()
except SystemExit:
    pass
query = "select content from read_text('/proc/self/limits')"
[[[limits]]] = read_back([], [query])
print([line.split()[4:6] for line in (limits + open("/proc/self/limits").read()).splitlines() if "core" in line])
"""
ABORT = """
import os, sys
sys.argv = ["etl", "columns"]
from etl.cli import app
app._dispatch = lambda arguments: os.abort()
app.main()
"""


def test_a_crash_leaves_no_core(tmp_path: Path) -> None:
    """Neither a command nor its children dump core, which would hold the token, even if cores are enabled (X1)."""
    wanted = ["/bin/sh", "-c", 'ulimit -c unlimited 2>/dev/null; exec "$@"', "sh", sys.executable, "-c"]
    ended = subprocess.run([*wanted, CHILD], cwd=REPOSITORY, capture_output=True, text=True, check=True)  # noqa: S603
    assert ended.stdout.splitlines()[-1] == str([["0", "0"]] * 2)
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    aborted = subprocess.run([*wanted, ABORT], cwd=tmp_path, env=environ, capture_output=True, check=False)  # noqa: S603
    assert aborted.returncode == -signal.SIGABRT
    assert list(tmp_path.iterdir()) == []


EVIL = "x\n\x1b[2J\r\x9b31m\u202e\u2028error 0: all is well\x07\u200b"


@pytest.mark.parametrize(
    "words",
    [
        ("run", EVIL),
        ("run", "CONFIG", f"--{EVIL}"),
        ("run", "CONFIG", "--set", EVIL),
        ("run", "CONFIG", "--set", f"{EVIL}=1"),
        (
            "run",
            "CONFIG",
            "--set",
            f"sinks.duckdb.path=missing/{EVIL}/x.duckdb",
            "--set",
            "sinks.parquet.path=job.toml",
        ),
        ("sql", "CONFIG", f'select "{EVIL}"'),
        ("explain", "CONFIG", EVIL),
        ("doctor", "CONFIG", "--set", f"sinks.parquet.path=job.toml/{EVIL}"),
        ("verify", "CONFIG", "--set", f"sinks.duckdb.path={EVIL}"),
        (EVIL,),
    ],
    ids=lambda words: " ".join(words).replace(EVIL, "EVIL"),
)
def test_nothing_steers_the_terminal(words: tuple[str, ...], tmp_path: Path) -> None:
    """Arguments are repeated in errors and answers as printable text within one line (X4)."""
    job = Job(tmp_path, {"main": "https://127.0.0.1:1"}, {"main": CANARY})
    for form in ((), ("--json",)):
        ended = job.call(*words, *form)
        said = ended.out + ended.err
        assert not {one for one in said if one != "\n" and not one.isprintable()}
        assert not [line for line in said.splitlines() if line.startswith("error 0")]
        if form:
            assert ended.document is not None


def test_a_log_line_on_a_terminal_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log line is one printable line, whatever a server or a path puts into its fields."""

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    harden()
    monkeypatch.setattr(logger, "handlers", [])
    progress.configure()
    log.error("run.failed", message=EVIL, where=f"/data/{NAME_IN_ANY_SCRIPT}", code=20)
    [line] = screen.getvalue().splitlines()
    assert not {one for one in line if not one.isprintable()} - {"\u200d"}
    assert NAME_IN_ANY_SCRIPT in line


async def test_a_broken_token_file_is_not_quoted(tmp_path: Path) -> None:
    """An unusable token file is refused without showing its content (X1)."""
    async with serve(says(FAILURES["401"][0])) as wire:
        configure(tmp_path / "a", wire.url)
        (tmp_path / "a" / "token").write_text(f"{CANARY}\n{CANARY}\n")
        words = ("--set", "accounts.0.token_env=", "--set", "accounts.0.token_file=token")
        code, out, err = await etl(tmp_path / "a", "run", "--json", *words)
    assert (code, wire.requests) == (2, [])
    assert_silent(out + err)
