"""The agent's connection to a pairing port: one request, then one answer after the other.

Owns the socket and the framing of HTTP/1.0 answers on a kept connection, bounded and under
deadlines. Knows nothing of what is said.
"""

from __future__ import annotations

import json
import socket
import time

from ctrl_exec.common.errors import PairingError, PeerError
from ctrl_exec.common.responses import ResponseParser
from ctrl_exec.common.tls import SSLCertVerificationError, client_context, failure_reason, trust, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec.common.tls import TlsSocket

ANSWER_LIMIT_BYTES = 256 * 1024
SEND_S = 30.0


class PairingClient:
    """One connection. With `trusted_ca` (DER) only a chain to that CA passes the handshake."""

    def __init__(self, host: str, port: int, trusted_ca: bytes | None) -> None:
        self._host = host
        self._port = port
        self._context = client_context(None, None, ca=None)
        if trusted_ca is not None:
            trust(self._context, trusted_ca)
        self._socket: TlsSocket | None = None
        self._rest = b""

    def connect(self, deadline: float) -> bytes:
        """The server's certificate (DER).

        Raises: PeerError when it can't be reached, PairingError when its chain is refused.
        """
        where = f"{self._host} port {self._port}"
        try:
            plain = socket.create_connection((self._host, self._port), timeout=_left_s(deadline))
        except OSError as error:
            reason = error.strerror or str(error)
            raise PeerError(f"cannot reach {where}: {reason}", kind="unreachable") from error
        try:
            # no SNI: the name an admin typed need not be the one in the certificate
            self._socket = wrap(self._context, plain)
            certificate = self._socket.getpeercert(binary_form=True)
        except SSLCertVerificationError as error:
            plain.close()
            raise PairingError(f"{where}: {failure_reason(error)}; nothing was sent to it") from error
        except OSError as error:
            plain.close()
            raise PeerError(f"{where}: {failure_reason(error)}", kind="refused") from error
        if certificate is None:
            raise PeerError(f"{where}: shows no certificate", kind="refused")
        return certificate

    def send_request(self, document: Mapping[str, object], host: str) -> None:
        """`POST /pair` with the document. Raises: OSError."""
        body = json.dumps(document).encode("ascii")
        head = (
            f"POST /pair HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._send(head.encode("ascii") + body)

    def send_line(self, line: bytes) -> None:
        """One line after the request. Raises: OSError."""
        self._send(line + b"\n")

    def _send(self, payload: bytes) -> None:
        assert self._socket is not None
        self._socket.settimeout(SEND_S)
        self._socket.sendall(payload)

    def read_answer(self, deadline: float) -> bytes:
        """The body of the next answer. Raises: TimeoutError; PeerError when it is none; OSError."""
        assert self._socket is not None
        parser = ResponseParser(ANSWER_LIMIT_BYTES)
        if self._rest and parser.feed(self._rest):
            return self._taken(parser)
        while True:
            self._socket.settimeout(_left_s(deadline))
            chunk = self._socket.recv(65536)
            if not chunk:
                parser.end()
                return self._taken(parser)
            if parser.feed(chunk):
                return self._taken(parser)

    def _taken(self, parser: ResponseParser) -> bytes:
        self._rest = parser.rest
        return parser.body

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        if self._socket is not None:
            self._socket.close()


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline has passed")
    return left_s
