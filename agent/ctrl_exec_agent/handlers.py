"""What the agent does for each request of a dispatcher: decode, check, call, encode.

Owns the messages of port 7443 and the order of the checks. Who asks was settled before (`server`);
how a script runs, is recorded and locked comes after (`carrier`).
"""

from __future__ import annotations

import time

import ctrl_exec
from ctrl_exec.common.clock import iso_z, utc_now
from ctrl_exec.common.errors import (
    BusyError,
    ConflictError,
    CtrlExecError,
    InvalidInputError,
    InvalidNameError,
    StorageError,
)
from ctrl_exec.common.hook import HookQuestion, ask_hook
from ctrl_exec.common.messages import FEATURES, decode_run, encode, parse_object, text_of
from ctrl_exec.common.names import check_reqid, check_script
from ctrl_exec.common.output_stream import CONTENT_TYPE, STREAMS
from ctrl_exec.common.routing import Response
from ctrl_exec.common.value import value
from ctrl_exec_agent.carried import ANSWER_KEYS, Order, script_stdin
from ctrl_exec_agent.carrier import Carrier
from ctrl_exec_agent.live import FollowedRun, ShownRun
from ctrl_exec_agent.output_answers import LiveLines, whole
from ctrl_exec_agent.renewal import has_staged
from ctrl_exec_agent.runner import Job
from ctrl_exec_agent.sidecar import load_sidecar
from ctrl_exec_agent.spool import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.common.messages import RunCommand
    from ctrl_exec.common.routing import Request
    from ctrl_exec_agent.allowlist import Script
    from ctrl_exec_agent.generation import Parts
    from ctrl_exec_agent.spool import Found

NOT_PERMITTED = "script not permitted"
ALREADY_RUNNING = "script already running"
_JSON = (("Content-Type", "application/json"),)
_LINES = (("Content-Type", CONTENT_TYPE),)
_OFFSET_DIGITS = 15


@value
class Peer:
    """The dispatcher that asks: its id in the trust map, its certificate's serial, its address."""

    dispatcher: str
    serial: str
    ip: str


def answer(status: int, document: dict[str, Any]) -> Response:
    """The document as the agent's wire carries it."""
    return Response(status, _JSON, encode(document))


