"""The benchmark runs, and the measured jobs did their work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CONTACTS = 400


def bench(*arguments: str) -> str:
    """The output of the command."""
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.campaign
def test_a_miniature_bench_reports_rows_of_jobs_whose_counts_were_conserved() -> None:
    """Every job of W1 and W1X handles every contact once (else the bench fails); all figures are present."""
    asked = ["--only", "W1,W1X,PLAN", "--contacts", str(CONTACTS), "--runs", "1", "--json"]
    document = json.loads(bench(*asked))
    rows = [row for row in document["rows"] if row["case"] != "PLAN"]
    assert [row["contacts"] for row in rows] == [CONTACTS] * 12
    assert all(row["contacts_per_second"] > 0 and row["cpu_us_per_contact"] > 0 and row["peak_mb"] > 0 for row in rows)
    assert [row["speed"] for row in rows if "bare" in row["what"]] == [1.0] * 4
    assert document["machine"]["cores"] >= 1


def test_two_documents_are_compared_row_by_row(tmp_path: Path) -> None:
    """Rows of the same name and size are compared; a row in only one document is left out."""
    figures = {
        "case": "NORM",
        "what": "clean",
        "contacts": 100,
        "seconds": 2.0,
        "cpu_us_per_contact": 20.0,
        "peak_mb": 150.0,
    }
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps({"rows": [{**figures, "contacts_per_second": 50_000.0}]}))
    faster = {**figures, "contacts_per_second": 60_000.0, "cpu_us_per_contact": 15.0}
    after.write_text(json.dumps({"rows": [faster, {**faster, "what": "odd"}]}))
    [_, row] = filter(None, bench("--compare", str(before), str(after)).splitlines())
    compared = "2.00 2.00 1.00 50,000 60,000 1.20 20.0 15.0 0.75 150 150 1.00"
    assert row.split() == ["NORM", "clean", "100", *compared.split()]


@pytest.mark.campaign
def test_the_load_phase_is_measured_without_a_server() -> None:
    """Two first loads and two merges store every contact in each sink and its bare engine (else the bench fails)."""
    rows = json.loads(bench("--only", "LOAD", "--loaded", str(CONTACTS), "--json"))["rows"]
    sinks = ("duckdb", "parquet", "postgres", "s3", "delta")
    assert [row["what"].partition(":")[0] for row in rows] == [sink for sink in sinks for _ in range(4)]
    assert [row["contacts"] for row in rows] == [200, CONTACTS, CONTACTS // 100, CONTACTS // 100] * len(sinks)
    assert all(row["seconds"] > row["facts"]["load s"] and row["peak_mb"] > 0 < row["speed"] for row in rows)
    files = [(row["facts"]["linked"], row["facts"]["written"]) for row in rows[6:8]]
    assert files == [(0, 1)] * 2, "so few contacts are one file, which is written again"


@pytest.mark.campaign
def test_many_accounts_are_measured_in_one_process() -> None:
    """A first run and an incremental one store every contact of every account (else the bench fails)."""
    rows = json.loads(bench("--only", "FLEET", "--accounts", "2", "--json"))["rows"]
    assert [(row["contacts"], row["facts"]["threads"] > 1, row["facts"]["files"] > 3) for row in rows] == [
        (400, True, True)
    ] * 4
