"""What a handler gets: one routed request, its body decoded to an object, its caller identified.

Owns the decoding of bodies that all endpoints share. Knows no endpoint.
"""

from __future__ import annotations

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.messages import parse_object
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.api.figures import Figures
    from ctrl_exec.common.http import Child
    from ctrl_exec.common.routing import Request
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller

CREDENTIALS = ("username", "token")


@value
class Inquiry:
    """One request on its way to its handler. `document` is the body's object, empty without a body."""

    request: Request
    child: Child
    dispatcher: Dispatcher
    caller: Caller
    parameters: dict[str, str]
    document: dict[str, Any]
    figures: Figures

    def authorise(self, action: str, *, reqid: str = "") -> None:
        """Ask the authority. Raises: DeniedError, PayloadError."""
        self.dispatcher.authority.check(self.caller, action, reqid=reqid)


def decode_body(request: Request, keys: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of the body, whose keys are all known.

    Raises: InvalidInputError for a missing body, no JSON object, a null, or unknown keys, which it
    names.
    """
    if not request.body:
        raise InvalidInputError("a JSON body is missing", field="body")
    document = parse_object(request.body)
    unknown = sorted(set(document) - set(keys) - set(CREDENTIALS))
    if unknown:
        shown = ", ".join(ascii(each)[:80] for each in unknown[:10])
        raise InvalidInputError(f"unknown key {shown}", field=unknown[0][:80])
    for key, given in document.items():
        if given is None:
            raise InvalidInputError(f"{key}: expected a value, not null", field=key)
    return document


def query_of(request: Request, keys: tuple[str, ...]) -> dict[str, str]:
    """The query's parameters. Raises: InvalidInputError for an unknown one, or one given twice."""
    found: dict[str, str] = {}
    for name, given in request.query:
        if name not in keys:
            raise InvalidInputError(f"unknown parameter {ascii(name)[:80]}", field=name[:80])
        if name in found:
            raise InvalidInputError(f"{name}: given twice", field=name)
        found[name] = given
    return found


def hosts_of(document: dict[str, Any]) -> tuple[str, ...] | None:
    """The `hosts` of a body, None without the key.

    Raises: InvalidInputError unless it is a non-empty array of strings.
    """
    if "hosts" not in document:
        return None
    given = document["hosts"]
    if not isinstance(given, list) or not given or not all(isinstance(each, str) for each in given):
        raise InvalidInputError("hosts: expected a non-empty array of strings", field="hosts")
    return tuple(given)


def required_hosts_of(document: dict[str, Any]) -> tuple[str, ...]:
    """As `hosts_of`, but the key must be there."""
    found = hosts_of(document)
    if found is None:
        raise InvalidInputError("hosts: required", field="hosts")
    return found


def has_pattern(hosts: tuple[str, ...]) -> bool:
    """Whether a host pattern was used, so that the answer must say what it stood for."""
    return any(each[:1] in ("@", "!") or "[" in each for each in hosts)
