"""One accepted connection, plain or TLS, with a deadline on every wait.

Owns the socket from the moment a child has it: handshake, reading, writing, noticing that the peer
hung up, and closing so that the peer can read the last answer. Knows nothing of HTTP.
"""

from __future__ import annotations

import _socket
import select
import struct
import time

from ctrl_exec.common import tls
from ctrl_exec.common.routing import PeerIdentity
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RECEIVE_BYTES = 65536
SMALL_RECEIVE_BYTES = 960
"""Enough for most heads; for a larger buffer malloc puts its free memory in order, all over the heap."""
_LINGER_S = 2.0
_LINGER_LIMIT_BYTES = 16 << 20
_NOBODY = PeerIdentity()
_HUNG_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Connection:
    """A connected stream socket; every operation takes a moment of the monotonic clock as its end.

    The socket is non-blocking, `address` is what accept(2) gave with it. `remote_ip` is `127.0.0.1` on a
    Unix socket. All waits raise TimeoutError at their deadline.
    """

    def __init__(self, sock: _socket.socket, address: object) -> None:
        self._socket = sock
        self._watch: select.epoll | None = None
        self._has_ended = False
        self.is_tls = False
        """Whether a TLS handshake has begun."""
        self.is_unix = not isinstance(address, tuple)
        self.remote_ip, self.remote_port = plain_address(address)
        self.meanwhile: Callable[[], None] | None = None
        """Called when it is the peer's turn in the TLS handshake, the first time only."""
        self.on_wait: Callable[[bool], None] | None = None
        """Called before each wait for the peer; told whether the wait is for sending."""
        self.beside: Callable[[int, int, float], bool] | None = None
        """Waits in our place, for an event of the descriptor until the deadline, and does other work beside
        it; whether the event came in time. Such a wait is no idleness: `on_wait` is not called."""

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._socket.fileno()

    def local(self) -> tuple[str, int]:
        """Address and port of our own end."""
        return plain_address(self._socket.getsockname())

    def first_byte(self) -> int | None:
        """The first byte that waits to be read, without taking it."""
        try:
            seen = self._socket.recv(1, _socket.MSG_PEEK)
        except OSError:
            return None
        return seen[0] if seen else None

    def handshake(self, context: tls.Context, deadline: float) -> None:
        """Become a TLS connection. Raises: SSLError, OSError, TimeoutError."""
        wrapped = tls.wrap(context, self._socket, server_side=True, handshake=False)
        self._socket = wrapped
        self.is_tls = True
        while True:
            try:
                wrapped.do_handshake()
                return
            except tls.SSLWantReadError:
                self._use_turn_of_peer()
                self._wait(select.POLLIN, deadline)
            except tls.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)

    def _use_turn_of_peer(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def peer(self) -> PeerIdentity:
        """What the transport proves about the other end."""
        if self.is_tls:
            return PeerIdentity(certificate=self._secured().getpeercert(binary_form=True))
        if self.is_unix:
            credentials = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
            pid, uid, _ = struct.unpack("3i", credentials)
            return PeerIdentity(unix_uid=uid, unix_pid=pid)
        return _NOBODY

    def receive(self, deadline: float, limit_bytes: int = RECEIVE_BYTES) -> bytes:
        """The next bytes, empty at the end of the stream. Raises: OSError, TimeoutError."""
        while True:
            try:
                chunk = self._socket.recv(limit_bytes)
            except (BlockingIOError, tls.SSLWantReadError):
                self._wait(select.POLLIN, deadline)
            except tls.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)
            else:
                self._has_ended = not chunk
                return chunk

    def wait_readable(self, deadline: float, also_fd: int) -> bool:
        """Whether bytes came before the deadline and before the other descriptor had an event."""
        if self.is_tls and self._secured().pending():
            return True
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLIN)
        poller.register(also_fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(_left_ms(deadline))}
        return ready == {self._socket.fileno()}

    def send(self, payload: bytes, deadline: float) -> None:
        """Write every byte. Raises: OSError, TimeoutError."""
        view = memoryview(payload)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except (BlockingIOError, tls.SSLWantWriteError):
                self._wait(select.POLLOUT, deadline, is_sending=True)
            except tls.SSLWantReadError:
                self._wait(select.POLLIN, deadline, is_sending=True)

    def _wait(self, event: int, deadline: float, *, is_sending: bool = False) -> None:
        if self.beside is not None:
            is_ready = self.beside(self._socket.fileno(), event, deadline)
        else:
            if self.on_wait is not None:
                self.on_wait(is_sending)
            is_ready = self.wait_alone(event, deadline)
        if not is_ready:
            raise TimeoutError("the peer did not keep its deadline")

    def wait_alone(self, event: int, deadline: float) -> bool:
        """Wait for an event of the socket and nothing else: whether it came in time."""
        poller = select.poll()
        poller.register(self._socket.fileno(), event)
        return bool(poller.poll(_left_ms(deadline)))

    def hang_up(self) -> None:
        """End the connection as it stands, while this process goes on with something else."""
        with suppress(OSError):
            self._socket.shutdown(_socket.SHUT_RDWR)

    @property
    def hung_up_fd(self) -> int:
        """A descriptor that becomes readable when the peer hangs up, and not when it sends."""
        if self._watch is None:
            # an epoll set without EPOLLIN: pipelined bytes must not look like a hang-up
            self._watch = select.epoll()
            self._watch.register(self._socket.fileno(), _HUNG_UP)
        return self._watch.fileno()

    def has_hung_up(self) -> bool:
        """Whether the peer has closed its side."""
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLRDHUP)
        return bool(poller.poll(0))

    def finish(self, *, linger: bool = False) -> None:
        """Say goodbye and close; with `linger`, unread bytes are drained first, for a short time.

        Closing with bytes unread makes the kernel reset the connection, and a reset can take the
        last answer away from a peer that has not read it yet. Source: RFC 9112 §9.6.
        """
        try:
            if self.is_tls:
                self._close_notify()
            # not close alone: a detached carrier may hold the descriptor too
            self._socket.shutdown(_socket.SHUT_WR)
            if not self._has_ended and (self._discard() or linger):
                self._linger(time.monotonic() + _LINGER_S)
        except (OSError, ValueError):  # the peer has gone already
            self._has_ended = True
        self._socket.close()
        if self._watch is not None:
            self._watch.close()

    def _close_notify(self) -> None:
        # one attempt that cannot block; what the peer answers does not matter
        with suppress(OSError, ValueError):
            self._secured().unwrap()

    def _secured(self) -> tls.TlsSocket:
        return self._socket  # type: ignore[return-value]  # once a handshake has begun

    def _discard(self, limit_bytes: int = SMALL_RECEIVE_BYTES) -> int:
        """Take some of what waits unread, without blocking; 0 when there is nothing."""
        try:
            chunk = _socket.socket.recv(self._socket, limit_bytes)  # the raw bytes, below TLS
        except BlockingIOError:
            return 0
        self._has_ended = not chunk
        return len(chunk)

    def _linger(self, deadline: float) -> None:
        left_bytes = _LINGER_LIMIT_BYTES
        with suppress(TimeoutError):
            while left_bytes > 0 and not self._has_ended:
                self._wait(select.POLLIN, deadline)
                left_bytes -= self._discard(RECEIVE_BYTES)


def plain_address(found: object) -> tuple[str, int]:
    """Address and port of a socket's name, an IPv4 address in IPv6 clothes as what it is."""
    if not isinstance(found, tuple):
        return "127.0.0.1", 0
    ip: str
    port: int
    ip, port = found[:2]
    if ":" in ip:
        ip = ip.partition("%")[0].removeprefix("::ffff:")
    return ip, port


def _left_ms(deadline: float) -> int:
    return max(0, int((deadline - time.monotonic()) * 1000 + 0.999))
