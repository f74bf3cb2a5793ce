"""Real agents for tests: their files, their process, and a plain TLS client to talk to them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tests.support.addresses import own_ip
from tests.support.pki import Leaf, TestCA
from tests.support.polling import eventually
from tests.support.processes import Running, run
from tests.support.sockets import wrap


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
        self.ip = own_ip()
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
            (self.ip, self.port), timeout=90, source_address=(source, 0) if source else None
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

    @contextlib.contextmanager
    def streaming(self, method: str, path: str, body: Any = None) -> Iterator[Streaming]:
        """An answer that comes line by line."""
        with self.connect() as connection:
            send(connection, method, path, body)
            with connection.makefile("rb") as file:
                yield Streaming(connection, file)

    @contextlib.contextmanager
    def streaming_of(self, steps: Path, body: Any) -> Iterator[tuple[Streaming, TextIO]]:
        """A streamed run of a script that reads that fifo, after its first line `one`; and the fifo."""
        with self.connect() as connection:
            send(connection, "POST", "/run", body)
            with steps.open("w", buffering=1) as fifo, connection.makefile("rb") as file:
                fifo.write("one\n")
                yield Streaming(connection, file), fifo

    def reload(self) -> None:
        """SIGHUP, and wait until it was heeded."""
        assert self.running is not None
        before = self.log().count("ACTION=reload")
        os.kill(self.running.pid, signal.SIGHUP)
        eventually(lambda: self.log().count("ACTION=reload") > before)

    def cancel(self, reqid: str, leaf: Leaf | None = None) -> Answer:
        """`POST /cancel`."""
        return self.ask("POST", "/cancel", {"reqid": reqid}, leaf=leaf)

    def result(self, reqid: str, leaf: Leaf | None = None) -> Answer:
        """`GET /result/{reqid}`."""
        return self.ask("GET", f"/result/{reqid}", leaf=leaf)


class Streaming:
    """A streamed answer: `lines()` as they come; `texts` and `at` are what was there so far of each stream."""

    def __init__(self, connection: ssl.SSLSocket, file: BinaryIO) -> None:
        self.connection = connection
        self._file = file
        self.texts = {"stdout": "", "stderr": ""}
        self.at = {"stdout": 0, "stderr": 0}
        self.last: dict[str, Any] = {}
        self.openings: list[dict[str, Any]] = []
        self.status, self.headers = _read_head(file)
        self._lines = self._read_lines()

    def lines(self) -> Iterator[dict[str, Any]]:
        """Each with output; the last is in `last` then, those without in `openings`. It goes on where it was."""
        return self._lines

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        rest = b""
        for chunk in chunks(self._file):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in map(json.loads, whole):
                if "stream" not in line:
                    self.last = line
                    continue
                if not line["text"]:
                    self.openings.append(line)
                    continue
                self.texts[line["stream"]] += line["text"]
                self.at[line["stream"]] = line["at"]
                yield line
        assert rest == b""

    def lines_unkept(self) -> Iterator[dict[str, Any]]:
        """As `lines`, for what is too much to keep."""
        for line in self.lines():
            self.texts[line["stream"]] = ""
            yield line

    def body_bytes(self) -> int:
        """How many bytes the body has."""
        return sum(map(len, chunks(self._file)))

    def finish(self) -> dict[str, Any]:
        """Read to the end; the result with all output, whatever way it came."""
        for _ in self.lines():
            pass
        begins = self.last.get("from", self.at)
        assert all(begins[stream] == at for stream, at in self.at.items() if at)
        return self.last | {stream: text + self.last[stream] for stream, text in self.texts.items()}


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
    status, headers = _read_head(file)
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join(chunks(file))
    else:
        body = file.read(int(headers.get("content-length", "0")))
    return Answer(status, headers, body)


def _read_head(file: BinaryIO) -> tuple[int, dict[str, str]]:
    status_line = file.readline()
    if not status_line:
        raise ConnectionError("closed without an answer")
    headers = {}
    while (line := file.readline().decode("latin-1").strip()) != "":
        name, _, text = line.partition(":")
        headers[name.lower()] = text.strip()
    return int(status_line.split()[1]), headers


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """The pieces of a chunked body, as they come."""
    while size := int(_line(file), 16):
        chunk = file.read(size)
        if len(chunk) < size or _line(file):
            raise ConnectionError("cut off within a chunk")
        yield chunk
    _line(file)


def _line(file: BinaryIO) -> str:
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("cut off")
    return line.decode("latin-1").strip()


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
