"""TLS contexts, built bare: versions, suites, roots, nothing that costs 24 ms.

Identity is not checked here: an agent is known by its key's fingerprint, a dispatcher by its
serial, both compared by who asked for the connection.
"""

from __future__ import annotations

import os
import ssl
from contextlib import contextmanager, suppress

from ctrl_exec.common.errors import CertificateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

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
) -> ssl.SSLContext:
    """A server's context from PEM files; with `client_ca`, client certificates are verified.

    `issuer` is the file of the CA that issued our certificate, where that is known.

    Raises: CertificateError naming the file that is missing, unreadable or does not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    context.num_tickets = tickets
    _load_identity(context, certificate, key, issuer)
    if client_ca is not None:
        _load_roots(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    return context


def client_context(certificate: str | None, key: str | None, *, ca: str | None) -> ssl.SSLContext:
    """A client's context: our identity (if any), and the only roots it trusts.

    `ca` None trusts any chain, for the first contact of a pairing, where people compare a code.

    Raises: CertificateError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _restrict(context)
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        _load_roots(context, ca)
    if certificate is not None:
        _load_identity(context, certificate, key or certificate, ca)
    return context


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
    """TLS on a connected socket, whose descriptor is taken over whatever comes of it.

    Raises: OSError, with everything closed.
    """
    context.sslsocket_class = _Socket
    wrapped = context.wrap_socket(
        sock, server_side=server_side, do_handshake_on_connect=handshake, session=session
    )
    assert isinstance(wrapped, _Socket)
    wrapped.is_made = True
    return wrapped


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _load_identity(context: ssl.SSLContext, certificate: str, key: str, issuer: str | None) -> None:
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            reason = "cannot be read" if os.path.exists(path) else "does not exist"
            raise CertificateError(f"{path}: {reason}")
    try:
        # an encrypted key must fail, not ask on a terminal that is not there
        leaf, secret = _resolve_pair(certificate, key)
        with _chain(leaf, issuer) as path:
            context.load_cert_chain(path, secret, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CertificateError(
            f"{certificate}: no usable certificate with its key {key} ({_words(error)})"
        ) from error


@contextmanager
def _chain(leaf: str, issuer: str | None) -> Iterator[str]:
    """A file with our certificate and its issuer's, for the time it takes to load it.

    Without the issuer OpenSSL looks for it in the roots at every handshake, and verifies our own
    certificate against it: a tenth of the whole handshake's time, for the very same bytes on the wire.
    """
    both: list[str] = []
    with suppress(OSError, ValueError):  # said by who loads it
        both = [] if issuer is None else _certificates(leaf) + _certificates(issuer)
    if len(both) != 2:  # the chain is there already, or which of several roots it is is not known
        yield leaf
        return
    memory = os.memfd_create("chain", os.MFD_CLOEXEC)
    try:
        os.write(memory, "".join(both).encode("ascii"))
        path = f"/proc/self/fd/{memory}"
        yield path if os.path.exists(path) else leaf  # a jail may have no /proc
    finally:
        os.close(memory)


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


def _load_roots(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except FileNotFoundError as error:
        raise CertificateError(f"{path}: does not exist") from error
    except (ssl.SSLError, OSError) as error:
        raise CertificateError(f"{path}: no usable CA certificate ({_words(error)})") from error


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


def failure_reason(error: Exception) -> str:
    """Why a handshake failed, in one line for a log: OpenSSL's own words where it has some."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).lower().replace("_", " ")
    return str(error) or type(error).__name__
