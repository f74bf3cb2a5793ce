"""`HTTP_REQUEST`: one outgoing request; its status decides."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from ctrl_exec.tasks.execution import carriage, lifecycle
from ctrl_exec.tasks.models import ABORTED, FAILED, SUCCESS, TIMED_OUT, HttpRequest
from ctrl_exec.tasks.outbound.outgoing import OutgoingError, OutgoingRequest
from ctrl_exec.tasks.outbound.sending import send_apart
from ctrl_exec.tasks.templates import json_escaped, query_escaped, substitute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.kinds.attempt import Attempt
    from ctrl_exec.tasks.outbound.outgoing import Allowance

LONGEST_S = 300.0
"""Without a time limit of its own a request has this one."""


def carry(attempt: Attempt, allowance: Allowance) -> Outcome:
    """Send it, put the answer into the log, and judge its status."""
    kind = attempt.task.kind
    assert isinstance(kind, HttpRequest)
    request = request_of(kind, attempt.materials.contents)
    limit_s = min(LONGEST_S, attempt.timeout_s or LONGEST_S)
    try:
        sent = send_apart(
            request,
            allowance,
            timeout_s=limit_s,
            wants_end=attempt.wants_end,
            before_send=lambda pid: _note_group(attempt, pid),
        )
    except OutgoingError as error:
        attempt.say(2, f"{error}\n".encode())
        return lifecycle.Outcome(FAILED, None, str(error))
    answer = sent.answer
    if answer is None:
        if sent.was_ended:
            return lifecycle.Outcome(ABORTED, None, "aborted")
        return lifecycle.Outcome(TIMED_OUT, None, f"timed out after {limit_s:g}s")
    attempt.say(1, f"{kind.method} {_without_query(request.url)} → {answer.status}\n".encode())
    attempt.say(1, answer.body + (b"\n[cut]\n" if answer.is_cut else b""))
    is_right = answer.status in kind.expected if kind.expected else 200 <= answer.status < 300
    if is_right:
        return lifecycle.Outcome(SUCCESS, 0)
    return lifecycle.Outcome(FAILED, 1, f"status {answer.status}")


def _note_group(attempt: Attempt, pid: int) -> None:
    carriage.note_group(attempt.store, attempt.execution.execution_id, pid, carriage.started_at(pid))


def request_of(kind: HttpRequest, contents: dict[str, str]) -> OutgoingRequest:
    """The request with its templates replaced: percent-encoded in the query, JSON-escaped in the body."""
    parts = urlsplit(kind.url)
    url = urlunsplit(parts._replace(query=substitute(parts.query, contents, query_escaped)))
    body = None if kind.body is None else substitute(kind.body, contents, json_escaped).encode()
    headers = kind.headers
    if body is not None and not any(name.lower() == "content-type" for name, _ in headers):
        headers += (("Content-Type", "application/json"),)
    return OutgoingRequest(kind.method, url, headers, body)


def _without_query(url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(query=""))
