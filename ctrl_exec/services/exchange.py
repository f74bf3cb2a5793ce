"""One call on one connection: connect, handshake, identity, request, answer, as a state machine.

Owns a non-blocking socket and the deadline of the state it is in. It may begin on a connection kept
from an earlier call, and then retreats to a fresh one only while not a byte of its request has left.
It is moved by whoever polls (`ctrl_exec.services.loop`) and must not know of other calls, of epoll, or
of what is asked.
"""

from __future__ import annotations

import _socket
import errno
import os

from ctrl_exec.common import tls
from ctrl_exec.common.certificate import key_fingerprint, parse_certificate
from ctrl_exec.common.errors import CertificateError, PeerError
from ctrl_exec.common.responses import ResponseParser
from ctrl_exec.common.suppression import suppress
from ctrl_exec.services.sockets import is_quiet, take_back
from ctrl_exec.services.transport import Answer, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _ssl import SSLSession
    from collections.abc import Callable

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec.services.idle_pool import Kept
    from ctrl_exec.services.resolver import Addresses
    from ctrl_exec.services.transport import Call, FailureKind

IDLE, CONNECTING, HANDSHAKE, SENDING, READING, DONE = range(6)
WANT_NOTHING, WANT_READ, WANT_WRITE = 0, 1, 4  # the values of EPOLLIN and EPOLLOUT

_RECORD_BYTES = 16384  # the most one TLS record holds, so the most one recv can give
_RECORDS_A_TURN = 32  # then the next connection has its turn
_STREAM_RECORDS_A_TURN = 4
_SLOWEST_BYTES_A_SECOND = 65536  # an answer that has begun may drip no slower, beyond the read timeout
_FRAMING_BYTES = 1 << 20  # heads, chunk sizes and trailers beside the body; an endless row of them is a lie
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# alerts that say the agent does not trust us: with TLS 1.3 they arrive after our request has left,
# but before a server that asked for a certificate has read any of it
_CUT_SHORT = "connection closed before the answer was complete"
_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR", "HANDSHAKE_FAILURE")


class NoRoomError(OSError):
    """The kernel has no descriptor or memory for one more connection now."""


