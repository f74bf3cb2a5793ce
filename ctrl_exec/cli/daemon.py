"""The command line of a user who may not read the dispatcher's key: the API on its Unix socket does the work.

Owns that way in: when it is taken, the request, the error that an answer stands for. The API learns the
user's name from the kernel (SO_PEERCRED), asks the hook, runs, locks and records as it does for HTTP. Members
of `api_socket_group` so need neither root nor any secret of the dispatcher.
"""

from __future__ import annotations

import json
import os
import select
import socket

from ctrl_exec.common import errors
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.operations.run import RunRequest
    from ctrl_exec.services.transport import Interrupt

CONNECT_TIMEOUT_S = 5.0
# beyond what the request itself may take: the answer's way back
GRACE_S = 60.0


@value
class Question:
    """One request to the API: method, path, JSON body, how long its answer may take."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    timeout_s: float = GRACE_S
    authorization: str = ""


def uses_daemon(context: Context, arguments: Arguments) -> bool:
    """Whether this command goes through the API: it has a socket, and its key is not ours to read."""
    config = context.config
    if not config.api_socket or arguments.port("port") is not None:
        return False
    return not os.access(config.key_path, os.R_OK) and os.path.exists(config.api_socket)


def ask(context: Context, question: Question, interrupt: Interrupt | None = None) -> dict[str, Any]:
    """Send one request over the socket and give the document of its answer.

    Raises:
        CtrlExecError: the one that a refusal stands for; ServiceError if the API is not there.
        KeyboardInterrupt: the interrupt fired first.
    """
    path = context.config.api_socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(CONNECT_TIMEOUT_S)
        try:
            stream.connect(path)
            stream.sendall(encoded(question))
            status, body = received(stream, question.timeout_s, interrupt, context.config.max_run_output)
        except OSError as error:
            reason = error.strerror or str(error)
            raise errors.ServiceError(f"{path}: {reason}; is ctrl-exec-api running?") from error
        except errors.PeerError as error:
            raise errors.ServiceError(f"{path}: what answers there is not ctrl-exec-api") from error
    document = decoded(body)
    if status >= 400:
        raise error_of(status, document)
    return document


def encoded(question: Question) -> bytes:
    """Give the request's bytes."""
    body = b"" if question.body is None else json.dumps(question.body).encode("ascii")
    head = f"{question.method} {question.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if question.authorization:
        head += f"Authorization: {question.authorization}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body


def received(
    stream: socket.socket, timeout_s: float, interrupt: Interrupt | None, limit_bytes: int
) -> tuple[int, bytes]:
    """Read one answer: its status and body. Raises: OSError; PeerError; KeyboardInterrupt."""
    from ctrl_exec.common.clock import monotonic
    from ctrl_exec.common.responses import ResponseParser

    # output is text in JSON: what it quotes can be six times as long
    parser = ResponseParser(limit_bytes * 6 + (1 << 24))
    deadline = monotonic() + timeout_s
    watched: list[Any] = [stream, *(interrupt.fds if interrupt is not None else ())]
    while not parser.is_done:
        ready, _, _ = select.select(watched, [], [], max(0.0, deadline - monotonic()))
        if interrupt is not None and interrupt.is_set():
            raise KeyboardInterrupt
        if not ready:
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        chunk = stream.recv(1 << 18)
        if not chunk:
            parser.end()
            break
        parser.feed(chunk)
    return parser.status, parser.body


