"""Real agents for tests: their files, their process, and a plain TLS client to talk to them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctrl_exec.common.tls import wrap
from tests.support.pki import Leaf, TestCA
from tests.support.processes import Running, run

_addresses = itertools.count(1)


def loopback_address() -> str:
    """An address of 127/8 that no other test process or call uses."""
    number = next(_addresses)
    return f"127.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}.{1 + number % 250}"


@dataclass
class Answer:
    """What came back: status, headers by lower-case name, body, and whether the server closed after it."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class AgentHost:
    """One agent: directories below `directory`, certificates of `ca`, a process when started."""

    def __init__(
        self, directory: Path, ca: TestCA, *, name: str = "host-a", rsa_bits: int = 0, settings: str = ""
    ) -> None:
        self.directory = directory
        self.ca = ca
        self.name = name
        self.ip = loopback_address()
        self.etc, self.state = directory / "etc", directory / "state"
        self.scripts_dir = directory / "scripts"
        for each in (self.etc, self.state, self.scripts_dir):
            each.mkdir(parents=True, exist_ok=True)
        self.leaf = ca.issue(name, rsa_bits=rsa_bits)
        shutil.copy(self.leaf.crt, self.etc / "agent.crt")
        shutil.copy(self.leaf.key_path, self.etc / "agent.key")
        shutil.copy(ca.path, self.etc / "ca.crt")
        self.dispatcher = ca.dispatcher("main")
        self.trust(self.dispatcher.serial, "main")
        self.scripts: dict[str, str] = {}
        self.write_scripts()
        self.configure(settings)
        self.running: Running | None = None

    # -- files ------------------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        """agent.conf."""
        return self.etc / "agent.conf"

    def configure(self, settings: str = "") -> None:
        """Write agent.conf: the roots, a free port of our own address, log on stderr, and these lines."""
        self.config.write_text(
            f"hostname = {self.name}\netc_dir = {self.etc}\nstate_dir = {self.state}\n"
            f"bind = {self.ip}\nport = 0\nlog_target = stderr\n{settings}"
        )

    def trust(self, serial: str, dispatcher: str) -> None:
        """Add a line to the trust map."""
        with (self.state / "ctrl-exec-dispatchers").open("a") as trusted:
            trusted.write(f"{serial} {dispatcher}\n")

    def revoke(self, serial: str) -> None:
        """Add a line to revoked-serials."""
        with (self.etc / "revoked-serials").open("a") as revoked:
            revoked.write(f"{serial}\n")

    def script(self, name: str, text: str, options: str = "") -> Path:
        """Write an executable script and allow it."""
        path = self.scripts_dir / name
        # written aside and renamed: no child forked meanwhile may hold it open for writing (ETXTBSY)
        aside = path.with_suffix(".new")
        aside.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        aside.chmod(0o755)
        aside.rename(path)
        return self.allow(name, path, options)

    def allow(self, name: str, path: Path | str, options: str = "") -> Path:
        """Add an entry to scripts.conf."""
        self.scripts[name] = f"{path} {options}"
        self.write_scripts()
        return Path(path)

    def write_scripts(self) -> None:
        """Write scripts.conf."""
        lines = [f"{name} = {rest}\n" for name, rest in self.scripts.items()]
        (self.etc / "scripts.conf").write_text("".join(lines))

    # -- process ----------------------------------------------------------------------------------

    def start(self, env: dict[str, str] | None = None) -> AgentHost:
        """Start the daemon and wait until it listens."""
        self.running = Running(
            "ctrl-exec-agent",
            "serve",
            "--config",
            self.config,
            log_path=self.directory / "agent.log",
            env=env,
        )
        self.port = self.running.port()
        return self

    def stop(self) -> int:
        """SIGTERM and wait."""
        assert self.running is not None
        return self.running.stop()

    def log(self) -> str:
        """The log so far."""
        assert self.running is not None
        return self.running.log()

    def command(self, *arguments: object, **options: Any) -> Any:
        """Run another command of the agent's program to its end."""
        return run("ctrl-exec-agent", "--config", self.config, *arguments, **options)

    def __enter__(self) -> AgentHost:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        if self.running is not None:
            self.running.__exit__()

    # -- requests ---------------------------------------------------------------------------------

    def connect(
        self, leaf: Leaf | None = None, *, has_certificate: bool = True, source: str | None = None
    ) -> ssl.SSLSocket:
        """A TLS connection, by default as the trusted dispatcher."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.ca.path)
        if has_certificate:
            context.load_cert_chain((leaf or self.dispatcher).pem)
        plain = socket.create_connection(
            (self.ip, self.port), timeout=60, source_address=(source, 0) if source else None
        )
        try:
            return wrap(context, plain)
        except BaseException:
            plain.close()
            raise

    def ask(
        self, method: str, path: str, body: Any = None, *, leaf: Leaf | None = None, source: str | None = None
    ) -> Answer:
        """One request on one connection."""
        with self.connect(leaf, source=source) as connection:
            send(connection, method, path, body)
            return receive(connection)

    def run(self, script: str, *args: str, reqid: str = "", **more: Any) -> dict[str, Any]:
        """`POST /run`; the body of the answer."""
        reqid = reqid or os.urandom(8).hex()
        body = {"script": script, "args": list(args), "reqid": reqid, "username": "u", "token": "t"} | more
        found = self.ask("POST", "/run", body).json()
        assert isinstance(found, dict)
        return found

    def result(self, reqid: str, leaf: Leaf | None = None) -> Answer:
        """`GET /result/{reqid}`."""
        return self.ask("GET", f"/result/{reqid}", leaf=leaf)


def send(
    connection: ssl.SSLSocket,
    method: str,
    path: str,
    body: Any = None,
    *,
    version: str = "1.1",
    headers: str = "",
) -> None:
    """Write one request; a body that is not bytes is sent as JSON."""
    payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/{version}\r\nHost: agent\r\n{headers}Content-Length: {len(payload)}\r\n\r\n"
    connection.sendall(head.encode() + payload)


def receive(connection: ssl.SSLSocket) -> Answer:
    """Read one answer, whole."""
    file = connection.makefile("rb")
    status_line = file.readline()
    if not status_line:
        raise ConnectionError("closed without an answer")
    headers = {}
    while (line := file.readline().decode("latin-1").strip()) != "":
        name, _, text = line.partition(":")
        headers[name.lower()] = text.strip()
    length = int(headers.get("content-length", "0"))
    return Answer(int(status_line.split()[1]), headers, file.read(length))


def connection_outcome(host: AgentHost, leaf: Leaf | None, *, source: str | None = None) -> str:
    """`ok`, the status of a refusal, or the alert that ended a connection with that certificate."""
    try:
        with host.connect(leaf, has_certificate=leaf is not None, source=source) as connection:
            send(connection, "POST", "/ping", {"reqid": "0123456789abcdef"})
            answer = receive(connection)
            return "ok" if answer.status == 200 else f"{answer.status} {answer.body.decode()}"
    except (OSError, ConnectionError) as error:
        return f"closed: {error}"


@contextlib.contextmanager
def started(host: AgentHost, env: dict[str, str] | None = None) -> Iterator[AgentHost]:
    """The agent, running until the block ends."""
    host.start(env)
    try:
        yield host
    finally:
        host.__exit__()
