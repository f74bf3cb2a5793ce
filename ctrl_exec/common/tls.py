"""TLS contexts and sockets, made bare: versions, suites, roots, and what costs 24 ms left out.

Identity is not checked here: an agent is known by its key's fingerprint, a dispatcher by its
serial, both compared by who asked for the connection.

Owns the use of `_ssl`, the C part of the standard library's `ssl`: a third of a command's start and a
fifth of an idle agent's memory are the wrapper around it (docs/adr/035). Where that part is not as we
know it, `ssl` itself does the same.
"""

from __future__ import annotations

import _socket
import _ssl
import os
from _ssl import (
    SSLCertVerificationError,
    SSLEOFError,
    SSLError,
    SSLWantReadError,
    SSLWantWriteError,
    SSLZeroReturnError,
)

from ctrl_exec.common.errors import CertificateError
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _ssl import SSLSession, _SSLContext
    from types import TracebackType
    from typing import Any, Self

__all__ = [
    "ALPN",
    "Context",
    "SSLCertVerificationError",
    "SSLEOFError",
    "SSLError",
    "SSLWantReadError",
    "SSLWantWriteError",
    "SSLZeroReturnError",
    "TlsSocket",
    "blind_context",
    "client_context",
    "failure_reason",
    "server_context",
    "trust",
    "wrap",
]

_KNOWN_MAKING = "($self,/,sock,server_side,server_hostname=None,*,owner=None,session=None)"


def is_known(context_class: object) -> bool:
    """Whether sockets of that kind of context are made as in Python 3.10 to 3.13."""
    making = getattr(context_class, "_wrap_socket", None)
    return "".join((getattr(making, "__text_signature__", None) or "").split()) == _KNOWN_MAKING


if TYPE_CHECKING:
    Context = _SSLContext
    IS_BARE: bool
elif IS_BARE := is_known(_ssl._SSLContext):
    Context = _ssl._SSLContext
else:
    from ssl import SSLContext as Context

# AEAD suites only; TLS 1.3 has no others. Source: RFC 9325 §4.2
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!PSK"
ALPN: tuple[str, ...] = ()
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_PEM_LIMIT_BYTES = 1 << 18


