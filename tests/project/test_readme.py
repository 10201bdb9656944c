"""The README and the pages: their commands run, their names exist, and their tables match the code."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from flit_core.wheel import make_wheel_in
from typer.main import get_command

import etl
from etl import errors
from etl.api.request import FILTERS
from etl.cli.app import app
from etl.config import (
    load,
)
from etl.schema import READ, Privacy
from etl.sinks.tables import PUBLIC, RUNS
from tests.support.faults import CATALOGUE
from tests.support.pages import PAGES, README, ROOT, TEXTS, Reader, blocks, numbers, rows, section, steps
from tests.support.sections import SECTIONS

EVERYTHING = "\n".join(TEXTS.values())
COMMANDS = get_command(app).commands
CODES = {0, errors.PUBLISHED_WITH_REJECTS, errors.INTERNAL} | {
    kind.exit_code for kind in errors.EtlError.__subclasses__()
}
KEYS = {
    f"{name}.{field.alias or key}"
    for name, section in SECTIONS.items()
    for key, field in section.model_fields.items()
    if key != "kind"  # implied by these names
}
OTHERS_OPTIONS = {
    "--from-file",
    "--network",
    "--hypothesis-profile",
    "--compare",
    "--preload",
    "--nthreads",
    "--rounds",
    "--large",
    "--loaded",
    "--only",
    "--port",
    "--no-nanny",
    "--cluster",
    "--version",
    "--install-completion",
}
"""Options of other programs and global options of `etl`."""

QUERIES = """
import json, os, etl
with etl.connect(etl.load_config("configs/sandbox.toml")) as connection:
    for query in json.loads(os.environ["QUERIES"]):
        print(len(connection.sql(query).fetchall()))
"""


LAST_LINES = {
    "README": ["└"],
    "tables": [r"[\d,]+ contacts, \d+ columns"],
    "python": ["└", "True", "0", r"\(True, \[\]\)", "True"],
    "fleet": [r"\[1\]"],
}
"""How the last line of output of each program on a page begins."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", TEXTS)
def test_a_page_does_what_it_shows(page: str, reader: Reader) -> None:
    """The commands of a page, typed in order, print the output shown, apart from figures; queries and programs run."""
    text = TEXTS[page]
    if page == "README":
        shutil.rmtree(reader.folder / "data", ignore_errors=True)
        assert {step.command for step in steps(text)} >= {"make run", "make test", "etl run configs/eleapi.toml"}
    elif not (reader.folder / "data").exists() and re.search("^```(sh|console|sql|python)$", text, re.MULTILINE):
        assert reader.execute("etl run configs/sandbox.toml").returncode == 0
    for step in steps(text):
        if not step.command.startswith("export "):
            reader.follow(step)
    queries = blocks("sql", text)
    if queries:
        answered = reader.program(QUERIES, QUERIES=json.dumps(queries))
        assert len(answered.stdout.splitlines()) == len(queries), answered.stderr
    done = [reader.program(program) for program in blocks("python", text)]
    assert [one.stderr for one in done if one.returncode] == []
    for one, last in zip(done, LAST_LINES.get(page, ()), strict=True):
        assert re.match(last, one.stdout.strip().splitlines()[-1])


def test_the_readme_is_one_page() -> None:
    """The README has at most 8 KiB and links to every page."""
    assert len(README.encode()) <= 8192
    assert set(re.findall(r"\(etl/docs/(\w+)\.md\)", README)) == PAGES.keys()


def test_pages_are_shipped(tmp_path: Path) -> None:
    """The wheel contains every page, and nothing besides the package."""
    wheel = make_wheel_in(ROOT / "pyproject.toml", tmp_path)
    names = ZipFile(wheel.file).namelist()
    assert {f"etl/docs/{page}.md" for page in PAGES} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"etl", f"etl-{etl.__version__}.dist-info"}


def test_pages_name_no_machine() -> None:
    """A page begins with its name and subject, and contains no path of a developer's machine."""
    for name, text in PAGES.items():
        assert re.match(rf"# {name}( API)?: [a-z].+[^.]\n\n", text, re.IGNORECASE), name
        assert not re.search(r"/root/|/home/|/work/|/tmp/", text), name
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert max(len(line) for line in prose.splitlines() if line[:1] != "|") <= 80, name


def test_configurations_load(tmp_path: Path) -> None:
    """Every configuration shown in the documentation is valid."""
    shown = [text for page in TEXTS.values() for text in blocks("toml", page)]
    assert len(shown) == 5
    (listed,) = (text for text in blocks("text", PAGES["configuration"]) if text.startswith("name,"))
    (tmp_path / "accounts.csv").write_text(listed)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "bakery").write_text("token")
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.toml"
        path.write_text(
            text.replace("accounts.csv", f"{tmp_path}/accounts.csv").replace("/run/secrets/etl", f"{tmp_path}/tokens")
        )
        assert load(path, environ={}).accounts


def test_keys_exist_and_all_are_documented() -> None:
    """Every `section.key` in the documentation exists, and the page lists each key with its default."""
    named = set(re.findall(rf"(?<![\w.\[])(?:{'|'.join(SECTIONS)})\.(?!(?:md|html|csv)\b)[a-z_]+", EVERYTHING))
    assert named - {"sinks.duckdb", "sinks.parquet", "sinks.postgres", "sinks.delta"} <= KEYS
    table = rows(section("Keys", PAGES["configuration"]))
    assert {key for cells in table for key in re.findall(r"`([a-z._]+)`", cells[0])} == KEYS
    for keys, default, _ in table:
        group, _, key = keys.strip("`").rpartition(".")
        if re.fullmatch(r"[\dv][\w.]*|false", default) and default != "0600":
            needed = {"path": "unused"} if group.startswith("sinks") else {}
            given = SECTIONS[group].model_validate({**needed, key: default})
            assert getattr(given, key) == SECTIONS[group].model_fields[key].default, key


