"""Certificates by an authority of our own, made by the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """Signs certificates; its own is in ``ca.pem`` of its folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir()
        self._folder = folder
        self.ca_file = folder / "ca.pem"
        _openssl(
            folder, "req", "-x509", *_EC, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", f"/CN={name}",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name: str, *, address: str = "IP:127.0.0.1", days: int = 2) -> Path:
        """Return a PEM file with a key and its certificate; with no days it has expired a second later."""
        request, key = ("-out", f"{name}.csr"), ("-keyout", f"{name}.key")
        _openssl(self._folder, "req", *_EC, *key, *request, "-subj", f"/CN={name}")
        (self._folder / f"{name}.ext").write_text(f"subjectAltName={address}\nauthorityKeyIdentifier=keyid\n")
        _openssl(
            self._folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", str(days), "-extfile", f"{name}.ext", "-out", f"{name}.crt",
        )  # fmt: skip
        both = self._folder / f"{name}.pem"
        both.write_text((self._folder / f"{name}.key").read_text() + (self._folder / f"{name}.crt").read_text())
        return both

    def with_encrypted_key(self, name: str, password_file: Path) -> Path:
        """Return a PEM file with the key of *name*, encrypted."""
        encrypted = f"{name}-encrypted.key"
        _openssl(
            self._folder, "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", f"{name}.key", "-out", encrypted,
            "-passout", f"file:{password_file}",
        )  # fmt: skip
        return self._folder / encrypted


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
