"""`/api/v1/executions`: starting tasks, watching what becomes of it, ending it."""

from __future__ import annotations

import json
import re

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import TaskRoute, check_ids, list_response, moments_of, page_of
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import (
    BusyError,
    DeniedError,
    InvalidInputError,
    NotFoundError,
    RangeError,
    UnauthorizedError,
)
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ctrl_exec.api.v1.asking import Asking
    from ctrl_exec.services.idempotency import Claim
    from ctrl_exec.tasks.models import Execution

LIST_KEYS = ("projectId", "taskId", "status", "from", "to", "limit", "cursor")
LOG_KEYS = ("follow", "after")
START_KEYS = ("taskId", "parameterMap")
DECISION_KEYS = ("comment", "step")
_NS = re.compile(r"[0-9]{1,19}", re.ASCII)
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})", re.ASCII)
_FOLLOW_EVERY_S = 0.2
_JUDGE_EVERY_S = 5.0
_TEXT = "text/plain; charset=utf-8"


def create(asking: Asking) -> Response:
    """`POST /api/v1/executions`."""
    from ctrl_exec.tasks.execution.execution_requests import start

    if asking.request.header("idempotency-key") is not None:
        return _create_once(asking)
    return _created(asking, start(asking.store, asking.identity, asking.document, asking.seal))


def _create_once(asking: Asking) -> Response:
    """As `create`, however often a request with that key comes."""
    from ctrl_exec.api.once import REPLAYED, once_of
    from ctrl_exec.operations.carrier import Pause
    from ctrl_exec.services.idempotency import KeyUse
    from ctrl_exec.tasks.execution.once import start_once

    once = once_of(asking.request, asking.document)
    # the user's, not the token's: an hour later the same client may have another access token
    use = KeyUse(once.key, asking.identity.user_id, "", once.method, once.path, once.body)
    keys = asking.dispatcher.idempotency_keys

    def claim(execution_id: str, exists: Callable[[str], bool]) -> Claim:
        return keys.claim(use, execution_id, exists=exists, wait=Pause(asking.interrupt))

    execution, is_known = start_once(asking.store, asking.identity, asking.document, asking.seal, claim)
    return _created(asking, execution, REPLAYED if is_known else ())


