"""`etl doctor` checks token, host, filters and sinks, and reports each problem with a hint."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import Ended, Job, Live, live


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """A healthy account."""
    with live(contacts=120, nasty_share=0, small=True) as running:
        yield running


def examined(ended: Ended) -> dict[str, Any]:
    """The failed checks by name, after a check of the document's shape."""
    document = ended.document
    assert document["exit"] == ended.code
    assert all(check.keys() == {"check", "where", "ok", "detail", "hint"} for check in document["checks"])
    assert all(check["where"] and check["detail"] for check in document["checks"])
    failed = {check["check"]: check for check in document["checks"] if not check["ok"]}
    assert bool(failed) == bool(ended.code)
    assert all(check["hint"] for check in failed.values())
    return failed


def test_a_healthy_set_up_is_exit_0(server: Live, tmp_path: Path) -> None:
    """All checks of a healthy setup pass, and no target is created."""
    job = Job(tmp_path, {"main": server.url})
    assert examined(job.call("doctor", "CONFIG", "--json")) == {}
    assert not job.duckdb.exists()
    assert not job.parquet.exists()
    assert job.call("doctor", "CONFIG").out.count("ok") >= 4


@pytest.mark.parametrize(("token", "code"), [("0" * 24, 10), ("no-such-token", 10), ("", 2)])
def test_a_bad_token_is_found(token: str, code: int, server: Live, tmp_path: Path) -> None:
    """A refused, malformed or missing token is reported with the exit code that a run would have (A1, A48)."""
    job = Job(tmp_path, {"main": server.url}, {"main": token})
    ended = job.call("doctor", "CONFIG", "--json")
    assert ended.code == code
    [found] = examined(ended).values()
    assert token == "" or token not in ended.out + ended.err
    assert "token" in found["detail"] or "TOKEN_MAIN" in found["detail"]


def test_an_unreachable_host_is_found(tmp_path: Path) -> None:
    """An unreachable host is reported with its address (N1)."""
    with socket.socket() as plug:
        plug.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{plug.getsockname()[1]}"
        ended = Job(tmp_path, {"main": url}).call("doctor", "CONFIG", "--json")
    assert ended.code == 11
    assert url in str(examined(ended))


def test_filters_that_do_not_work_are_found(tmp_path: Path) -> None:
    """Filters that the server ignores are exit 13, as no run could be proven (A50)."""
    with live(contacts=120, small=True, applicable_filters="ignored") as server:
        ended = Job(tmp_path, {"main": server.url}).call("doctor", "CONFIG", "--json")
    assert ended.code == 13
    assert list(examined(ended)) == ["filters"]


def test_an_output_that_cannot_be_written_is_found(server: Live, tmp_path: Path) -> None:
    """A folder of metrics that does not exist is found before a run is refused for it."""
    textfile = tmp_path / "absent" / "etl.prom"
    job = Job(tmp_path, {"main": server.url}, settings=f'[metrics]\ntextfile = "{textfile}"\n')
    ended = job.call("doctor", "CONFIG", "--json")
    assert ended.code == 2
    [found] = examined(ended).values()
    assert (found["check"], found["where"]) == ("outputs", "metrics.textfile")
    assert str(textfile.parent) in found["detail"]


def test_a_damaged_target_is_found_beside_everything_else(server: Live, tmp_path: Path) -> None:
    """The server is checked even if a target is damaged (P25)."""
    job = Job(tmp_path, {"main": server.url})
    job.duckdb.parent.mkdir()
    job.duckdb.write_bytes(b"")
    ended = job.call("doctor", "CONFIG", "--json")
    assert ended.code == 22
    assert examined(ended)["sink"]["where"] == str(job.duckdb)
    assert "server" in {check["check"] for check in ended.document["checks"]}
    assert job.duckdb.read_bytes() == b""


def test_every_account_is_looked_at(server: Live, tmp_path: Path) -> None:
    """A bad token of one account does not hide the checks of the other."""
    job = Job(tmp_path, {"one": server.url, "two": server.url}, {"one": "0" * 24})
    ended = job.call("doctor", "CONFIG", "--json")
    assert ended.code == 10
    assert "account two" in {check["where"] for check in ended.document["checks"] if check["ok"]}


def test_the_doctor_does_not_disturb_a_run(tmp_path: Path) -> None:
    """`doctor` leaves the files of a run in progress alone (P16)."""
    with live(contacts=600, nasty_share=0, small=True, latency=0.1) as server:
        job = Job(tmp_path, {"main": server.url}, settings="[extract]\nconcurrency = 2\n")
        with job.start("run", "CONFIG", "--json") as running:
            deadline = time.monotonic() + 20
            while server.stats()["requests"] < 25 and time.monotonic() < deadline:
                time.sleep(0.02)
            staged = set(job.temporary.iterdir())
            assert any("stage" in path.name for path in staged)
            job.call("doctor", "CONFIG", "--json")
            assert staged <= set(job.temporary.iterdir())
            out, err = running.communicate(timeout=60)
        assert running.returncode == 0, out + err
    assert job.rows("select count(*) from contacts") == [(600,)]
