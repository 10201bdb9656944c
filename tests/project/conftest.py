"""A reader of the documentation, shared by the tests of the pages and of the deployment files."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import TOKEN, live
from tests.support.pages import BIN, ROOT, Reader

SERVICE = "https://api-v7.express-chat.com"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader in a fresh copy of the files that the commands need."""
    folder: Path = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(BIN)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ETL_", "ELEAPI_"))}
    with live(contacts=300, nasty_share=0.0) as service:
        config = folder / "configs" / "eleapi.toml"
        text = config.read_text()
        assert SERVICE in text
        config.write_text(text.replace(SERVICE, service.url))
        yield Reader(folder, {**clean, "PATH": f"{BIN}:{clean['PATH']}", "ELEAPI_TOKEN": TOKEN})
