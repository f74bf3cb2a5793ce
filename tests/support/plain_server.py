"""A small application behind the real forking server, for tests of the server itself.

    python -m tests.support.plain_server '{"max_children": 8, "tls": ["crt", "key", "ca"], …}'

logs `ACTION=start ADDRESS=…` to stderr. Keys of the JSON are those of `ServerSettings`, `Timing` and
`ParserLimits`, and `tls`, `reload_file` (its text is served at `/reloaded`; "bad" refuses a reload),
`user` (the uid to become). SIGUSR2 takes the room for more processes away, and gives it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ctrl_exec.common.child import Child
from ctrl_exec.common.conversation import Exchange, Timing
from ctrl_exec.common.errors import ConfigError
from ctrl_exec.common.http import ForkingServer
from ctrl_exec.common.log import Log
from ctrl_exec.common.parser import ParserLimits
from ctrl_exec.common.routing import Request, Response, json_response
from ctrl_exec.common.server_settings import ServerHooks, ServerSettings
from ctrl_exec.common.tls import server_context
from ctrl_exec.common.value import fields
from tests.support.evidence import note_log
from tests.support.polling import eventually
from tests.support.processes import Running, environment


def _number(request: Request, name: str, default: float = 0) -> float:
    return float(dict(request.query).get(name, default))


def echo(request: Request, child: Child) -> Response:
    return json_response(
        200,
        {
            "method": request.method, "path": request.path, "query": list(map(list, request.query)),
            "body": request.body.decode("latin-1"), "ip": request.remote_ip, "tls": request.is_tls,
            "uid": request.peer.unix_uid, "has_certificate": request.peer.certificate is not None,
            "reqid": request.reqid, "pid": os.getpid(), "sigchld": signal.getsignal(signal.SIGCHLD) != signal.SIG_IGN,
            "fds": len(os.listdir("/proc/self/fd")), "local_port": request.local_port,
        },
    )  # fmt: skip


def sleep(request: Request, child: Child) -> Response:
    select.select([], [], [], _number(request, "s", 1))
    return json_response(200, {"slept": True})


def big(request: Request, child: Child) -> Response:
    return Response(200, (("Content-Type", "text/plain"),), b"x" * int(_number(request, "bytes")))


def stream(request: Request, child: Child) -> Response:
    def pieces() -> Iterator[bytes]:
        for number in range(int(_number(request, "count", 3))):
            yield b"piece %d\n" % number

    return Response(200, (("Content-Type", "text/plain"),), pieces())


def crash(request: Request, child: Child) -> Response:
    raise RuntimeError("the reason, which must not reach the client")


def die(request: Request, child: Child) -> Response:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def wait(request: Request, child: Child) -> Response:
    """Work until the client hangs up or the drain ends; says that it began, and which, in files."""
    name = dict(request.query).get("file")
    if name:
        Path(name + ".begun").touch()
    watched = child.watch(request.connection)
    watched.poll(60)
    word = "hung-up" if request.connection.has_hung_up() else "drained" if child.is_drained() else "neither"
    if name:
        Path(name).write_text(word)
    return json_response(200, {"ended": word})


def long(request: Request, child: Child) -> Response:
    if not child.enter_long():
        return json_response(503, {"ok": False})
    return sleep(request, child)


def children(request: Request, child: Child) -> Response:
    live = [view.state for view in child.live()]
    return json_response(200, {"live": live, "totals": child.totals(), "long": child.long_count()})


def run(request: Request, child: Child) -> Response:
    """Start programs as handlers do; their statuses must be ours to read."""
    codes = [subprocess.run(["/bin/sh", "-c", f"exit {code}"], check=False).returncode for code in (0, 3)]
    return json_response(200, {"codes": codes})


def take_over(request: Request, child: Child) -> None:
    deadline = time.monotonic() + 60
    request.connection.send(b"first\n", deadline)
    line = request.connection.receive(deadline)
    request.connection.send(b"you said " + line, deadline)


def leave(request: Request, child: Child) -> Response:
    child.exit_status = int(_number(request, "code"))
    return json_response(200, {})


PATHS: dict[str, Callable[[Request, Child], Response | None]] = {
    "/sleep": sleep, "/big": big, "/stream": stream, "/crash": crash, "/die": die, "/wait": wait, "/long": long,
    "/children": children, "/run": run, "/take-over": take_over, "/leave": leave,
    "/empty": lambda *_: Response(204), "/close": lambda *_: Response(200, (), b"{}", close=True),
    "/forged": lambda *_: Response(200, (("X-Forged", "a\r\nX-Other: b"),), b"{}"),
}  # fmt: skip


def toggle_room_for_processes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (hard if soft == 1 else 1, hard))


def main(options: dict[str, Any]) -> None:
    if options.get("ignore_sigchld"):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    log = Log("plain-server", "stderr", "text")
    reloaded = [Path(options["reload_file"]).read_text() if "reload_file" in options else ""]

    def application(request: Request, child: Child) -> Response | None:
        if request.path == "/reloaded":
            return json_response(200, {"reloaded": reloaded[0]})
        child.count(0)
        return PATHS.get(request.path, echo)(request, child)

    def part(cls: type) -> Any:
        return cls(**{each.name: options[each.name] for each in fields(cls) if each.name in options})

    settings = part(ServerSettings)
    wanted: dict[str, Any] = {each.name: getattr(settings, each.name) for each in fields(ServerSettings)}
    wanted |= {"limits": part(ParserLimits), "timing": part(Timing), "counter_count": 2}
    wanted["addresses"] = tuple(map(tuple, options.get("addresses", [["127.0.0.1", 0]])))
    settings = ServerSettings(**wanted)

    def on_reload() -> tuple[Any, ServerSettings]:
        text = Path(options["reload_file"]).read_text()
        if text == "bad":
            raise ConfigError("a bad configuration")
        reloaded[0] = text
        return application, settings

    def note(child: Child, exchange: Exchange) -> None:
        child.note_answer(0, exchange.status)
        log.info("request", method=exchange.method, path=exchange.path, status=exchange.status)

    hooks = ServerHooks(
        admit=lambda ip: ip not in options.get("blocked", []),
        on_ready=lambda addresses: log.info("start", address=",".join(addresses)),
        on_reload=on_reload if "reload_file" in options else None,
        on_child_exit=lambda ip, status: log.info("exit", ip=ip, status=status),
        note=note,
        on_tls_failure=lambda ip, reason: log.warning("tls-failure", ip=ip, reason=reason),
    )
    tls = None
    if "tls" in options:
        crt, key, ca = options["tls"]
        tls = lambda: server_context(crt, key, client_ca=ca)  # noqa: E731
    if "user" in options:
        os.setgroups([])
        os.setuid(options["user"])
    signal.signal(signal.SIGUSR2, lambda *_: toggle_room_for_processes())
    server = ForkingServer(settings, application, tls=tls, log=log, hooks=hooks, environment=os.environ)
    server.serve()
    log.info("end")


class Server(Running):
    """The program above, running."""

    def __init__(self, directory: Path, *, env: dict[str, str] | None = None, **options: Any) -> None:
        self.program = "plain-server"
        self.log_path = directory / "server.log"
        note_log(self.log_path, self.program)
        self._offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.plain_server", json.dumps(options)],
                env=environment(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.address = self.wait_for(r"ACTION=start ADDRESS=(\S+)")[1].strip('"')

    def connect(self, *, timeout_s: float = 60) -> socket.socket:
        """A connection to its first address."""
        host, _, port = self.address.partition(",")[0].rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout_s)

    def ask(self, raw: bytes | str, *, timeout_s: float = 60) -> bytes:
        """Send the bytes, give all that comes back until the server closes."""
        with self.connect(timeout_s=timeout_s) as sock:
            sock.sendall(raw.encode() if isinstance(raw, str) else raw)
            return read_all(sock)

    def get(self, path: str, *, timeout_s: float = 60) -> Any:
        """The JSON at the path."""
        answer = self.ask(request(path, "Connection: close"), timeout_s=timeout_s)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    def is_served(self) -> bool:
        """Whether a plain request gets its answer."""
        with contextlib.suppress(OSError):
            return self.ask(request("/ok", "Connection: close"), timeout_s=2).startswith(b"HTTP/1.1 200")
        return False

    def settle(self) -> None:
        """Wait until no child is left."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        eventually(lambda: not path.read_text().split(), what="no child left")


def request(path: str, *headers: str, method: str = "GET", body: str = "") -> str:
    """A plain request of version 1.1."""
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", body])


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes or resets."""
    chunks = []
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


def read_answer(sock: socket.socket) -> tuple[int, bytes]:
    """One answer with Content-Length from a connection that stays open: status and body."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        chunk = sock.recv(1)
        assert chunk, seen
        seen += chunk
    head, _, _ = seen.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
    body = b""
    while len(body) < length:
        chunk = sock.recv(length - len(body))
        assert chunk
        body += chunk
    return int(head.split(b" ")[1]), body


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
