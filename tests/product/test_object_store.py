"""The commands on a target in an object store, over real HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deltalake import DeltaTable

from etl.errors import UsageError
from tests.support.azure import BlobStore
from tests.support.live import Job, Live, live
from tests.support.object_store import CREDENTIALS, SECRET, ObjectStore, running

EVERY = "select * exclude (extra) from contacts order by contact_id"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """An object store."""
    with running() as store:
        yield store


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """An account of 300 contacts."""
    with live(contacts=300, page_size=50) as server:
        yield server


def _job(folder: Path, url: str, path: str, endpoint: str, *sinks: str) -> Job:
    settings = f'[sinks.parquet]\npath = "{path}"\nendpoint = "{endpoint}"\nstage = "{folder / "data" / "lake"}"\n'
    return Job(folder, {"main": url}, sinks=sinks, settings=settings)


def test_every_command_works_on_it(store: ObjectStore, server: Live, tmp_path: Path) -> None:
    """Run, status, sql, verify, explain and doctor give what they give on a disk, for the same contacts."""
    url = store.new_url()
    job = _job(tmp_path, server.url, url, store.endpoint, "duckdb")
    assert job.call("sql", "CONFIG", "from runs").code == UsageError.exit_code
    ids = [contact_id for (contact_id,) in _run(job, 1, url)]
    server.change(lambda world, now: [world.edit(name, now) for name in ids[:9]])
    server.change(lambda world, now: [world.insert(now) for _ in range(20)])
    assert len(_run(job, 2, url)) == len(ids) + 20
    alone = _job(tmp_path, server.url, url, store.endpoint)
    here, there = (
        one.call("sql", "CONFIG", EVERY, "--json") for one in (Job(tmp_path, job.urls, sinks=("duckdb",)), alone)
    )
    assert here.code == there.code == 0
    assert here.document == there.document
    status = alone.call("status", "CONFIG", "--json").document
    assert [run["seq"] for run in status["runs"]] == [2, 1]
    verified = alone.call("verify", "CONFIG", "--json")
    assert (verified.code, url in verified.out) == (0, True)
    explained = alone.call("explain", "CONFIG", ids[0], "--json").document
    assert explained["accounts"][0]["in_contacts"] is True
    assert alone.call("doctor", "CONFIG").code == 0
    planned = alone.call("plan", "CONFIG", "--json")
    assert (planned.code, planned.document["accounts"][0]["mode"]) == (0, "incremental")


def _run(job: Job, seq: int, url: str) -> list[tuple[str]]:
    ended = job.call("run", "CONFIG", "--json")
    assert ended.code == 0, ended.err
    assert ended.document["sinks"]["parquet"] == {"path": url, "seq": seq}
    return job.rows("select contact_id from contacts")


def _named(folder: Path, name: str, url: str, endpoint: str) -> str:
    stage = folder / "data" / name
    return f'[sinks.{name}]\nkind = "parquet"\npath = "{url}"\nendpoint = "{endpoint}"\nstage = "{stage}"\n'


def test_two_prefixes_are_named_sinks_and_a_copy_reads_one(store: ObjectStore, server: Live, tmp_path: Path) -> None:
    """Each is published and read under its name; `etl copy` fills a new file from one, and refuses to fill one."""
    urls = {name: store.new_url() for name in ("hot", "cold")}
    stores = "".join(_named(tmp_path, name, url, store.endpoint) for name, url in urls.items())
    job = Job(tmp_path, {"main": server.url}, sinks=(), settings=stores)
    for seq in (1, 2):
        ended = job.call("run", "CONFIG", "--json")
        assert ended.code == 0, ended.err
        assert ended.document["sinks"] == {name: {"path": url, "seq": seq} for name, url in urls.items()}
        server.change(lambda world, now: [world.insert(now) for _ in range(5)])
    every = {name: job.call("sql", "CONFIG", EVERY, "--sink", name, "--json").document for name in urls}
    assert len(every["hot"]) >= 300
    assert every["hot"] == every["cold"]
    both = replace(job, sinks=("duckdb",))
    refused = both.call("copy", "CONFIG", "hot", "cold")
    assert (refused.code, "already holds state 2" in refused.err) == (2, True)
    copied = both.call("copy", "CONFIG", "hot", "duckdb", "--json")
    assert copied.code == 0, copied.err
    assert (copied.document["runs"], copied.document["contacts"]) == (2, len(every["hot"]))
    assert both.call("sql", "CONFIG", EVERY, "--sink", "duckdb", "--json").document == every["hot"]
    again = both.call("run", "CONFIG", "--json")
    assert (again.code, again.document["accounts"][0]["mode"]) == (0, "incremental")
    assert {sink["seq"] for sink in again.document["sinks"].values()} == {3}
    assert both.call("verify", "CONFIG").code == 0


def test_a_store_that_does_not_answer_does_not_stop_other_sinks(
    server: Live, store: ObjectStore, tmp_path: Path
) -> None:
    """The others are published, exit 20 names the store, and the next run brings it what it lacks."""
    url = store.new_url()
    job = Job(tmp_path, {"main": server.url}, sinks=("duckdb",), settings=_named(tmp_path, "lake", url, store.endpoint))
    assert job.call("run", "CONFIG").code == 0
    away = replace(job, settings=_named(tmp_path, "lake", url, "http://127.0.0.1:1"))
    ended = away.call("run", "CONFIG", "--json")
    assert ended.code == 20, ended.err
    assert {name: sink["seq"] for name, sink in ended.document["sinks"].items()} == {"duckdb": 2, "lake": None}
    assert "no answer" in ended.document["sinks"]["lake"]["error"]["message"]
    caught_up = job.call("run", "CONFIG", "--json")
    assert caught_up.code == 0
    assert {name: sink["seq"] for name, sink in caught_up.document["sinks"].items()} == {"duckdb": 3, "lake": 3}


def test_every_command_works_on_delta_tables_on_disk(server: Live, tmp_path: Path) -> None:
    """Run, status, sql, verify, doctor and explain need no other sink, and name the folder as it is configured."""
    job = Job(tmp_path, {"main": server.url}, sinks=(), settings='[sinks.delta]\npath = "data/lake"\n')
    ended = job.call("run", "CONFIG", "--json")
    assert (ended.code, ended.document["sinks"]) == (0, {"delta": {"path": "data/lake", "seq": 1}}), ended.err
    [row] = job.call("sql", "CONFIG", "select min(contact_id) as first, count(*) as n from contacts", "--json").document
    for words in (("sql", "CONFIG", "from runs"), ("status", "CONFIG"), ("verify", "CONFIG"), ("doctor", "CONFIG")):
        assert job.call(*words).code == 0, words
    assert job.call("explain", "CONFIG", row["first"], "--json").document["accounts"][0]["in_contacts"] is True
    assert len(DeltaTable(str(tmp_path / "data" / "lake" / "contacts")).to_pyarrow_table()) == row["n"]


def test_delta_tables_in_a_store_are_a_named_sink_from_which_a_copy_reads(
    store: ObjectStore, server: Live, tmp_path: Path
) -> None:
    """They are published under their name; `etl copy` fills a new file from them."""
    url = store.new_url()
    settings = _named(tmp_path, "tables", url, store.endpoint).replace('"parquet"', '"delta"')
    job = Job(tmp_path, {"main": server.url}, sinks=(), settings=settings)
    for seq in (1, 2):
        ended = job.call("run", "CONFIG", "--json")
        assert ended.code == 0, ended.err
        assert ended.document["sinks"] == {"tables": {"path": url, "seq": seq}}
    every = job.call("sql", "CONFIG", EVERY, "--json").document
    both = replace(job, sinks=("duckdb",))
    assert both.call("copy", "CONFIG", "duckdb", "tables").code == 2, "nothing is in the file yet"
    copied = both.call("copy", "CONFIG", "tables", "duckdb", "--json")
    assert copied.code == 0, copied.err
    assert both.call("sql", "CONFIG", EVERY, "--sink", "duckdb", "--json").document == every
    assert both.call("run", "CONFIG").code == 0
    assert both.call("verify", "CONFIG").code == 0


@pytest.mark.parametrize(
    ("path", "endpoint", "environment", "words"),
    [
        ("s3://no-such-bucket/x", None, {}, "NoSuchBucket"),
        ("s3://bucket/x", "http://127.0.0.1:1", {}, "no answer"),
    ],
)
def test_a_store_that_cannot_be_used_is_told_in_one_message(
    store: ObjectStore, server: Live, tmp_path: Path, path: str, endpoint: str | None, environment: dict[str, str],
    words: str,
) -> None:  # fmt: skip
    """A missing bucket and an unreachable store are exit 20 before the first request, without a secret."""
    job = _job(tmp_path, server.url, path, endpoint or store.endpoint)
    for command in (("run", "CONFIG", "--json"), ("status", "CONFIG"), ("sql", "CONFIG", "from runs")):
        ended = job.call(*command, **environment)
        assert ended.code == 20, ended.out
        assert words in ended.out + ended.err
        assert SECRET not in ended.out + ended.err


def test_wrong_credentials_are_told_in_one_message(store: ObjectStore, server: Live, tmp_path: Path) -> None:
    """Credentials that the store refuses are exit 20 with a hint, and neither they nor contacts are printed."""
    job = _job(tmp_path, server.url, store.new_url(), store.endpoint)
    store.reset(lambda *_: "403")
    ended = job.call("run", "CONFIG", "--json")
    store.reset()
    assert (ended.code, ended.document["error"]["code"]) == (20, 20)
    assert "s3:ListBucket" in ended.document["error"]["hint"]
    assert not any(text in ended.out + ended.err for text in CREDENTIALS.values())


def test_settings_that_a_store_cannot_use_stop_no_other_sink(server: Live, tmp_path: Path) -> None:
    """A malformed key of Azure is exit 20 for that sink; the file is published, and the attempt is recorded."""
    job = _job(tmp_path, server.url, "az://container/x", "", "duckdb")
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "%"}
    ended = job.call("run", "CONFIG", "--json", **account)
    assert ended.code == 20
    assert {name: sink["seq"] for name, sink in ended.document["sinks"].items()} == {"duckdb": 1, "parquet": None}
    assert "Check AZURE_STORAGE_ACCOUNT_NAME" in ended.document["error"]["hint"]
    assert [attempt["exit"] for attempt in job.call("status", "CONFIG", "--json").document["attempts"]] == [20]


@pytest.mark.campaign
def test_azure_works_as_s3_does(blob_store: BlobStore, server: Live, tmp_path: Path) -> None:
    """Commands give the same contacts, and what the store refuses is one message with a hint for Azure."""
    url = blob_store.new_url()
    job = _job(tmp_path, server.url, url, blob_store.endpoint, "duckdb")
    ids = [contact_id for (contact_id,) in _run(job, 1, url)]
    server.change(lambda world, now: [world.edit(name, now) for name in ids[:9]])
    assert _run(job, 2, url)
    alone = _job(tmp_path, server.url, url, blob_store.endpoint)
    here = Job(tmp_path, job.urls, sinks=("duckdb",)).call("sql", "CONFIG", EVERY, "--json")
    there = alone.call("sql", "CONFIG", EVERY, "--json")
    assert (there.code, there.document) == (0, here.document)
    assert alone.call("verify", "CONFIG").code == alone.call("doctor", "CONFIG").code == 0
    wrong = _job(tmp_path, server.url, "az://no-container/x", blob_store.endpoint)
    for job, variables, hint in (
        (wrong, {}, "Create the container"),
        (alone, {"AZURE_STORAGE_ACCOUNT_KEY": "bm9ubw=="}, "Check AZURE_STORAGE_ACCOUNT_NAME"),
        (alone, {"AZURE_STORAGE_ACCOUNT_KEY": "%"}, "Check AZURE_STORAGE_ACCOUNT_NAME"),
    ):
        ended = job.call("run", "CONFIG", **variables)
        assert (ended.code, hint in ended.err) == (20, True)
        assert blob_store.key not in ended.out + ended.err


_WITHOUT = """
import sys
sys.modules["obstore"] = None
from etl.cli.app import main
sys.argv = ["etl", *sys.argv[1:]]
main()
"""


def test_a_missing_extra_is_named(server: Live, tmp_path: Path) -> None:
    """Without the library of the extra, a command exits with 2 and one line that names it."""
    job = _job(tmp_path, server.url, "s3://bucket/x", "")
    command = [sys.executable, "-c", _WITHOUT, "run", str(job.config()), "--json"]
    ended = subprocess.run(command, env=job.environment(), capture_output=True, text=True, check=False)  # noqa: S603
    assert ended.returncode == 2
    assert "a target in an object store needs the extra s3" in ended.stderr
    assert "pip install 'etl[s3]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [account["account"] for account in json.loads(ended.stdout)["accounts"]] == ["main"], "the result of a run"


_MODULES = """
import json, sys
from etl.cli.app import main
try:
    main()
finally:
    print(json.dumps([*sys.modules]))
"""


def test_a_target_on_disk_imports_no_library_of_the_extra(server: Live, tmp_path: Path) -> None:
    """The optional libraries are imported only for a target that needs them."""
    job = Job(tmp_path, {"main": server.url}, sinks=("parquet",))
    command = [sys.executable, "-c", _MODULES, "run", str(job.config())]
    ended = subprocess.run(command, env=job.environment(), capture_output=True, text=True, check=True)  # noqa: S603
    assert not {"obstore", "deltalake", "fsspec"} & set(json.loads(ended.stdout.splitlines()[-1]))
