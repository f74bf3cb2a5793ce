"""`GET /runs/{reqid}/output` and `POST /runs/{reqid}/cancel`: watching a run, and ending it.

Owns the two forms of a stream, Server-Sent Events and JSON lines, and where in a run it begins. What
there is to see, and what a cancel does, are the operations'.

    SSE:    id: 4711\\nevent: stdout\\ndata: {"host": "web-01", "text": "…"}\\n\\n
    lines:  {"id": 4711, "event": "stdout", "host": "web-01", "text": "…"}\\n

Source: HTML Living Standard, §9.2 Server-sent events.
"""

from __future__ import annotations

import json
import re

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.runs import Wait, reqid_of
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import BusyError, CtrlExecError, InvalidInputError
from ctrl_exec.common.routing import Response, json_response
from ctrl_exec.operations.cancel import cancel
from ctrl_exec.operations.follow import BEGINNING, follow
from ctrl_exec.operations.status import visible_head
from ctrl_exec.services.transport import Interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ctrl_exec.api.inquiry import Inquiry
    from ctrl_exec.operations.follow import RunEvent

WATCH_KEYS = ("after",)
# proxies and browsers take a line that is silent for a minute for a dead one
_IDLE_S = 15.0
# whoever may see a run when they begin to may not for ever: a token is revoked, a hook thinks otherwise
_JUDGE_EVERY_S = 10.0
_RETRY_MS = 1000
_PLACE = re.compile(r"[0-9]{1,15}", re.ASCII)
_STREAM_HEADERS = (("X-Accel-Buffering", "no"),)
_SSE = "text/event-stream"
_LINES = "application/x-ndjson"


def show_output(inquiry: Inquiry) -> Response:
    """`GET /runs/{reqid}/output`."""
    reqid = reqid_of(inquiry)
    after = _place_of(inquiry)
    watched = inquiry.child.watch(inquiry.request.connection)
    interrupt = Interrupt((watched.fileno(),), lambda: bool(watched.poll(0)))
    events = follow(inquiry.dispatcher, inquiry.caller, reqid, after, interrupt, idle_s=_JUDGE_EVERY_S)
    is_sse = wants_events(inquiry)
    headers = (("Content-Type", _SSE if is_sse else _LINES), *_STREAM_HEADERS)
    if inquiry.request.method == "HEAD":
        return Response(200, headers, b"", close=True)
    if not inquiry.child.enter_long():
        raise BusyError("as many requests are long as may be (api_max_long)")
    encode = encode_sse if is_sse else encode_line
    return Response(200, headers, _pieces(inquiry, _permitted(inquiry, reqid, events), encode), close=True)


def _permitted(inquiry: Inquiry, reqid: str, events: Iterator[RunEvent]) -> Iterator[RunEvent]:
    """The events for as long as the caller may see them; of silence no more than is shown.

    Raises: UnauthorizedError, DeniedError, UnknownRunError when they may not any more.
    """
    judged = shown = monotonic()
    for event in events:
        now = monotonic()
        if event.kind == "idle" or now - judged >= _JUDGE_EVERY_S:
            visible_head(inquiry.dispatcher, inquiry.caller, reqid, "status")
            judged = now
        if event.kind != "idle" or now - shown >= _IDLE_S:
            shown = now
            yield event


def _place_of(inquiry: Inquiry) -> int:
    """After which event the stream begins: the last one that a browser says it has, or as asked for.

    Raises: InvalidInputError.
    """
    given = query_of(inquiry.request, WATCH_KEYS)
    header = inquiry.request.header("last-event-id")
    name, text = ("Last-Event-ID", header) if header else ("after", given.get("after"))
    if text is None:
        return BEGINNING
    if not _PLACE.fullmatch(text):
        raise InvalidInputError(f"{name}: expected the id of an event", field=name)
    return int(text)


def wants_events(inquiry: Inquiry) -> bool:
    """Whether the client accepts Server-Sent Events by name."""
    accepted = (inquiry.request.header("accept") or "").lower().split(",")
    return any(each.partition(";")[0].strip() == _SSE for each in accepted)


def _pieces(
    inquiry: Inquiry, events: Iterator[RunEvent], encode: Callable[[RunEvent], bytes]
) -> Iterator[bytes]:
    """The stream; where the run's log can't be read it ends without an `end`, and may be asked for again."""
    if encode is encode_sse:
        yield b"retry: %d\n\n" % _RETRY_MS
    try:
        for event in events:
            yield encode(event)
    except CtrlExecError as error:
        inquiry.dispatcher.log.error("api-request", error=str(error), reqid=inquiry.request.reqid)


def encode_sse(event: RunEvent) -> bytes:
    """The event in the form of browsers; silence is a comment."""
    if event.kind == "idle":
        return b": still here\n\n"
    shown = event.as_json()
    number, kind = shown.pop("id"), shown.pop("event")
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode("ascii"), _dump(shown))


def encode_line(event: RunEvent) -> bytes:
    """The event as one line of JSON."""
    return _dump(event.as_json()) + b"\n"


def _dump(document: dict[str, object]) -> bytes:
    # ASCII: a line separator or a lone surrogate in an output must not end or break a line
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def cancel_run(inquiry: Inquiry) -> Response:
    """`POST /runs/{reqid}/cancel`."""
    reqid = reqid_of(inquiry, "cancel")
    with Wait(inquiry.child, inquiry.request.connection) as interrupt:
        report = cancel(inquiry.dispatcher, inquiry.caller, reqid, interrupt=interrupt)
    return json_response(200, report.as_json())
