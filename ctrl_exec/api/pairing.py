"""`GET /pairing` and the decisions on its requests, for those who may decide and can't sign.

Owns nothing but the form: a decision is queued for the signer, which checks it again. Off unless
`pairing_api_approve`.
"""

from __future__ import annotations

from ctrl_exec.common.errors import (
    BusyError,
    ConflictError,
    InvalidInputError,
    UnknownPairingError,
)
from ctrl_exec.common.names import REQID
from ctrl_exec.common.routing import json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.inquiry import Inquiry
    from ctrl_exec.common.routing import Response
    from ctrl_exec.operations.pairing import ShownRequest, Signer

APPROVE_KEYS = ("code",)
DENY_KEYS = ("reason",)
_CODE_DIGITS = 6
_REASON_LIMIT = 200
_NO_SIGNER_RETRY_S = 60


def list_requests(inquiry: Inquiry) -> Response:
    """`GET /pairing`: the requests that wait for a decision."""
    inquiry.authorise("pairing")
    shown = [each.as_json() for each in _signer(inquiry).requests()]
    return json_response(200, {"ok": True, "requests": shown})


def approve(inquiry: Inquiry) -> Response:
    """`POST /pairing/{id}/approve` with the code that the agent shows."""
    code = inquiry.document.get("code")
    if not isinstance(code, str) or len(code) != _CODE_DIGITS or not (code.isascii() and code.isdigit()):
        raise InvalidInputError("code: expected the six digits that the agent shows", field="code")
    shown = _find(inquiry)
    if shown.is_registered:
        raise ConflictError(
            f"{shown.request.hostname} is already registered; only the CLI can replace a name"
        )
    if shown.request.is_legacy or shown.is_revoked:
        why = "its key was revoked" if shown.is_revoked else "it pairs in the legacy way, without a safe code"
        raise ConflictError(f"{shown.request.hostname} cannot be approved here: {why}; see ctrl-exec approve")
    if code != shown.code:
        raise ConflictError("the code is not this request's: deny it unless the agent shows another one")
    return _queue(inquiry, shown, "approve", code=code)


def deny(inquiry: Inquiry) -> Response:
    """`POST /pairing/{id}/deny`."""
    reason = inquiry.document.get("reason", "")
    if not isinstance(reason, str) or len(reason) > _REASON_LIMIT or not (reason.isprintable()):
        raise InvalidInputError(
            f"reason: expected at most {_REASON_LIMIT} printable characters", field="reason"
        )
    return _queue(inquiry, _find(inquiry), "deny", reason=reason)


def _find(inquiry: Inquiry) -> ShownRequest:
    inquiry.authorise("pairing")
    request_id = inquiry.parameters["id"]
    if not REQID.fullmatch(request_id):
        raise UnknownPairingError(request_id[:80])
    return _signer(inquiry).find(request_id)


def _signer(inquiry: Inquiry) -> Signer:
    # certificates are needed by few requests: cryptography is imported in their child, not before
    from ctrl_exec.operations.pairing import Signer

    return Signer(inquiry.dispatcher.config, inquiry.dispatcher.log)


def _queue(
    inquiry: Inquiry, shown: ShownRequest, action: str, *, code: str = "", reason: str = ""
) -> Response:
    from ctrl_exec.ca.requests import QueuedDecision
    from ctrl_exec.operations.pairing import SIGNER_SEEN_S

    signer = _signer(inquiry)
    if inquiry.dispatcher.clock() - signer.queue.last_beat() > SIGNER_SEEN_S:
        raise BusyError(
            "no signer is at work: start `ctrl-exec pairing-mode`", retry_after_s=_NO_SIGNER_RETRY_S
        )
    by = inquiry.caller.username or inquiry.caller.source_ip
    signer.queue.queue_decision(
        QueuedDecision(shown.request.id, action, shown.csr_digest, code=code, by=by, reason=reason)
    )
    inquiry.dispatcher.log.info(
        f"pair-{action}", reqid=shown.request.id, agent=shown.request.hostname, by=by, queued=True
    )
    return json_response(202, {"ok": True, "id": shown.request.id, "action": action, "queued": True})
