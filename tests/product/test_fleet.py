"""Many accounts in one run: resource use does not grow with their number, and no account blocks the others."""

from __future__ import annotations

import json
from itertools import dropwhile, takewhile
from pathlib import Path
from subprocess import Popen
from time import sleep

from tests.support.live import Job, Row, live

UNKNOWN_TOKEN = "0" * 24
HANGING = ({"kind": "hang"},)


def watched(process: Popen[bytes]) -> tuple[int, int, list[Row]]:
    """The peak numbers of threads and open files until the process ended, and the events that it logged."""
    threads = files = 0
    home = Path(f"/proc/{process.pid}")
    while process.poll() is None:
        try:
            threads = max(threads, sum(1 for _ in (home / "task").iterdir()))
            files = max(files, sum(1 for _ in (home / "fd").iterdir()))
        except OSError:
            break
        sleep(0.02)
    _, told = process.communicate(timeout=60)
    return threads, files, [json.loads(line) for line in told.splitlines() if line.startswith(b"{")]


def test_many_accounts_take_no_more_than_a_few(tmp_path: Path) -> None:
    """40 accounts, four at a time, need few threads and files; one that hangs and one that fails do no harm."""
    with live(contacts=5, small=True, nasty_share=0) as server, live(faults=HANGING) as hanging:
        urls = {f"a{number:02}": server.url for number in range(40)} | {"a01": hanging.url}
        limits = '[extract]\naccounts_at_once = 4\ndeadline = "10s"\n'
        job = Job(tmp_path, urls, {"a02": UNKNOWN_TOKEN}, settings=limits, sinks=("duckdb",))
        with job.start("run", "CONFIG") as process:
            threads, files, events = watched(process)
    assert process.returncode == 11, "that of the first in the file that failed"
    failed = {event["account"]: event["code"] for event in events if event["event"] == "account.failed"}
    assert failed == {"a01": 11, "a02": 10}
    held = job.rows("select account, count(*) from contacts group by account order by account")
    assert held == [(name, 5) for name in urls if name not in failed]
    assert threads < 100
    assert files < 120
    told = dropwhile(lambda event: event["event"] != "run.progress", events)
    shown = [event["account"] for event in takewhile(lambda event: event["event"] == "run.progress", told)]
    assert "a01" in shown
    assert len(shown) <= 4, "those that are being read, and no others"
    sums = [event for event in events if event["event"] == "run.totals"]
    assert all(event["accounts"] == 40 and event["reading"] <= 4 for event in sums)
    assert sums[-1]["failed"] <= 2


def test_a_place_is_free_again_after_the_deadline_of_whoever_hangs_in_it(tmp_path: Path) -> None:
    """With one account at a time, the others wait for it, and each has its full deadline."""
    with live(contacts=5, small=True, nasty_share=0) as server, live(faults=HANGING) as hanging:
        urls = {"a": hanging.url, "b": server.url, "c": server.url}
        job = Job(tmp_path, urls, settings='[extract]\naccounts_at_once = 1\ndeadline = "5s"\n', sinks=("duckdb",))
        report = job.run()
    assert [account.error and account.error.exit_code for account in report.accounts] == [11, None, None]
    assert all(account.requests.sent for account in report.accounts)
    assert job.rows("select account from runs order by account") == [("b",), ("c",)]
    assert job.rows("select count(*) from contacts") == [(10,)]
    assert not list(job.temporary.glob("*.stage/b"))
