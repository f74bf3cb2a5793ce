"""Thousands of agents in one process: one listening socket, one address of 127/8 and one certificate each.

Speaks the real protocol of port 7443 over real TLS (ping, run, capabilities, result, cancel, streams), plainly
as agents of ours do, in the manner of an older peer, or lying in one of the ways of `LIES`.

    python -m tests.support.emulator --count 1000 --directory DIR [--registry AGENTS_DIR]

makes a CA and a dispatcher identity below DIR unless they are there, prints one JSON line
(`{"port", "pid", "ca", "identity"}`) once it serves, and runs until it is killed.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import json
import os
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

from tests.support.emulated_run import STREAMS, EmulatedRun
from tests.support.sockets import wrap

FEATURES = ["async", "stream", "cancel", "timeout", "keepalive", "result", "base64", "secrets"]
_LAST_LINE_BYTES = 65536
_OPENS_AFTER_S = 0.05  # so long a script runs before the agent says so
OLD_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

_EVENTS = {"read": select.EPOLLIN, "write": select.EPOLLOUT, "sleep": 0}
Wish = tuple[str, float]  # ("read" | "write" | "sleep", seconds of the sleep)
Steps = Generator[Wish, None, None]


@dataclass
class Agent:
    """One emulated agent: who it is and how it behaves.

    `stdout_bytes` adds that many `x` to stdout, `date_shift_s` a `Date` header of a clock that is so far off. `older` speaks as agents of the Perl system do:
    HTTP/1.0 answers, no `features`, no encoding, no detached runs. After `closes_after` requests a
    connection is closed although it was to stay open, after `breaks_after` the next request on it is read
    and the connection reset. `tickets` of TLS are given out.

    A run prints `lines` lines after the rest of its stdout, one each `line_every_s` seconds (`line 00000001`, padded to
    `line_bytes`; `stamped` adds the epoch time). `cancel_takes_s` it lives on after a cancel. After `lost_after_s`
    the process that carries it is as if killed. A streamed answer is cut off after `stream_breaks_after` lines of it.
    """

    name: str
    ip: str
    pem: str
    ca: str
    delay_s: float = 0.0
    exit: int = 0
    stdout: str = "ok\n"
    stderr: str = ""
    stdout_bytes: int = 0
    lie: str = ""
    older: bool = False
    version: str = "0.1.0"
    expiry: str = "Jan 15 12:00:00 2036 GMT"
    tags: dict[str, str] = field(default_factory=dict)
    features: list[str] = field(default_factory=lambda: list(FEATURES))
    refuse: str = ""
    recorded: str = ""
    status: int = 200
    truncated: dict[str, int] = field(default_factory=dict)
    date_shift_s: float | None = None
    closes_after: int = 0
    breaks_after: int = 0
    tickets: int = 0
    lines: int = 0
    line_every_s: float = 0.0
    line_bytes: int = 0
    stamped: bool = False
    cancel_takes_s: float = 0.0
    lost_after_s: float = 0.0
    stream_breaks_after: int = 0


class GoneError(Exception):
    """The other side closed, or we want to."""


class Connection:
    """One accepted connection, driven by the generator of its agent."""

    def __init__(self, sock: socket.socket, agent: Agent, emulator: Emulator) -> None:
        self.sock = sock
        self.agent = agent
        self.emulator = emulator
        self.received = bytearray()
        self.number = next(emulator.numbers)
        self.served = 0
        self.keeps = False
        self.wish = "read"
        self.steps: Steps = self.serve()

    def serve(self) -> Steps:
        lie = LIES.get(self.agent.lie)
        if lie is not None and lie.is_before_tls:
            yield from lie.tell(self, "", {})
            return
        yield from self.shake_hands()
        if lie is not None and lie.is_before_request:
            yield from lie.tell(self, "", {})
            return
        while True:
            request = yield from self.read_request()
            if request is None:
                return
            method, path, headers, body = request
            assert isinstance(self.sock, ssl.SSLSocket)
            self.emulator.note(
                self.agent, method, path, headers, body, self.number, bool(self.sock.session_reused)
            )
            if self.agent.breaks_after and self.served >= self.agent.breaks_after:
                self.reset()
            self.served += 1
            if lie is not None:
                yield from lie.tell(self, path, body)
                return
            if self.agent.recorded:
                yield from self.send(self.agent.recorded.encode("latin-1"))
                return
            self.keeps = not self.agent.older and headers.get("connection", "").lower() == "keep-alive"
            yield from self.answer(method, path, body)
            if not self.keeps or self.served == self.agent.closes_after:
                self.goodbye()
                return

    def shake_hands(self) -> Steps:
        context = self.emulator.context(self.agent)
        self.sock = wrap(context, self.sock, server_side=True, handshake=False)
        yield from self.until(self.sock.do_handshake)

    def until(self, attempt: Callable[[], Any]) -> Generator[Wish, None, Any]:
        while True:
            try:
                return attempt()
            except (ssl.SSLWantReadError, BlockingIOError):
                yield "read", 0.0
            except ssl.SSLWantWriteError:
                yield "write", 0.0

    def read_request(self) -> Generator[Wish, None, tuple[str, str, dict[str, str], dict[str, Any]] | None]:
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            piece = yield from self.until(lambda: self.sock.recv(16384))
            if not piece:
                return None
            self.received += piece
        lines = self.received[:end].decode("latin-1").split("\r\n")
        headers = {
            name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])
        }
        length = int(headers.get("content-length", "0"))
        while len(self.received) < end + 4 + length:
            piece = yield from self.until(lambda: self.sock.recv(65536))
            if not piece:
                return None
            self.received += piece
        body = bytes(self.received[end + 4 : end + 4 + length])
        del self.received[: end + 4 + length]
        method, path, _ = lines[0].split(" ")
        return method, path, headers, json.loads(body) if body else {}

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Steps:
        if path == "/run":
            yield from self.run(body)
        elif path == "/ping":
            if self.agent.delay_s:
                yield "sleep", self.agent.delay_s
            yield from self.reply(self.agent.status, self.about("expiry") | {"reqid": body.get("reqid", "")})
        elif path == "/capabilities" and method == "GET":
            scripts = [{"name": "hello", "path": "/opt/ctrl-exec-scripts/hello", "executable": True}]
            yield from self.reply(200, self.about("tags") | {"scripts": scripts})
        elif path.startswith("/result/") and not self.agent.older:
            yield from self.result(path.removeprefix("/result/"))
        elif path == "/cancel" and self.has("cancel"):
            yield from self.cancel(body)
        else:
            yield from self.reply(404, {"error": "not found"})

    def about(self, *extra: str) -> dict[str, Any]:
        agent = self.agent
        shown = {"status": "ok", "host": agent.name, "version": agent.version, "staged": False}
        shown |= {each: getattr(agent, each) for each in extra}
        return shown if agent.older else shown | {"features": agent.features}

    def run(self, body: dict[str, Any]) -> Steps:
        agent = self.agent
        common = {"script": body["script"], "reqid": body["reqid"]}
        if agent.refuse:
            yield from self.reply(200, common | {"exit": -1, "error": agent.refuse})
            return
        run = self.emulator.begin(agent, body)
        if body.get("async") and not agent.older:
            yield from self.reply(202, common | {"status": "accepted"})
            return
        if body.get("stream") and self.has("stream"):
            yield from self.stream(run, {"stdout": 0, "stderr": 0}, is_order=True)
            return
        run.waiting.append(self)
        while not run.is_over(now := time.monotonic()):
            yield "sleep", run.over_at() - now
        if run.is_lost(time.monotonic()):
            self.reset()
        yield from self.reply(200, common | run.answer(time.monotonic()))

    def has(self, feature: str) -> bool:
        return feature in self.agent.features and not self.agent.older

    def result(self, target: str) -> Steps:
        reqid, _, query = target.partition("?")
        wanted = dict(part.split("=", 1) for part in query.split("&") if part)
        run = self.emulator.find(self.agent, reqid)
        if run is None:
            yield from self.reply(404, {"status": "unknown", "reqid": reqid})
        elif wanted.get("stream") == "1" and self.has("stream"):
            at = {stream: int(wanted.get(stream, 0)) for stream in STREAMS}
            yield from self.stream(run, at, is_order=False)
        else:
            yield from self.reply(200, run.record(time.monotonic()))

    def cancel(self, body: dict[str, Any]) -> Steps:
        run = self.emulator.find(self.agent, body["reqid"])
        if run is None:
            yield from self.reply(404, {"status": "unknown", "reqid": body["reqid"]})
            return
        due = run.cancel(time.monotonic())
        for connection in run.waiting:
            self.emulator.wake(connection, run.ends_at())
        while (now := time.monotonic()) < due:
            yield "sleep", due - now
        ended = run.is_over(time.monotonic())
        yield from self.reply(200, {"status": "ok", "ended": ended, "reqid": run.reqid})

    def stream(self, run: EmulatedRun, at: dict[str, int], *, is_order: bool) -> Steps:
        """The lines of a run from these offsets on, and its result as the last one."""
        run.waiting.append(self)
        has_begun, has_opened, sent = not is_order, False, 0
        opens_at = run.begun_at + _OPENS_AFTER_S
        if has_begun:
            yield from self.send(self.stream_head())
        while True:
            now = time.monotonic()
            is_over = run.is_over(now)
            if not (has_opened or is_over) and (now >= opens_at or not is_order):
                if not has_begun:
                    yield from self.send(self.stream_head())
                has_begun = has_opened = True
                yield from self.chunk({"stream": "stdout", "text": "", "at": at["stdout"]})
            for stream in STREAMS:
                while run.size(stream, now) - at[stream] > (_LAST_LINE_BYTES if is_over else 0):
                    text, used = run.piece(stream, at[stream], now)
                    if not used:
                        break
                    if not has_begun:
                        yield from self.send(self.stream_head())
                        has_begun = True
                    at[stream] += used
                    yield from self.chunk({"stream": stream, "text": text, "at": at[stream]})
                    sent += 1
                    if sent == self.agent.stream_breaks_after:
                        self.reset()
            if is_over:
                break
            due = run.changes_at(now) if has_opened else min(opens_at, run.changes_at(now))
            yield "sleep", max(0.001, due - now)
        if is_order and run.is_lost(now):
            self.reset()
        last = run.record(now, at) if not is_order else {
            "script": run.script, "reqid": run.reqid, **run.answer(now, at)
        }  # fmt: skip
        if has_begun:
            last["from"] = at
        else:
            yield from self.send(self.stream_head())
        yield from self.chunk(last)
        yield from self.send(b"0\r\n\r\n")

    def stream_head(self) -> bytes:
        head = self.head(200, None).replace(b"application/json", b"application/x-ndjson")
        return head.removesuffix(b"\r\n") + b"Transfer-Encoding: chunked\r\n\r\n"

    def chunk(self, document: dict[str, Any]) -> Steps:
        line = json.dumps(document).encode() + b"\n"
        yield from self.send(b"%x\r\n%b\r\n" % (len(line), line))

    def reply(self, status: int, document: dict[str, Any]) -> Steps:
        body = json.dumps(document).encode()
        yield from self.send(self.head(status, len(body)) + body)

    def head(self, status: int, length: int | None) -> bytes:
        version = "1.0" if self.agent.older else "1.1"
        lines = [f"HTTP/{version} {status} OK", "Content-Type: application/json"]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        if self.agent.date_shift_s is not None:
            lines.append(f"Date: {formatdate(time.time() + self.agent.date_shift_s, usegmt=True)}")
        connection = "keep-alive" if self.keeps else "close"
        return "\r\n".join([*lines, f"Connection: {connection}", "", ""]).encode()

    def send(self, payload: bytes) -> Steps:
        view = memoryview(payload)
        while view:
            sent = yield from self.until(functools.partial(self.sock.send, view))
            view = view[sent:]

    def goodbye(self) -> None:
        if isinstance(self.sock, ssl.SSLSocket) and not self.agent.older:  # the older peer just closes
            try:
                self.sock.unwrap()
            except (OSError, ValueError):
                pass

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise GoneError

    def forever(self) -> Steps:
        while True:
            yield "sleep", 3600.0


# The lies


@dataclass(frozen=True)
class Lie:
    tell: Callable[[Connection, str, dict[str, Any]], Steps]
    is_before_tls: bool = False
    is_before_request: bool = False


def _silent(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.forever()


def _reset(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    on.reset()
    yield "read", 0.0


def _garbage(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(b"\x00\xffgarbage, not TLS at all" * 40)
    yield from on.forever()


def _plain_http(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(b"HTTP/1.0 400 Bad Request\r\n\r\n")
    yield from on.forever()


def _endless(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(on.head(200, None))
    while True:
        yield from on.send(b"x" * 65536)


def _endless_chunks(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    while True:
        yield from on.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def _huge_length(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(on.head(200, 1 << 40))
    yield from on.forever()


def _headers(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        yield from on.send(b"X-Filler: " + b"y" * 1000 + b"\r\n")


def _one_header(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    while True:
        yield from on.send(b"y" * 65536)


def _interim(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    while True:
        yield from on.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def _trailers(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
    while True:
        yield from on.send(b"X-Trailer: y\r\n" * 1000)


def _drip(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(on.head(200, 100_000))
    while True:
        yield from on.send(b" ")
        yield "sleep", 0.05


def _too_short(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(on.head(200, 5) + b'{"status": "ok"}')


def _too_long(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(on.head(200, 5000) + b'{"status": "ok"}')


def _cut(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    yield from on.send(on.head(200, 5000) + b'{"status": ')
    on.reset()


def _close(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    on.goodbye()
    return
    yield "read", 0.0


def _early(on: Connection, path: str, body: dict[str, Any]) -> Steps:
    """Refuse a request that is too large from its first bytes, as servers do, and close."""
    yield from on.until(lambda: on.sock.recv(1024))
    payload = b'{"error": "payload too large"}'
    yield from on.send(on.head(413, len(payload)) + payload)


def _whole(payload: bytes) -> Callable[[Connection, str, dict[str, Any]], Steps]:
    def tell(on: Connection, path: str, body: dict[str, Any]) -> Steps:
        yield from on.send(on.head(200, len(payload)) + payload)

    return tell


def _raw(payload: bytes) -> Callable[[Connection, str, dict[str, Any]], Steps]:
    def tell(on: Connection, path: str, body: dict[str, Any]) -> Steps:
        yield from on.send(payload)

    return tell


LIES: dict[str, Lie] = {
    # before there is TLS
    "reset": Lie(_reset, is_before_tls=True),
    "no handshake": Lie(_silent, is_before_tls=True),
    "garbage": Lie(_garbage, is_before_tls=True),
    "plain http": Lie(_plain_http, is_before_tls=True),
    "early": Lie(_early, is_before_request=True),
    # after the request
    "never": Lie(_silent),
    "reset late": Lie(_reset),
    "close": Lie(_close),
    "cut": Lie(_cut),
    "too long": Lie(_too_long),
    "too short": Lie(_too_short),
    "endless": Lie(_endless),
    "endless chunks": Lie(_endless_chunks),
    "huge length": Lie(_huge_length),
    "headers": Lie(_headers),
    "one header": Lie(_one_header),
    "interim": Lie(_interim),
    "trailers": Lie(_trailers),
    "drip": Lie(_drip),
    "no json": Lie(_whole(b"<html>not what you asked for</html>")),
    "a list": Lie(_whole(b"[1, 2, 3]")),
    "empty": Lie(_whole(b"")),
    "nested": Lie(_whole(b"[" * 100_000)),
    "bad utf-8": Lie(_whole(b'{"status": "\xff\xfe"}')),
    "wrong types": Lie(_whole(b'{"status": 7, "exit": "no", "stdout": {}, "stderr": [], "version": 1}')),
    "huge number": Lie(_whole(b'{"status": "ok", "exit": ' + b"9" * 5000 + b"}")),
    "no http": Lie(_raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n\r\n")),
    "bad status": Lie(_raw(b"HTTP/1.1 999 What\r\n\r\n")),
    "bad chunk": Lie(_raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")),
    "two lengths": Lie(_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}")),
}


class Emulator:
    """The loop that serves all agents."""

    def __init__(self, agents: list[Agent], *, log_path: str = "") -> None:
        self.agents = {agent.ip: agent for agent in agents}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._runs: dict[tuple[str, str], EmulatedRun] = {}
        self._log = open(log_path, "a", buffering=1) if log_path else None  # noqa: SIM115
        # one socket for all of 127/8: who is called is the local address of the connection
        self.listener = socket.create_server(("0.0.0.0", 0), backlog=4096)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self.numbers = itertools.count(1)
        self._sleepers: list[tuple[float, int, Connection]] = []
        self._order = itertools.count()

    def context(self, agent: Agent) -> ssl.SSLContext:
        """The agent's own context, made at its first connection."""
        if agent.pem not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.num_tickets = agent.tickets
            _load_with_issuer(context, agent)
            context.load_verify_locations(agent.ca)
            context.verify_mode = ssl.CERT_REQUIRED
            self._contexts[agent.pem] = context
        return self._contexts[agent.pem]

    def note(
        self,
        agent: Agent,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Any,
        connection: int,
        is_resumed: bool,
    ) -> None:
        """Write the request down for the tests."""
        if self._log is not None:
            line = {
                "host": agent.name, "method": method, "path": path, "headers": headers, "body": body,
                "connection": connection, "resumed": is_resumed,
            }  # fmt: skip
            self._log.write(json.dumps(line) + "\n")

    def begin(self, agent: Agent, body: dict[str, Any]) -> EmulatedRun:
        """Spool a run that begins now."""
        made = EmulatedRun(agent, body)
        self._runs[agent.name, body["reqid"]] = made
        return made

    def find(self, agent: Agent, reqid: str) -> EmulatedRun | None:
        """The run of that request id."""
        return self._runs.get((agent.name, reqid))

    def wake(self, connection: Connection, at: float) -> None:
        """Have the connection go on at that time, whatever it sleeps for."""
        heapq.heappush(self._sleepers, (at, next(self._order), connection))

    def run(self) -> None:
        """Serve until the process ends."""
        self._epoll.register(self.listener.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
        while True:
            wait_s = max(0.0, self._sleepers[0][0] - time.monotonic()) if self._sleepers else -1
            for fd, _ in self._epoll.poll(wait_s, 4096):
                if fd == self.listener.fileno():
                    self._accept()
                elif fd in self._connections:
                    self._go_on(self._connections[fd], fd)
            now = time.monotonic()
            while self._sleepers and self._sleepers[0][0] <= now:
                connection = heapq.heappop(self._sleepers)[2]
                fd = connection.sock.fileno()
                if self._connections.get(fd) is connection:
                    self._go_on(connection, fd)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            agent = self.agents.get(sock.getsockname()[0])
            if agent is None:
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fd = sock.fileno()
            connection = self._connections[fd] = Connection(sock, agent, self)
            self._epoll.register(fd, select.EPOLLIN)
            if agent.lie:  # others wait for the client's first word
                self._go_on(connection, fd)

    def _go_on(self, connection: Connection, fd: int) -> None:
        try:
            wish, duration_s = next(connection.steps)
        except (StopIteration, GoneError, OSError):
            self._connections.pop(fd, None)
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass
            connection.sock.close()
            return
        if wish == "sleep":
            heapq.heappush(self._sleepers, (time.monotonic() + duration_s, next(self._order), connection))
        if wish != connection.wish:
            connection.wish = wish
            self._epoll.modify(fd, _EVENTS[wish])


def _load_with_issuer(context: ssl.SSLContext, agent: Agent) -> None:
    """Load what the agent shows as agents of ours do; else OpenSSL looks for the issuer at each handshake."""
    memory = os.memfd_create("chain", os.MFD_CLOEXEC)
    try:
        os.write(memory, Path(agent.pem).read_bytes() + Path(agent.ca).read_bytes())
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def addresses(first: int = 2) -> Iterator[str]:
    """Addresses of 127/8, beginning at 127.77.0.`first`."""
    for number in itertools.count(first):
        yield f"127.77.{number >> 8 & 255}.{number & 255}"


def serve(agents: list[Agent], *, log_path: str = "", processes: int = 1, announce: Any = sys.stdout) -> None:
    """Print the port and serve; with more processes, they share the listening socket."""
    emulator = Emulator(agents, log_path=log_path)
    print(json.dumps({"port": emulator.port, "pid": os.getpid()}), file=announce, flush=True)
    for _ in range(processes - 1):
        if os.fork() == 0:
            emulator._epoll.close()
            emulator._epoll = select.epoll()
            break
    emulator.run()


def agents_from(path: str) -> list[Agent]:
    """The agents of a file of JSON objects with the fields of `Agent`."""
    return [Agent(**each) for each in json.loads(Path(path).read_text())]


def write_agents(agents: list[Agent], path: Path) -> None:
    """The file that `agents_from` reads."""
    path.write_text(json.dumps([asdict(agent) for agent in agents]))


def register(agents: list[Agent], leaves: dict[str, tuple[str, str]], port: int, directory: Path) -> None:
    """Registry records of the agents; `leaves` gives (fingerprint, serial) of each name."""
    directory.mkdir(parents=True, exist_ok=True)
    for agent in agents:
        fingerprint, serial = leaves[agent.name]
        record = {
            "hostname": agent.name, "ip": agent.ip, "port": port, "lookup_by": "ip", "paired": _now(),
            "expiry": agent.expiry, "reqid": "0" * 16, "fingerprint": fingerprint, "serial": serial,
            "tags": agent.tags, "dispatcher_serial": "", "serial_status": "current",
        }  # fmt: skip
        (directory / f"{agent.name}.json").write_text(json.dumps(record))


def main() -> None:
    """Make what is missing, register, serve."""
    from tests.support.emulated import build

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--agents", help="a JSON file of agents, made by write_agents; then nothing is made")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--directory", type=Path, help="where certificates are (ca.crt, ca.key) or are made")
    parser.add_argument("--registry", type=Path, help="write a record a agent here")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that a script takes")
    parser.add_argument("--output", type=int, default=0, help="bytes that a script prints")
    parser.add_argument("--older", action="store_true", help="speak as older peers do")
    parser.add_argument("--log", default="", help="a file that gets each request as a JSON line")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if options.agents:
        serve(agents_from(options.agents), log_path=options.log, processes=options.processes)
        return
    behaviour = {"delay_s": options.delay, "stdout_bytes": options.output, "older": options.older}
    made = build(options.directory, options.count, behaviour)
    emulator = Emulator(made.agents, log_path=options.log)
    if options.registry:
        register(made.agents, made.leaves, emulator.port, options.registry)
    about = {"port": emulator.port, "pid": os.getpid(), "ca": made.ca, "identity": made.identity}
    print(json.dumps(about), flush=True)
    for _ in range(options.processes - 1):
        if os.fork() == 0:
            emulator._epoll.close()
            emulator._epoll = select.epoll()
            break
    emulator.run()


if __name__ == "__main__":
    main()
