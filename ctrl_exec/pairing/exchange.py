"""One pairing exchange on one connection: request, pending, reveal, decision.

Owns the wire of `POST /pair` (core §9.1) and the state machine of one request. It only queues: it
reads no key of the CA, signs nothing, and decides nothing but what can't be right. Older peers are
answered in their own way, one HTTP/1.0 response after the other on the same connection.
"""

from __future__ import annotations

import hmac
import json
import os
import time

from ctrl_exec.ca.csr import check_csr
from ctrl_exec.ca.requests import REVEAL_S, PairingRequest
from ctrl_exec.ca.tokens import prove
from ctrl_exec.common.errors import (
    CertificateError,
    CtrlExecError,
    InvalidInputError,
    InvalidNameError,
    PairingError,
)
from ctrl_exec.common.messages import bounded_of, integer_of, parse_object, text_of
from ctrl_exec.common.names import check_agent_name
from ctrl_exec.common.pairing_code import (
    PROTOCOL,
    RANDOM_BYTES,
    TOKEN_PREFIX,
    commitment,
    read_random,
    split_token,
)
from ctrl_exec.common.routing import json_response
from ctrl_exec.common.value import value
from ctrl_exec.services.registry import DEFAULT_PORT, LOOKUPS, check_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ctrl_exec.ca.csr import SigningRequest
    from ctrl_exec.ca.requests import PairingAnswer, PairingQueue
    from ctrl_exec.common.child import Child
    from ctrl_exec.common.connection import Connection
    from ctrl_exec.common.log import Log
    from ctrl_exec.common.routing import Request, Response
    from ctrl_exec.services.registry import Registry

PATH = "/pair"
BODY_LIMIT_BYTES = 64 * 1024
REVEAL_LIMIT_BYTES = 1024
SEND_S = 30.0
LOOK_S = 0.2  # how often a waiting child looks for its decision
CLAIMED_GRACE_S = 30.0  # a decision being taken when the time is over is still waited for
INVALID_REQUEST = "invalid request"
INVALID_HOSTNAME = "invalid hostname"
TOO_LARGE = "request too large"
REVOKED = "this key was revoked; make a new one"
OUT_OF_ORDER = "the dispatcher cannot queue requests now"


@value
class Wish:
    """What an agent asks for, checked as far as its words go.

    `commit` is None in a legacy request; `secret` that of a pairing token, empty without one.
    """

    hostname: str
    csr: str
    nonce: str
    ip: str
    port: int
    lookup_by: str
    commit: str | None
    secret: str


@value
class Announced:
    """What the listener tells agents of itself: the CA's certificate, and its fingerprint."""

    ca_pem: str
    ca_fingerprint: str


def refuse(status: int, detail: str) -> Response:
    """The pairing form of an error; too large a body is a 200 as all errors of the protocol are."""
    if status == 413:
        return json_response(200, error_document(TOO_LARGE, detail))
    return json_response(status, error_document(INVALID_REQUEST, detail))


def error_document(reason: str, detail: str = "") -> dict[str, str]:
    """`{status: "error", reason}`, with a detail for people where there is one."""
    document = {"status": "error", "reason": reason}
    return document | {"detail": detail} if detail and detail != reason else document


def speak(connection: Connection, document: Mapping[str, object]) -> None:
    """One whole HTTP/1.0 response with the document. Raises: OSError when the agent is gone."""
    body = json.dumps(document).encode("ascii")
    head = f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.send(head.encode("ascii") + body, time.monotonic() + SEND_S)


def decode_wish(body: bytes, remote_ip: str, ca_fingerprint: str) -> Wish:
    """The wish in the body of `POST /pair`.

    Raises: InvalidNameError for the host name, InvalidInputError for anything else.
    """
    found = parse_object(body)
    hostname = check_agent_name(found.get("hostname"), "hostname")
    is_legacy = integer_of(found, "protocol", 1) < PROTOCOL
    commit = None if is_legacy else read_random(found.get("commit"), "commit").hex()
    secret = _secret(text_of(found, "token", ""), ca_fingerprint)
    if secret and is_legacy:
        raise InvalidInputError("token: not in a legacy request", field="token")
    lookup_by = text_of(found, "lookup_by", "") or "hostname"
    if lookup_by not in LOOKUPS:
        raise InvalidInputError("lookup_by: expected hostname or ip", field="lookup_by")
    return Wish(
        hostname=hostname,
        csr=text_of(found, "csr"),
        nonce=text_of(found, "nonce"),
        ip=check_address(text_of(found, "ip", "") or remote_ip),
        port=_port(found),
        lookup_by=lookup_by,
        commit=commit,
        secret=secret,
    )