def test_exit_codes_are_those_of_the_code() -> None:
    """The table lists each exit code, and each code is in one of four groups, the same in all documents."""
    text = section("Exit codes", PAGES["operations"])
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == sorted(CODES)
    groups = {name: numbers(codes) for name, codes, _ in rows(text)[:4]}
    assert sorted(code for codes in groups.values() for code in codes) == sorted(CODES)
    in_readme = [numbers(codes) for codes, _, _ in rows(section("Exit codes", README))]
    assert sorted(map(sorted, in_readme)) == sorted(map(sorted, groups.values()))
    [act] = re.findall(r"^ACT = (.*)  #", PAGES["python"], re.MULTILINE)
    assert numbers(act) == groups["act"]


def test_every_command_and_option_is_documented() -> None:
    """The table lists each command with its options, and no page uses an unknown command or option."""
    table = dict(re.findall(r"^\| `etl (\w+)[^`]*` \| (.*) \|$", PAGES["commands"], re.MULTILINE))
    assert table.keys() == COMMANDS.keys()
    known = OTHERS_OPTIONS | {"--set", "--json", "--help"}
    for name, command in COMMANDS.items():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        known |= options
        for option in options - {"--json", "--help", "--set"}:
            assert option in table[name], f"etl {name} {option}"
        used = re.findall(rf"\betl {name}\b([^`\n|]*)", EVERYTHING)
        assert {option for words in used for option in re.findall(r"--[a-z-]+", words)} <= options
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", EVERYTHING)) <= known


def test_tables_and_columns_exist() -> None:
    """The pages list the four tables, every column of `runs`, the reasons of rejects, and the privacy classes."""
    for text in (README, PAGES["tables"]):
        named = [cells[0].strip("`") for cells in rows(text) if len(cells) == 3]
        assert [name for name in named if name in PUBLIC] == ["contacts", "contact_versions", "runs", "rejects"]
    table = rows(section("`runs`", PAGES["tables"]))
    assert {name for cells in table for name in re.findall(r"`(\w+)`", cells[0])} == {name for name, _ in RUNS}
    reasons = {
        name for cells in rows(section("`rejects`", PAGES["tables"])) for name in re.findall(r"`(\w+)`", cells[0])
    }
    rowwise = (ROOT / "etl" / "normalize" / "rowwise.py").read_text()
    assert {reason for reason in reasons if f'"{reason}"' in rowwise} == reasons
    assert {f"`{kind.value}`" for kind in Privacy} <= set(
        re.findall(r"`\w+`", section("Erasing a contact", PAGES["tables"]))
    )


def test_the_api_is_that_of_the_code() -> None:
    """The page lists every field of a request, and every field of a contact that becomes a column."""
    requests = section("Requests", PAGES["api"])
    fields = {name for cells in rows(requests) for name in re.findall(r"`(\w+)`", cells[0])}
    assert fields == FILTERS.keys() | {"page", "isExport"}
    named = set(re.findall(r"`([\w.]+)`", section("The contact", PAGES["api"])))
    [example] = map(json.loads, blocks("json", PAGES["api"]))
    assert example.keys() <= named | {name.partition(".")[0] for name in named}
    leaves = {name.rpartition(".")[2] for name in named}
    assert {column.path[-1] for column in READ} <= leaves


def test_public_functions_are_documented() -> None:
    """The page lists exactly the public functions, and its examples use only public names."""
    functions = {name for name in etl.__all__ if name[0].islower()}
    assert set(re.findall(r"^\| `etl\.(\w+)\(", PAGES["python"], re.MULTILINE)) == functions
    code = "\n".join(blocks("python", EVERYTHING))
    assert set(re.findall(r"\betl\.(\w+)", code)) <= set(etl.__all__)


def test_faults_are_those_of_the_catalogue() -> None:
    """The page lists exactly the faults of the catalogue, in its order."""
    assert [cells[0] for cells in rows(PAGES["faults"])] == list(CATALOGUE)


def test_map_names_every_folder() -> None:
    """The map of the package lists exactly its folders and top-level modules, each once."""
    (text,) = blocks("text", section("Where things live", PAGES["development"]))
    found = {path.stem for path in (ROOT / "etl").iterdir() if path.suffix == ".py" or is_package(path)}
    assert sorted(line.split()[0] for line in text.splitlines()) == sorted(found - {"__init__", "__main__"})


def is_package(path: Path) -> bool:
    """Whether a folder is part of the package: it contains modules or pages."""
    return path.name == "docs" or (path / "__init__.py").is_file()


def links() -> Iterator[tuple[str, str]]:
    """Every link with the name of its page."""
    return ((name, link) for name, text in TEXTS.items() for link in re.findall(r"\]\(([^)]+)\)", text))


def test_links_lead_somewhere() -> None:
    """Every link leads to an existing heading or file."""
    for name, link in links():
        file, _, anchor = link.partition("#")
        folder = ROOT if name == "README" else ROOT / "etl" / "docs"
        target = folder / file if file else folder / f"{name}.md"
        assert target.exists(), f"{name}: {link}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, link


def test_version_is_one() -> None:
    """The package, the changelog and the images of the deployment files have the same version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("cronjob.yaml", "cluster.yaml", "compose.yaml"):
        images = re.findall(r"^ *image: (.*)$", (ROOT / "configs" / "deploy" / name).read_text(), re.MULTILINE)
        assert set(images) == {f"etl:{version}"}, name
