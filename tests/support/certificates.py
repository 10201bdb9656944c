"""Certificates for tests of TLS, made with the openssl command: an authority, and servers good and bad."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = shutil.which("openssl")


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its certificate."""

    key: Path
    certificate: Path

    def context(self) -> ssl.SSLContext:
        """The TLS context of a server with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority with its files in a folder."""

    folder: Path

    @classmethod
    def found(cls, folder: Path, *, lax: bool = False) -> Authority:
        """A new authority in `folder`; a `lax` one omits keyUsage, as many private ones do."""
        extensions = ["basicConstraints=critical,CA:true"] + ([] if lax else ["keyUsage=critical,keyCertSign,cRLSign"])
        settings = folder / "ca.cnf"
        settings.write_text("[req]\ndistinguished_name = name\n[name]\n")
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-config", settings, "-subj", "/CN=tests"),
            *("-keyout", folder / "ca.key", "-out", folder / "ca.pem"),
            *(word for extension in (*extensions, "subjectKeyIdentifier=hash") for word in ("-addext", extension)),
        )
        return cls(folder)

    @property
    def bundle(self) -> Path:
        """The file with which clients trust it."""
        return self.folder / "ca.pem"

    def issue(self, name: str, alternative: str, *, until: str = "20991231235959Z") -> Identity:
        """A certificate for a server; `alternative` is its subjectAltName, `until` its end (ASN.1 time)."""
        made = Identity(self.folder / f"{name}.key", self.folder / f"{name}.pem")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.cnf"
        extensions.write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n")
        (self.folder / f"{name}.index").touch()
        _openssl("req", "-new", *_NEW_KEY, "-keyout", made.key, "-out", request, "-subj", f"/CN={name}")
        settings = self.folder / f"{name}.ca.cnf"
        settings.write_text(_AUTHORITY.format(folder=self.folder, name=name))
        _openssl(
            *("ca", "-batch", "-notext", "-config", settings, "-extfile", extensions),
            *("-startdate", "20200101000000Z", "-enddate", until, "-in", request, "-out", made.certificate),
        )
        return made


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_AUTHORITY = """
[ca]
default_ca = tests
[tests]
database = {folder}/{name}.index
new_certs_dir = {folder}
rand_serial = yes
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def _openssl(*arguments: str | Path) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *map(str, arguments)], check=True, capture_output=True)  # noqa: S603 - ours
