"""`[metrics] textfile`: what Prometheus reads after every attempt to run."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from etl.commands.metrics import FAMILIES, exposition
from tests.support.live import Job, Live, live
from tests.support.pages import PAGES, blocks, rows, section

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """An account of 60 contacts."""
    with live(contacts=60, nasty_share=0, seed=2) as running:
        yield running


@pytest.fixture
def job(server: Live, tmp_path: Path) -> Job:
    """A job that writes metrics."""
    return Job(tmp_path, {"main": server.url}, settings=f'[metrics]\ntextfile = "{tmp_path}/etl.prom"\n')


def read(job: Job) -> Series:
    """The series of the file; each has the label `config`, which is left out here."""
    found: Series = {}
    for family in text_string_to_metric_families((job.folder / "etl.prom").read_text()):
        assert (family.type, family.documentation) == ("gauge", FAMILIES[family.name])
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("config") == "job"
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def of(series: Series, name: str, **labels: str) -> float:
    """The value of one series."""
    return series[name, frozenset(labels.items())]


def test_every_number_of_a_run_is_there(job: Job) -> None:
    """After a run, the file has what its result says, in the text format, readable for other users."""
    result = job.run()
    [account] = result.accounts
    series, main = read(job), {"account": "main"}
    assert {name for name, _ in series} == set(FAMILIES)
    assert of(series, "etl_last_attempt_exit_code") == result.exit_code == 0
    assert of(series, "etl_last_attempt_requests") == result.requests
    assert time.time() - of(series, "etl_last_success_timestamp_seconds") < 60
    assert of(series, "etl_watermark_timestamp_seconds", **main) == account.record.watermark.timestamp()
    assert of(series, "etl_last_run_timestamp_seconds", **main) == account.record.t0.timestamp()
    assert of(series, "etl_contacts", **main) == 60
    assert of(series, "etl_last_run_contacts", **main, result="new") == 60
    assert of(series, "etl_last_run_proven", **main) == 1
    for purpose, count in account.remarks.requests.items():
        assert of(series, "etl_last_run_requests", **main, purpose=purpose) == count
        assert of(series, "etl_last_run_phase_seconds", **main, phase=purpose) >= 0
    assert (job.folder / "etl.prom").stat().st_mode & 0o777 == 0o644
    assert {path.name for path in job.folder.iterdir()} == {"data", "etl.prom", "job.toml"}


def test_a_failed_attempt_is_told_and_the_last_success_stays(job: Job) -> None:
    """After a failure, the attempt has its exit code, and the account's series are those of its last published run."""
    assert job.run().exit_code == 0
    before = read(job)
    job.tokens["main"] = "wrong"
    assert job.run().exit_code == 10
    after = read(job)
    assert of(after, "etl_last_attempt_exit_code") == 10
    assert of(after, "etl_last_attempt_timestamp_seconds") > of(before, "etl_last_attempt_timestamp_seconds")
    kept = [key for key in before if "attempt" not in key[0]]
    # The attempts are kept by the millisecond.
    assert [after[key] for key in kept] == pytest.approx([before[key] for key in kept], abs=0.002)


def test_a_first_attempt_that_fails_has_no_success(job: Job) -> None:
    """Without any success its time is 0, so that an alert on its age fires."""
    job.tokens["main"] = "wrong"
    assert job.run().exit_code == 10
    assert of(read(job), "etl_last_success_timestamp_seconds") == 0


def test_a_target_that_cannot_be_read_leaves_the_attempt(job: Job) -> None:
    """A damaged target does not keep the failed attempt from being told."""
    assert job.run().exit_code == 0
    job.duckdb.write_bytes(b"")
    assert job.run().exit_code == 22
    series = read(job)
    assert of(series, "etl_last_attempt_exit_code") == 22
    assert "etl_contacts" not in {name for name, _ in series}


def test_what_cannot_work_is_refused_before_the_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing folder or a missing library is exit code 2 and one clear line; nothing is published."""
    missing = job.call("run", "CONFIG", "--set", f"metrics.textfile={job.folder}/none/etl.prom")
    assert missing.code == 2
    assert "cannot be written to (metrics.textfile)" in missing.err
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    without = job.call("run", "CONFIG")
    assert without.code == 2
    assert "prometheus_client is not installed (metrics.textfile). Install etl with its extra metrics" in without.err
    assert not job.duckdb.exists()


def test_a_run_does_not_fail_with_its_metrics(job: Job) -> None:
    """If only the file cannot be written, the run publishes, exits with 0, and logs it; nothing is left behind."""
    (job.folder / "etl.prom").mkdir()
    (job.folder / "etl.prom" / "kept").touch()
    done = job.call("run", "CONFIG")
    assert done.code == 0
    assert '"output.failed"' in done.err
    assert {path.name for path in job.folder.iterdir()} == {"data", "etl.prom", "job.toml"}


def test_odd_names_are_escaped() -> None:
    """Label values with quotes, backslashes and line ends survive the format."""
    odd = 'a"b\\c\nd'
    [family] = [
        family
        for family in text_string_to_metric_families(exposition([("etl_contacts", {"config": odd}, 1)]).decode())
        if family.samples
    ]
    assert family.samples[0].labels == {"config": odd}


def test_the_page_has_every_metric_and_its_rules_name_no_other() -> None:
    """`etl docs metrics` lists the metrics of the code, and its alert rules are YAML over these."""
    page = PAGES["metrics"]
    assert {name.strip("`") for name, *_ in rows(section("Metrics", page))} == set(FAMILIES)
    [group] = yaml.safe_load(blocks("yaml", page)[0])["groups"]
    used = {name for rule in group["rules"] for name in re.findall(r"etl_\w+", rule["expr"])}
    assert used <= set(FAMILIES)
    assert "time() - etl_last_success_timestamp_seconds > 100000" in {rule["expr"] for rule in group["rules"]}
