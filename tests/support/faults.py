"""The catalogue of faults and the tests that cover each of them; `make faults` prints it.

A test covers a case by naming its id (`N5`, `A25 to A40`) in its docstring, or at the start of the name of one of the
cases of a module's table that it is parametrized over. `tests/project/test_faults_coverage.py` finds uncovered cases.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

TESTS = Path(__file__).parents[1]

GROUPS: Mapping[str, str] = {
    "N": "network and HTTP",
    "A": "API semantics",
    "M": "mutation while paging",
    "P": "process, clock, scheduler, filesystem",
    "S": "sinks",
    "X": "security and privacy",
}

TITLES: Mapping[str, tuple[str, ...]] = {
    "N": (
        "connect refused, at start or mid-run",
        "DNS: unknown, failing, slow, changing",
        "connect timeout",
        "reset before headers",
        "reset or close mid-body",
        "chunked body without its final chunk",
        "truncated JSON with a matching length",
        "truncation that is still valid JSON",
        "slow-loris body",
        "server accepts and never answers",
        "corrupt gzip, wrong or double encoding",
        "decompression bomb",
        "huge body, endless chunks",
        "header bomb",
        "HTML with status 200",
        "JSON with a wrong Content-Type",
        "BOM, UTF-16, Latin-1",
        "redirects",
        "TLS: expired, self-signed, wrong host, unknown CA, old, cut",
        "proxy variables; a proxy that fails",
        "keep-alive connection closed at the idle edge",
        "HTTP/2 GOAWAY, RST_STREAM",
        "answers out of order",
        "the same answer to two requests",
        "Date missing, skewed, going backwards",
    ),
    "A": (
        "401 at start",
        "401 mid-run",
        "401 for one worker only",
        "403, 404, 405, 400, 422",
        "Retry-After in seconds",
        "Retry-After as date, past, negative, garbage, endless",
        "429 without Retry-After",
        "5xx bursts",
        "500 for good for one window",
        "500 that invalidates the listing",
        "200 that tells of a failure",
        "204, or 200 with an empty body",
        "page beyond the end repeats the last one",
        "page beyond the end gives 404 or 400",
        "page 0 is page 1; pages from 0",
        "page ignored",
        "page size capped, changed mid-run",
        "short page in the middle",
        "total wrong",
        "filter ignored",
        "filter bounds, granularity, zone",
        "wrong or unstable sort",
        "duplicate rows",
        "ids that look alike",
        "_id missing, null, empty, boolean, object",
        "lastSeenAt null or absent",
        "createdAt null",
        "lastSeenAt in the future",
        "lastSeenAt backwards, createdAt changed",
        "timestamps of every kind",
        "numbers as strings and the reverse",
        "numbers no machine type holds",
        "deep nesting",
        "huge strings and lists",
        "lone surrogates, invalid UTF-8, NUL, bidi",
        "duplicate JSON keys",
        "unknown new field",
        "field removed everywhere",
        "field type flips between pages",
        "enum or list becomes an object",
        "token scope narrows mid-run",
        "empty account; a sudden 0",
        "maintenance mode lists nobody",
        "index lag",
        "replica flapping",
        "ids recycled, contacts merged",
        "server clock jumps",
        "400 with the ObjectId cast error",
        "401 because authtype was lost",
        "date filter ignored unless named",
        "no total, no page size, no sort in the answer",
        "page size learned wrongly",
        "contact visible late",
        "soft deletion",
        "envelope variants",
    ),
    "M": (
        "inserts at the front",
        "deletes, bursts included",
        "touches",
        "touch storm on one contact",
        "bulk import with one createdAt",
        "back-dated import",
        "insert and delete cancel out",
        "delete between find and count",
        "un-delete, un-merge",
        "edit that does not move lastSeenAt",
        "mutation by us",
        "rates beyond the read throughput",
        "isContact flips",
        "row leaves a filtered list",
        "import re-creates or updates in bulk",
    ),
    "P": (
        "SIGTERM at any await",
        "SIGTERM during commit",
        "second signal",
        "SIGKILL around every system call of the commit",
        "SIGKILL while recovering from that",
        "power loss",
        "reboot mid-commit, stale lock, pid reused",
        "out of memory",
        "ENOSPC, EDQUOT at every write",
        "EIO",
        "short write, EINTR, EAGAIN",
        "read-only, missing, forbidden folders; limits",
        "NFS, SMB, overlay, FUSE",
        "tmp and target on different devices",
        "fsync of a folder unsupported",
        "two runs at once, one target",
        "two hosts, one store",
        "holder paused after taking the lease",
        "wall clock jumps",
        "DST, TZ, locale, UTF-8 mode",
        "broken pipe, closed stderr, log disk full",
        "worker exception lost",
        "cancellation between semaphore and request",
        "damaged or downgraded dependency",
        "state truncated, empty, garbage, foreign",
        "data files changed between runs",
        "leftovers of crashed runs",
        "run longer than its schedule",
        "hash seed, dict order, thread timing",
    ),
    "S": (
        "DuckDB file held by another process",
        "DuckDB killed in checkpoint or WAL write",
        "stale .wal beside a replaced database",
        "corrupt DuckDB block, torn header",
        "DuckDB aborts the process",
        "schema changed by the user",
        "one id twice in an upsert",
        "DuckDB memory limit, temp disk full",
        "Parquet footer torn, file empty",
        "Parquet statistics for odd values",
        "partial multi-file write",
        "reader lists the folder during commit",
        "S3 5xx, slow-down, reset",
        "S3 eventual listing, two writers",
        "Delta commit conflict",
        "Delta commit reported failed but present",
        "Delta VACUUM by another",
        "PostgreSQL dropped mid-COPY",
        "PostgreSQL dropped during COMMIT",
        "PostgreSQL serialization failure, deadlock, NUL",
        "sink slower than source",
        "history grows for ever",
        "far fewer rows than before",
    ),
    "X": (
        "token in any output",
        "contact values in logs or errors",
        "world-readable files",
        "SQL injection through names",
        "SQL in contact values",
        "path traversal",
        "CSV and formula injection",
        "HTML and JS injection in reports",
        "terminal escapes, bidi in logs",
        "SSRF by base URL, redirect or link",
        "TLS verification off",
        "decompression and JSON bombs",
        "ReDoS",
        "unsafe deserialisation",
        "supply chain",
        "erasure request",
        "crypto-shredding",
        "encryption at rest",
        "rollback to an older valid file",
        "quarantine as a leak",
        "telemetry captures locals",
    ),
}
CATALOGUE: Mapping[str, str] = {f"{g}{n}": title for g, titles in TITLES.items() for n, title in enumerate(titles, 1)}
"""Every case of the catalogue with its short title."""

NOT_APPLICABLE: Mapping[str, str] = {
    "N22": "no such transport: HTTP/1.1 alone is spoken",
    "X7": "no such sink: CSV",
    "X8": "no such output: reports are plain text and JSON",
    "X17": "no such sink: nothing is encrypted, so no key can be shredded",
    "X18": "no such sink: nothing is encrypted at rest",
}
"""Cases that do not apply to this product, with the reason."""

_CASE = re.compile(r"\b([NAMPSX])(\d{1,2})\b(?:\s*(?:-|to)\s*\1(\d{1,2})\b)?")


def cases(text: str) -> Iterator[str]:
    """The ids that a text names; `A5-A7` and `A5 to A7` are three."""
    for group, first, last in _CASE.findall(text):
        yield from (f"{group}{number}" for number in range(int(first), int(last or first) + 1))


def coverage() -> dict[str, list[str]]:
    """The tests that name each id, as `folder/file::name`; tests of the sandbox do not count."""
    found = defaultdict(list)
    for path in sorted({*TESTS.rglob("test_*.py")} - {*TESTS.glob("sandbox/*.py")}):
        for test, case in named(ast.parse(path.read_text(encoding="utf-8"))):
            found[case].append(f"{path.relative_to(TESTS)}::{test}")
    return {case: list(dict.fromkeys(tests)) for case, tests in found.items()}


def named(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Every test of a module with every id that it names."""
    tables = dict(_tables(module))
    for test in module.body:
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) and test.name.startswith("test_"):
            over = {n.id for mark in test.decorator_list for n in ast.walk(mark) if isinstance(n, ast.Name)}
            texts = [ast.get_docstring(test) or "", *(name for table in over for name in tables.get(table, ()))]
            yield from ((test.name, case) for text in texts for case in cases(text))