def _created(asking: Asking, execution: Execution, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    location = ("Location", f"/api/v1/executions/{execution.execution_id}")
    return _response(asking, 201, execution, (location, *headers))


def index(asking: Asking) -> Response:
    """`GET /api/v1/executions`."""
    from ctrl_exec.tasks.execution.execution_requests import listed

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    found = listed(asking.store, asking.identity, _filter(query), limit=limit + 1, before_id=cursor or None)
    return list_response(
        found, limit, lambda each: _encoded(asking, each, has_steps=False), lambda each: each.execution_id
    )


def _filter(query: dict[str, str]) -> Any:
    from ctrl_exec.tasks.execution.executions import ExecutionFilter
    from ctrl_exec.tasks.models import STATUSES

    statuses = tuple(each for each in query.get("status", "").split(",") if each)
    if any(each not in STATUSES for each in statuses):
        raise InvalidInputError("status: expected some of " + ", ".join(STATUSES), field="status")
    check_ids(query, "taskId")
    from_ns, to_ns = moments_of(query)
    return ExecutionFilter(
        task_id=query.get("taskId"),
        statuses=statuses,
        project_ids=(query["projectId"],) if "projectId" in query else None,
        from_ns=from_ns,
        to_ns=to_ns,
    )


def show(asking: Asking) -> Response:
    """`GET /api/v1/executions/{executionId}`."""
    from ctrl_exec.tasks.execution.execution_requests import find

    return _response(asking, 200, find(asking.store, asking.identity, _id(asking)))


def abort(asking: Asking) -> Response:
    """`POST /api/v1/executions/{executionId}/abort`."""
    from ctrl_exec.tasks.execution.execution_requests import abort as end

    return _response(asking, 202, end(asking.store, asking.identity, _id(asking)))


def retry(asking: Asking) -> Response:
    """`POST /api/v1/executions/{executionId}/retry`."""
    from ctrl_exec.tasks.execution.execution_requests import retry as start_again

    return _created(asking, start_again(asking.store, asking.identity, _id(asking), asking.seal))


def approve(asking: Asking) -> Response:
    """`POST /api/v1/executions/{executionId}/approve`."""
    from ctrl_exec.tasks.workflow.approvals import APPROVED

    return _decide(asking, APPROVED)


def reject(asking: Asking) -> Response:
    """`POST /api/v1/executions/{executionId}/reject`."""
    from ctrl_exec.tasks.workflow.approvals import REJECTED

    return _decide(asking, REJECTED)


def _decide(asking: Asking, verdict: str) -> Response:
    from ctrl_exec.tasks.project_secrets import load_secrets
    from ctrl_exec.tasks.workflow.approvals import decide

    def secrets(execution: Execution) -> Iterable[str]:
        return load_secrets(asking.store, asking.sealer, execution.project_id).values()

    execution = decide(asking.store, asking.identity, _id(asking), asking.document, verdict, secrets)
    return _response(asking, 200, execution)


def remove(asking: Asking) -> Response:
    """`DELETE /api/v1/executions/{executionId}`."""
    from ctrl_exec.tasks.execution.execution_requests import remove as delete

    delete(asking.store, asking.identity, _id(asking), _files(asking))
    return Response(204)


def log(asking: Asking) -> Response:
    """`GET /api/v1/executions/{executionId}/log`: text, a range of it, or its events as they come."""
    from ctrl_exec.tasks.execution.execution_log import log_parts
    from ctrl_exec.tasks.execution.execution_requests import find_for_log

    query = query_of(asking.request, LOG_KEYS)
    execution = find_for_log(asking.store, asking.identity, _id(asking))
    path = _files(asking).log_path(execution.execution_id)
    if query.get("follow", "false") not in ("true", "false"):
        raise InvalidInputError("follow: expected true or false", field="follow")
    if query.get("follow") == "true":
        after = _after(asking, query)
        headers = (("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no"))
        if asking.request.method == "HEAD":
            return Response(200, headers, b"", close=True)
        if not asking.child.enter_long():
            raise BusyError("as many requests are long as may be (api_max_long)")
        events = _events(asking, execution.execution_id, path, after)
        return Response(200, headers, events, close=True)
    if not log_parts(path):
        return Response(204)
    wanted = asking.request.header("range")
    if wanted is None:
        return Response(200, (("Content-Type", _TEXT), ("Accept-Ranges", "bytes")), _pieces(path))
    return _range(path, wanted)


def _pieces(path: str, first: int = 0, last: int | None = None) -> Iterator[bytes]:
    """The log from its byte `first` to its byte `last`, never all of it in memory."""
    from ctrl_exec.tasks.execution.execution_log import read_log

    at = 0
    for _, piece in read_log(path):
        begins, at = at, at + len(piece)
        if last is not None and begins > last:
            return
        part = piece[max(0, first - begins) : None if last is None else last + 1 - begins]
        if part:
            yield part


def _range(path: str, wanted: str) -> Response:
    """The part that was asked for. Source: RFC 9110 §14."""
    match = _RANGE.fullmatch(wanted.strip())
    headers: tuple[tuple[str, str], ...] = (("Content-Type", _TEXT), ("Accept-Ranges", "bytes"))
    if match is None or match[1] == match[2] == "":  # another unit, several ranges: the whole
        return Response(200, headers, _pieces(path))
    size = sum(map(len, _pieces(path)))
    if match[1] == "":
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first, last = int(match[1]), min(size - 1, int(match[2] or size - 1))
    if first > last:
        raise RangeError(size)
    headers += (("Content-Range", f"bytes {first}-{last}/{size}"),)
    return Response(206, headers, _pieces(path, first, last))


def _after(asking: Asking, query: dict[str, str]) -> int:
    given = query.get("after") or asking.request.header("last-event-id") or "0"
    if not _NS.fullmatch(given):
        raise InvalidInputError("after: expected the id of an event", field="after")
    return int(given)


def _events(asking: Asking, execution_id: str, path: str, after: int) -> Iterator[bytes]:
    """Server-Sent Events: `log` with `{text}`, the offset as id; at last `end` with the execution."""
    from codecs import getincrementaldecoder

    from ctrl_exec.operations.carrier import Pause
    from ctrl_exec.tasks.execution.execution_log import read_log
    from ctrl_exec.tasks.execution.execution_requests import is_final
    from ctrl_exec.tasks.execution.executions import find_execution

    pause = Pause(asking.interrupt)
    judge = _Judge(asking, execution_id)
    decoder = getincrementaldecoder("utf-8")("replace")
    at, silent = after, 0
    while judge.permits():
        over = is_final(find_execution(asking.store, execution_id))
        before = at
        for end, piece in read_log(path, at):
            at = end
            text = decoder.decode(piece)
            if text:
                yield _event("log", {"text": text}, at - len(decoder.getstate()[0]))
        if over and at == before:
            yield _event("end", _encoded(asking, find_execution(asking.store, execution_id)), at)
            return
        silent = 0 if at > before else silent + 1
        if silent and silent % 75 == 0:
            yield b": still here\n\n"
        if at == before and pause(_FOLLOW_EVERY_S):
            return


class _Judge:
    """Whether whoever follows a log may still read it, asked now and then: token and role may go."""

    def __init__(self, asking: Asking, execution_id: str) -> None:
        self._asking = asking
        self._execution_id = execution_id
        self._asked_at = monotonic()

    def permits(self) -> bool:
        from ctrl_exec.tasks.execution.execution_requests import find_for_log
        from ctrl_exec.tasks.people.identity import renewed

        if monotonic() - self._asked_at < _JUDGE_EVERY_S:
            return True
        self._asked_at = monotonic()
        store = self._asking.store
        try:
            find_for_log(store, renewed(store, self._asking.identity), self._execution_id)
        except (UnauthorizedError, DeniedError, NotFoundError):
            return False
        return True


def _event(name: str, document: Any, place: int) -> bytes:
    return f"id: {place}\nevent: {name}\ndata: {json.dumps(document)}\n\n".encode()


def _id(asking: Asking) -> str:
    return asking.parameters["executionId"]


def _files(asking: Asking) -> Any:
    from ctrl_exec.tasks.execution.carriage import ExecutionFiles

    return ExecutionFiles(asking.dispatcher.config.executions_dir)


def _encoded(asking: Asking, execution: Execution, *, has_steps: bool = True) -> dict[str, Any]:
    from ctrl_exec.tasks.execution.execution_requests import encode_execution

    most = asking.dispatcher.config.tasks_max_running
    return encode_execution(asking.store, execution, max_running=most, has_steps=has_steps)


def _response(
    asking: Asking, status: int, execution: Execution, headers: tuple[tuple[str, str], ...] = ()
) -> Response:
    return json_response(status, _encoded(asking, execution), headers)


_EXECUTIONS = "/api/v1/executions"
_EXECUTION = "/api/v1/executions/{executionId}"
EXECUTION_ROUTES = (
    TaskRoute("POST", _EXECUTIONS, "execution-create", create, "execute", START_KEYS, needs_body=True),
    TaskRoute("GET", _EXECUTIONS, "executions", index, query=LIST_KEYS),
    TaskRoute("GET", _EXECUTION, "execution", show),
    TaskRoute("DELETE", _EXECUTION, "execution-remove", remove, "write"),
    TaskRoute("GET", f"{_EXECUTION}/log", "execution-log", log, query=LOG_KEYS),
    TaskRoute("POST", f"{_EXECUTION}/abort", "execution-abort", abort, "execute"),
    TaskRoute("POST", f"{_EXECUTION}/retry", "execution-retry", retry, "execute"),
    TaskRoute("POST", f"{_EXECUTION}/approve", "execution-approve", approve, "execute", DECISION_KEYS),
    TaskRoute("POST", f"{_EXECUTION}/reject", "execution-reject", reject, "execute", DECISION_KEYS),
)
