"""The benchmark: it runs, and what it measured had done its work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONTACTS = 400


def test_a_miniature_bench_reports_rows_of_jobs_whose_counts_were_conserved() -> None:
    """Every job of W1 handled every contact once (else the bench fails), and the document has all its figures."""
    asked = ["--only", "W1,PLAN", "--contacts", str(CONTACTS), "--runs", "1", "--json"]
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "tests.bench", *asked],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = [row for row in document["rows"] if row["case"] == "W1"]
    assert [row["contacts"] for row in rows] == [CONTACTS] * 6
    assert all(row["contacts_per_second"] > 0 and row["cpu_us_per_contact"] > 0 and row["peak_mb"] > 0 for row in rows)
    assert [row["speed"] for row in rows if "bare" in row["what"]] == [1.0, 1.0]
    assert document["machine"]["cores"] >= 1
