"""A TLS server that does what a test tells it: a relay, a false dispatcher, a recorded older one."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.sockets import wrap


class Visitor:
    """One connection as the scripted server sees it; `received` grows with every byte that came."""

    def __init__(self, sock: ssl.SSLSocket, received: bytearray) -> None:
        self.socket = sock
        self.received = received
        self._unread = b""

    def _more(self) -> None:
        chunk = self.socket.recv(65536)
        if not chunk:
            raise EOFError
        self.received += chunk
        self._unread += chunk

    def request(self) -> tuple[bytes, Any]:
        """(head, JSON body) of a request."""
        while b"\r\n\r\n" not in self._unread:
            self._more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2])
        while len(self._unread) < length:
            self._more()
        body, self._unread = self._unread[:length], self._unread[length:]
        return head, json.loads(body)

    def line(self) -> Any:
        """A JSON line."""
        while b"\n" not in self._unread:
            self._more()
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def answer(self, document: object, head: bytes = b"") -> None:
        """An HTTP/1.0 answer, its headers as recorded or the plainest ones."""
        body = json.dumps(document).encode()
        head = head or b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n"
        self.socket.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def wait_for_end(self) -> None:
        """Read until the client hangs up, recording what it still sends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._more()


class ScriptedServer:
    """Serves each connection in a thread of its own; what clients sent is in `received`."""

    def __init__(self, pem: Path, script: Callable[[Visitor], None], chain: Path | None = None) -> None:
        self.received = bytearray()
        self.faults: list[BaseException] = []
        self._script = script
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if chain is not None:
            both = pem.with_suffix(".chain.pem")
            both.write_bytes(pem.read_bytes() + chain.read_bytes())
            pem = both
        self._context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(60)
        try:
            with wrap(self._context, sock, server_side=True) as wrapped:
                self._script(Visitor(wrapped, self.received))
        except (EOFError, OSError):
            sock.close()
        except BaseException as error:
            self.faults.append(error)

    def close(self) -> None:
        """Stop, and wait for every connection's end."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(90)
        assert not self.faults, self.faults


@contextlib.contextmanager
def scripted(
    pem: Path, script: Callable[[Visitor], None], chain: Path | None = None
) -> Iterator[ScriptedServer]:
    """The server for the length of a block."""
    server = ScriptedServer(pem, script, chain)
    try:
        yield server
    finally:
        server.close()
