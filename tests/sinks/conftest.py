"""What the tests of sinks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.object_store import ObjectStore, running


@pytest.fixture(scope="session")
def running_store() -> Iterator[ObjectStore]:
    """An object store for all tests."""
    with running() as store:
        yield store


@pytest.fixture
def object_store(running_store: ObjectStore) -> ObjectStore:
    """The object store, without faults."""
    running_store.reset()
    return running_store
