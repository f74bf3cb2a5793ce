"""What a server hands to its application and gets back: requests, responses, the table of routes.

Owns the match of method and path against a literal table. Knows no sockets and no processes; who
may ask for what is decided by the application.
"""

from __future__ import annotations

from ctrl_exec.common.errors import InvalidInputError, MethodNotAllowedError, NotFoundError
from ctrl_exec.common.json_text import decoder, dumps, encoder
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ctrl_exec.common.connection import Connection

_JSON_DEPTH_DETAIL = "the body is nested too deeply"


@value
class PeerIdentity:
    """What the transport proves about the other end: a TLS certificate (DER), or a local user."""

    certificate: bytes | None = None
    unix_uid: int | None = None
    unix_pid: int | None = None


@value
class Request:
    """One request, checked and decoded; `remote_ip` is the peer's address, `127.0.0.1` on a Unix socket."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    remote_ip: str
    remote_port: int
    is_tls: bool
    reqid: str
    peer: PeerIdentity
    connection: Connection
    keep_alive: bool = False

    @property
    def local_ip(self) -> str:
        """The address the peer connected to."""
        return self.connection.local()[0]

    @property
    def local_port(self) -> int:
        """The port the peer connected to."""
        return self.connection.local()[1]

    def header(self, name: str) -> str | None:
        """The first value of a field by its lower-case name."""
        for each, content in self.headers:
            if each == name:
                return content
        return None

    def json(self) -> Any:
        """The body as JSON.

        Raises: InvalidInputError if it is missing, no UTF-8, no JSON, or names a key twice.
        """
        if not self.body:
            raise InvalidInputError("a JSON body is missing", field="body")
        try:
            return _decoded(self.body.decode("utf-8"))
        except RecursionError as error:
            raise InvalidInputError(_JSON_DEPTH_DETAIL, field="body") from error
        except ValueError as error:
            raise InvalidInputError(f"the body is not JSON: {error}", field="body") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise InvalidInputError("the body names a key twice", field="body")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_decoded = decoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
_encoded = encoder(ensure_ascii=False)


@value
class Response:
    """An answer; with an iterator as body it is streamed, chunked where the peer speaks 1.1."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | Iterator[bytes] = b""
    close: bool = False


def json_response(status: int, document: Any, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """The document as a JSON answer, UTF-8, ended by a line feed."""
    text = _encoded(document) + "\n"
    try:
        body = text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        body = (dumps(document) + "\n").encode("ascii")
    return Response(status, (("Content-Type", "application/json"), *headers), body)


@value
class Route:
    """One line of a route table; `{name}` in the pattern matches one path segment."""

    method: str
    pattern: str
    name: str
    handler: Callable[..., Response]


@value
class Match:
    """The route of a request and the values of its pattern's parameters."""

    route: Route
    parameters: dict[str, str]


class Router:
    """A literal table of routes, matched by segments, never by prefix."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._plain: dict[tuple[str, str], Match] = {}
        self._patterns: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in self.routes:
            if "{" in route.pattern:
                methods = self._patterns.setdefault(tuple(route.pattern.split("/")), {})
            else:
                methods = self._exact.setdefault(route.pattern, {})
                self._plain[route.method, route.pattern] = Match(route, {})
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.pattern}")
            methods[route.method] = route

    def match(self, method: str, path: str) -> Match:
        """The route for method and path; `HEAD` is served by `GET`.

        Raises: NotFoundError for an unknown path, MethodNotAllowedError for a known one.
        """
        plain = self._plain.get((method, path))
        if plain is not None:
            return plain
        methods, parameters = self._find(path)
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            raise MethodNotAllowedError(method, path, _allowed(methods))
        return Match(route, parameters)

    def allowed(self, path: str) -> tuple[str, ...]:
        """The methods a path has, `HEAD` and `OPTIONS` included. Raises: NotFoundError."""
        return _allowed(self._find(path)[0])

    def _find(self, path: str) -> tuple[dict[str, Route], dict[str, str]]:
        methods = self._exact.get(path)
        if methods is not None:
            return methods, {}
        parts = path.split("/")
        for pattern, found in self._patterns.items():
            parameters = _parameters(pattern, parts)
            if parameters is not None:
                return found, parameters
        raise NotFoundError(f"there is nothing at {path[:200]}")


def _allowed(methods: Iterable[str]) -> tuple[str, ...]:
    known = set(methods) | {"OPTIONS"}
    if "GET" in known:
        known.add("HEAD")
    return tuple(sorted(known))


def _parameters(pattern: tuple[str, ...], parts: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    found = {}
    for expected, part in zip(pattern, parts, strict=True):
        if expected.startswith("{"):
            if not part:
                return None
            found[expected[1:-1]] = part
        elif expected != part:
            return None
    return found
