"""What a test does to a TCP connection, and TLS for the other end, by the standard library alone."""

from __future__ import annotations

import _socket
import select
import socket
import ssl
import struct

_RESET = struct.pack("ii", 1, 0)  # linger: on, for no time


def reset(peer: socket.socket, seen_by: _socket.socket) -> None:
    """Have the connection reset, and wait until the other end knows."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    peer.close()
    poller = select.poll()
    poller.register(seen_by.fileno(), 0)
    assert poller.poll(60_000)


class _Socket(ssl.SSLSocket):
    """A TLS socket that is closed also where its making failed half-way.

    The standard library's takes the descriptor over before it looks whether the peer is still there; a
    reset at that moment leaves an open socket that nobody has a name for.
    """

    is_made = False

    def __del__(self) -> None:
        if self.is_made:
            super().__del__()  # type: ignore[misc]  # typeshed has no finalizers
        else:
            self.close()


def wrap(
    context: ssl.SSLContext,
    sock: socket.socket,
    *,
    server_side: bool = False,
    handshake: bool = True,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """TLS on a connected socket, whose descriptor is taken over whatever comes of it."""
    context.sslsocket_class = _Socket
    wrapped = context.wrap_socket(
        sock, server_side=server_side, do_handshake_on_connect=handshake, session=session
    )
    assert isinstance(wrapped, _Socket)
    wrapped.is_made = True
    return wrapped