def _port(found: dict[str, Any]) -> int:
    """The agent's port; older peers send it as text, as their language likes to."""
    given = found.get("port")
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) <= 5:
        found = {"port": int(given)}
    return bounded_of(found, "port", 1, 65535) or DEFAULT_PORT


def _secret(token: str, ca_fingerprint: str) -> str:
    if not token:
        return ""
    fingerprint, secret = split_token(token)
    if fingerprint != ca_fingerprint:
        raise InvalidInputError(f"token: a {TOKEN_PREFIX}… of another CA", field="token")
    return secret


class PairingApplication:
    """Answers the connections of the pairing port."""

    def __init__(
        self, queue: PairingQueue, registry: Registry, announced: Announced, log: Log, *, timeout_s: float
    ) -> None:
        self._queue = queue
        self._registry = registry
        self._announced = announced
        self._log = log
        self._timeout_s = timeout_s

    def __call__(self, request: Request, child: Child) -> Response | None:
        """Answer one request, or carry its whole exchange and give None."""
        if request.path != PATH:
            return json_response(404, error_document(INVALID_REQUEST, f"pairing is POST {PATH}"))
        if request.method != "POST":
            document = error_document(INVALID_REQUEST, f"pairing is POST {PATH}")
            return json_response(405, document, (("Allow", "POST"),))
        try:
            self._pair(request, child)
        except OSError as error:  # nobody is left to be answered
            reason = f"the agent went away ({error.strerror or type(error).__name__})"
            self._log.info("pair-reject", peer=request.remote_ip, reason=reason)
        return None

    def _pair(self, request: Request, child: Child) -> None:
        hostname = None
        try:
            wish, csr = self._examine(request)
            hostname = wish.hostname
            if self._registry.is_revoked(csr.fingerprint):
                self._log.warning("pair-reject", agent=hostname, peer=request.remote_ip, reason=REVOKED)
                speak(request.connection, {"status": "denied", "reason": REVOKED})
                return
            exchange = Exchange(self._queue, self._log, request, wish, csr)
            exchange.carry(child, self._announced, self._timeout_s)
        except CtrlExecError as error:
            self._log.warning("pair-reject", agent=hostname, peer=request.remote_ip, reason=str(error))
            speak(request.connection, _refusal(error))

    def _examine(self, request: Request) -> tuple[Wish, SigningRequest]:
        wish = decode_wish(request.body, request.remote_ip, self._announced.ca_fingerprint)
        csr = check_csr(wish.csr)
        self._queue.check_nonce(wish.nonce, csr.digest)
        return wish, csr


def _refusal(error: CtrlExecError) -> dict[str, str]:
    """What the agent is told of an error; nothing of what is wrong on our side."""
    if isinstance(error, PairingError):
        return error_document(str(error))
    if _is_about_hostname(error):
        return error_document(INVALID_HOSTNAME, str(error))
    if isinstance(error, (InvalidInputError, CertificateError)):
        return error_document(INVALID_REQUEST, str(error))
    return error_document(OUT_OF_ORDER)


def _is_about_hostname(error: CtrlExecError) -> bool:
    return isinstance(error, InvalidNameError) and error.field == "hostname"