def _tables(module: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """The module's dictionaries of cases by name: for each key, the ids that it starts with."""
    for node in module.body:
        value = getattr(node, "value", None)
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(value, ast.Dict) and isinstance(target, ast.Name):
            keys = [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            yield target.id, [" ".join(_lead(key)) for key in keys]


def _lead(key: str) -> Iterator[str]:
    for word in key.split():
        if not _CASE.fullmatch(word.rstrip(",")):
            return
        yield word


def main() -> None:
    """Print the table, a line for each group, and the ids that no test names."""
    found = coverage()
    for case, title in CATALOGUE.items():
        reason = NOT_APPLICABLE.get(case)
        tests = [f"not applicable: {reason}"] if reason else found.get(case, ["-"])
        print(f"{case:<5}{title:<62}{tests[0]}")
        for test in tests[1:]:
            print(f"{'':<67}{test}")
    print()
    applicable = [case for case in CATALOGUE if case not in NOT_APPLICABLE]
    for group, name in GROUPS.items():
        wanted = [case for case in applicable if case[0] == group]
        missing = [case for case in wanted if case not in found]
        out = len(TITLES[group]) - len(wanted)
        summary = f"{len(wanted) - len(missing)} of {len(wanted)} covered" + (f", {out} not applicable" if out else "")
        print(f"{group}  {name:<40}{summary}" + (f"; uncovered: {' '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
