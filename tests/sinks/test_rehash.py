"""Targets whose fingerprints have the former definition: an upgrade reports no contact as changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl.commands.verify import verify_targets
from etl.config import Config
from etl.model import Counts
from etl.sinks import SinkKind, open_readonly, select
from tests.support.old_targets import age_fingerprints
from tests.support.publishing import Row, brought, contact, publication, sink_at

ATTRIBUTES = [("city", "Lyon"), ("plan", None)]
WHOLE = (
    '{"a":1.50,"profile":{"notes":[{"at":"now","title":"t"}],"userDetails":'
    '{"attributes":[{"_id":"x","key":"city","value":"Lyon"},{"_id":"y","key":"plan","value":""}],"tags":"vip"}}}'
)
FURTHER = (
    '{"a":1.50,"profile":{"notes":[{"at":"now"}],"userDetails":{"attributes":[{"_id":"x"},{"_id":"y"}],"tags":"vip"}}}'
)
REPEATED = '{"profile":{"userDetails":{"attributes":[{"_id":"x","key":"city"},{"key":"city","value":"Lyon"}]}}}'


def rows(extra: str, **values: object) -> list[Row]:
    """Three contacts: with fields in list items, with a repeated key, and without any."""
    first = contact(1, attributes=ATTRIBUTES, notes=[{"title": "t"}], extra=extra, **values)
    return [first, contact(2, attributes=ATTRIBUTES[:1], extra=REPEATED), contact(3, extra=None)]


class Target:
    """A sink with runs of one account."""

    def __init__(self, kind: SinkKind, folder: Path) -> None:
        self.kind: SinkKind = kind
        self.path = folder / "data" / ("contacts.duckdb" if kind == "duckdb" else "contacts")
        self._folder = folder / "parts"

    def publish(self, seq: int, *contacts: Row) -> Counts:
        """Publish a run that read these contacts."""
        run = publication(brought(self._folder, "main", contacts, seq=seq))
        sink = sink_at(self.kind, self.path)
        sink.open()
        counts = sink.prepare(run).counts["main"]
        sink.publish(run)
        return counts

    def damage(self) -> list[str]:
        """The checks of `etl verify` that fail."""
        sinks, account = {self.kind: {"path": str(self.path)}}, {"base_url": "http://127.0.0.1", "token_env": "NONE"}
        config = Config.model_validate({"accounts": [account], "sinks": sinks})
        return [f"{finding.check}: {finding.detail}" for finding in verify_targets(config) if finding.hint]

    def rows(self, query: str) -> list[Row]:
        """The result of a query."""
        with open_readonly(self.kind, self.path) as connection:
            return select(connection, query).to_pylist()


@pytest.fixture(params=["duckdb", "parquet"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """A target of each kind after one run of an earlier version."""
    target = Target(request.param, tmp_path)
    target.publish(1, *rows(WHOLE))
    age_fingerprints(target.path)
    assert target.damage() == []
    return target


def test_an_upgrade_changes_no_contact(old: Target) -> None:
    """Received contacts are unchanged and get the new form without a version; the next run changes nothing."""
    counts = old.publish(2, *rows(FURTHER))
    assert (counts.unchanged, counts.changed, counts.new) == (3, 0, 0)
    found = old.rows("SELECT extra::VARCHAR AS extra, row_hash[:2] AS form, seq FROM contacts ORDER BY contact_id")
    assert [(row["extra"], row["form"], row["seq"]) for row in found] == [
        (FURTHER, "2:", 2),
        (REPEATED, "2:", 2),
        (None, "2:", 2),
    ]
    assert old.rows("SELECT count(*) AS n FROM contact_versions") == [{"n": 3}]
    assert old.damage() == []
    assert old.publish(3, *rows(FURTHER)).unchanged == 3
    assert old.rows("SELECT DISTINCT seq FROM contacts") == [{"seq": 2}]


def test_a_change_is_found_across_an_upgrade(old: Target) -> None:
    """A contact whose content differs from the row of the earlier version gets a version."""
    counts = old.publish(2, *rows(FURTHER, name="new"))
    assert (counts.unchanged, counts.changed) == (2, 1)
    assert old.rows("SELECT count(*) AS n FROM contact_versions WHERE seq = 2") == [{"n": 1}]


def test_contacts_that_were_not_received_keep_their_form(old: Target) -> None:
    """A run rewrites only what it received, and a later one the rest."""
    assert old.publish(2, rows(FURTHER)[0]).unchanged == 1
    forms = "SELECT row_hash[:2] = '2:' AS new, count(*) AS n FROM contacts GROUP BY ALL ORDER BY new"
    assert old.rows(forms) == [{"new": False, "n": 2}, {"new": True, "n": 1}]
    assert old.damage() == []
    assert old.publish(3, *rows(FURTHER)).unchanged == 3
    assert old.rows(forms) == [{"new": True, "n": 3}]