class Exchange:
    """A call under way. `wants` and `deadline` say what to wait for, `answer` is there at the end."""

    __slots__ = (
        "_addresses", "_began", "_connect_timeout_s", "_is_virgin", "_offset", "_parser", "_passed_on",
        "_pieces", "_quiet_since", "_started", "answer", "attempts", "born", "call", "certificate",
        "deadline", "due", "has_more", "holds_slot", "index", "is_in_line", "is_late", "is_paused",
        "is_reused", "is_unsettled", "keeps", "on_leaving", "phase", "received", "released", "session",
        "sock", "stalls_at", "wants",
    )  # fmt: skip

    def __init__(self, index: int, call: Call, connect_timeout_s: float) -> None:
        self.index = index
        self.call = call
        self.phase = IDLE
        self.wants = WANT_NOTHING
        self.deadline = 0.0
        self.stalls_at = 0.0
        self.due = 0.0  # the moment of its timer
        self.attempts = 0
        self.holds_slot = self.is_unsettled = self.is_late = False
        self.is_paused = False
        self.has_more = False
        self.is_in_line = False  # waits for its turn to read a stream
        self.received = 0
        self._pieces: list[bytes] = []  # of a stream, not yet taken
        self.answer: Answer | None = None
        self.sock: _socket.socket | None = None
        self.is_reused = False
        self.born = 0.0  # the moment its connection was opened
        self.keeps = False  # whether the connection may outlive the call
        self.released: tls.TlsSocket | None = None  # the connection that did
        self.session: SSLSession | None = None  # to resume
        self.on_leaving: Callable[[], object] | None = None  # told before the first byte may leave
        self._is_virgin = True  # nothing was tried to be sent on this connection
        self._connect_timeout_s = connect_timeout_s
        self._addresses: list[tuple[int, str]] = []
        self.certificate: Certificate | None = None
        self._parser: ResponseParser | None = None
        self._offset = self._passed_on = 0
        self._started = self._began = self._quiet_since = 0.0

    # connecting

    @property
    def has_left(self) -> bool:
        """Whether a part of the request may have reached the agent."""
        return self._offset > 0

    def open(self, addresses: Addresses, now: float) -> None:
        """Begin to connect to the first address.

        Raises: NoRoomError, with nothing begun.
        """
        self._addresses = list(addresses)
        self._started = self.born = now
        self._connect(now)

    def reuse(self, kept: Kept, now: float) -> None:
        """Begin on a connection that is open already; the phase is IDLE again if it turns out dead."""
        self.sock = kept.sock
        self.certificate = kept.certificate
        self.born = kept.born
        self.is_reused = True
        self._started = now
        self._prepare_request(now)

    @property
    def held_bytes(self) -> int:
        """The memory that what it has received takes here."""
        return self.received - self._passed_on

    @property
    def is_streaming(self) -> bool:
        """Whether the answer's body is being passed on as it comes."""
        return self._parser is not None and self._parser.is_streaming

    def take_part(self) -> bytes:
        """What has come of a stream since the last time; the memory is the caller's from here on."""
        if not self._pieces:
            return b""
        chunk, self._pieces = b"".join(self._pieces), []
        self._passed_on = self.received
        return chunk

    def objects_to(self, certificate: Certificate) -> bool:
        """Whether a peer with that certificate must not get the request."""
        return bool(_objection(self.call, certificate.fingerprint))

    def _connect(self, now: float) -> None:
        self.attempts += 1
        family, address = self._addresses[0]
        try:
            self.sock = sock = _socket.socket(
                family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
            )
            # else the request waits for the acknowledgement of our Finished: 40 ms
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            code = sock.connect_ex((address, self.call.port))
        except (OSError, OverflowError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
        if code in _NO_ROOM:
            self._drop_socket()
            raise NoRoomError(code, os.strerror(code))
        self.phase = CONNECTING
        self._wait(WANT_WRITE, now + self._connect_timeout_s)
        if code not in (0, errno.EINPROGRESS):
            self._next_address(code, now)

    def _next_address(self, code: int, now: float) -> None:
        del self._addresses[0]
        self._drop_socket()
        if self._addresses:
            try:
                self._connect(now)
            except NoRoomError as error:
                self.fail("unreachable", _os_reason(error), now)
        else:
            self.fail("unreachable", os.strerror(code).lower(), now)

    # moving on

    def step(self, context: tls.Context, now: float) -> None:
        """Go as far as the socket lets us."""
        try:
            if self.phase == CONNECTING:
                self._finish_connect(context, now)
            if self.phase == HANDSHAKE:
                self._shake_hands(now)
            if self.phase == SENDING:
                self._send(now)
            if self.phase == READING:
                self._read(now)
        except PeerError as error:
            self.fail(error.kind, str(error), now)  # type: ignore[arg-type]  # the parser's kinds are ours
        except tls.SSLError as error:
            self._fail_tls(error, now)
        except OSError as error:
            self._fail_os(error, now)

    def _finish_connect(self, context: tls.Context, now: float) -> None:
        try:
            self.sock = tls.wrap(context, self._open_socket(), handshake=False, session=self.session)
        except OSError as error:  # not connected, or already reset
            self._next_address(error.errno or errno.ECONNRESET, now)
            return
        self.phase = HANDSHAKE
        self._wait(WANT_READ, now + self._connect_timeout_s)

    def _shake_hands(self, now: float) -> None:
        sock = self._tls_socket()
        try:
            sock.do_handshake()
        except tls.SSLWantReadError:
            self.wants = WANT_READ
            return
        except tls.SSLWantWriteError:
            self.wants = WANT_WRITE
            return
        if self._is_right_peer(sock, now):
            self._prepare_request(now)

    def _prepare_request(self, now: float) -> None:
        self.phase = SENDING
        self._parser = ResponseParser(
            self.call.limit_bytes, self.call.stream_limit_bytes if self.call.streams else None
        )
        self._heard(now)

    def _is_right_peer(self, sock: tls.TlsSocket, now: float) -> bool:
        try:
            shown = sock.getpeercert(binary_form=True) or b""
            if self.keeps or self.call.wants_certificate:
                self.certificate = parse_certificate(shown)
                fingerprint = self.certificate.fingerprint
            else:
                fingerprint = key_fingerprint(shown)
        except CertificateError as error:
            self.fail("refused", str(error), now)
            return False
        reason = _objection(self.call, fingerprint)
        if reason:
            self.fail("refused", reason, now)
        return not reason

    def _send(self, now: float) -> None:
        sock = self._tls_socket()
        request = memoryview(self.call.request)
        if self._is_virgin and not self._begin_sending(sock):
            return
        while self._offset < len(request):
            was_virgin, self._is_virgin = self._is_virgin, False
            try:
                self._offset += sock.send(request[self._offset :])
                self._heard(now)
            except tls.SSLWantWriteError:
                self.wants = WANT_READ | WANT_WRITE  # an agent may refuse before it has read all
                self._read(now)
                return
            except tls.SSLWantReadError:
                self.wants = WANT_READ
                return
            except (BrokenPipeError, ConnectionResetError, tls.SSLEOFError):
                if self.is_reused and was_virgin:  # the kernel refused the very first write whole
                    self._retreat()
                    return
                break  # what it said before it closed may still be there
        self.phase = READING
        self.wants = WANT_READ

    def _begin_sending(self, sock: tls.TlsSocket) -> bool:
        """Say that bytes leave from here on; False if the kept connection turned out dead before."""
        if self.is_reused and not is_quiet(sock):
            self._retreat()
            return False
        if self.on_leaving is not None:
            self.on_leaving()
        return True

    def _retreat(self) -> None:
        """The kept connection was dead before we used it: begin anew on another one."""
        self._drop_socket()
        self._parser = None
        self.certificate = None
        self.is_reused = False
        self._is_virgin = True
        self.phase = IDLE
        self.wants = WANT_NOTHING

    def _read(self, now: float) -> None:
        sock, parser = self._tls_socket(), self._response()
        self.has_more = False
        for _ in range(_STREAM_RECORDS_A_TURN if self.call.streams else _RECORDS_A_TURN):
            try:
                piece = sock.recv(_RECORD_BYTES)
            except (tls.SSLWantReadError, tls.SSLWantWriteError):
                return
            if piece:
                self._take(piece, now)
            else:
                self._end(parser)
            if parser.is_done:
                self._finish(now)
                return
        self.has_more = True

    def _end(self, parser: ResponseParser) -> None:
        try:
            parser.end()
        except PeerError as error:
            raise PeerError(_CUT_SHORT, kind="lost") from error

    def _take(self, piece: bytes, now: float) -> None:
        if not self.received:
            self._began = now
            self.phase = READING
            self.wants = WANT_READ
        self.received += len(piece)
        parser = self._response()
        if self.received > 2 * parser.limit_bytes + _FRAMING_BYTES:
            raise PeerError("answer too large", kind="too large")
        try:
            parser.feed(piece)
        finally:  # what came before the fault is good
            if chunk := parser.drain():
                self._pieces.append(chunk)
        self._heard(now)

    # waiting

    def _wait(self, wants: int, deadline: float) -> None:
        self.wants = wants
        self.deadline = deadline if self.call.deadline is None else min(deadline, self.call.deadline)

    def _heard(self, now: float) -> None:
        self._quiet_since = now
        patience = now + self.call.read_timeout_s
        if self.received and not self.is_streaming:
            slowest = self._began + self.call.read_timeout_s + self.received / _SLOWEST_BYTES_A_SECOND
            patience = min(patience, slowest)
        self._wait(self.wants, patience)

    def pause(self) -> None:
        """Stand still: the wait is ours, not the agent's."""
        self.is_paused = True
        self.deadline = self.call.deadline if self.call.deadline is not None else float("inf")

    def resume(self, now: float) -> None:
        """Go on reading, with the patience one has at the start."""
        self.is_paused = False
        self._began = now - self.received / _SLOWEST_BYTES_A_SECOND
        self._heard(now)

    def expire(self, now: float) -> None:
        """The deadline has passed: say of what."""
        limit = self.call.deadline
        if limit is not None and limit <= now:
            self.fail("timeout", f"no answer within {_seconds(now - self._started)}", now)
        elif self.phase == CONNECTING:
            self._next_address(errno.ETIMEDOUT, now)
            if self.answer is not None:
                self.fail("unreachable", f"connect timeout after {_seconds(self._connect_timeout_s)}", now)
        elif self.phase == HANDSHAKE:
            self.fail("unreachable", f"TLS handshake timeout after {_seconds(self._connect_timeout_s)}", now)
        elif now - self._quiet_since >= self.call.read_timeout_s:
            self.fail("timeout", f"read timeout after {_seconds(self.call.read_timeout_s)}", now)
        else:
            self.fail("timeout", f"answer too slow: {self.received} bytes so far", now)

    # ending

    def _finish(self, now: float) -> None:
        parser = self._response()
        if self.keeps and self._is_reusable(parser):
            self.released, self.sock = self._tls_socket(), None
        else:
            self._say_goodbye()
        self._settle(
            Answer(
                key=self.call.key,
                status=parser.status,
                body=self._body(parser),
                rtt_s=now - self._started,
                certificate=self.certificate if self.call.wants_certificate else None,
            )
        )

    def _body(self, parser: ResponseParser) -> bytes:
        """The body; of a stream, only one line that came at once: a script that printed nothing."""
        if self._pieces and not self._passed_on:
            whole = b"".join(self._pieces)
            if whole.find(b"\n") == len(whole) - 1:
                self._pieces = []
                return whole
        return parser.body

    def _is_reusable(self, parser: ResponseParser) -> bool:
        """Whether both sides are through with this exchange, and the agent waits for another one."""
        is_whole = self._offset == len(self.call.request) and not parser.rest
        return is_whole and parser.keeps_alive and not self._tls_socket().pending()

    def fail(self, kind: FailureKind, reason: str, now: float) -> None:
        """End with a failure; whether the request had begun to leave is known here."""
        self._settle(
            Answer(
                key=self.call.key,
                rtt_s=now - self._started if self._started else 0.0,
                certificate=self.certificate if self.call.wants_certificate else None,
                failure=Failure(kind, reason, sent=kind != "refused" and self.has_left),
            )
        )

    def _settle(self, answer: Answer) -> None:
        self.answer = answer
        if answer.failure is not None:
            self._take_back()
        self.phase = DONE
        self.wants = WANT_NOTHING
        self.has_more = False
        self._parser = None
        self._drop_socket()

    def _fail_tls(self, error: tls.SSLError, now: float) -> None:
        reason = tls.failure_reason(error)
        if isinstance(error, tls.SSLCertVerificationError):
            self.fail("refused", reason, now)
        elif isinstance(error, (tls.SSLEOFError, tls.SSLZeroReturnError)):
            self._fail_closed(now)
        elif not self.received and not self.is_reused and _is_refusal(error):
            self.fail("refused", f"the agent refused our certificate: {reason}", now)
        elif self.phase == HANDSHAKE:
            self.fail("protocol", f"no TLS of ours: {reason}", now)
        else:
            self.fail("lost", f"TLS error: {reason}", now)

    def _fail_os(self, error: OSError, now: float) -> None:
        if self.phase in (SENDING, READING):
            self.fail("lost", f"{_os_reason(error)} before the answer was complete", now)
        else:
            self.fail("unreachable", f"{_os_reason(error)} during the TLS handshake", now)

    def _fail_closed(self, now: float) -> None:
        if self.phase == HANDSHAKE:
            self.fail("unreachable", "connection closed during the TLS handshake", now)
        else:
            self.fail("lost", _CUT_SHORT, now)

    def _say_goodbye(self) -> None:
        with suppress(OSError, ValueError):  # one try: a close_notify, nobody waits for the other
            self._tls_socket().unwrap()

    def _take_back(self) -> None:
        if self.has_left and self.sock is not None:
            take_back(self.sock)

    def _drop_socket(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def abandon(self) -> None:
        """Close without an answer."""
        self._take_back()
        self._drop_socket()
        self.phase = DONE
        self.has_more = False

    # what is there by construction of the phases

    def _open_socket(self) -> _socket.socket:
        if self.sock is None:
            raise AssertionError("a phase without its socket")
        return self.sock

    def _tls_socket(self) -> tls.TlsSocket:
        return self._open_socket()  # type: ignore[return-value]  # since the handshake

    def _response(self) -> ResponseParser:
        if self._parser is None:
            raise AssertionError("a phase without its parser")
        return self._parser


def _objection(call: Call, shown: str) -> str:
    """Why a peer with that key must not get the request; empty if it may."""
    if shown in call.revoked:
        return "certificate revoked"
    if shown in call.foreign or call.fingerprint not in (None, shown):
        return "certificate of another agent"
    return ""


def _is_refusal(error: tls.SSLError) -> bool:
    reason = error.reason or ""
    return "ALERT" in reason and any(word in reason for word in _REFUSALS)


def _os_reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()


def _seconds(duration_s: float) -> str:
    return f"{round(duration_s, 1):g}s"
