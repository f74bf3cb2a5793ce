"""What a server's end of a TLS handshake does while the other end has its turn."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

from ctrl_exec.common.connection import Connection
from ctrl_exec.common.tls import server_context
from tests.support.pki import TestCA


def test_the_turn_of_the_peer_is_used_once(tmp_path: Path):
    leaf = TestCA(tmp_path).issue("server")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(incoming, outgoing)
    ours, theirs = socket.socketpair()
    turns = []

    def go_on() -> None:
        if theirs_sent := outgoing.read():
            theirs.sendall(theirs_sent)

    def take_turn() -> None:
        """The client's half, which the server waits for: nobody else is here to do it."""
        turns.append(theirs.recv(65536))
        incoming.write(turns[-1])
        client.do_handshake()
        go_on()

    with ours, theirs:
        ours.setblocking(False)
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            go_on()
        connection = Connection(ours, ("127.0.0.1", 4711))
        connection.meanwhile = take_turn
        connection.handshake(server_context(str(leaf.crt), str(leaf.key_path)), time.monotonic() + 30)
        assert len(turns) == 1
        assert connection.meanwhile is None
        assert client.version() == "TLSv1.3"
        connection.finish()
