"""The objects below one address of an object store (`s3://bucket/prefix`), by their names relative to it.

Stores are those with the interface of S3, and Azure (`az://container/prefix`). Credentials come from the environment
(variables, web identity, container or instance role). Reading, listing, uploading and removing are repeated by the
library; creating is repeated here, because its outcome may be unknown. Errors of the library are raised as `SinkError`,
with the store's error code and never its text. The only module that imports obstore, which belongs to the extra `s3`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, S3Store

from etl.errors import OutcomeUnknown, SinkError, Unreachable
from etl.storage import files

_CONNECT_TIMEOUT, _READ_TIMEOUT, _REQUEST_TIMEOUT = timedelta(seconds=5), timedelta(seconds=30), timedelta(minutes=10)
_RETRIES, _RETRYING = 5, timedelta(minutes=2)
_PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each attempt to create an object."""
_PART_BYTES = 8 * 2**20
_PARTS_AT_ONCE = 4

_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3} [A-Z][A-Za-z ]+)")
NO_ANSWER = "no answer"
_NO_CREDENTIALS = {
    "metadata/identity": "no credentials for Azure",
    "169.254.169.254": "no credentials",
    "169.254.170.2": "no credentials",
    "fd00:ec2::254": "no credentials",
}
"""Addresses at which the library looks for a role of this machine, if the environment holds no credentials."""


class _Reason(NamedTuple):
    """What the reason of a failure means for whoever runs the export."""

    hint: str
    whole_store: bool = True
    """Whether it concerns the store as a whole, not what was asked of it."""


_ACCOUNT = _Reason("Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the role of this machine.")
_RIGHTS = _Reason(
    "Give these credentials s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there.", whole_store=False
)
_REGION = _Reason("Set AWS_REGION to the region of the bucket.", whole_store=False)
_AZURE_ACCOUNT = _Reason(
    "Check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the identity of this machine."
)
_REFUSALS = {
    "NoSuchBucket": _Reason("Create the bucket, or correct its name.", whole_store=False),
    "ContainerNotFound": _Reason("Create the container, or correct its name.", whole_store=False),
    "AuthenticationFailed": _AZURE_ACCOUNT,
    "AuthorizationFailure": _AZURE_ACCOUNT,
    "no credentials for Azure": _AZURE_ACCOUNT,
    "AuthorizationPermissionMismatch": _Reason(
        "Give this identity the role Storage Blob Data Contributor there.", whole_store=False
    ),
    "AccessDenied": _RIGHTS,
    "403": _RIGHTS,
    "InvalidAccessKeyId": _ACCOUNT,
    "SignatureDoesNotMatch": _ACCOUNT,
    "ExpiredToken": _ACCOUNT,
    "InvalidToken": _ACCOUNT,
    "401": _ACCOUNT,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "no credentials": _ACCOUNT,
}
"""Codes and statuses with which a store refuses a request, so that it has done nothing."""
_NO_ANSWER = _Reason("Check the endpoint of the sink and the network, then run again.")
_OTHER = _Reason("Run again later.")
_NO_PLACE = {"NoSuchBucket", "ContainerNotFound"}


class Missing(SinkError):
    """There is no such object."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as the store lists it."""

    bytes: int
    modified: datetime
    """By the clock of the store."""


class Store(Protocol):
    """What `Objects` and `local_objects.LocalObjects` have in common."""

    url: str
    local: Path | None

    def list(self, prefix: str = "") -> dict[str, Listed]: ...  # noqa: D102 - see `Objects`
    def exists(self, name: str) -> bool: ...  # noqa: D102
    def read(self, name: str) -> bytes: ...  # noqa: D102
    def read_range(self, name: str, start: int, length: int) -> bytes: ...  # noqa: D102
    def chunks(self, name: str) -> Iterator[bytes]: ...  # noqa: D102
    def upload(self, path: Path, name: str) -> None: ...  # noqa: D102
    def create(self, name: str, content: bytes) -> bool: ...  # noqa: D102
    def remove(self, names: Iterable[str]) -> None: ...  # noqa: D102
    def settle(self, name: str) -> None: ...  # noqa: D102
    def where(self, name: str) -> str: ...  # noqa: D102


