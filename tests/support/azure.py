"""Azure's object store on this machine: its vendor's emulator, which `make campaigns` installs if there is npm."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from itertools import count
from pathlib import Path
from unittest import mock
from urllib.parse import quote
from xml.etree import ElementTree as ET

EMULATOR = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
_OPTIONS = ("--blobPort", "0", "--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry")
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account of every emulator, as its documentation prints it."""
CREDENTIALS = {"AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": _KEY}
_NUMBERS = count()


class BlobStore:
    """A running store with the container `container`; a client of its own that shares nothing with the product."""

    key = _KEY

    def __init__(self, address: str) -> None:
        self.endpoint = f"{address}/{_ACCOUNT}"
        self._request("PUT", "", restype="container")

    def new_url(self) -> str:
        """The address of a prefix in which there is nothing yet."""
        return f"az://container/tests/{next(_NUMBERS)}"

    def names(self, url: str) -> list[str]:
        """The names of all objects below an address."""
        prefix = url.removeprefix("az://container/") + "/"
        listed = self._request("GET", "", comp="list", prefix=prefix, restype="container")
        found = ET.fromstring(listed)  # noqa: S314 - from the emulator
        return [(name.text or "").removeprefix(prefix) for name in found.iterfind("Blobs/Blob/Name")]

    def get(self, url: str, name: str) -> bytes:
        """The content of an object."""
        return self._request("GET", f"/{url.removeprefix('az://container/')}/{name}")

    def _request(self, method: str, path: str, **query: str) -> bytes:
        """The answer to a request that is signed with the key of the account."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
        signed = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
        resource = "".join(f"\n{name}:{value}" for name, value in sorted(query.items()))
        text = f"{method}{12 * chr(10)}{signed}/{_ACCOUNT}/{_ACCOUNT}/container{quote(path)}{resource}"
        digest = hmac.new(base64.b64decode(_KEY), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
        words = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        address = f"{self.endpoint}/container{quote(path)}{'?' if words else ''}{words}"
        request = urllib.request.Request(address, method=method, headers=headers)  # noqa: S310 - of this machine
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            content: bytes = answer.read()
        return content


@contextmanager
def running() -> Iterator[BlobStore]:
    """A store, and credentials for it in the environment."""
    command = [EMULATOR, *_OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as emulator:  # noqa: S603 - as installed
        try:
            lines = iter(emulator.stdout or ())
            found = next(found for line in lines if (found := re.search(r"listens on (http://\S+)", line)))
            with mock.patch.dict(os.environ, CREDENTIALS):
                yield BlobStore(found[1])
        finally:
            emulator.kill()