class Handlers:
    """One method an endpoint; each takes the peer, the request and the values of its path."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._carrier = Carrier(parts.spool, parts.log)

    def run(self, peer: Peer, request: Request) -> Response:
        """`POST /run`: run the script and give its result, or 202 if it is to run by itself."""
        try:
            command = decode_run(request.body)
        except InvalidNameError as error:
            if error.field == "script":
                return self._refuse_unnamed(peer, request.body)
            raise
        script = self._parts.allowlist.find(command.script)
        if script is None:
            return self._refuse(peer, command, NOT_PERMITTED, "not in the allowlist")
        try:
            path = self._parts.allowlist.resolve(script)
        except StorageError as error:
            return self._refuse(peer, command, NOT_PERMITTED, str(error))
        reason = self._ask_hook(peer, "run", command)
        if reason:
            return self._refuse(peer, command, f"not authorised: {reason}", "the hook said no")
        order = self._order(peer, command, script, path)
        if command.is_async:
            return self._run_detached(order, request)
        return self._run_attended(order, request, is_shown=bool(command.stream))

    def ping(self, peer: Peer, request: Request) -> Response:
        """`POST /ping`: that we live, which version, and until when our certificate is valid."""
        reqid = _reqid_of(request.body)
        self._parts.log.info("ping", peer=peer.ip, dispatcher=peer.dispatcher, reqid=reqid)
        return answer(
            200,
            {
                "status": "ok",
                "host": self._parts.name,
                "version": ctrl_exec.__version__,
                "expiry": self._parts.expiry,
                "staged": has_staged(self._parts.config),
                "reqid": reqid,
                "features": list(FEATURES),
            },
        )

    def capabilities(self, peer: Peer, _request: Request) -> Response:
        """`GET /capabilities`: tags, and every script with its schema."""
        reason = self._ask_hook(peer, "discovery")
        if reason:
            self._parts.log.warning("deny", what="capabilities", peer=peer.ip, reason=reason)
            return answer(403, {"error": f"not authorised: {reason}", "status": "forbidden"})
        self._parts.log.info("capabilities", peer=peer.ip, dispatcher=peer.dispatcher)
        scripts = self._parts.allowlist.scripts.values()
        return answer(
            200,
            {
                "status": "ok",
                "host": self._parts.name,
                "version": ctrl_exec.__version__,
                "tags": dict(self._parts.config.tags),
                "scripts": [self._describe(script) for script in sorted(scripts, key=lambda each: each.name)],
                "features": list(FEATURES),
            },
        )

    def result(self, peer: Peer, request: Request, reqid: str) -> Response:
        """`GET /result/{reqid}`: the record of a run, to the dispatcher that ordered it; or its lines."""
        at = _offsets(request)

        def find() -> Found | None:
            return self._parts.spool.find(peer.dispatcher, check_reqid(reqid), time.time())

        try:
            found = find()
        except InvalidNameError:
            found = None
        self._parts.log.info("result", peer=peer.ip, dispatcher=peer.dispatcher, reqid=reqid[:64])
        if found is None:
            return answer(404, {"status": "unknown", "reqid": reqid[:64]})
        if at is not None:
            return Response(200, _LINES, FollowedRun(found, find, at, request.connection))
        if found.status == RUNNING:
            return answer(200, found.record)
        return Response(200, _JSON, whole(found.about(), found.outputs))

    def cancel(self, peer: Peer, request: Request) -> Response:
        """`POST /cancel`: end a run that the asking dispatcher ordered; says whether it has ended."""
        from ctrl_exec_agent.cancelling import cancel_run

        reqid = check_reqid(parse_object(request.body).get("reqid"))
        ended = cancel_run(self._parts.spool, peer.dispatcher, reqid)
        self._parts.log.info("cancel", peer=peer.ip, dispatcher=peer.dispatcher, reqid=reqid, ended=ended)
        if ended is None:
            return answer(404, {"status": "unknown", "reqid": reqid})
        return answer(200, {"status": "ok", "ended": ended, "reqid": reqid})

    def ask_rotation(self, peer: Peer, token: str) -> str:
        """Why the hook forbids a change of the trust map, '' if it does not."""
        return self._ask_hook(peer, "rotate", token=token)

    def _run_attended(self, order: Order, request: Request, *, is_shown: bool) -> Response:
        """Carried by this very process, which goes on when the caller vanishes."""
        ids = {"script": order.script, "reqid": order.reqid}
        try:
            known = self._carrier.known(order)
            if known is not None:
                return _told_again(known, ids, request, is_shown=is_shown)
            carried = self._carrier.begin(order)
        except BusyError:
            return answer(200, ids | self._refusal(order, ALREADY_RUNNING))
        except ConflictError as error:
            return answer(200, ids | self._refusal(order, str(error)))
        except StorageError as error:
            return answer(200, ids | self._refusal(order, f"run could not be recorded: {error}"))
        while not (carried.is_over or (is_shown and carried.is_worth_showing())):
            carried.turn()
        if not is_shown:
            return Response(200, _JSON, whole(ids | carried.answer, carried.outputs))
        lines = LiveLines(carried.outputs)
        if carried.is_over and lines.is_rest_small():  # one line, and so as cheap as a plain answer
            return Response(200, _LINES, lines.last_line(ids | carried.answer, has_sent=False))
        return Response(200, _LINES, ShownRun(carried, ids, request.connection))

    def _run_detached(self, order: Order, request: Request) -> Response:
        ids = {"script": order.script, "reqid": order.reqid}
        try:
            self._carrier.detach(order, close=(request.connection.fileno(),))
        except BusyError:
            self._refusal(order, ALREADY_RUNNING)
            return answer(409, ids | {"status": "busy", "error": ALREADY_RUNNING})
        except CtrlExecError as error:
            return answer(200, ids | self._refusal(order, f"run could not be started: {error}"))
        return answer(202, ids | {"status": "accepted"})

    def _order(self, peer: Peer, command: RunCommand, script: Script, path: str) -> Order:
        config = self._parts.config
        limits = [limit for limit in (command.timeout, script.timeout_s) if limit is not None]
        told: dict[str, Any] = {
            "script": command.script,
            "args": list(command.args),
            "reqid": command.reqid,
            "peer_ip": peer.ip,
            "username": command.username,
            "token": command.token,
            "dispatcher": peer.dispatcher,
        }
        if command.secrets:
            told["secrets"] = dict(command.secrets)
        job = Job(
            path,
            command.args,
            self._parts.environment,
            script_stdin(told),
            tuple((command.secrets or {}).values()),
            timeout_s=min(limits) if limits else None,
            stdin_timeout_s=config.stdin_timeout,
            limit_bytes=config.max_output,
        )
        return Order(
            peer.dispatcher,
            command.reqid,
            command.script,
            script.has_lock,
            job,
            command.encoding,
            peer.ip,
            command.username,
        )

    def _describe(self, script: Script) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "name": script.name,
            "path": script.path,
            "executable": self._parts.allowlist.is_executable(script),
        }
        if script.profile:
            shown["profile"] = script.profile
        try:
            sidecar = load_sidecar(script.path)
        except StorageError as error:
            self._parts.log.warning("config-warn", script=script.name, reason=str(error))
            return shown
        if sidecar is not None:
            shown |= {"schema": sidecar.schema, "schema_version": sidecar.version}
        return shown

    def _ask_hook(self, peer: Peer, action: str, command: RunCommand | None = None, token: str = "") -> str:
        """Why the hook says no, '' if it says yes or there is none."""
        if self._parts.hook is None:
            return ""
        question = HookQuestion(
            action=action,
            timestamp=iso_z(utc_now()),
            hosts=(self._parts.name,),
            source_ip=peer.ip,
            dispatcher=peer.dispatcher,
            dispatcher_serial=peer.serial,
            via="agent",
            **(_asked_for(command) if command is not None else {"token": token}),
        )
        try:
            verdict = ask_hook(self._parts.hook, question)
        except InvalidInputError as error:
            return str(error)
        log = self._parts.log.info if verdict.is_allowed else self._parts.log.warning
        log(
            "auth-hook-timeout" if verdict.has_timed_out else "auth",
            asked=action, code=verdict.code, cause=verdict.cause, dispatcher=peer.dispatcher,
            peer=peer.ip, reqid=question.reqid or None, script=question.script or None,
        )  # fmt: skip
        return verdict.reason

    def _refuse(self, peer: Peer, command: RunCommand, error: str, why: str) -> Response:
        self._parts.log.warning(
            "deny", script=command.script, reqid=command.reqid, peer=peer.ip,
            dispatcher=peer.dispatcher, reason=f"{error} ({why})",
        )  # fmt: skip
        return answer(200, {"script": command.script, "exit": -1, "error": error, "reqid": command.reqid})

    def _refusal(self, order: Order, error: str) -> dict[str, Any]:
        self._parts.log.warning(
            "deny", script=order.script, reqid=order.reqid, peer=order.peer_ip,
            dispatcher=order.owner, reason=error,
        )  # fmt: skip
        return {"exit": -1, "error": error}

    def _refuse_unnamed(self, peer: Peer, body: bytes) -> Response:
        """The refusal of a script name that is none: it can't be in the allowlist."""
        found = parse_object(body)
        shown, reqid = (
            each[:64] if isinstance(each := found.get(key), str) else "" for key in ("script", "reqid")
        )
        self._parts.log.warning(
            "deny", script=shown, reqid=reqid, peer=peer.ip, dispatcher=peer.dispatcher,
            reason="not a script name",
        )  # fmt: skip
        return answer(200, {"script": shown, "exit": -1, "error": NOT_PERMITTED, "reqid": reqid})


