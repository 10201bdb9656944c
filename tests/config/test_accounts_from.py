"""`[accounts_from]`: accounts listed in a CSV file or as a folder of tokens, and what is wrong with such a list."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl.config import Config, load, read_token
from etl.config.accounts import SHOWN_PROBLEMS
from etl.errors import UsageError

BASE = "https://api-v7.express-chat.com"
TOKEN = "5eed5eed5eed5eed5eed5eed"  # noqa: S105 - invented
HEADER = "name,base_url,token_env,token_file\n"
SINK = '[sinks.duckdb]\npath = "contacts.duckdb"\n'
FROM_FILE = '[accounts_from]\npath = "accounts.csv"\n' + SINK


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(text: str, **environ: str) -> Config:
    """The configuration with this text."""
    Path("etl.toml").write_text(text, encoding="utf-8")
    return load(Path("etl.toml"), environ=environ)


def listed(content: str | bytes, text: str = FROM_FILE, **environ: str) -> Config:
    """The configuration with this CSV file."""
    Path("accounts.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return loaded(text, **environ)


def refused(content: str | bytes, text: str = FROM_FILE) -> str:
    """The message about such a file."""
    with pytest.raises(UsageError) as caught:
        listed(content, text)
    assert caught.value.where == "accounts_from accounts.csv"
    assert caught.value.hint
    return caught.value.message


def names(config: Config) -> list[str]:
    """The names of the accounts, in order."""
    return [account.name for account in config.accounts]


# --- a CSV file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_accounts_are_read_from_a_file(start: bytes, end: str) -> None:
    """The file is UTF-8 with or without a byte order mark; quotes, blanks and empty lines are those of any editor."""
    lines = (
        *("name, base_url, token_env, token_file", f"shop,{BASE},SHOP_TOKEN,", "", ",,,"),
        f'"clinic","{BASE}/",,tokens/clinic',
    )
    config = listed(start + end.join(lines).encode())
    shop, clinic = config.accounts
    assert (shop.name, shop.base_url, shop.token_env, shop.token_file) == ("shop", BASE, "SHOP_TOKEN", None)
    assert (clinic.name, clinic.base_url, clinic.token_file) == ("clinic", BASE, Path("tokens/clinic"))
    assert config.name == "etl"


def test_columns_may_be_left_out() -> None:
    """Columns may be in any order, and the address may be given once for all."""
    text = FROM_FILE.replace("[sinks", f'base_url = "{BASE}"\n[sinks')
    config = listed("token_env,name\nA,a\nB,b\n", text)
    assert [(account.name, account.base_url, account.token_env) for account in config.accounts] == [
        ("a", BASE, "A"),
        ("b", BASE, "B"),
    ]


def test_accounts_of_the_configuration_come_first() -> None:
    """Accounts of all three kinds stand beside each other, in a fixed order."""
    Path("tokens").mkdir()
    Path("tokens/c").write_text(TOKEN)
    text = f'[accounts_from]\npath = "accounts.csv"\ntokens = "tokens"\nbase_url = "{BASE}"\n{SINK}'
    text += f'[[accounts]]\nname = "z"\nbase_url = "{BASE}"\ntoken_env = "Z"\n'
    assert names(listed(HEADER + f"b,{BASE},B,\na,{BASE},A,\n", text)) == ["z", "b", "a", "c"]


def test_the_file_is_read_again_each_time() -> None:
    """A line that was added is there in the next run."""
    assert names(listed(HEADER + f"a,{BASE},A,\n")) == ["a"]
    assert names(listed(HEADER + f"a,{BASE},A,\nb,{BASE},B,\n")) == ["a", "b"]


def test_without_an_address_the_sandbox_is_meant() -> None:
    """With a section `[sandbox]`, an account needs no address and no token."""
    assert names(listed("name\na\nb\n", FROM_FILE + "[sandbox]\n")) == ["a", "b"]


def test_everything_wrong_is_reported_together_by_line() -> None:
    """Every unusable line is named with its number, duplicates with the line of the other one."""
    text = FROM_FILE + f'[[accounts]]\nname = "main"\nbase_url = "{BASE}"\ntoken_env = "MAIN"\n'
    content = HEADER + (
        f"shop,{BASE},SHOP,\n"  # line 2
        f'"bad\nname",{BASE},A,\n'  # lines 3 and 4
        f"clinic,http://example.com,B,\n"
        f"twice,{BASE},C,tokens/twice\n"
        f"shop,{BASE},D,\n"
        f"main,{BASE},E,\n"
        f"short,{BASE}\n"
        f",{BASE},F,\n"
        "nowhere,,G,\n"
    )
    problems = refused(content, text).split("; ")
    assert [problem.partition(":")[0] for problem in problems if problem.startswith("line")] == [
        *("line 3", "line 5", "line 6", "line 7", "line 8", "line 9", "line 10", "line 11"),
    ]
    assert "line 6: give exactly one of token_env and token_file" in problems
    assert "line 7: the name shop is taken (line 2 of accounts.csv)" in problems
    assert "line 8: the name main is taken ([[accounts]])" in problems
    assert "line 9: 2 cells, but the header has 4" in problems
    assert "line 11: no base_url" in problems


def test_a_long_list_of_problems_is_cut() -> None:
    """Hundreds of unusable lines are counted, not listed."""
    message = refused(HEADER + ",,,X\n" * 500)
    assert message.count("line ") == SHOWN_PROBLEMS
    assert message.endswith(f"; and {500 - SHOWN_PROBLEMS} more")


@pytest.mark.parametrize(
    "line",
    [f"{TOKEN},{BASE},shop,", f"shop,{TOKEN},SHOP,", f"shop,{BASE},{TOKEN},", f"{TOKEN},,,", f"a,{TOKEN}"],
)
def test_a_token_in_a_wrong_column_is_not_repeated(line: str) -> None:
    """A token that was pasted into the file stays out of the message."""
    assert TOKEN not in refused(f"{HEADER}{line}\n")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the first line does not name the columns: name, base_url, token_env, token_file"),
        ("\n\n", "the first line does not name the columns"),
        (HEADER, "no account is listed"),
        (HEADER + "\n,,,\n", "no account is listed"),
        ("name;base_url;token_env\na;b;c\n", "the cells are not separated by commas"),
        ("name,token\na,b\n", "line 1: unknown column token; did you mean token_env?"),
        (f"name,{TOKEN}\na,b\n", "line 1: unknown column <24 characters, not shown>"),
        ("base_url,token_env\n", "line 1: the header needs the column name"),
        ("name,name\n", "each column once"),
        (HEADER + '"a"b,c,d,e\n', "line 2: "),
        (HEADER + '"a,b\n', "line 2: unexpected end of data"),
        (HEADER.encode("utf-16"), "the file is in UTF-16"),
        (HEADER.encode() + b"\xe4,b,c,d\n", "byte 35 of the file is not UTF-8"),
    ],
)
def test_a_file_that_lists_nothing_is_refused(content: str | bytes, told: str) -> None:
    """An empty file, or one that is no such table, is an error that says what is missing."""
    assert told in refused(content)


def test_a_missing_file_is_told(folder: Path) -> None:
    """A file that is not there, or is a folder, is named."""
    with pytest.raises(UsageError, match="cannot read the accounts: No such file") as caught:
        loaded(FROM_FILE)
    assert caught.value.where == "accounts_from accounts.csv"
    (folder / "accounts.csv").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        loaded(FROM_FILE)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("", "accounts_from: name a CSV file"),
        ('path = ""', "accounts_from.path: the path is empty"),
        ('file = "a.csv"', "unknown key accounts_from.file"),
        ('path = "a.csv"\nbase_url = "http://example.com"', "accounts_from.base_url: plain http"),
    ],
)
def test_a_wrong_section_is_refused(section: str, told: str) -> None:
    """The section is validated like every other, before a file is opened."""
    with pytest.raises(UsageError) as caught:
        loaded(f"[accounts_from]\n{section}\n{SINK}")
    assert told in caught.value.message


# --- a folder of tokens -----------------------------------------------------------------------------------------------

FROM_FOLDER = f'[accounts_from]\ntokens = "tokens"\nbase_url = "{BASE}"\n{SINK}'


def mounted(folder: Path, *accounts: str) -> Path:
    """A folder as Kubernetes mounts a secret: links through `..data` into a folder with a time as its name."""
    tokens = folder / "tokens"
    held = tokens / "..2026_11_28_02_00_00.123"
    held.mkdir(parents=True)
    (tokens / "..data").symlink_to(held.name)
    for name in accounts:
        (held / name).write_text(f"{TOKEN}\n")
        (tokens / name).symlink_to(f"..data/{name}")
    return tokens


def test_a_mounted_secret_lists_accounts(folder: Path) -> None:
    """Each visible file is one account with its name, and its token is read from there."""
    tokens = mounted(folder, "shop", "clinic")
    (tokens / ".swp").write_text("")
    config = loaded(FROM_FOLDER)
    assert names(config) == ["clinic", "shop"]
    assert {account.base_url for account in config.accounts} == {BASE}
    assert [read_token(account).get_secret_value() for account in config.accounts] == [TOKEN, TOKEN]


def test_a_folder_with_anything_else_is_refused(folder: Path) -> None:
    """Folders, names that no account can have, and tokens as names are reported together."""
    tokens = mounted(folder, "shop")
    (tokens / "folder").mkdir()
    (tokens / "two words").write_text(TOKEN)
    (tokens / TOKEN).write_text("shop")
    with pytest.raises(UsageError) as caught:
        loaded(FROM_FOLDER)
    assert caught.value.message.count(";") == 2
    assert "folder is not a file" in caught.value.message
    assert "file two words: name: " in caught.value.message
    assert TOKEN not in str(caught.value)


def test_a_folder_without_tokens_is_refused(folder: Path) -> None:
    """An empty or missing folder is an error: a secret that was not mounted would lose every account."""
    mounted(folder)
    with pytest.raises(UsageError, match="no account is listed"):
        loaded(FROM_FOLDER)
    with pytest.raises(UsageError, match="cannot read the accounts"):
        loaded(FROM_FOLDER.replace('"tokens"', '"elsewhere"'))
