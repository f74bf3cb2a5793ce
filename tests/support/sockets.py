"""What a test does to a TCP connection."""

from __future__ import annotations

import select
import socket
import struct

_RESET = struct.pack("ii", 1, 0)  # linger: on, for no time


def reset(peer: socket.socket, seen_by: socket.socket) -> None:
    """Have the connection reset, and wait until the other end knows."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    peer.close()
    poller = select.poll()
    poller.register(seen_by, 0)
    assert poller.poll(60_000)
