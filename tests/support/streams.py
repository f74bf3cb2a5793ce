"""An agent's streamed answer, piece by piece as a test tells it, over the scripted server."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tests.support.tls_server import Visitor

TYPE = b"Content-Type: application/x-ndjson\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n" + TYPE + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    """One chunk of the chunked coding."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


@dataclass
class Stream:
    """Sends the pieces, each after `go` was set once; at the end what stands in `last`."""

    pieces: list[bytes]
    last: bytes = END
    head: bytes = HEAD
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_gone: threading.Event = field(default_factory=threading.Event)

    def __call__(self, visitor: Visitor) -> None:
        """Serve one connection."""
        visitor.request()
        try:
            visitor.socket.sendall(self.head)
            for piece in self.pieces:
                assert self.go.acquire(timeout=60)
                visitor.socket.sendall(piece)
            visitor.socket.sendall(self.last)
        finally:
            self.is_gone.set()
