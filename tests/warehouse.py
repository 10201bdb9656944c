"""Run a command beside a PostgreSQL server whose DSN is in `WAREHOUSE_DSN`.

python -m tests.warehouse COMMAND ARGUMENT ...
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.live import DSN
from tests.support.postgres import running

if __name__ == "__main__":
    with running() as server:
        ended = subprocess.run(sys.argv[1:], env={**os.environ, DSN: server.dsn()}, check=False)  # noqa: S603
    sys.exit(ended.returncode)
