"""Every kind of target after the same churning runs of one account, each read back by a client that is not ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from io import BytesIO
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tests.support.campaign import campaign
from tests.support.live import Job, Row, live
from tests.support.object_store import ObjectStore
from tests.support.object_store import running as running_store
from tests.support.postgres import Server

KEYS = {
    "contacts": ("account", "contact_id"),
    "contact_versions": ("account", "contact_id", "seq"),
    "rejects": ("account", "contact_id", "raw"),
    "runs": ("seq", "account"),
}
"""The tables for users, with their keys."""
_STATES = ("current", "rejects", "strikes")
"""What the last manifest lists completely; of the rest, each lists what its run added."""
Reader = Callable[[str], list[Row]]
"""The rows of a table."""


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """An object store."""
    with running_store() as store:
        yield store


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="no wheel of the engine that reads Delta for this Python")
@pytest.mark.parametrize("runs", [3, campaign(10)])
def test_every_target_holds_the_same_rows_after_the_same_runs(
    runs: int, store: ObjectStore, postgres: Server, tmp_path: Path
) -> None:
    """After churning runs into six targets, all tables of all of them have the same rows.

    A third of the contacts has one of every known oddity. Every run is read once, and published into each target.
    """
    urls = {name: store.new_url() for name in ("bucket", "cloud")}
    job = Job(tmp_path, {}, sinks=("duckdb", "parquet", "postgres"), dsn=postgres.dsn(postgres.create_database()))
    job.settings = (
        '[guard]\nmax_reject_share = 1.0\n[extract]\nscrub_every = "1s"\n'
        + "".join(_in_store(tmp_path, name, kind, urls[name], store) for name, kind in _KINDS.items())
        + f'[sinks.delta]\npath = "{tmp_path / "data" / "lake"}"\n'
    )
    with live(contacts=300, nasty_share=0.3, small=True) as server:
        job.urls = {"main": server.url}
        for number in range(runs):
            result = job.run()
            assert result.exit_code in {0, 40}, result.document()["error"]
            assert {sink["seq"] for sink in result.document()["sinks"].values()} == {number + 1}
            server.churn(number)
    options = {"endpoint_url": store.endpoint, "allow_http": "true"}
    others: dict[str, Reader] = {
        "parquet": partial(_from_manifests, lambda name: (job.parquet / name).read_bytes(), _names(job.parquet)),
        "bucket": partial(_from_manifests, partial(store.get, urls["bucket"]), store.names(urls["bucket"])),
        "delta": partial(_from_delta, tmp_path / "data" / "lake"),
        "cloud": partial(_from_delta_in_store, urls["cloud"], options),
        "postgres": partial(_from_postgres, postgres, job.dsn.rpartition("/")[2]),
    }
    for table in KEYS:
        expected = _from_duckdb(job.duckdb, table)
        assert len(expected) >= runs, table
        for name, read in others.items():
            assert _in_order(read(table), table) == expected, f"{table} of {name}"
    assert job.call("verify", "CONFIG").code == 0


_KINDS = {"bucket": "parquet", "cloud": "delta"}


def _in_store(folder: Path, name: str, kind: str, url: str, store: ObjectStore) -> str:
    stage = folder / "data" / name
    return f'[sinks.{name}]\nkind = "{kind}"\npath = "{url}"\nendpoint = "{store.endpoint}"\nstage = "{stage}"\n'


def _in_order(rows: list[Row], table: str) -> list[Row]:
    alike = [row | {"detail": json.loads(row["detail"])} if "detail" in row else row for row in rows]
    return sorted(alike, key=lambda row: [str(row[name]) for name in KEYS[table]])


def _from_duckdb(file: Path, table: str) -> list[Row]:
    with duckdb.connect(str(file), read_only=True) as connection:
        return _in_order(connection.sql(f"FROM {table}").to_arrow_table().to_pylist(), table)


def _from_postgres(server: Server, database: str, table: str) -> list[Row]:
    return server.rows(f"etl.{table}", database)


def _from_delta(home: Path, table: str) -> list[Row]:
    """The rows as an engine reads them that shares nothing with the library that wrote them."""
    name = table.removeprefix("contact_")
    copy = home.parent / f"{name}.parquet"
    command = [sys.executable, "-I", "-c", _COPY, str(DELTA_CLIENT), str(home / name), str(copy)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    assert ended.returncode == 0, ended.stderr
    return list(pq.read_table(copy).to_pylist())


DELTA_CLIENT = Path(__file__).parents[2] / ".venv" / "old-duckdb" / "1.5.5"
_COPY = """
import sys
sys.path.insert(0, sys.argv[1])
import duckdb, duckdb_extension_delta
extension = f"{duckdb_extension_delta.__path__[0]}/extensions/v{duckdb.__version__}/delta.duckdb_extension"
engine = duckdb.connect(config={"allow_unsigned_extensions": "true", "autoinstall_known_extensions": "false"})
engine.execute(f"LOAD '{extension}'; SET TimeZone = 'UTC'")
engine.execute(f"COPY (FROM delta_scan('{sys.argv[2]}')) TO '{sys.argv[3]}' (FORMAT parquet)")
"""


def _from_delta_in_store(home: str, options: dict[str, str], table: str) -> list[Row]:
    name = table.removeprefix("contact_")
    return DeltaTable(f"{home}/{name}", storage_options=options).to_pyarrow_table().to_pylist()


def _names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _from_manifests(read: Callable[[str], bytes], names: list[str], table: str) -> list[Row]:
    """The rows of a Parquet target: the files that its manifests list, read by pyarrow; and their runs."""
    documents = [json.loads(read(name)) for name in sorted(names) if name.startswith("manifests/")]
    if table == "runs":
        return [_row_of(run) for document in documents for run in document["runs"]]
    content = {"contacts": "current", "contact_versions": "versions"}.get(table, table)
    paths = [
        file["path"]
        for document in documents
        for file in document["files"]
        if file["path"].startswith(f"{content}/") and (content not in _STATES or document is documents[-1])
    ]
    return [row for path in paths for row in pq.ParquetFile(BytesIO(read(path))).read().to_pylist()]


def _row_of(run: Row) -> Row:
    """A run of a manifest as a row of the table."""
    return {
        **{name: run[name] for name in ("seq", "run_id", "account", "mode", "seconds")},
        "observed_at": datetime.fromisoformat(run["t0"]),
        "watermark": datetime.fromisoformat(run["watermark"]),
        "proof_level": run["proof"]["level"],
        "windows": run["proof"]["windows"],
        "unproven": run["proof"]["unproven"],
        **run["counts"],
        "requests_sent": run["requests"]["sent"],
        "requests_retried": run["requests"]["retried"],
        "detail": json.dumps(run["detail"]),
    }
