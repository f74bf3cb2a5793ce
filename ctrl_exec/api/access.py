"""Who is asking, and whether a browser was made to ask: origin, host, source address, credentials.

Owns everything that is read off a request before authorisation. Decides nothing about privileges;
the authority does.
"""

from __future__ import annotations

import base64
import binascii
import os

from ctrl_exec.common.errors import ForbiddenError, InvalidInputError, ProtocolError
from ctrl_exec.common.value import replace
from ctrl_exec.services.authority import Caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.common.routing import Request
    from ctrl_exec.config import Config

_CREDENTIAL_LIMIT = 65536
_PREFLIGHT_AGE_S = "600"
_SHOWN_HEADERS = "X-Request-Id, Retry-After, Allow, ETag, Location, Idempotent-Replayed"
_TAKEN_HEADERS = "Authorization, Content-Type, If-Match, Idempotency-Key, Last-Event-ID"


def check_way(request: Request, config: Config) -> str:
    """The `Origin`, empty without one; most requests show none, nor another of the fields that are judged.

    Raises: ForbiddenError, ProtocolError (412).
    """
    origin = "" if request.header("origin") is None else check_origin(request, config)
    if config.api_auth_default == "allow":
        check_host(request, config)
    meant = request.header("x-ctrl-exec-state")
    if meant is not None:
        check_state(meant, config)
    return origin


def check_origin(request: Request, config: Config) -> str:
    """The `Origin` of a request that has one.

    Raises: ForbiddenError for one that is neither this server's own nor configured: a web page must
    not be able to drive the API behind its reader's back.
    """
    origins = _all(request, "origin")
    origin = origins[0].lower()
    scheme = "https" if request.is_tls else "http"
    own = f"{scheme}://{(request.header('host') or '').lower()}"
    if len(origins) > 1 or (origin != own and origin not in config.api_origins):
        raise ForbiddenError(f"origin {origins[0][:200]} is not allowed (api_origins)")
    return origins[0]


def check_host(request: Request, config: Config) -> None:
    """With `api_auth_default = allow` the `Host` must be ours, else a page that had its own name resolve
    to this address (DNS rebinding) would be of its own origin.

    Raises: ForbiddenError.
    """
    host = (request.header("host") or "").lower()
    # brackets are for what is no IPv4 address and no name
    name = _without_brackets(host) if host.startswith("[") else host.partition(":")[0]
    if not host or name in config.api_bind or request.peer.unix_uid is not None:
        return
    allowed = {request.local_ip, *config.api_bind, *(each.lower() for each in config.api_names)}
    if request.local_ip.startswith("127.") or request.local_ip == "::1":
        allowed.add("localhost")
    if name not in allowed and host not in allowed:
        raise ForbiddenError(f"host {host[:200]} is not a bound address or in api_names")


def check_state(meant: str, config: Config) -> None:
    """A command line says which dispatcher it means, by its state directory: two may share a socket's path.

    Raises: ProtocolError (412), before anything is done.
    """
    if meant != os.fsencode(os.path.normpath(config.state_dir)).hex():
        raise ProtocolError(412, "the API that listens here serves another dispatcher")


def _without_brackets(host: str) -> str:
    return host[1:].partition("]")[0]


def check_media(request: Request, origin: str) -> None:
    """Raises: ProtocolError (415) for an encoded body, or from a web page one not declared as JSON."""
    if request.header("content-encoding") is not None:
        encodings = _all(request, "content-encoding")
        if any(each.strip().lower() not in ("", "identity") for each in encodings):
            raise ProtocolError(415, "a Content-Encoding is not supported here")
    if not origin or not request.body:
        return
    media = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ProtocolError(415, "expected Content-Type: application/json")


def cors_headers(request: Request, config: Config) -> tuple[tuple[str, str], ...]:
    """What lets pages of configured origins, and no others, read answers."""
    origin = request.header("origin")
    if not origin or origin.lower() not in config.api_origins:
        return ()
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", _SHOWN_HEADERS),
        ("Vary", "Origin"),
    )


def is_preflight(request: Request, config: Config) -> bool:
    """Whether a browser asks, as it does without credentials, if a page may ask at all."""
    return (
        request.method == "OPTIONS"
        and request.header("access-control-request-method") is not None
        and bool(cors_headers(request, config))
    )


