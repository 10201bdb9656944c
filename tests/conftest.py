"""How hypothesis draws its examples, and fixtures for the modules that define an `account` (`support.live.Account`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import azure
from tests.support import postgres as postgres_server
from tests.support.live import Account, Job, Live

# The same examples in every run, so that a failure comes from the change; `--hypothesis-profile=random` draws others.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A PostgreSQL server for all tests of this process."""
    with postgres_server.running() as server:
        yield server


@pytest.fixture(scope="session")
def blob_store() -> Iterator[azure.BlobStore]:
    """Azure's object store for all tests of this process."""
    if not azure.EMULATOR.exists():
        pytest.skip("Azure's emulator is not installed: `make campaigns` installs it if there is npm")
    with azure.running() as store:
        yield store


@pytest.fixture
def server(account: Account) -> Iterator[Live]:
    """The server of the module's account, as it was at the first run."""
    with account.served() as running:
        yield running


@pytest.fixture
def job(account: Account, server: Live, tmp_path: Path) -> Job:
    """A job that exports that account to a DuckDB file, after its first run."""
    return account.job(server, tmp_path, "duckdb")
