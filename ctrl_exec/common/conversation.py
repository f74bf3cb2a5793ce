"""What a child does with its connection: read requests, have them answered, write the answers.

Owns the deadlines of reading and writing, keep-alive, `Expect`, and what is refused before the
application sees it. Knows nothing of processes; what is asked is the application's affair.
"""

from __future__ import annotations

import time

from ctrl_exec.common.answer import encode_head
from ctrl_exec.common.connection import RECEIVE_BYTES, SMALL_RECEIVE_BYTES
from ctrl_exec.common.errors import ProtocolError
from ctrl_exec.common.names import new_reqid
from ctrl_exec.common.parser import ParserLimits, RequestParser
from ctrl_exec.common.routing import Request, Response
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol

    from ctrl_exec.common.connection import Connection
    from ctrl_exec.common.parser import Head
    from ctrl_exec.common.routing import PeerIdentity

    class Attendant(Protocol):
        """What the conversation needs of the process it runs in: its states are shown outside."""

        retire_fd: int
        has_waited: bool

        def is_idle(self) -> None: ...
        def is_working(self) -> None: ...
        def may_keep_alive(self) -> bool: ...


_SLOWEST_READER_BYTES_S = 16384
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_EVICTED_SEND_S = 0.2
_BODILESS = (204, 304)


class EvictedError(ProtocolError):
    """This child is ended to make room: its client has not sent, or not taken, what it should."""

    def __init__(self) -> None:
        super().__init__(503, "too many unfinished requests; this one was the oldest")


@value
class Timing:
    """How long a client may take for each part of a conversation.

    `keepalive_requests` is how many requests one connection may bring, 0 for any number.
    """

    handshake_s: float = 10
    head_s: float = 10
    body_s: float = 30
    send_s: float = 30
    keepalive_idle_s: float = 5
    keepalive_requests: int = 1


@value
class Exchange:
    """One request and what came of it, for logs and counters; `request` is None if it was refused."""

    request: Request | None
    method: str
    path: str
    status: int
    duration_s: float
    remote_ip: str
    reqid: str
    detail: str = ""


@value
class Parts:
    """What a conversation is made with: the application's functions and the limits.

    `application` and `note` are told the attendant too. `application` gives None when it has spoken on
    `request.connection` itself; `crashed` answers in its place where it raises.
    """

    application: Callable[[Request, Any], Response | None]
    refuse: Callable[[int, str], Response]
    note: Callable[[Any, Exchange], None]
    crashed: Callable[[Request, Exception], Response]
    limits: ParserLimits
    timing: Timing


