"""The architecture as tables: allowed imports, the modules that may use a library, and unsafe constructs.

`LAYERS` lists the product from its commands down to its values. A module imports from its own folder or from a lower
layer, and there are no import cycles.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "etl"

LAYERS = (
    ("__main__",),
    ("cli",),
    ("explore",),
    ("commands",),
    ("fleet",),
    ("extract", "sinks"),
    ("api", "normalize", "storage", "pages"),
    ("config", "extras"),
    ("schema", "model", "errors", "times", "display", "log"),
)
"""Layers from the command line down to the values; a folder imports from itself and from the layers below."""

SANDBOX_USERS = {"cli.app", "config", "api.sources"}
"""The modules that may import the sandbox, which is an independent oracle and imports nothing of the product."""

LIBRARIES: dict[str, set[str]] = {
    "aiohttp": {"api.http", "explore.server", "sandbox.server"},
    "phonenumbers": {"normalize.phones"},
    "rich": {"cli.rows"},
    "logging": {"cli.progress", "log"},
    "adbc_driver_postgresql": {"sinks.postgres_server"},
    "typer": {"cli.app", "cli.arguments", "cli.look"},
    "prometheus_client": {"commands.metrics"},
    "altair": {"pages.plots"},
    "vl_convert": {"pages.plots"},
    "htpy": {"explore.views", "pages.document", "pages.markup", "pages.sections"},
    "deltalake": {"sinks.delta_commits"},
    "obstore": {"storage.objects"},
    "dask": {"fleet.cluster"},
    "distributed": {"fleet.cluster"},
    "pydantic": {
        *("config", "config.accounts", "config.section", "config.targets", "config.units"),
        *("api.sources", "api.http", "fleet.cluster"),
    },
}
"""The modules that may import a library that is costly to replace; pydantic's secret string holds the token."""

PURE = (
    *("errors", "schema", "times", "display", "commands.guard", "commands.checks", "extract.plan", "extract.windows"),
    *("extract.capabilities", "extract.history", "extract.without_created_at"),
    *("sinks.merge", "sinks.tables", "sinks.manifest", "sinks.postgres_tables"),
    *("api.request", "api.response", "api.retry", "api.rate", "api.cap"),
)
"""Modules that only decide or hold values: no clock, randomness, waiting, sockets or processes."""
IMPURE = {
    *("anyio", "asyncio", "time", "random", "secrets", "socket"),
    *("subprocess", "threading", "aiohttp", "os", "shutil"),
}

EDGES: dict[str, set[str]] = {
    "commands.accounts": {"time", "secrets"},
    "commands.doctor": {"time"},
    "commands.plan": {"time"},
    "commands.report": {"time"},
    "commands.run": {"time", "secrets"},
    "commands.status": {"time"},
    "commands.verify": {"time", "random"},
    "explore.server": {"secrets"},
    "extract.account": {"time"},
    "fleet.cluster": {"time"},
    "fleet.takeover": {"time"},
    "api.client": {"random"},
    "sandbox.server": {"time", "random"},
    "sinks.delta_commits": {"time"},
    "storage.objects": {"time"},
}
"""The only modules that read a clock or draw random numbers; all others take them as parameters.

The sandbox may use seeded generators anywhere.
"""

MODULES = {"vl_convert_python": "vl_convert"}
"""The modules of libraries that have another name."""

MODULE_LINES = 450
FUNCTION_LINES = 60


def named(path: Path) -> str:
    """The module name of a file: `api.client`, `sinks`, `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


SOURCES = {named(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in SOURCES.items()}
EMPTY = {"cli", "commands", "explore", "pages", "fleet", "extract", "api", "storage", "sandbox"}
"""Packages whose `__init__` has a docstring and no imports."""
PRODUCT = [name for name in SOURCES if name not in EMPTY | {"__init__"} and not name.startswith("sandbox.")]


def imported(name: str) -> set[str]:
    """All imports of a module: product modules by their short name, others by their full name."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            found |= {one.value for one in node.args if isinstance(one, ast.Constant)}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            module = node.module or ""
            within = {f"{module}.{alias.name}" for alias in node.names}
            found |= {one if one.removeprefix("etl.") in SOURCES else module for one in within}
    return {one.removeprefix("etl.") for one in found}


def inner(name: str) -> set[str]:
    """The product modules that a module imports."""
    return {one for one in imported(name) if one in SOURCES}


def libraries(name: str) -> set[str]:
    """The standard and third-party libraries that a module imports."""
    return {one.split(".")[0] for one in imported(name) if one not in SOURCES}


def folder(name: str) -> str:
    """The entry of `LAYERS` that a module belongs to."""
    return name.partition(".")[0]


DEPTH = {entry: depth for depth, row in enumerate(LAYERS) for entry in row}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call with its location and the dotted name of the callee."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", ast.unparse(node.func), node


