"""How much faster four workers are than one, if the latency of the servers is what takes the time."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.cluster import local_cluster
from tests.support.cluster_accounts import Accounts, run

ACCOUNTS, CONTACTS, LATENCY = 12, 600, 0.1
WORKERS = (1, 4)


def measure(folder: Path) -> dict[int, float]:
    """Seconds of a full run by number of workers."""
    seconds = {}
    for workers in WORKERS:
        with Accounts.served(ACCOUNTS, contacts=CONTACTS, small=True, nasty_share=0, latency=LATENCY) as accounts:
            job = accounts.job(folder / f"workers-{workers}")
            with local_cluster(folder / f"cluster-{workers}", job.environment(), workers=workers) as cluster:
                time.sleep(5)  # Until all of them have joined.
                ended = run(job, cluster)
            assert ended.code == 0, ended.err
            seconds[workers] = float(ended.document["seconds"])
    return seconds