class Conversation:
    """Requests and answers on one connection until one side closes it."""

    def __init__(self, connection: Connection, attendant: Attendant, parts: Parts) -> None:
        self._connection = connection
        self._attendant = attendant
        self._parts = parts
        self._peer: PeerIdentity = connection.peer()
        self._started = time.monotonic()
        self._reqid = ""
        self._head: Head | None = None
        self._has_answered = False
        self._served = 0
        self._rest = b""

    def carry(self) -> bool:
        """Serve requests until the connection is to be closed; True if the peer may still be sending.

        Raises: OSError (TimeoutError too) when the peer is gone or does not take its answer.
        """
        while True:
            try:
                if not self._serve_one():
                    return bool(self._rest)
            except ProtocolError as error:
                if not self._has_answered:
                    self._refuse(error)
                return not isinstance(error, EvictedError)

    def _serve_one(self) -> bool:
        """Read and answer one request; whether another may follow on this connection."""
        self._started = time.monotonic()
        self._reqid = new_reqid()
        self._head = None
        self._has_answered = False
        parser = RequestParser(self._parts.limits)
        if not self._read(parser):
            return False
        self._rest = bytes(parser.leftover)
        if self._attendant.has_waited:
            self._attendant.is_working()
        request = self._request(bytes(parser.body))
        response = self._answer(request)
        self._served += 1
        self._has_answered = True
        if response is None or not self._respond(request, response):
            return False
        return self._wait_for_next()

    def _answer(self, request: Request) -> Response | None:
        try:
            return self._parts.application(request, self._attendant)
        except Exception as error:  # noqa: BLE001 - the border of a request
            return self._parts.crashed(request, error)

    def _read(self, parser: RequestParser) -> bool:
        """Feed the parser to the request's end; False if the peer leaves before it begins one.

        Raises: ProtocolError.
        """
        timing = self._parts.timing
        deadline = self._started + timing.head_s
        chunk = self._rest or self._receive(parser, deadline)
        while chunk:
            parser.feed(chunk)
            if self._head is None and parser.head is not None:
                self._head = parser.head
                deadline = time.monotonic() + timing.body_s
                if parser.head.expects_continue and not parser.body and not parser.is_done:
                    self._connection.send(_CONTINUE, deadline)
            if parser.is_done:
                if parser.leftover:
                    parser.check_leftover()
                return True
            chunk = self._receive(parser, deadline)
        if parser.has_started:
            raise ProtocolError(400, "the connection ended within the request")
        return False

    def _receive(self, parser: RequestParser, deadline: float) -> bytes:
        try:
            limit_bytes = SMALL_RECEIVE_BYTES if parser.head is None else RECEIVE_BYTES
            return self._connection.receive(deadline, limit_bytes)
        except TimeoutError as error:
            if not parser.has_started:
                return b""
            what = "head" if parser.head is None else "body"
            raise ProtocolError(408, f"the {what} of the request did not arrive in time") from error

    def _request(self, body: bytes) -> Request:
        head, connection = self._head, self._connection
        assert head is not None
        return Request(
            head.method, head.path, head.query, head.version, head.headers, body,
            connection.remote_ip, connection.remote_port, connection.is_tls,
            self._reqid, self._peer, connection, head.keep_alive,
        )  # fmt: skip

    def _respond(self, request: Request, response: Response) -> bool:
        """Write the answer; whether the connection stays open after it."""
        is_whole = isinstance(response.body, bytes)
        keep_alive = self._stays_open(request, response) and (is_whole or request.version == "1.1")
        if isinstance(response.body, bytes):
            head = encode_head(response, self._reqid, length=len(response.body), keep_alive=keep_alive)
            is_bare = request.method == "HEAD" or response.status in _BODILESS
            self._note(response.status, request)
            self._send(head if is_bare else head + response.body)
        else:
            self._stream(request, response, response.body, keep_alive)
        return keep_alive

    def _stays_open(self, request: Request, response: Response) -> bool:
        most = self._parts.timing.keepalive_requests
        return (
            request.keep_alive
            and not response.close
            and (most == 0 or self._served < most)
            and self._attendant.may_keep_alive()
        )

    def _stream(
        self, request: Request, response: Response, pieces: Iterator[bytes], keep_alive: bool
    ) -> None:
        is_chunked = request.version == "1.1"
        version = "1.1" if is_chunked else "1.0"
        head = encode_head(response, self._reqid, length=None, keep_alive=keep_alive, version=version)
        try:
            self._send(head)
            if request.method != "HEAD":
                for piece in pieces:
                    if piece:
                        self._send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
                if is_chunked:
                    self._send(b"0\r\n\r\n")
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
            self._note(response.status, request)

    def _send(self, payload: bytes) -> None:
        patience_s = self._parts.timing.send_s + len(payload) / _SLOWEST_READER_BYTES_S
        self._connection.send(payload, time.monotonic() + patience_s)
        if self._attendant.has_waited:
            self._attendant.is_working()

    def _wait_for_next(self) -> bool:
        if self._rest:
            return True
        self._attendant.is_idle()
        deadline = time.monotonic() + self._parts.timing.keepalive_idle_s
        is_ready = self._connection.wait_readable(deadline, self._attendant.retire_fd)
        self._attendant.is_working()
        return is_ready

    def _refuse(self, error: ProtocolError) -> None:
        """Say why, as far as the peer listens."""
        response = self._parts.refuse(error.status, str(error))
        body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        head = encode_head(response, self._reqid, length=len(body), keep_alive=False)
        self._note(response.status, None, str(error))
        is_bare = self._head is not None and self._head.method == "HEAD"
        patience_s = _EVICTED_SEND_S if isinstance(error, EvictedError) else self._parts.timing.head_s
        with suppress(OSError):
            self._connection.send(head if is_bare else head + body, time.monotonic() + patience_s)

    def _note(self, status: int, request: Request | None, detail: str = "") -> None:
        method, path = (self._head.method, self._head.path) if self._head is not None else ("", "")
        duration_s = time.monotonic() - self._started
        remote_ip = self._connection.remote_ip
        self._parts.note(
            self._attendant,
            Exchange(request, method, path, status, duration_s, remote_ip, self._reqid, detail),
        )
