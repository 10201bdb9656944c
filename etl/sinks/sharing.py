"""Sharing: permissions of readers on published files, and on the folders that lead to them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from etl.errors import SinkError
from etl.log import log
from etl.storage import files, staging
from etl.storage.files import Access


def refuse_foreign(access: Access, folders: Sequence[Path]) -> None:
    """Raise `SinkError` if a published file belongs to another user, so that a run could not share it."""
    for path in (path for folder in folders for path in files.tree(folder)):
        access.check(path)


def share(access: Access, target: Path, published: Sequence[Path]) -> None:
    """Give readers access to everything in these files and folders, and to the folders that lead to them.

    A folder that runs did not create keeps its permissions: the target itself if it belongs to another user, and the
    folders above it (see `warn_closed`).
    """
    for path in (path for one in published for path in files.tree(one)):
        access.give(path)
    if target.is_dir():
        with suppress(SinkError):
            access.give(target)
    if staging.is_ours(target.parent):
        access.give(target.parent)


def warn_closed(access: Access, target: Path) -> None:
    """Log a warning for each folder that readers cannot traverse and that runs do not open."""
    for folder in target.absolute().parents:
        if not access.passes(folder) and not (folder == target.absolute().parent and staging.is_ours(folder)):
            log.warning("sink.closed", folder=str(folder), hint="Let readers pass: chmod g+x, chgrp.")
