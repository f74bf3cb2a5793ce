"""What can be asked of a connection to an agent, and done to it, beside reading and writing.

Owns those few calls to the kernel; it must not know what is sent.
"""

from __future__ import annotations

import _socket
import fcntl
import struct
import sys

from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.tls import SSLWantReadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.tls import TlsSocket

_RESET = struct.pack("ii", 1, 0)  # linger: on, for no time


def take_back(sock: _socket.socket) -> None:
    """Have the close drop what the peer has not acknowledged: the kernel would go on sending after it.

    A request of which we have said that nobody knows must not arrive minutes later, when the network
    is there again.
    """
    import termios

    with suppress(OSError):
        counted = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))  # Source: tcp(7), SIOCOUTQ
        if int.from_bytes(counted, sys.byteorder):
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)


def is_quiet(sock: TlsSocket) -> bool:
    """Whether a connection that was kept is open, and the agent has said nothing since."""
    try:
        sock.recv(1)  # takes session tickets in passing
    except SSLWantReadError:
        return True
    except (OSError, ValueError):
        return False
    return False  # the end, or bytes that nobody asked for