class Exchange:
    """The exchange of one request, from its place in the queue to its last word."""

    def __init__(
        self, queue: PairingQueue, log: Log, request: Request, wish: Wish, csr: SigningRequest
    ) -> None:
        self._queue = queue
        self._log = log
        self._wish = wish
        self._csr = csr
        self._connection: Connection = request.connection
        self._remote_ip = request.remote_ip
        self._id = request.reqid

    def carry(self, child: Child, announced: Announced, timeout_s: float) -> None:
        """Queue the request, wait for its decision, and tell the agent.

        Raises: PairingError when it can't be queued or its reveal does not fit; OSError when the
        agent is gone.
        """
        self._queue.reserve(self._id)
        try:
            challenge = os.urandom(RANDOM_BYTES)
            self._send_pending(announced, challenge)
            revealed = self._read_reveal()
            answer = self._queue.find_answer_for_key(self._wish.hostname, self._csr.fingerprint)
            if answer is None:
                child.is_working()
                self._publish(revealed, challenge)
                answer = self._wait(child, timeout_s)
        finally:
            self._queue.withdraw(self._id)
        if answer is not None:
            self._send_answer(answer)

    def _send_pending(self, announced: Announced, challenge: bytes) -> None:
        pending: dict[str, object] = {"status": "pending", "reqid": self._id}
        if self._wish.commit is not None:
            pending |= {"protocol": PROTOCOL, "ca": announced.ca_pem, "r_d": challenge.hex()}
        speak(self._connection, pending)

    def _read_reveal(self) -> str:
        """The agent's random, hex, checked against what it committed to; empty in a legacy request."""
        if self._wish.commit is None:
            return ""
        line = b""
        deadline = time.monotonic() + REVEAL_S
        while b"\n" not in line:
            try:
                chunk = self._connection.receive(deadline, REVEAL_LIMIT_BYTES)
            except TimeoutError as error:
                raise PairingError("no reveal in time") from error
            line += chunk
            if not chunk or len(line) > REVEAL_LIMIT_BYTES:
                raise PairingError(INVALID_REQUEST)
        try:
            revealed = read_random(parse_object(line).get("reveal"), "reveal")
        except InvalidInputError as error:
            raise PairingError(INVALID_REQUEST) from error
        if not hmac.compare_digest(commitment(revealed), self._wish.commit):
            raise PairingError("the reveal is not what was committed to")
        return revealed.hex()

    def _publish(self, revealed: str, challenge: bytes) -> None:
        wish = self._wish
        is_legacy = wish.commit is None
        self._queue.publish(
            PairingRequest(
                id=self._id,
                hostname=wish.hostname,
                csr=wish.csr,
                nonce=wish.nonce,
                remote_ip=self._remote_ip,
                ip=wish.ip,
                port=wish.port,
                lookup_by=wish.lookup_by,
                protocol=1 if is_legacy else PROTOCOL,
                received=int(time.time()),
                agent_random=revealed,
                server_random="" if is_legacy else challenge.hex(),
                proof=prove(wish.secret, self._csr.der) if wish.secret else "",
            )
        )
        self._log.info(
            "pair-request", agent=wish.hostname, peer=self._remote_ip, reqid=self._id, legacy=is_legacy,
            token=bool(wish.secret),
        )  # fmt: skip

    def _wait(self, child: Child, timeout_s: float) -> PairingAnswer | None:
        """The decision; None when the agent hung up first, whose place is then free again."""
        deadline = time.monotonic() + timeout_s
        with child.watch(self._connection) as watched:
            while True:
                answer = self._queue.find_answer(self._id)
                if answer is not None:
                    return answer
                is_over = time.monotonic() > deadline
                if is_over or watched.poll(LOOK_S):
                    answer = None if self._queue.withdraw(self._id) else self._last_look()
                    if answer is None:
                        self._end_undecided(is_over)
                    return answer

    def _end_undecided(self, is_over: bool) -> None:
        gone = self._connection.has_hung_up()
        reason = "no decision in time" if is_over else "the agent hung up" if gone else "pairing mode ended"
        self._log.info("pair-reject", agent=self._wish.hostname, reqid=self._id, reason=reason)
        if not gone:
            speak(self._connection, {"status": "denied", "reason": reason})

    def _last_look(self) -> PairingAnswer | None:
        """A signer has claimed the request: its answer comes at once, or waits for the same key."""
        deadline = time.monotonic() + CLAIMED_GRACE_S
        while time.monotonic() < deadline:
            answer = self._queue.find_answer(self._id)
            if answer is not None:
                return answer
            time.sleep(LOOK_S)
        return None

    def _send_answer(self, answer: PairingAnswer) -> None:
        if answer.status != "approved":
            speak(self._connection, {"status": "denied", "reason": answer.reason})
            self._queue.drop_answer(answer.id)
            return
        speak(
            self._connection,
            {
                "status": "approved",
                "cert": answer.cert,
                "ca": answer.ca,
                "nonce": self._wish.nonce,
                "dispatcher_serial": answer.dispatcher_serial,
                "dispatcher_id": answer.dispatcher_id,
            },
        )