def preflight_headers(allow: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """What a page of a configured origin may send."""
    return (
        ("Access-Control-Allow-Methods", ", ".join(allow)),
        ("Access-Control-Allow-Headers", _TAKEN_HEADERS),
        ("Access-Control-Max-Age", _PREFLIGHT_AGE_S),
    )


def source_address(request: Request, config: Config) -> str:
    """Where the request came from: the peer, or what a trusted proxy says of its own peer."""
    address = request.remote_ip
    if not config.api_trusted_proxies or request.peer.unix_uid is not None:
        return address
    import ipaddress

    forwarded = [
        part.strip() for line in _all(request, "x-forwarded-for") for part in line.split(",") if part.strip()
    ]

    # from the nearest hop outwards, as long as each hop is trusted to tell the next one
    while forwarded and _is_trusted(address, config):
        try:
            address = str(ipaddress.ip_address(forwarded.pop()))
        except ValueError:
            break
    return address


def _is_trusted(address: str, config: Config) -> bool:
    import ipaddress

    found = ipaddress.ip_address(address)
    return any(found in network for network in config.api_trusted_proxies)


def way_in(request: Request) -> Caller:
    """The caller as far as the connection alone tells: the way in, and a local peer's proven name."""
    uid = request.peer.unix_uid
    if uid is None:
        return Caller("", "", request.remote_ip, "http", "none", "")
    return Caller(username=_name_of(uid), source_ip="127.0.0.1", via="socket", auth="peer")


def identify(request: Request, config: Config, document: dict[str, Any]) -> Caller:
    """The caller with the credentials of header and body.

    Raises: InvalidInputError for malformed credentials, or when the two disagree; ForbiddenError for
    a local user who claims another one's name.
    """
    known = way_in(request)
    if not document and known.via == "http" and request.header("authorization") is None:
        if not config.api_trusted_proxies:
            return known
        return replace(known, source_ip=source_address(request, config))
    username, token = header_credentials(request)
    body_username, body_token = _text(document, "username"), _text(document, "token")
    for name, of_header, of_body in (("username", username, body_username), ("token", token, body_token)):
        if of_header is not None and of_body is not None and of_header != of_body:
            raise InvalidInputError(f"{name}: header and body disagree", field=name)
    claimed = body_username if username is None else username
    secret = (body_token if token is None else token) or ""
    if known.via == "socket":
        return _local(request, known, claimed, secret, body_token or "")
    return Caller(
        username=claimed or "",
        token=secret,
        source_ip=source_address(request, config),
        auth="claimed" if claimed else "none",
        forwarded_token=body_token or "",
    )


def _local(request: Request, known: Caller, claimed: str | None, token: str, forwarded: str) -> Caller:
    if claimed and claimed != known.username and request.peer.unix_uid != 0:
        raise ForbiddenError(f"on this socket the user is {known.username}, proven by the kernel")
    is_other = bool(claimed) and claimed != known.username
    return Caller(
        username=claimed or known.username,
        token=token,
        source_ip="127.0.0.1",
        via="socket",
        auth="claimed" if is_other else "peer",
        forwarded_token=forwarded,
    )


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def header_credentials(request: Request) -> tuple[str | None, str | None]:
    """User name and token of `Authorization`. Raises: InvalidInputError for a malformed one."""
    given = _all(request, "authorization")
    if not given:
        return None, None
    if len(given) > 1:
        raise InvalidInputError("more than one Authorization header", field="Authorization")
    scheme, _, rest = given[0].partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer" and rest and " " not in rest:
        return None, _checked(rest, "Authorization")
    if scheme.lower() == "basic":
        return _basic(rest)
    raise InvalidInputError("Authorization: expected Bearer TOKEN or Basic", field="Authorization")


def _basic(encoded: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(encoded, validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(
            "Authorization: Basic is not base64 of UTF-8", field="Authorization"
        ) from error
    username, colon, password = text.partition(":")
    if not colon:
        raise InvalidInputError("Authorization: Basic holds no colon", field="Authorization")
    return _checked(username, "Authorization"), _checked(password, "Authorization")


def _text(document: dict[str, Any], key: str) -> str | None:
    found = document.get(key)
    if found is None:
        return None
    if not isinstance(found, str):
        raise InvalidInputError(f"{key}: expected a string", field=key)
    return _checked(found, key)


def _checked(text: str, field: str) -> str:
    """The credential, when it can be put before a hook. Raises: InvalidInputError."""
    if len(text) > _CREDENTIAL_LIMIT:
        raise InvalidInputError(f"{field}: longer than {_CREDENTIAL_LIMIT} characters", field=field)
    if any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in text):
        raise InvalidInputError(f"{field}: holds a control character", field=field)
    return text


def _all(request: Request, name: str) -> list[str]:
    return [content for each, content in request.headers if each == name]
