"""An older deployment's directory, made by openssl alone: an RSA-4096 CA and v1 leaf certificates."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

SERIAL = 4
"""Older deployments count their serials."""


@dataclass
class LegacyDeployment:
    """`ca.key`, `ca.crt`, and the dispatcher's pair under the older program's name."""

    __test__ = False
    directory: Path
    stem: str = "ctrl-exec"
    bits: int = 4096

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._run(
            "req", "-x509", "-newkey", f"rsa:{self.bits}", "-nodes", "-sha256", "-days", "3650",
            "-subj", "/CN=ctrl-exec CA", "-keyout", str(self.ca_key), "-out", str(self.ca_crt),
        )  # fmt: skip
        self.ca_key.chmod(0o600)
        self.issue(self.stem, SERIAL)

    @property
    def ca_key(self) -> Path:
        """The CA's key."""
        return self.directory / "ca.key"

    @property
    def ca_crt(self) -> Path:
        """The CA's certificate."""
        return self.directory / "ca.crt"

    @property
    def dispatcher_crt(self) -> Path:
        """The dispatcher's certificate of version 1."""
        return self.directory / f"{self.stem}.crt"

    @property
    def dispatcher_key(self) -> Path:
        """The dispatcher's key."""
        return self.directory / f"{self.stem}.key"

    def issue(self, name: str, serial: int) -> tuple[Path, Path]:
        """(certificate, key): a v1 leaf with a common name only."""
        key, csr, crt = (self.directory / f"{name}.{end}" for end in ("key", "csr", "crt"))
        self._run(
            "req", "-newkey", f"rsa:{self.bits}", "-nodes", "-sha256", "-subj", f"/CN={name}",
            "-keyout", str(key), "-out", str(csr),
        )  # fmt: skip
        self.sign(csr, crt, serial)
        key.chmod(0o600)
        return crt, key

    def sign(self, csr: Path, crt: Path, serial: int) -> None:
        """Sign a CSR as the older program did: `openssl x509 -req` without extensions gives version 1."""
        self._run(
            "x509", "-req", "-sha256", "-days", "365", "-in", str(csr), "-CA", str(self.ca_crt),
            "-CAkey", str(self.ca_key), "-set_serial", str(serial), "-out", str(crt),
        )  # fmt: skip

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], capture_output=True, check=True, timeout=120)