def _told_again(known: Found, ids: dict[str, Any], request: Request, *, is_shown: bool) -> Response:
    """The answer to an order that came before, from its record."""
    if is_shown:
        return Response(200, _LINES, FollowedRun(known, lambda: known, {}, request.connection))
    kept = {key: known.record[key] for key in ANSWER_KEYS if key in known.record}
    return Response(200, _JSON, whole(ids | kept, known.outputs))


def _asked_for(command: RunCommand) -> dict[str, Any]:
    return {
        "script": check_script(command.script),
        "args": command.args,
        "username": command.username,
        "token": command.token,
        "reqid": command.reqid,
        "auth": "claimed" if command.username else "none",
    }


def _offsets(request: Request) -> dict[str, int] | None:
    """How much of each stream the dispatcher has, None if it wants no lines. Raises: InvalidInputError."""
    wanted = dict(request.query)
    if wanted.get("stream") != "1":
        return None
    at = {}
    for stream in STREAMS:
        count = wanted.get(stream, "0")
        if not (count.isascii() and count.isdigit() and len(count) <= _OFFSET_DIGITS):
            raise InvalidInputError(f"{stream}: expected a count of bytes", field=stream)
        at[stream] = int(count)
    return at


def _reqid_of(body: bytes) -> str:
    return text_of(parse_object(body), "reqid", "")[:64] if body else ""
