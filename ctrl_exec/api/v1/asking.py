"""What a handler of the task layer gets, and what handlers share: bodies, pages, entity tags.

Owns the order of checks under `/api/v1`: token → route → body → auth hook → scope → handler. Knows no
resource.
"""

from __future__ import annotations

import re

from ctrl_exec.api import access
from ctrl_exec.api.inquiry import Inquiry
from ctrl_exec.common.errors import InvalidInputError, PreconditionError
from ctrl_exec.common.messages import parse_object
from ctrl_exec.common.routing import Route, json_response
from ctrl_exec.common.value import value
from ctrl_exec.services.authority import Caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from ctrl_exec.common.routing import Request, Response
    from ctrl_exec.config import Config
    from ctrl_exec.services.transport import Interrupt
    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.sealing import Sealer
    from ctrl_exec.tasks.store import Store

    T = TypeVar("T")

PREFIXES = ("/api/v1/", "/oauth/", "/hooks/")
"""The paths that have their own identity and are not under `api_auth_default`."""
TOKEN = "token"  # noqa: S105 - a kind of authorisation
PUBLIC = "public"
ADMIN = "admin"
"""The scope of what administrators alone may do."""
DEFAULT_LIMIT = 50
MOST_ITEMS = 500
_LATEST_NS = 2**63 - 1
_NS = re.compile(r"[0-9]{1,19}", re.ASCII)
_ETAG = re.compile(r'(?:W/)?"([0-9]{1,18})"', re.ASCII)


@value
class TaskRoute(Route):
    """One line of the task layer's table: its scope, the keys of its body, of its query.

    `authorised_by` is `token`, or `public` where the handler itself judges what comes.
    """

    scope: str = "read"
    keys: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    needs_body: bool = False
    authorised_by: str = TOKEN
    is_optional: bool = False


@value
class Visit(Inquiry):
    """One request to a public route of the task layer, whose handler judges what comes."""

    store: Store

    @property
    def sealer(self) -> Sealer:
        """What seals and opens secrets."""
        from ctrl_exec.tasks.sealing import Sealer

        return Sealer(self.dispatcher.config.secrets_key_path)


@value
class Asking(Visit):
    """One request to the task layer on its way to its handler."""

    identity: Identity

    def seal(self, contents: dict[str, Any]) -> bytes:
        """SECRET parameters as an execution holds them. Raises: ServiceError; StorageError."""
        from ctrl_exec.tasks.sealing import seal_parameters

        return seal_parameters(self.sealer, contents)

    @property
    def interrupt(self) -> Interrupt:
        """Fires when the client has gone, or the server stops."""
        from ctrl_exec.services.transport import Interrupt

        watched = self.child.watch(self.request.connection)
        return Interrupt((watched.fileno(),), lambda: bool(watched.poll(0)))


def is_task_path(path: str) -> bool:
    """Whether the path is the task layer's."""
    return path.startswith(PREFIXES)


def bearer_of(request: Request) -> str:
    """The token of the request; empty without one. Raises: InvalidInputError for another scheme."""
    username, token = access.header_credentials(request)
    if username is not None:
        raise InvalidInputError("Authorization: expected Bearer TOKEN", field="Authorization")
    return token or ""


def caller_of(identity: Identity, request: Request, config: Config) -> Caller:
    """The caller as the auth hook is asked about: a proven name, and no token."""
    return Caller(username=identity.username, source_ip=access.source_address(request, config), auth="token")


def body_of(request: Request, route: TaskRoute) -> dict[str, Any]:
    """The JSON object of the body; empty without one. Raises: InvalidInputError."""
    if not request.body:
        if route.needs_body:
            raise InvalidInputError("a JSON body is missing", field="body")
        return {}
    if not route.keys:
        raise InvalidInputError("expected no body", field="body")
    return parse_object(request.body)


PAGE_KEYS = ("limit", "cursor")


def page_of(query: dict[str, str]) -> tuple[int, str]:
    """How many items are asked for, after which cursor. Raises: InvalidInputError."""
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MOST_ITEMS):
        raise InvalidInputError(f"limit: expected 1 to {MOST_ITEMS}", field="limit")
    cursor = query.get("cursor", "")
    if len(cursor) > 100 or not cursor.isprintable():
        raise InvalidInputError("cursor: expected a nextCursor of this list", field="cursor")
    return int(limit), cursor


def moments_of(query: dict[str, str]) -> tuple[int | None, int | None]:
    """`from` and `to` in nanoseconds. Raises: InvalidInputError."""
    for key in ("from", "to"):
        if key in query and not _NS.fullmatch(query[key]):
            raise InvalidInputError(f"{key}: expected nanoseconds since the epoch", field=key)
    # the database knows no larger integer
    first, end = (min(int(query[key]), _LATEST_NS) if key in query else None for key in ("from", "to"))
    return first, end


def check_ids(query: dict[str, str], *keys: str) -> None:
    """Raises: InvalidInputError for a filter that is no id of an object."""
    from ctrl_exec.tasks.ulid import ULID

    for key in keys:
        if key in query and not ULID.fullmatch(query[key]):
            raise InvalidInputError(f"{key}: expected an id of 26 characters", field=key)


def list_response(
    found: Sequence[T], limit: int, encode: Callable[[T], dict[str, Any]], key: Callable[[T], str]
) -> Response:
    """A page of a list; `found` holds one item more than the limit where there are more."""
    items = found[:limit]
    more = key(items[-1]) if len(found) > limit else None
    return json_response(200, {"items": [encode(each) for each in items], "nextCursor": more})


def etag(version: int) -> tuple[str, str]:
    """The header field that names a version."""
    return ("ETag", f'"{version}"')


def wanted_versions(request: Request) -> tuple[int, ...] | None:
    """The versions of `If-Match`; None where any will do.

    Raises: PreconditionError for tags that none of ours is.
    """
    given = request.header("if-match")
    if given is None or given.strip() == "*":
        return None
    found = [_ETAG.fullmatch(each.strip()) for each in given.split(",")]
    versions = tuple(int(each[1]) for each in found if each is not None and not each[0].startswith("W/"))
    if not versions:
        raise PreconditionError("If-Match names no version of this")
    return versions
