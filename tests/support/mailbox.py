"""A mail server on loopback that takes everything, or refuses as it is told."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Mailbox:
    """What was handed in: (sender, recipients, message); `refusal` is answered to each recipient."""

    port: int = 0
    refusal: str = ""
    messages: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)


class _Conversation(socketserver.StreamRequestHandler):
    """SMTP as RFC 5321 has it, as much as a client needs."""

    server: _Server

    def handle(self) -> None:
        box, sender, recipients = self.server.box, "", []
        self._say("220 mailbox")
        while line := self.rfile.readline(4096).decode().rstrip("\r\n"):
            word = line.upper()
            if word.startswith("MAIL FROM:"):
                sender = line[10:].split(">")[0].lstrip("<")
                self._say("250 ok")
            elif word.startswith("RCPT TO:"):
                recipients.append(line[8:].strip("<> "))
                self._say(box.refusal or "250 ok")
            elif word == "DATA":
                self._say("354 go on")
                lines = iter(lambda: self.rfile.readline(4096).decode(), ".\r\n")
                box.messages.append((sender, tuple(recipients), "".join(lines)))
                self._say("250 taken")
            elif word == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 ok")

    def _say(self, words: str) -> None:
        self.wfile.write(f"{words}\r\n".encode())


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = False
    block_on_close = True
    allow_reuse_address = True
    box: Mailbox


@contextlib.contextmanager
def mailbox(refusal: str = "") -> Iterator[Mailbox]:
    """A mail server for as long as the block lasts."""
    with _Server(("127.0.0.1", 0), _Conversation) as server:
        server.box = Mailbox(server.server_address[1], refusal)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.box
        finally:
            server.shutdown()
            thread.join()
