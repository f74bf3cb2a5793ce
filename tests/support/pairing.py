"""A private dispatcher with its pairing port, and a raw client of that port that knows no code of ours."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from ctrl_exec.common.log import Log
from ctrl_exec.config import Config, load_config
from ctrl_exec.operations.pairing import Signer
from ctrl_exec.operations.setup import setup_ca, setup_identity
from tests.support import processes
from tests.support.evidence import note_log
from tests.support.pki import new_key
from tests.support.sockets import wrap

BASE = """\
etc_dir = {home}/etc
state_dir = {home}/state
dispatcher_id = main
pairing_bind = 127.0.0.1
pairing_port = 0
log_target = stderr
"""


class Instance:
    """A private dispatcher below `home`, set up; further settings may be given as lines."""

    def __init__(self, home: Path, settings: str = "", *, is_set_up: bool = True) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.conf = home / "ctrl-exec.conf"
        self.signer_log = io.StringIO()
        self.conf.write_text(BASE.format(home=home) + settings)
        if is_set_up:
            setup_ca(self.config)
            setup_identity(self.config)

    @property
    def config(self) -> Config:
        """The settings as the programs read them."""
        return load_config(str(self.conf))

    def signer(self) -> Signer:
        """A signer in this process, its log in `signer_log`."""
        return Signer(self.config, Log("test", "stderr", "text", stream=self.signer_log))

    def run(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """One command of `ctrl-exec` on this instance."""
        return processes.run("ctrl-exec", "--config", self.conf, *words, **options)

    def json(self, *words: object, code: int = 0) -> Any:
        """The JSON document of one command, which must end with the code."""
        done = self.run("--json", *words)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    @property
    def ca_der(self) -> bytes:
        """The CA's certificate."""
        return ssl.PEM_cert_to_DER_cert(Path(self.config.ca_cert_path).read_text())

    @property
    def ca_fingerprint(self) -> str:
        """Its SHA-256."""
        return hashlib.sha256(self.ca_der).hexdigest()

    def pairing_mode(self, *words: object) -> processes.Running:
        """`ctrl-exec pairing-mode` as a process."""
        return processes.Running(
            "ctrl-exec", "--config", self.conf, "pairing-mode", *words, log_path=self.home / "pairing.log"
        )


class ListenerProcess:
    """The pairing listener alone, as pairing mode starts it, with this process as its signer."""

    def __init__(self, instance: Instance) -> None:
        self.log_path = instance.home / "listener.log"
        note_log(self.log_path, "pairing listener")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ctrl_exec.pairing.main", str(instance.conf)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=processes.environment(),
            )  # fmt: skip
        assert self.process.stdout is not None
        self.report = json.loads(self.process.stdout.readline())
        assert "addresses" in self.report, self.report
        self.port = int(self.report["addresses"][0].rpartition(":")[2])

    def log(self) -> str:
        """What it has logged."""
        return self.log_path.read_text()

    def stop(self) -> int:
        """End it as pairing mode does; its exit code."""
        self.process.terminate()
        code = self.process.wait(60)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return code


@contextlib.contextmanager
def listening(instance: Instance) -> Iterator[ListenerProcess]:
    """The listener of the instance for the length of a block."""
    listener = ListenerProcess(instance)
    try:
        yield listener
    finally:
        listener.stop()


class RawAgent:
    """Something that pairs, byte by byte; its key and CSR are made by an independent library."""

    def __init__(self, name: str = "web-01", *, bits: int = 0) -> None:
        self.name = name
        self.key = new_key(bits)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever")])
        made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self.key, hashes.SHA256())
        self.csr_der = made.public_bytes(serialization.Encoding.DER)
        self.csr = made.public_bytes(serialization.Encoding.PEM).decode()
        self.reveal = os.urandom(32)

    @property
    def spki(self) -> bytes:
        """The public key."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def legacy_request(self, **changes: object) -> dict[str, object]:
        """What an older agent sends."""
        return {"hostname": self.name, "csr": self.csr, "nonce": os.urandom(16).hex()} | changes

    def request(self, **changes: object) -> dict[str, object]:
        """What an agent of protocol 2 sends."""
        commit = hashlib.sha256(self.reveal).hexdigest()
        return self.legacy_request() | {"protocol": 2, "commit": commit} | changes

    def code(self, ca_der: bytes, server_der: bytes, server_random: str) -> str:
        """The code of protocol 2, computed here."""
        parts = self.csr_der + ca_der + server_der + self.reveal + bytes.fromhex(server_random)
        return f"{int.from_bytes(hashlib.sha256(parts).digest()[:4], 'big') % 10**6:06d}"


class RawClient:
    """One TLS connection to a pairing port."""

    def __init__(self, port: int, *, timeout_s: float = 60) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.socket = wrap(context, plain)
        self.server_der = self.socket.getpeercert(binary_form=True) or b""
        self._buffer = b""

    def send(self, payload: bytes) -> None:
        """These very bytes."""
        self.socket.sendall(payload)

    def post(self, document: object, *, head: str = "", version: str = "1.0") -> None:
        """`POST /pair` with the document as JSON (bytes as they are)."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        lines = f"POST /pair HTTP/{version}\r\n{head}Content-Length: {len(body)}\r\n\r\n"
        self.send(lines.encode() + body)

    def reveal(self, random: bytes) -> None:
        """The line that opens the commitment."""
        self.send(json.dumps({"reveal": random.hex()}).encode() + b"\n")

    def answer(self) -> tuple[str, dict[str, str], Any]:
        """(status line, headers, JSON body) of the next answer."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
        length = int(headers["content-length"])
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return status, headers, json.loads(body)

    def _more(self) -> None:
        chunk = self.socket.recv(65536)
        if not chunk:
            raise EOFError("the server closed the connection")
        self._buffer += chunk

    def document(self, version: str = "1.0") -> Any:
        """The JSON of the next answer, which must be a 200."""
        status, _, document = self.answer()
        assert status == f"HTTP/{version} 200 OK", (status, document)
        return document

    def is_closed(self, within_s: float) -> bool:
        """Whether the server closes within the time without another answer."""
        deadline = time.monotonic() + within_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self.socket.pending() or select.select([self.socket], [], [], left_s)[0]:
                try:
                    if not self.socket.recv(65536):
                        return True
                except (ssl.SSLError, OSError):
                    return True
        return False

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def queue_one(listener_port: int, agent: RawAgent, **changes: object) -> tuple[RawClient, Any]:
    """A connection whose request of protocol 2 waits in the queue, and its pending answer."""
    client = RawClient(listener_port)
    client.post(agent.request(**changes))
    pending = client.document()
    assert pending["status"] == "pending", pending
    client.reveal(agent.reveal)
    return client, pending
