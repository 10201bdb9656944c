"""An object store over real HTTP (moto), behind a proxy that loses, refuses and cuts what a test says."""

from __future__ import annotations

import http.client
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer

SECRET = "s3cr3t-of-the-object-store"  # noqa: S105 - of a store that checks none
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}

Fault = Callable[[int, str, str], str]
"""What happens to a request, given its number from 0, its method and its path.

    unheard     it does not arrive
    503, ...    it is refused with this status (`_CODES`), and not done
    lost        it is done, and the answer does not arrive
    then 412    it is done, and the answer has this status
    cut         it is done, and half of the answer arrives
    careless    it is done without its precondition
    stale       a list is answered as it was when it was last answered without this fault

Otherwise nothing.
"""


_NUMBERS = count()
"""Numbers of prefixes; all stores of one process hold the same objects."""


class ObjectStore:
    """A running store. `fault` decides about each request; `requests` has those since the last `reset`."""

    def __init__(self, moto: tuple[str, int]) -> None:
        self._lock = threading.Lock()
        self.fault: Fault = lambda *_: ""
        self.requests: list[tuple[str, str]] = []
        self._proxy = _Proxy(self, moto)
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._proxy.server_port}"
        with mock.patch.dict(os.environ, {"AWS_EC2_METADATA_DISABLED": "true"}):
            self.client = boto3.client(
                "s3",
                endpoint_url=f"http://{moto[0]}:{moto[1]}",
                region_name="us-east-1",
                aws_access_key_id="test",
                aws_secret_access_key="test",  # noqa: S106 - the server checks none
            )
        self.client.create_bucket(Bucket="bucket")

    def new_url(self) -> str:
        """The address of a prefix in which there is nothing yet."""
        return f"s3://bucket/tests/{next(_NUMBERS)}"

    def reset(self, fault: Fault = lambda *_: "") -> None:
        """Forget the requests, and treat the next ones as `fault` says."""
        with self._lock:
            self.requests, self.fault = [], fault

    def names(self, url: str) -> list[str]:
        """The names of all objects below an address."""
        prefix = url.removeprefix("s3://bucket/") + "/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
        return [found["Key"].removeprefix(prefix) for page in pages for found in page.get("Contents", ())]

    def get(self, url: str, name: str) -> bytes:
        """The content of an object."""
        key = f"{url.removeprefix('s3://bucket/')}/{name}"
        content: bytes = self.client.get_object(Bucket="bucket", Key=key)["Body"].read()
        return content

    def put(self, url: str, name: str, content: bytes) -> None:
        """Write an object, whether there is one or not."""
        self.client.put_object(Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/{name}", Body=content)

    def delete(self, url: str, name: str) -> None:
        """Delete an object."""
        self.client.delete_object(Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/{name}")

    def close(self) -> None:
        """Stop the proxy."""
        self._proxy.shutdown()
        self._proxy.server_close()
        self.client.close()

    def seen(self, method: str, path: str) -> str:
        """Count a request; return what happens to it."""
        with self._lock:
            number = len(self.requests)
            self.requests.append((method, path))
            return self.fault(number, method, path)


class _Proxy(ThreadingHTTPServer):
    """Forwards requests to the store as its `fault` says."""

    daemon_threads = True

    def __init__(self, store: ObjectStore, moto: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = store
        self.moto = moto
        self.lists: dict[str, bytes] = {}
        """The last answer to each request for a list."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fault = self.server.store.seen(self.command, self.path)
        if fault in _CODES:
            self._answer(int(fault), [], _document(fault))
            return
        if fault == "unheard":
            self.close_connection = True
            return
        if fault == "careless":
            del self.headers["if-none-match"]
        lists = self.server.lists
        if fault == "stale" and self.path in lists:
            self._answer(200, [], lists[self.path])
            return
        status, headers, content = self._forwarded(body)
        if "list-type" in self.path:
            lists[self.path] = content
        if fault == "lost":
            self.close_connection = True
        elif fault.startswith("then "):
            code = fault.removeprefix("then ")
            self._answer(int(code), [], _document(code))
        else:
            self._answer(status, headers, content, cut=fault == "cut")

    def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.server.moto, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        with connection.getresponse() as answer:
            result = answer.status, answer.getheaders(), answer.read()
        connection.close()
        return result

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - the names that the server calls

    def log_message(self, *_: object) -> None:
        pass


_CODES = {
    "403": "AccessDenied",
    "404": "NoSuchBucket",
    "409": "ConditionalRequestConflict",
    "412": "PreconditionFailed",
    "500": "InternalError",
    "503": "SlowDown",
}


def _document(status: str) -> bytes:
    return f"<Error><Code>{_CODES[status]}</Code></Error>".encode()


@contextmanager
def running() -> Iterator[ObjectStore]:
    """A store with the bucket `bucket`, and credentials for it in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    with mock.patch.dict(os.environ, CREDENTIALS):
        store = ObjectStore(moto.get_host_and_port())
        try:
            yield store
        finally:
            store.close()
            moto.stop()