class Objects:
    """The objects below `url`. Objects of this module are never changed, only created and removed.

    `endpoint` is the address of the store, by default that of the environment, or else of AWS or Azure.
    """

    def __init__(self, url: str, endpoint: str = "", *, pause: Callable[[float], object] = sleep) -> None:
        self.url = url
        self.local: Path | None = None
        """The folder of the objects, if they are on this machine."""
        self._endpoint = endpoint
        self._pause = pause

    @cached_property
    def _store(self) -> S3Store | AzureStore:
        """Made when it is first used: settings that it cannot use are an error of this sink alone."""
        return self._connect(_RETRIES)

    def _connect(self, retries: int) -> S3Store | AzureStore:
        config: Any = {"endpoint": self._endpoint} if self._endpoint else {}
        options: Any = {
            "client_options": {
                "allow_http": self._endpoint.startswith("http:"),
                "connect_timeout": _CONNECT_TIMEOUT,
                "read_timeout": _READ_TIMEOUT,
                "timeout": _REQUEST_TIMEOUT,
            },
            "retry_config": {"max_retries": retries, "retry_timeout": _RETRYING},
        }
        if not self.url.startswith("az:"):
            # The store checks what it receives: a connection that changes a byte does not go unnoticed.
            return S3Store.from_url(self.url, config=config | {"checksum_algorithm": "SHA256"}, **options)
        try:
            return AzureStore.from_url(self.url, config=config, **options)
        except BaseError as error:
            message = "the name or the key of the storage account is missing or malformed"
            raise Unreachable(message, where=self.url, hint=_AZURE_ACCOUNT.hint) from error

    def list(self, prefix: str = "") -> dict[str, Listed]:
        """The objects whose names begin with the folders `prefix`, by name."""
        with self._translated("list", prefix):
            pages = list(obstore.list(self._store, prefix or None))
        return {found["path"]: Listed(found["size"], found["last_modified"]) for page in pages for found in page}

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            with self._translated("look for", name):
                obstore.head(self._store, name)
        except Missing:
            return False
        return True

    def read(self, name: str) -> bytes:
        """The content of an object. Raises `Missing`."""
        return self._read(self._store, name)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start`, or fewer at its end. Raises `Missing`."""
        with self._translated("read", name):
            return bytes(obstore.get_range(self._store, name, start=start, length=length))

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of an object in parts of some megabytes. Raises `Missing`."""
        with self._translated("read", name):
            for chunk in obstore.get(self._store, name).stream(min_chunk_size=_PART_BYTES):
                yield bytes(chunk)

    def upload(self, path: Path, name: str) -> None:
        """Write a file to a name that nothing else writes to; large files in parts, which are invisible until the last.

        A lost answer is repeated by the library: the same bytes again do no harm.
        """
        with self._translated("write", name), files.translate_os_errors("read", path):
            obstore.put(self._store, name, path, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def create(self, name: str, content: bytes) -> bool:
        """Create an object in one step and never replace one; return whether it holds `content`.

        False: it exists with another content. No answer, "exists" or a failed precondition may each follow our own
        success, so the object is then read on a new connection and compared. Raises `OutcomeUnknown` if that fails too,
        and `SinkError` if the store refused at once, so that nothing was created.
        """
        uncertain = False
        for pause in _PAUSES:
            self._pause(pause)
            fresh = self._connect(0)
            try:
                with self._translated("create", name):
                    obstore.put(fresh, name, content, mode="create", use_multipart=False)
            except SinkError as error:
                if not (found := _outcome(error)):
                    if uncertain:
                        raise self._unknown(name, error) from error
                    raise
                uncertain = uncertain or found == "unknown"
                last = error
            else:
                return True
            try:
                return self._read(self._connect(_RETRIES), name) == content
            except Missing:
                continue  # The same request again can only create the same object.
            except SinkError as error:
                raise self._unknown(name, error) from error
        raise self._unknown(name, last) from last

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; a missing one is ignored."""
        if chosen := sorted(names):
            # S3 ignores a missing object; Azure reports it, after it has removed all others.
            with suppress(Missing), self._translated("remove", chosen[0]):
                obstore.delete(self._store, chosen)

    def settle(self, name: str) -> None:
        """Do nothing: the store keeps what it has accepted."""

    def _read(self, store: S3Store | AzureStore, name: str) -> bytes:
        with self._translated("read", name):
            return bytes(obstore.get(store, name).bytes())

    def _unknown(self, name: str, error: SinkError) -> OutcomeUnknown:
        return OutcomeUnknown(f"it is not known whether an object was created: {error.message}", where=self.where(name))

    def where(self, name: str) -> str:
        """The address of an object."""
        return f"{self.url}/{name}" if name else self.url

    @contextmanager
    def _translated(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError) as error:
            reason = reason_of(error)
            message, where = f"cannot {what} an object: {reason}", self.where(name)
            if isinstance(error, FileNotFoundError) and reason not in _NO_PLACE:
                raise Missing(message, where=where) from error
            raise as_sink_error(reason, message, where) from error


def reason_of(error: Exception) -> str:
    """The code of the store or the status of its answer; the rest of the message may hold anything."""
    text = str(error)
    if lacking := next((reason for sign, reason in _NO_CREDENTIALS.items() if sign in text), ""):
        return lacking
    found = _CODE.search(text) or _STATUS.search(text)
    return found[1].strip() if found else NO_ANSWER


def is_refused(error: Exception) -> bool:
    """Whether the store has certainly not done what it was asked to do."""
    status = _STATUS.search(str(error))
    client_error = status is not None and status[1][0] == "4" and status[1][:3] not in {"408", "409", "412", "429"}
    return client_error or _meaning(reason_of(error)) in _REFUSALS.values()


def as_sink_error(reason: str, message: str, where: str) -> SinkError:
    """The error, with its hint, for a result of `reason_of`."""
    found = _meaning(reason)
    kind = Unreachable if found.whole_store else SinkError
    return kind(message, where=where, hint=found.hint)


def _meaning(reason: str) -> _Reason:
    known = next((meaning for code, meaning in _REFUSALS.items() if reason.startswith(code)), _OTHER)
    return _NO_ANSWER if reason == NO_ANSWER else known


def _outcome(error: SinkError) -> str:
    """`exists` or `unknown` after a failed creation; empty if the store refused it."""
    cause = error.__cause__
    if isinstance(cause, AlreadyExistsError | PreconditionError):
        return "exists"
    return "" if isinstance(cause, Exception) and is_refused(cause) else "unknown"
