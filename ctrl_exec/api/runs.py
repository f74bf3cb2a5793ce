"""`POST /run` and `GET /status/{reqid}`: decode, have the operation do it, encode.

Owns the form of a run in JSON and the moment a sync run becomes a long request. What a run is, and
how it goes on when its client hangs up, is the operation's.
"""

from __future__ import annotations

import os
import signal

from ctrl_exec.api.inquiry import required_hosts_of
from ctrl_exec.common.errors import InvalidInputError, LockedError, UnknownRunError
from ctrl_exec.common.messages import (
    MAX_TIMEOUT_S,
    arguments_of,
    bounded_of,
    encoding_of,
    flag_of,
    read_object,
)
from ctrl_exec.common.names import REQID, check_script
from ctrl_exec.common.process import set_handler
from ctrl_exec.common.routing import json_response
from ctrl_exec.operations.rollout import Batch
from ctrl_exec.operations.run import MAX_LOCK_WAIT_S, MAX_READ_TIMEOUT_S, RunRequest, check_request, run
from ctrl_exec.operations.status import status
from ctrl_exec.services.authority import Submitter
from ctrl_exec.services.transport import Interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.api.inquiry import Inquiry
    from ctrl_exec.common.connection import Connection
    from ctrl_exec.common.http import Child
    from ctrl_exec.common.routing import Response
    from ctrl_exec.operations.once import Once

RUN_KEYS = ("hosts", "script", "args", "timeout", "read_timeout", "lock_wait", "encoding", "async", "batch")
BATCH_KEYS = ("size", "max_failures", "pause", "canary")
_LONG_AFTER_S = 1.0
_SIGALRM, _ITIMER_REAL = int(signal.SIGALRM), int(signal.ITIMER_REAL)  # an enum is pages to a child
_REPLAYED = (("Idempotent-Replayed", "true"),)


def decode_run_request(document: dict[str, Any]) -> RunRequest:
    """What a body asks for. Raises: InvalidInputError naming the field."""
    return check_request(
        RunRequest(
            hosts=required_hosts_of(document),
            script=check_script(_required(document, "script")),
            args=arguments_of(document),
            timeout_s=_seconds(document, "timeout", 1, MAX_TIMEOUT_S),
            read_timeout_s=_seconds(document, "read_timeout", 1, MAX_READ_TIMEOUT_S),
            lock_wait_s=_seconds(document, "lock_wait", 0, MAX_LOCK_WAIT_S) or 0,
            encoding=encoding_of(document) or "utf-8",
            is_async=bool(flag_of(document, "async")),
            batch=_batch(document),
        )
    )


def _batch(document: dict[str, Any]) -> Batch | None:
    """How the run is to be rolled out; with a `canary` alone all the others follow it at once.

    Raises: InvalidInputError naming the field.
    """
    if "batch" not in document:
        return None
    found = read_object(document["batch"], "batch")
    unknown = sorted(set(found) - set(BATCH_KEYS))
    if unknown:
        raise InvalidInputError(f"batch: unknown key {ascii(unknown[0])[:80]}", field="batch")
    if not found.keys() & {"size", "canary"}:
        raise InvalidInputError("batch.size: required, unless there is a canary", field="batch.size")
    return Batch(
        size=_amount(found, "size", "100%"),
        max_failures=_amount(found, "max_failures", 0),
        pause_s=_number(found, "pause"),
        canary=int(_whole(found, "canary", 0)),
    )


def _amount(found: dict[str, Any], key: str, default: int | str) -> int | str:
    """A number of hosts, or a percentage."""
    given = found.get(key, default)
    return given if isinstance(given, str) else _whole(found, key, default)


def _whole(found: dict[str, Any], key: str, default: int | str) -> int:
    given = found.get(key, default)
    whole = int(given) if isinstance(given, float) and given.is_integer() else given
    if not isinstance(whole, int) or isinstance(whole, bool):
        raise InvalidInputError(f"batch.{key}: expected a whole number", field=f"batch.{key}")
    return whole


def _number(found: dict[str, Any], key: str) -> float:
    given = found.get(key, 0)
    if not isinstance(given, (int, float)) or isinstance(given, bool):
        raise InvalidInputError(f"batch.{key}: expected a number", field=f"batch.{key}")
    return given


def _seconds(document: dict[str, Any], key: str, least: int, most: int) -> int | None:
    """A whole number of seconds; `5.0` is one too, as JSON Schema has it."""
    given = document.get(key)
    whole = int(given) if isinstance(given, float) and given.is_integer() else given
    return bounded_of({key: whole}, key, least, most)


def _required(document: dict[str, Any], key: str) -> object:
    if key not in document:
        raise InvalidInputError(f"{key}: required", field=key)
    return document[key]


def start_run(inquiry: Inquiry) -> Response:
    """`POST /run`."""
    request = decode_run_request(inquiry.document)
    once = _once(inquiry)
    try:
        with Wait(inquiry.child, inquiry.request.connection) as interrupt:
            report = run(inquiry.dispatcher, inquiry.caller, request, interrupt=interrupt, once=once)
    except LockedError:
        inquiry.figures.note_lock_conflict()
        raise
    if not report.joined:
        inquiry.figures.note_run(report)
    headers = _REPLAYED if report.joined else ()
    if request.is_async:
        return json_response(202, report.accepted_json(), headers)
    return json_response(200, report.run_json(), headers)


def _once(inquiry: Inquiry) -> Once | None:
    """What the request's `Idempotency-Key` says; most have none, and load nothing for it."""
    if inquiry.request.header("idempotency-key") is None:
        return None
    from ctrl_exec.api.once import once_of

    return once_of(inquiry.request, inquiry.document)


def show_status(inquiry: Inquiry) -> Response:
    """`GET /status/{reqid}`."""
    return json_response(200, status(inquiry.dispatcher, inquiry.caller, reqid_of(inquiry)).status_json())


def reqid_of(inquiry: Inquiry, action: str = "status") -> str:
    """The id in the path; what is none names no run, for those who may ask at all.

    Raises: DeniedError; UnknownRunError.
    """
    reqid = inquiry.parameters["reqid"]
    if not REQID.fullmatch(reqid):
        inquiry.dispatcher.authority.sees(inquiry.caller, action, reqid="", script="", submitter=Submitter())
        raise UnknownRunError(reqid[:80])
    return reqid


class Wait:
    """The reasons to stop waiting for hosts or locks: the client hung up, the drain is over, no room.

    After a second it counts as long; where there are as many long ones as may be, it is let go of
    like one whose client hung up: a run goes on detached, and the answer says what is known; one that
    waits for locks, async or not, has not got them.
    """

    def __init__(self, child: Child, connection: Connection) -> None:
        self._child = child
        self._connection = connection

    def __enter__(self) -> Interrupt:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watched = self._child.watch(self._connection, self._reading)
        set_handler(_SIGALRM, self._become_long)
        signal.setitimer(_ITIMER_REAL, _LONG_AFTER_S)
        return Interrupt((self._watched.fileno(),), self._is_over)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(_ITIMER_REAL, 0)
        self._child.leave_long()
        self._watched.close()
        os.close(self._reading)
        os.close(self._writing)

    def _is_over(self) -> bool:
        return bool(self._watched.poll(0))

    def _become_long(self, _number: int, _frame: object) -> None:
        if not self._child.enter_long():
            os.write(self._writing, b".")