def decoded(body: bytes) -> dict[str, Any]:
    """Give the JSON object of an answer. Raises: PeerError."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise errors.PeerError("the API answered something that is not JSON") from error
    if not isinstance(document, dict):
        raise errors.PeerError("the API answered something that is not an object")
    return document


def error_of(status: int, document: Mapping[str, Any]) -> errors.CtrlExecError:
    """Give the error that an answer of the API stands for."""
    word, detail = str(document.get("error", "")), str(document.get("detail", ""))
    if word == "locked":
        return errors.LockedError("the script", [str(each) for each in document.get("conflicts", ())])
    if word == "unknown agent":
        return errors.UnknownAgentError([str(each) for each in document.get("agents", ())])
    if status == 403 and "code" in document:
        return errors.DeniedError(int(document["code"]), word, detail)
    if status == 429:
        return errors.ThrottledError(detail, retry_after_s=60)
    kinds: dict[int, type[errors.CtrlExecError]] = {
        400: errors.InvalidInputError,
        403: errors.ForbiddenError,
        404: errors.NotFoundError,
        409: errors.ConflictError,
        413: errors.PayloadError,
        503: errors.BusyError,
    }
    kind = kinds.get(status)
    return (
        kind(detail)
        if kind is not None
        else errors.ServiceError(f"the API answered {status}: {detail or word}")
    )


def credentials(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Give `username` (only if it was given: the kernel knows who we are) and `token` for a body."""
    found = {"username": arguments.text("username"), "token": context.token(arguments) or None}
    return {key: each for key, each in found.items() if each is not None}


def run_question(context: Context, arguments: Arguments, request: RunRequest) -> Question:
    """Give the request for a run."""
    config = context.config
    optional = {
        "timeout": request.timeout_s,
        "read_timeout": request.read_timeout_s,
        "lock_wait": request.lock_wait_s or None,
        "encoding": None if request.encoding == "utf-8" else request.encoding,
        "async": request.is_async or None,
    }
    body: dict[str, Any] = {
        "hosts": list(request.hosts),
        "script": request.script,
        "args": list(request.args),
    }
    body |= {key: each for key, each in optional.items() if each is not None} | credentials(
        context, arguments
    )
    silence_s = request.read_timeout_s or config.read_timeout
    # an agent that answers keeps the run alive: only the run's own deadline bounds it
    return Question("POST", "/run", body, max(config.run_deadline, silence_s) + request.lock_wait_s + GRACE_S)


def hosts_question(context: Context, arguments: Arguments, path: str, hosts: Sequence[str]) -> Question:
    """Give the request for a ping or a discovery of these hosts (none: all)."""
    body = credentials(context, arguments)
    if hosts:
        body["hosts"] = list(hosts)
    return Question("POST", path, body, context.config.read_timeout + GRACE_S)


def status_question(context: Context, arguments: Arguments, reqid: str) -> Question:
    """Give the request for a run's record; GET has no body, so credentials go into a header."""
    import base64

    from ctrl_exec.common.names import check_reqid

    found = credentials(context, arguments)
    pair = f"{found.get('username', '')}:{found.get('token', '')}".encode()
    authorization = f"Basic {base64.b64encode(pair).decode()}" if found else ""
    return Question("GET", f"/status/{check_reqid(reqid)}", authorization=authorization)


def run_by_daemon(context: Context, arguments: Arguments, request: RunRequest) -> int:
    """Have the API run a script, and show what it answered."""
    from ctrl_exec.cli.errors import INTERRUPTED, OK
    from ctrl_exec.cli.progress import Release
    from ctrl_exec.cli.results import exit_code, prints_gathered, show_results
    from ctrl_exec.common.messages import HostResult

    with Release(INTERRUPTED, "") as release:
        try:
            document = ask(context, run_question(context, arguments, request), release.interrupt)
        except KeyboardInterrupt:
            detail = "let go of the run, it goes on; ctrl-exec-api logs its id as REQID"
            context.output.answer({"ok": False, "error": "interrupted", "detail": detail}, lambda: None)
            context.output.message(detail)
            return INTERRUPTED
    reqid = str(document.get("reqid", ""))
    if request.is_async:
        context.output.answer(document, lambda: context.output.line(reqid))
        context.output.message(f"accepted; `ctrl-exec status {reqid}` shows how far it is")
        return OK
    results = [HostResult.from_json(each) for each in document.get("results", ())]
    is_gathering = prints_gathered(arguments, len(results))
    context.output.answer(document, lambda: show_results(context.output, results, is_gathering=is_gathering))
    if not all(result.is_final for result in results):
        context.output.message(f"not finished everywhere: ctrl-exec status {reqid}")
    return exit_code(results)