def server_context(
    certificate: str,
    key: str,
    *,
    client_ca: str | None = None,
    require_client: bool = False,
    tickets: int = 0,
    issuer: str | None = None,
) -> Context:
    """A server's context from PEM files; with `client_ca`, client certificates are verified.

    `issuer` is the file of the CA that issued our certificate, where that is known.

    Raises: CertificateError naming the file that is missing, unreadable or does not fit.
    """
    context = Context(_ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    context.num_tickets = tickets
    _load_identity(context, certificate, key, issuer)
    if client_ca is not None:
        _load_roots(context, client_ca)
        context.verify_mode = _ssl.CERT_REQUIRED if require_client else _ssl.CERT_OPTIONAL
    return context


def client_context(certificate: str | None, key: str | None, *, ca: str | None) -> Context:
    """A client's context: our identity (if any), and the only roots it trusts.

    `ca` None trusts any chain, for the first contact of a pairing, where people compare a code.

    Raises: CertificateError.
    """
    context = Context(_ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _restrict(context)
    if ca is None:
        context.verify_mode = _ssl.CERT_NONE
    else:
        _load_roots(context, ca)
    if certificate is not None:
        _load_identity(context, certificate, key or certificate, ca)
    return context


def trust(context: Context, ca: bytes) -> None:
    """Have a client's context trust chains to that root (DER) only. Raises: SSLError."""
    context.load_verify_locations(cadata=ca)
    context.verify_mode = _ssl.CERT_REQUIRED


def blind_context() -> Context:
    """A client's context that trusts nobody, to have one before there is a real one."""
    return Context(_ssl.PROTOCOL_TLS_CLIENT)


class TlsSocket(_socket.socket):
    """A connected socket that speaks TLS; what it does not redefine is below TLS, as in the base class.

    Errors are those of `ssl`, and so is the behaviour: an end without a close_notify is an end.
    """

    __slots__ = ("__weakref__", "_tls")  # the C part refers to its socket weakly

    _tls: Any

    def begin(self, context: Context, *, server_side: bool, session: SSLSession | None) -> None:
        """Speak TLS from here on. Raises: OSError, ValueError for a session of another context."""
        self._tls = context._wrap_socket(self, server_side, session=session)  # type: ignore[attr-defined]

    def do_handshake(self) -> None:
        """Go on with the handshake. Raises: SSLError, OSError."""
        self._tls.do_handshake()

    def recv(self, limit_bytes: int, /) -> bytes:  # type: ignore[override]  # there are no flags in TLS
        """The next bytes, empty at the end. Raises: SSLError, OSError."""
        try:
            received: bytes = self._tls.read(limit_bytes)
        except SSLEOFError:
            return b""
        return received

    def send(self, payload: bytes | memoryview, /) -> int:  # type: ignore[override]  # as above
        """Send some of it: how much. Raises: SSLError, OSError."""
        sent: int = self._tls.write(payload)
        return sent

    def sendall(self, payload: bytes, /) -> None:  # type: ignore[override]  # as above
        """Send all of it, on a socket that blocks. Raises: SSLError, OSError."""
        view = memoryview(payload)
        while view:
            view = view[self.send(view) :]

    def getpeercert(self, *, binary_form: bool) -> bytes | None:
        """The certificate that the peer showed (DER)."""
        assert binary_form, "certificates are read by common.certificate"
        shown: bytes | None = self._tls.getpeercert(True)
        return shown

    def pending(self) -> int:
        """How many bytes can be received without the network."""
        waiting: int = self._tls.pending()
        return waiting

    @property
    def session(self) -> SSLSession | None:
        """What a later connection can resume."""
        session: SSLSession | None = self._tls.session
        return session

    def unwrap(self) -> None:
        """Send a close_notify, and wait for the peer's. Raises: SSLError, OSError; ValueError if closed."""
        if self._tls is None:
            raise ValueError("the socket is closed")
        self._tls.shutdown()

    def close(self) -> None:
        """Close it, and give back what TLS held: it has the number of the descriptor, soon another's."""
        self._tls = None
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self.close()


def wrap(
    context: Context,
    sock: _socket.socket,
    *,
    server_side: bool = False,
    handshake: bool = True,
    session: SSLSession | None = None,
) -> TlsSocket:
    """TLS on a connected socket, whose descriptor is taken over whatever comes of it.

    Raises: OSError, with everything closed.
    """
    if not IS_BARE:
        alike: TlsSocket = context.wrap_socket(  # type: ignore[attr-defined]  # as `ssl` has it
            sock, server_side=server_side, do_handshake_on_connect=handshake, session=session
        )
        return alike
    secured = _take_over(sock)
    try:
        if code := secured.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):  # reset meanwhile
            raise OSError(code, os.strerror(code))
        secured.begin(context, server_side=server_side, session=session)
        if handshake:
            secured.do_handshake()
    except BaseException:
        secured.close()
        raise
    return secured


def _take_over(sock: _socket.socket) -> TlsSocket:
    timeout_s = sock.gettimeout()
    flags = _socket.SOCK_NONBLOCK if timeout_s == 0.0 else 0
    taken = TlsSocket(sock.family, sock.type | flags, sock.proto, sock.detach())
    if timeout_s:
        taken.settimeout(timeout_s)
    return taken


def _restrict(context: Context) -> None:
    context.minimum_version = _ssl.PROTO_TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= _ssl.OP_NO_COMPRESSION | _ssl.OP_NO_RENEGOTIATION


def _load_identity(context: Context, certificate: str, key: str, issuer: str | None) -> None:
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            reason = "cannot be read" if os.path.exists(path) else "does not exist"
            raise CertificateError(f"{path}: {reason}")
    try:
        leaf, secret = _resolve_pair(certificate, key)
        _load_chain(context, leaf, secret, issuer)
    except (SSLError, OSError, ValueError) as error:
        raise CertificateError(
            f"{certificate}: no usable certificate with its key {key} ({_words(error)})"
        ) from error


def _load_chain(context: Context, leaf: str, key: str, issuer: str | None) -> None:
    """Load our certificate and its issuer's.

    Without the issuer OpenSSL looks for it in the roots at every handshake, and verifies our own
    certificate against it: a tenth of the whole handshake's time, for the very same bytes on the wire.
    """
    both: list[str] = []
    with suppress(OSError, ValueError):  # said by who loads it
        both = [] if issuer is None else _certificates(leaf) + _certificates(issuer)
    if len(both) != 2:  # the chain is there already, or which of several roots it is is not known
        context.load_cert_chain(leaf, key, password=_no_password)
        return
    memory = os.memfd_create("chain", os.MFD_CLOEXEC)
    try:
        os.write(memory, "".join(both).encode("ascii"))
        path = f"/proc/self/fd/{memory}"
        path = path if os.path.exists(path) else leaf  # a jail may have no /proc
        context.load_cert_chain(path, key, password=_no_password)
    finally:
        os.close(memory)


def _no_password() -> bytes:
    """An encrypted key must fail, not ask on a terminal that is not there."""
    return b""


def _certificates(path: str) -> list[str]:
    """The certificates of a PEM file, as they stand there; never a key."""
    with open(path, encoding="ascii") as file:
        pieces = file.read(_PEM_LIMIT_BYTES).split(_BEGIN)[1:]
    return [f"{_BEGIN}{piece.partition(_END)[0]}{_END}\n" for piece in pieces]


def _resolve_pair(certificate: str, key: str) -> tuple[str, str]:
    """Where the two paths lead. A link that is swapped meanwhile (identity/current) must not give the
    old certificate with the new key, so the looks are repeated until two agree."""
    if certificate == key:
        both = os.path.realpath(certificate)
        return both, both
    found = ("", "")
    for _ in range(100):
        before, found = found, (os.path.realpath(certificate), os.path.realpath(key))
        if found == before:
            break
    return found


def _load_roots(context: Context, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except FileNotFoundError as error:
        raise CertificateError(f"{path}: does not exist") from error
    except (SSLError, OSError) as error:
        raise CertificateError(f"{path}: no usable CA certificate ({_words(error)})") from error


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


def failure_reason(error: Exception) -> str:
    """Why a handshake failed, in one line for a log: OpenSSL's own words where it has some."""
    if isinstance(error, SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, SSLError):
        return str(error.reason or error).lower().replace("_", " ")
    return str(error) or type(error).__name__
