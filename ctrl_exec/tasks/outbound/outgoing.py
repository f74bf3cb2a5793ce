"""Requests to the outside: HTTP to addresses that may be reached, and to the very ones that were checked.

Owns the rules of what we connect to (safety §1.16): a name is resolved once, each of its addresses
judged, and the connection made to a judged one; a redirect is a new request under the same rules. Proxy
variables are not read. Must not know why something is sent.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
from time import monotonic
from urllib.parse import urljoin, urlsplit

from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.common.value import field, value
from ctrl_exec.tasks.outbound.resolving import addresses_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_REDIRECTS = 5
ANSWER_BYTES = 1 << 16
NOT_IN_TIME = "no answer in time"
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
# where in such an address the other one stands is the site's choice: RFC 8215
_TRANSLATED_HERE = ipaddress.ip_network("64:ff9b:1::/48")
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")
_SHARED = ipaddress.ip_network("100.64.0.0/10")
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")


class OutgoingError(CtrlExecError):
    """A request that was not made, or got no answer."""


class RefusedError(OutgoingError):
    """It was refused for good: what was sent would be refused again."""


@value
class OutgoingRequest:
    """What is to be sent: `headers` are (name, content)."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


@value
class OutgoingAnswer:
    """What came: the status, and the beginning of the body."""

    status: int
    body: bytes = b""
    is_cut: bool = False


@value
class Allowance:
    """What a site opens besides public addresses: networks, and (host, port) pairs."""

    networks: tuple[Network, ...] = ()
    places: frozenset[tuple[str, int]] = field(default_factory=frozenset)


def read_allowance(entries: Iterable[str]) -> Allowance:
    """The allowance that a list of CIDR and `host:port` means. Raises: ValueError naming the entry."""
    networks: list[Network] = []
    places = set()
    for entry in entries:
        host, colon, port = entry.rpartition(":")
        if colon and port.isascii() and port.isdigit() and (":" not in host or host.startswith("[")):
            places.add((host.strip("[]").lower(), int(port)))
            continue
        try:
            networks.append(ipaddress.ip_network(entry))
        except ValueError as error:
            raise ValueError(f"{entry!r} is neither a network nor host:port") from error
    return Allowance(tuple(networks), frozenset(places))


def objection(address: Address, allowance: Allowance) -> str:
    """Why this address is not connected to; empty if it may be."""
    if any(address.version == each.version and address in each for each in allowance.networks):
        return ""
    inner = _inner(address)
    if inner is not None:
        return objection(inner, allowance)
    return next((word for word, is_so in _REASONS if is_so(address)), "")


def _is_private(address: Address) -> bool:
    if any(address in each for each in (_TRANSLATED_HERE, _SITE_LOCAL)):
        return True
    return address.is_private or address.is_reserved or not address.is_global


# the first that holds is said
_REASONS: tuple[tuple[str, Callable[[Address], bool]], ...] = (
    ("a loopback address", lambda each: each.is_loopback),
    ("a link-local address", lambda each: each.is_link_local),
    ("a multicast address", lambda each: each.is_multicast),
    ("no address of a host", lambda each: each.is_unspecified or each in _THIS_NETWORK),
    ("a shared address (100.64.0.0/10)", lambda each: each in _SHARED),
    ("a private address", _is_private),
)


def _inner(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address within one that is mapped, translated or tunnelled."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _TRANSLATED or (int(address) >> 32 == 0 and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def send(
    request: OutgoingRequest,
    allowance: Allowance,
    *,
    timeout_s: float,
    resolve: Callable[[str], bytes] | None = None,
) -> OutgoingAnswer:
    """Send it and read the answer, redirects followed, all within the time, names resolved too.

    `resolve` stands for the system's resolver (`resolving.addresses_of`).

    Raises: OutgoingError, in words that hold no part of query, headers or body.
    """
    deadline = monotonic() + timeout_s
    for _ in range(MOST_REDIRECTS + 1):
        status, location, body, is_cut = _send_once(request, _Ways(allowance, deadline, resolve))
        if status not in _REDIRECTS or not location:
            return OutgoingAnswer(status, body, is_cut)
        request = _redirected(request, status, location)
    raise OutgoingError(f"more than {MOST_REDIRECTS} redirects")