def public(scope: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """The public classes, functions and methods of a module."""
    for node in scope.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def test_every_module_has_its_layer() -> None:
    """`LAYERS` lists every folder and every top-level module of the product, and no other name."""
    assert {folder(name) for name in PRODUCT} == set(DEPTH)


def test_imports_go_down() -> None:
    """A module imports only from its own folder or from the layers below."""
    wrong = [
        f"{name} imports {one}"
        for name in PRODUCT
        for one in inner(name)
        if folder(one) not in {folder(name), "sandbox", "__init__"} and DEPTH[folder(one)] <= DEPTH[folder(name)]
    ]
    assert wrong == []


def test_no_import_goes_round() -> None:
    """There are no import cycles."""
    order = TopologicalSorter({name: inner(name) - {name} for name in SOURCES})
    assert len(list(order.static_order())) == len(SOURCES)


def test_a_package_without_a_face_costs_nothing() -> None:
    """Packages without exports import nothing, so that importing one of their modules costs only that module."""
    assert {name: imported(name) - {"__future__"} for name in EMPTY} == {name: set() for name in EMPTY}


def test_the_sandbox_stands_apart() -> None:
    """The sandbox imports nothing of the product, and only `SANDBOX_USERS` import it: it is an independent oracle."""
    apart = [name for name in SOURCES if name.startswith("sandbox")]
    assert [name for name in apart if any(not one.startswith("sandbox") for one in inner(name))] == []
    assert {name for name in PRODUCT if any(one.startswith("sandbox") for one in inner(name))} == SANDBOX_USERS


def test_a_library_has_its_home() -> None:
    """A library that is costly to replace is imported only by its listed modules."""
    for library, homes in LIBRARIES.items():
        assert {name for name in SOURCES if library in libraries(name)} == homes, library


def test_what_decides_does_not_act() -> None:
    """Pure modules import no clock, no randomness, and nothing that waits or does I/O."""
    assert {name: libraries(name) & IMPURE for name in PURE} == {name: set() for name in PURE}


def test_time_and_chance_come_in_at_the_edges() -> None:
    """Outside the listed modules, clocks and randomness are parameters, so that every run can be repeated (P19)."""
    for name in SOURCES:
        used = libraries(name) & {"time", "random", "secrets", "uuid"}
        seeded = {"random"} if name.startswith("sandbox.") else set()
        assert used - seeded == EDGES.get(name, set()) - seeded, name
    assert [place for place, what, _ in calls() if what in {"datetime.now", "datetime.utcnow", "date.today"}] == []


def test_nothing_is_imported_for_the_type_checker_alone() -> None:
    """No import is hidden from the interpreter by TYPE_CHECKING."""
    assert [name for name, path in SOURCES.items() if "TYPE_CHECKING" in path.read_text(encoding="utf-8")] == []


UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "ssl._create_unverified_context"}
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle", "jsonpickle", "sentry_sdk"}
UNSAFE_WORDS = {"verify=False", "ssl=False", "verify_ssl=False", "allow_redirects=True", "shell=True"}
UNSAFE_ATTRIBUTES = {"CERT_NONE", "CERT_OPTIONAL", "check_hostname", "verify_mode"}


def test_nothing_unsafe_is_done() -> None:
    """There is no code from data, no pickle, no telemetry, no unverified TLS and no shell (X11, X14, X21)."""
    assert [name for name in SOURCES if libraries(name) & UNSAFE_MODULES] == []
    assert [place for place, what, _ in calls() if what in UNSAFE_CALLS] == []
    words = [(place, word.arg, word.value) for place, _, node in calls() for word in node.keywords]
    constants = [(place, f"{word}={value.value}") for place, word, value in words if isinstance(value, ast.Constant)]
    assert [(place, given) for place, given in constants if given in UNSAFE_WORDS] == []
    names = [(name, node.attr) for name in SOURCES for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)]
    assert [(name, attribute) for name, attribute in names if attribute in UNSAFE_ATTRIBUTES] == []


def test_every_request_refuses_redirects() -> None:
    """The only call that sends requests disables redirects explicitly (N18)."""
    sending = [
        ast.unparse(node) for place, what, node in calls() if place.startswith("api.http:") and "session." in what
    ]
    assert len(sending) == 1
    assert "allow_redirects=False" in sending[0]


def test_nothing_grows_too_large() -> None:
    """A module has at most 450 lines, and a function at most 60."""
    for name, path in SOURCES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES, name
        for node in ast.walk(TREES[name]):
            if isinstance(node, Function):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{name}.{node.name}"


def test_everything_public_says_what_it_is() -> None:
    """Every module, public class, function and method has a docstring that begins with a sentence."""
    assert [name for name, tree in TREES.items() if name != "__main__" and not ast.get_docstring(tree)] == []
    told = {f"{name}.{node.name}": ast.get_docstring(node) or "" for name in SOURCES for node in public(TREES[name])}
    assert [name for name, text in told.items() if not text.partition("\n")[0].endswith((".", ":"))] == []


def test_no_module_is_a_drawer() -> None:
    """No module has a catch-all name."""
    drawers = {"utils", "util", "helpers", "common", "misc", "manager", "base", "core"}
    assert [name for name in SOURCES if drawers & set(name.split("."))] == []


def test_everything_imported_is_declared() -> None:
    """The imported libraries are exactly the declared dependencies of the project (X15)."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    names = {text.partition(">")[0].replace("-", "_") for text in (*project["dependencies"], *extras)}
    declared = {MODULES.get(name, name) for name in names}
    used = {library for name in SOURCES for library in libraries(name)} - sys.stdlib_module_names
    # DuckDB's wheel contains a second module, and needs pytz to return times.
    assert used - {"etl", "_duckdb"} == declared - {"pytz"}
