"""`POST /oauth/token`, `POST /oauth/revoke`: forms in, the protocol's own answers out (RFC 6749, 7009)."""

from __future__ import annotations

from ctrl_exec.api import access
from ctrl_exec.common.errors import InvalidInputError, ThrottledError
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.v1.asking import Visit
    from ctrl_exec.common.routing import Request

_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 32


def token(visit: Visit) -> Response:
    """`POST /oauth/token`."""
    from ctrl_exec.tasks.people.oauth import GrantError, grant

    config = visit.dispatcher.config
    try:
        answer = grant(
            visit.store,
            form_of(visit.request),
            source_ip=access.source_address(visit.request, config),
            client=_client(visit.request),
            has_passwords=config.oauth_password_grant,
        )
    except GrantError as error:
        return _refusal(error.word, str(error))
    except NoFormError as error:
        return _error(415, "invalid_request", str(error))
    except ThrottledError as error:
        headers = (("Retry-After", str(error.retry_after_s)),)
        return _error(429, "temporarily_unavailable", str(error), headers)
    return json_response(200, answer, (("Pragma", "no-cache"),))


def revoke(visit: Visit) -> Response:
    """`POST /oauth/revoke`: 200 also for a token that is none, or no more."""
    from ctrl_exec.tasks.people.oauth import GrantError
    from ctrl_exec.tasks.people.oauth import revoke as end

    try:
        end(visit.store, form_of(visit.request))
    except GrantError as error:
        return _refusal(error.word, str(error))
    except NoFormError as error:
        return _error(415, "invalid_request", str(error))
    return json_response(200, {})


class NoFormError(InvalidInputError):
    """The body is not declared as a form."""


def form_of(request: Request) -> dict[str, str]:
    """The fields of a form. Raises: NoFormError; GrantError for a field that comes twice, or no UTF-8."""
    from urllib.parse import parse_qsl

    from ctrl_exec.tasks.people.oauth import GrantError

    media = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if media != _FORM:
        raise NoFormError(f"expected Content-Type: {_FORM}")
    try:
        fields = parse_qsl(
            request.body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
        )
    except ValueError as error:
        raise GrantError("the body is no form of UTF-8") from error
    found = dict(fields)
    if len(found) < len(fields):
        raise GrantError("a field comes twice")
    return found


def _client(request: Request) -> tuple[str, str] | None:
    """The credentials of `Authorization: Basic`. Raises: GrantError for any other scheme."""
    from urllib.parse import unquote_plus

    from ctrl_exec.tasks.people.oauth import GrantError

    try:
        name, secret = access.header_credentials(request)
    except InvalidInputError as error:
        raise GrantError(str(error), word="invalid_client") from error
    if name is None and secret is None:
        return None
    if name is None:
        raise GrantError("expected Authorization: Basic", word="invalid_client")
    # RFC 6749 §2.3.1: both parts are form-encoded before they are joined
    return unquote_plus(name), unquote_plus(secret or "")


def _refusal(word: str, detail: str) -> Response:
    if word != "invalid_client":
        return _error(400, word, detail)
    return _error(401, word, detail, (("WWW-Authenticate", 'Basic realm="ctrl-exec"'),))


def _error(status: int, word: str, detail: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    plain = detail.encode("ascii", "replace").decode("ascii").replace('"', "'").replace("\\", "/")
    return json_response(status, {"error": word, "error_description": plain}, headers)