def _redirected(request: OutgoingRequest, status: int, location: str) -> OutgoingRequest:
    """The request that a redirect asks for. Source: RFC 9110 §15.4."""
    url = urljoin(request.url, location)
    method, body = request.method, request.body
    if status == 303 or (status in (301, 302) and method == "POST"):
        method, body = ("HEAD" if method == "HEAD" else "GET"), None
    headers = request.headers
    if _place(url) != _place(request.url):  # credentials are for whom they were meant
        kept = ("accept", "user-agent", "content-type", "accept-language")
        headers = tuple(each for each in headers if each[0].lower() in kept)
    return OutgoingRequest(method, url, headers, body)


def _place(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise OutgoingError("the port of the URL is none") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OutgoingError("only http:// and https:// are reached")
    if parts.username is not None or parts.password is not None:
        raise OutgoingError("a URL with credentials in it is not reached")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


@value
class _Ways:
    """How the outside is reached."""

    allowance: Allowance
    deadline: float
    resolve: Callable[[str], bytes] | None = None


def _send_once(request: OutgoingRequest, ways: _Ways) -> tuple[int, str, bytes, bool]:
    scheme, host, port = _place(request.url)
    parts = urlsplit(request.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPConnection(host, port)
    try:
        # connected here, to an address that was judged; http.client only speaks over it
        connection.auto_open = 0
        sock = connect(_judged(host, port, ways), port, ways.deadline)
        connection.sock = _secured(sock, host) if scheme == "https" else sock
        connection.response_class = _within(ways.deadline)
        connection.request(request.method, target, body=request.body, headers=dict(request.headers))
        answer = connection.getresponse()
        body = _beginning_of(answer)
        location = answer.getheader("Location") or ""
        return answer.status, location, body[:ANSWER_BYTES], len(body) > ANSWER_BYTES
    except (OSError, http.client.HTTPException, ValueError, UnicodeError) as error:
        raise OutgoingError(f"{host}: {_words(error)}") from error
    finally:
        connection.close()


class TimelyBytes(io.RawIOBase):
    """What a socket receives until the deadline: a head that drips does not outlast it either."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._bytes = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline - monotonic()
        if left_s <= 0:
            raise TimeoutError("no whole answer in time")
        self._sock.settimeout(left_s)
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        self._bytes.close()
        super().close()


def _within(deadline: float) -> type[http.client.HTTPResponse]:
    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *given: Any, **named: Any) -> None:
            super().__init__(sock, *given, **named)
            self.fp.close()
            self.fp = io.BufferedReader(TimelyBytes(sock, deadline))

    return Answer


def _beginning_of(answer: http.client.HTTPResponse) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while size <= ANSWER_BYTES:
        piece = answer.read1(ANSWER_BYTES + 1 - size)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def connect(addresses: Sequence[tuple[int, str]], port: int, deadline: float) -> socket.socket:
    """A connection to the first of the addresses that takes one. Raises: OSError."""
    last = OSError("it has no address")
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.001, deadline - monotonic()))
            sock.connect((address, port))
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise last


def _secured(sock: socket.socket, host: str) -> ssl.SSLSocket:
    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _judged(host: str, port: int, ways: _Ways) -> Sequence[tuple[int, str]]:
    """(family, address) of all addresses; one that may not be reached refuses the name.

    Raises: OutgoingError; OSError if the name does not resolve in time.
    """
    resolved = addresses_of(host, ways.deadline, ways.resolve)
    if (host.lower(), port) in ways.allowance.places:
        return resolved
    for _, text in resolved:
        reason = objection(ipaddress.ip_address(text.partition("%")[0]), ways.allowance)
        if reason:
            raise OutgoingError(f"{host} is {reason}; tasks.outgoing_allow opens what a site needs")
    return resolved


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return NOT_IN_TIME
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
