"""Which HTTP status and body each of our errors is; the only place that knows.

An error is looked up along its MRO, so that a new subclass has its parent's answer until it gets its
own line here.
"""

from __future__ import annotations

from ctrl_exec.common import errors
from ctrl_exec.common.answer import ERROR_WORDS
from ctrl_exec.common.routing import Response, json_response
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OURS = "an error of ours; the log says more under this request's id"


@value
class Rendering:
    """A status and its `error` word; `detail` replaces the error's own text where that is not for callers."""

    status: int
    word: str
    detail: str = ""


STATUSES: dict[type[errors.CtrlExecError], Rendering] = {
    errors.CtrlExecError: Rendering(500, "server error", _OURS),
    errors.InvalidInputError: Rendering(400, "bad request"),
    errors.PayloadError: Rendering(413, "payload too large"),
    errors.NotFoundError: Rendering(404, "not found"),
    errors.UnknownAgentError: Rendering(404, "unknown agent"),
    errors.MethodNotAllowedError: Rendering(405, "method not allowed"),
    errors.UnauthorizedError: Rendering(401, "unauthorized"),
    errors.DeniedError: Rendering(403, "denied"),
    errors.ForbiddenError: Rendering(403, "forbidden"),
    errors.ThrottledError: Rendering(429, "too many requests"),
    errors.BusyError: Rendering(503, "service unavailable"),
    errors.ConflictError: Rendering(409, "conflict"),
    errors.LockedError: Rendering(409, "locked"),
    errors.PairingError: Rendering(409, "conflict"),
    errors.PreconditionError: Rendering(412, "precondition failed"),
    errors.RangeError: Rendering(416, "range not satisfiable"),
    errors.StorageError: Rendering(
        500, "server error", "the dispatcher's state could not be read or written; the log says why"
    ),
}

LOCK_CODE = 4


def rendering_of(error: errors.CtrlExecError) -> Rendering:
    """Status and word of an error, found along its MRO."""
    if isinstance(error, errors.ProtocolError):
        return Rendering(error.status, ERROR_WORDS.get(error.status, "bad request"))
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


def error_response(error: errors.CtrlExecError, *, is_generic: bool = False) -> Response:
    """The answer to an error; with `is_generic` a denial says no more than that (auth_deny_generic)."""
    found = rendering_of(error)
    if isinstance(error, errors.LockedError):
        conflicts = list(error.conflicts)
        body = {"ok": False, "error": found.word, "code": LOCK_CODE, "conflicts": conflicts}
        return json_response(found.status, body)
    if isinstance(error, errors.DeniedError):
        return _denial(error, found.status, is_generic)
    document: dict[str, Any] = {"ok": False, "error": found.word, "detail": found.detail or str(error)}
    if isinstance(error, errors.UnknownAgentError):
        document["agents"] = list(error.names)
    if isinstance(error, errors.SpentKeyError):
        document["reqid"] = error.reqid
    if isinstance(error, errors.InvalidFieldsError) and error.fields:
        document["fields"] = error.fields
    return json_response(found.status, document, _headers(error))


def _denial(error: errors.DeniedError, status: int, is_generic: bool) -> Response:
    if is_generic:
        return json_response(status, {"ok": False, "error": "forbidden", "detail": "forbidden"})
    return json_response(
        status, {"ok": False, "error": error.reason, "code": error.code, "detail": str(error)}
    )


def _headers(error: errors.CtrlExecError) -> tuple[tuple[str, str], ...]:
    if isinstance(error, errors.MethodNotAllowedError):
        return (("Allow", ", ".join(error.allow)),)
    if isinstance(error, errors.UnauthorizedError):
        word = f', error="{error.challenge}"' if error.challenge else ""
        return (("WWW-Authenticate", f'Bearer realm="ctrl-exec"{word}'),)
    if isinstance(error, (errors.BusyError, errors.ThrottledError)):
        return (("Retry-After", str(error.retry_after_s)),)
    if isinstance(error, errors.RangeError):
        return (("Content-Range", f"bytes */{error.size_bytes}"),)
    if isinstance(error, errors.ProtocolError) and error.status == 503:
        return (("Retry-After", "1"),)
    return ()
