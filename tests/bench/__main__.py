"""The command: `python -m tests.bench [--only W1,W2] [--quick] [--large] [--json]`, or `--compare BEFORE AFTER`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tests.bench.cases import CASES, Plan
from tests.bench.measure import Failed
from tests.bench.table import Row, render, render_changes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the requested cases and print the rows obtained; return 1 if a job failed or a count was wrong."""
    asked = _parser().parse_args(arguments)
    if asked.compare:
        before, after = (json.loads(path.read_text(encoding="utf-8"))["rows"] for path in asked.compare)
        print(render_changes(before, after))
        return 0
    began = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as folder:
        failure = _measure(asked.only, _plan(asked, Path(folder)), rows)
    seconds = time.monotonic() - began
    if asked.json:
        document = {"machine": _machine(), "seconds": seconds, "failure": failure}
        print(json.dumps(document | {"rows": [row.document() for row in rows]}))
    else:
        print(render(rows), f"{seconds:.0f} s on {_sentence()}", failure, sep="\n\n")
    return bool(failure)


def _measure(cases: Sequence[str], plan: Plan, rows: list[Row]) -> str:
    """Add the rows of `cases`; return the failure that ended it early, or ""."""
    for case in cases:
        print(f"{case}: {CASES[case].__doc__}", file=sys.stderr, flush=True)
        try:
            for row in CASES[case](plan):
                rows.append(row)  # noqa: PERF402 - one by one: a failure keeps the rows before it
        except Failed as failed:
            return f"{case} failed: {failed}"
    return ""


def _parser() -> argparse.ArgumentParser:
    cases = "\n".join(f"  {name:<6} {case.__doc__}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=f"{sys.modules['tests.bench'].__doc__}\n{cases}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_cases, default=list(CASES), help="cases, with commas between them")
    parser.add_argument("--contacts", type=int, default=100_000, help="in the account, but for larger ones (100000)")
    parser.add_argument("--loaded", type=int, default=1_000_000, help="contacts in LOAD (1000000)")
    parser.add_argument("--accounts", type=int, default=500, help="in FLEET (500)")
    parser.add_argument("--runs", type=int, default=3, help="rounds of a comparison at most (3)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the contacts, one round: under a minute")
    large = (
        "W3 and INC with 1,000,000 contacts (6 GB, minutes more), LOAD with 10,000,000 (10 GB of disk, half an hour)"
    )
    parser.add_argument("--large", action="store_true", help=large)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    compare = "measure nothing: tell what changed between two such documents"
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help=compare)
    return parser


def _cases(text: str) -> list[str]:
    names = text.upper().split(",")
    if unknown := set(names) - CASES.keys():
        raise argparse.ArgumentTypeError(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    return names


def _plan(asked: argparse.Namespace, folder: Path) -> Plan:
    contacts = asked.contacts // 10 if asked.quick else asked.contacts
    return Plan(
        folder,
        contacts,
        runs=1 if asked.quick else asked.runs,
        seconds=45.0,
        larger=1_000_000 if asked.large else 3 * contacts,
        incremental=1_000_000 if asked.large else contacts,
        slow=min(contacts, 2_400 if asked.quick else 10_000),
        planned=100 * contacts,
        fleet=asked.accounts // 10 if asked.quick else asked.accounts,
        loaded=10_000_000 if asked.large else asked.loaded // 10 if asked.quick else asked.loaded,
    )


def _machine() -> dict[str, object]:
    packages = {name: version(name) for name in ("aiohttp", "duckdb", "pyarrow")}
    here = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    return {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), **here, **packages}


def _sentence() -> str:
    told = _machine()
    versions = ", ".join(f"{name} {told[name]}" for name in ("aiohttp", "duckdb", "pyarrow"))
    return f"{told['cores']} cores, {told['system']}, Python {told['python']}, {versions}; load now {told['load']}"


if __name__ == "__main__":
    sys.exit(main())
