"""Reads the accounts on the workers of a Dask cluster: one task an account, one lease a token.

The only module that imports `distributed`. The coordinator submits and collects; a worker reads the token itself, takes
the lease of the token for the whole task, and reads the account as one process would. Tokens never travel, and neither
do contacts: they stay on the storage that all machines share. The lease is the guarantee that a token has one client;
that this coordinator submits accounts of the same token one after the other only spares workers that would wait for it.

A task whose worker dies is started again by the scheduler, and finds what was read (`attempts`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any, NoReturn

import anyio
import dask.config
from anyio import to_thread
from dask.utils import parse_timedelta
from distributed import CancelledError, Client, KilledWorker, Reschedule, Semaphore, get_worker
from pydantic import SecretStr

from etl import __version__
from etl.api.sources import sources
from etl.config import Config, read_token
from etl.errors import EtlError, SinkError, SourceUnavailable, UsageError, first_of
from etl.fleet.takeover import Takeover
from etl.fleet.task import Task
from etl.log import log
from etl.model import AccountYield, Progress, Requests
from etl.sinks.targets import named, sinks
from etl.storage import files

RUN = "run"
"""A file in the stage of an account with the run's id: a worker that cannot read it does not share the storage."""
TOPIC = "etl"
"""The topic of all runs: the scheduler keeps the last events of each topic for ever."""
CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 2.0
PATIENCE_SECONDS = 30.0
"""How long a run waits for the first worker, or for another one when there is none left."""
BEAT_SECONDS = 1.0
"""How often a worker reports progress, and a coordinator looks for workers."""
RESUMABLE = "Nothing read is lost: run again, and it resumes."


# --- the coordinator ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task returns: a few KiB. An account that failed is an outcome; a task fails if its worker does."""

    result: AccountYield | EtlError
    requests: Requests


@dataclass(slots=True)
class Cluster:
    """A `Fleet` of workers."""

    client: Client
    run_id: str
    patience: float = PATIENCE_SECONDS
    beats: dict[str, Progress] = field(default_factory=dict)
    """The last progress that a worker reported, by account."""
    _tokens: defaultdict[object, anyio.Lock] = field(default_factory=lambda: defaultdict(anyio.Lock), init=False)
    """By the name of the token's variable or file."""

    def place(self, task: Task) -> anyio.Lock:
        """See `Fleet`."""
        [account] = task.config.accounts
        return self._tokens[account.token_env or account.token_file]

    def reader(self, task: Task) -> ClusterReader:
        """See `Fleet`."""
        files.private_folder(task.folder)
        files.replace_file(task.folder / RUN, self.run_id.encode())
        return ClusterReader(self, task)

    def hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Note the progress that a worker reports."""
        if event[1]["run"] == self.run_id:
            progress = Progress(**event[1]["progress"])
            self.beats[progress.account] = progress


@dataclass(slots=True)
class ClusterReader:
    """An `AccountReader` that has a worker read."""

    cluster: Cluster
    task: Task
    _requests: Requests | None = field(default=None, init=False)

    async def read(self) -> AccountYield:
        """See `AccountReader`; a worker's `EtlError` is raised here."""
        task, where = self.task, f"account {self.task.account}"
        if self.cluster.client.status != "running":
            raise self._lost()
        # The largest account first: begun last, it would be read while all other workers have nothing to do.
        future = self.cluster.client.submit(
            read_on_worker, task, key=f"etl-{task.run_id}-{task.account}", priority=task.contacts, pure=False
        )
        try:
            outcome = await self._result(future)
        except KilledWorker as error:
            message = f"{error.allowed_failures + 1} workers died while they read it"
            hint = f"Look into the logs of the workers (memory?). {RESUMABLE}"
            raise SourceUnavailable(message, where=where, hint=hint) from None
        except CancelledError:
            raise self._lost() from None
        finally:
            # Without it, the scheduler would keep the result, and would still start an abandoned task.
            future.release()
        self._requests = outcome.requests
        if isinstance(outcome.result, EtlError):
            raise outcome.result
        return outcome.result

    async def _result(self, future: Any) -> Outcome:
        seen = monotonic()
        while True:
            with anyio.move_on_after(BEAT_SECONDS):
                found: Outcome = await future.result()
                return found
            if self.cluster.client.status != "running":
                raise self._lost()
            # The client asks every two seconds. (It asks for their number only: `workers` is empty.)
            if self.cluster.client.scheduler_info()["n_workers"]:
                seen = monotonic()
            elif monotonic() - seen > self.cluster.patience:
                hint = f"Start workers: dask worker ADDRESS. {RESUMABLE}"
                raise SourceUnavailable("the cluster has no worker", where=f"account {self.task.account}", hint=hint)

    def _lost(self) -> SourceUnavailable:
        return SourceUnavailable("the scheduler was lost", where=f"account {self.task.account}", hint=RESUMABLE)

    def progress(self) -> Progress | None:
        """See `AccountReader`; None until a worker has begun."""
        return self.cluster.beats.get(self.task.account)

    def spent(self) -> Requests:
        """See `AccountReader`; those of attempts that died are not known."""
        if self._requests is not None:
            return self._requests
        last = self.progress()
        return Requests(last.pages) if last else Requests()


@asynccontextmanager
async def cluster(
    address: str, config: Config, run_id: str, patience: float = PATIENCE_SECONDS
) -> AsyncIterator[Cluster]:
    """The cluster of this scheduler, until the block ends. Raises `UsageError`, `SourceUnavailable`."""
    for account in config.read_accounts:
        if not account.base_url:
            hint = "Give it a base_url, or run without --cluster."
            raise UsageError("a cluster cannot read the embedded sandbox", where=f"account {account.name}", hint=hint)
    where = f"--cluster {address}"
    if not re.match("(tcp|tls)://.", address):
        raise UsageError("not the address of a scheduler", where=where, hint="Write it as tcp://HOST:8786 (or tls://).")
    client = Client(address, asynchronous=True, set_as_default=False, timeout=CONNECT_SECONDS)
    try:
        try:
            await client
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            # Which of them it is depends on how far TLS came.
            hint = (
                "Start it (dask scheduler), or correct the address; tls:// needs the certificates in Dask's settings."
            )
            raise SourceUnavailable("the scheduler does not answer", where=where, hint=hint) from error
        fleet = Cluster(client, run_id, patience)
        client.subscribe_topic(TOPIC, fleet.hear)
        log.info("cluster.joined", scheduler=address)
        yield fleet
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_SECONDS):
            await client.close()


# --- the worker -----------------------------------------------------------------------------------------------------


class _LeaseLost(Exception):
    """Another task may have the lease of the token now."""


def read_on_worker(task: Task) -> Outcome:
    """Read one account, in the thread of a worker that has nothing else to do."""
    try:
        _check_worker(task)
        [account] = task.config.accounts
        lease = Semaphore(name=lease_of(read_token(account)), max_leases=1)
        lease.register()
        # A worker that died while it waited would be given the lease, and hold it until it times out.
        while not lease.acquire(timeout=BEAT_SECONDS):
            pass
        try:
            return anyio.run(_read, task, lease)
        finally:
            lease.release()
    except EtlError as error:
        return Outcome(error, Requests())


def lease_of(token: SecretStr) -> str:
    """The name of the lease of a token, on all machines: it does not reveal the token."""
    return "etl-" + hashlib.sha256(b"etl lease of " + token.get_secret_value().encode()).hexdigest()


def _check_worker(task: Task) -> None:
    """Raise `UsageError` or `SinkError` if this worker cannot read the account for the coordinator."""
    worker = f"worker {get_worker().address}"
    if task.version != __version__:
        message = f"the worker has version {__version__} of etl, and this run has {task.version}"
        raise UsageError(message, where=worker, hint="Install the same version on all machines of the cluster.")
    try:
        with files.own_file(task.folder / RUN) as file:
            here = file.read().decode("utf-8", "replace")
    except SinkError:
        if (task.folder / RUN).exists():
            raise
        here = ""
    if here != task.run_id:
        hint = "Mount the folder of the targets (their .etl and stage) at the same path on all machines of the cluster."
        raise SinkError(f"a worker does not see the stage of this run ({task.folder})", where=worker, hint=hint)


async def _read(task: Task, lease: Semaphore) -> Outcome:
    async with sources(task.config) as [source]:
        reader = Takeover(task, source, named(sinks(task.config), task.sink))
        result: AccountYield | EtlError | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_keep, lease, task, reader)
                result = await reader.read()
                tasks.cancel_scope.cancel()
        except* _LeaseLost:
            result = None
        except* EtlError as group:
            result = first_of(group)
    if result is None:
        raise Reschedule
    return Outcome(result, reader.spent())


async def _keep(lease: Semaphore, task: Task, reader: Takeover) -> NoReturn:
    """Report progress; raise `_LeaseLost` if the scheduler was not reached for as long as a lease lasts.

    This happens if the process was suspended, or the network failed: then another task may have got the lease.
    """
    configured = dask.config.get("distributed.scheduler.locks.lease-timeout")
    lasts = math.inf if configured == "inf" else parse_timedelta(configured)
    reached = monotonic()
    while True:
        asked = monotonic()
        with anyio.move_on_after(reached + lasts - asked), suppress(OSError):
            await to_thread.run_sync(lease.get_value, abandon_on_cancel=True)
            reached = asked
        if monotonic() - reached > lasts:
            raise _LeaseLost
        if progress := reader.progress():
            get_worker().log_event(TOPIC, {"run": task.run_id, "progress": asdict(progress)})
        await anyio.sleep(BEAT_SECONDS)
