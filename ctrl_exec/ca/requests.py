"""The pairing queue: requests, decisions and answers as files between listener and signer.

Owns everything below `state_dir/pairing`. The listener (the service user) writes requests and reads
answers; the signer (root, or the same user in a private instance) claims a request by a rename that
succeeds once, and answers. Whatever lies here may have been written by whoever took the listener
over: it is opened below directory descriptors, never through links, and decoded strictly. Must not
know what a decision rests on, and never sees a key.

    incoming/<id>.json    a place taken, the code not yet agreed on
    requests/<id>.json    waiting for a decision
    claimed/<id>.json     a signer is deciding
    answers/<id>.json     decided; waits for the agent
    decisions/<id>.json   a decision taken by someone who can't sign
    nonces/<nonce>        the CSR a nonce came with
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import contextmanager, suppress

from ctrl_exec.common import files
from ctrl_exec.common.errors import InvalidInputError, PairingError, StorageError
from ctrl_exec.common.messages import integer_of, parse_object, text_of
from ctrl_exec.common.names import check_agent_name, check_reqid
from ctrl_exec.common.pairing_code import PROTOCOL, read_random
from ctrl_exec.common.value import as_dict, fields, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeVar

    T = TypeVar("T")

FILE_MODE = 0o660
DIRECTORY_MODE = 0o2770
LIMIT_BYTES = 64 * 1024
REVEAL_S = 10.0
ANSWER_KEPT_S = 600.0
NONCE_KEPT_S = 3600.0
CLAIM_KEPT_S = 120.0  # a claim this old has lost its signer
HEARTBEAT_S = 15.0
MOST_NUMBER = 1 << 37  # of any kind: beyond it no clock and no calendar can be asked
FOLDERS = ("incoming", "requests", "claimed", "answers", "decisions", "nonces")
QUEUE_FULL = "pairing queue full"
_NONCE = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)
_HEARTBEAT = "heartbeat.json"


@value
class PairingRequest:
    """One agent that asks to be paired, as the listener queued it.

    `ip`, `port` and `lookup_by` are the agent's wishes (`ip` else where it called from, which is
    `remote_ip`); `agent_random` and `server_random` are hex, empty in a legacy request; `proof`
    shows that the agent knew a pairing token's secret.
    """

    id: str
    hostname: str
    csr: str
    nonce: str
    remote_ip: str
    ip: str
    port: int
    lookup_by: str
    protocol: int
    received: int
    agent_random: str = ""
    server_random: str = ""
    proof: str = ""

    @property
    def is_legacy(self) -> bool:
        """Whether the peer can't commit to a code, so that a relay could forge it."""
        return self.protocol != PROTOCOL


@value
class PairingAnswer:
    """What was decided: `approved` with certificates, or `denied` with a reason."""

    id: str
    status: str
    hostname: str
    fingerprint: str
    at: int
    reason: str = ""
    cert: str = ""
    ca: str = ""
    dispatcher_serial: str = ""
    dispatcher_id: str = ""


@value
class QueuedDecision:
    """A decision for the signer to carry out, by someone who may decide and can't sign."""

    id: str
    action: str
    csr_digest: str
    code: str = ""
    by: str = ""
    reason: str = ""


def decode_request(content: bytes) -> PairingRequest:
    """A request from the queue, every field checked. Raises: InvalidInputError."""
    found = _decode(PairingRequest, content)
    check_reqid(found.id, "id")
    if check_agent_name(found.hostname) != found.hostname:
        raise InvalidInputError("hostname: expected lower case", field="hostname")
    if not _NONCE.fullmatch(found.nonce):
        raise InvalidInputError("nonce: expected 32 hex digits", field="nonce")
    if not found.is_legacy:
        read_random(found.agent_random, "agent_random")
        read_random(found.server_random, "server_random")
    if found.proof:
        read_random(found.proof, "proof")
    if len(found.csr) > LIMIT_BYTES or not 1 <= found.port <= 65535:
        raise InvalidInputError("csr or port out of range")
    return found


def _decode(cls: type[T], content: bytes) -> T:
    document = parse_object(content, cls.__name__)
    made: dict[str, Any] = {}
    for each in fields(cls):
        read = integer_of if each.annotation == "int" else text_of
        default = None if each.is_required else each.initial()
        if default is None and each.name not in document:
            raise InvalidInputError(f"{each.name}: required", field=each.name)
        given = read(document, each.name, default if default is not None else _zero(each.annotation))
        if isinstance(given, int) and not 0 <= given <= MOST_NUMBER:
            raise InvalidInputError(f"{each.name}: out of range", field=each.name)
        made[each.name] = given
    return cls(**made)


def _zero(annotation: str) -> Any:
    return 0 if annotation == "int" else ""


class PairingQueue:
    """The queue of one dispatcher.

    `owner` is (uid, gid) of the service user, for files that root writes; `stale_s` is how long a
    request waits for a decision.
    """

    def __init__(
        self, directory: str, *, most: int, stale_s: float, owner: tuple[int, int] | None = None
    ) -> None:
        self.directory = directory
        self._most = most
        self._stale_s = stale_s
        self._owner = owner

    # What the listener does

    def prepare(self) -> None:
        """Make the folders, as the user who will own them. Raises: StorageError."""
        for folder in FOLDERS:
            files.make_dirs(os.path.join(self.directory, folder), DIRECTORY_MODE)

    def reserve(self, request_id: str) -> None:
        """Take a place in the queue.

        Raises: PairingError when the queue is full; StorageError.
        """
        with files.held_lock(os.path.join(self.directory, ".lock")):
            self.purge(time.time())
            if len(self._ids("incoming")) + len(self._ids("requests")) >= self._most:
                raise PairingError(QUEUE_FULL)
            self._write("incoming", f"{request_id}.json", b"{}")

    def publish(self, request: PairingRequest) -> None:
        """Let the request be seen by those who decide. Raises: StorageError."""
        self._write("requests", f"{request.id}.json", _encode(as_dict(request)))
        self._remove("incoming", f"{request.id}.json")

    def withdraw(self, request_id: str) -> bool:
        """Give the place up; False when a decision was already being taken."""
        was_reserved = self._remove("incoming", f"{request_id}.json")
        return self._remove("requests", f"{request_id}.json") or was_reserved

    def check_nonce(self, nonce: str, csr_digest: str) -> None:
        """Remember the nonce. Raises: InvalidInputError if it came with another CSR within the hour."""
        if not _NONCE.fullmatch(nonce):
            raise InvalidInputError("nonce: expected 32 hex digits", field="nonce")
        nonce = nonce.lower()
        with files.held_lock(os.path.join(self.directory, ".lock")):
            known = self._read("nonces", nonce)
            if known is None or self._age("nonces", nonce, time.time()) > NONCE_KEPT_S:
                self._write("nonces", nonce, csr_digest.encode("ascii"))
            elif known.decode("ascii", "replace") != csr_digest:
                raise InvalidInputError("this nonce was used with another CSR", field="nonce")

    def find_answer(self, request_id: str) -> PairingAnswer | None:
        """The decision on this request, None while there is none."""
        content = self._read("answers", f"{check_reqid(request_id)}.json")
        if content is None:
            return None
        with suppress(InvalidInputError):
            return _decode(PairingAnswer, content)
        return None

    def find_answer_for_key(self, hostname: str, fingerprint: str) -> PairingAnswer | None:
        """The latest decision on the same name and key, which its agent may have missed."""
        waiting = (self.find_answer(each) for each in self._ids("answers"))
        now = time.time()
        mine = [
            each
            for each in waiting
            if each
            and (each.hostname, each.fingerprint) == (hostname, fingerprint)
            and now - each.at < ANSWER_KEPT_S
        ]
        return max(mine, key=lambda each: each.at, default=None)

    def drop_answer(self, request_id: str) -> None:
        """Forget an answer that has reached its agent."""
        self._remove("answers", f"{check_reqid(request_id)}.json")

    def purge(self, now: float) -> None:
        """Remove what nobody waits for any more."""
        for request_id in self._ids("claimed"):  # its signer died: somebody else may decide
            if self._age("claimed", f"{request_id}.json", now) > CLAIM_KEPT_S:
                self.release(request_id)
        limits = {
            "incoming": REVEAL_S + 5, "requests": self._stale_s + 5, "answers": ANSWER_KEPT_S,
            "decisions": self._stale_s, "nonces": NONCE_KEPT_S,
        }  # fmt: skip
        for folder, limit_s in limits.items():
            for name in self._names(folder):
                if self._age(folder, name, now) > limit_s:
                    self._remove(folder, name)

    # What the signer does

    def waiting(self) -> list[PairingRequest]:
        """The requests that wait for a decision, oldest first; damaged ones are left out."""
        found = []
        now = time.time()
        for request_id in self._ids("requests"):
            request = self._request("requests", request_id)
            if request is not None and now - request.received < self._stale_s:
                found.append(request)
        return sorted(found, key=lambda each: (each.received, each.id))

    def find(self, request_id: str) -> PairingRequest | None:
        """The waiting request, None if it is gone, decided or damaged."""
        return self._request("requests", check_reqid(request_id, "id"))

    def claim(self, request_id: str) -> PairingRequest | None:
        """Take the request for deciding; None when someone else has, or its agent went away."""
        name = f"{check_reqid(request_id, 'id')}.json"
        try:
            with self._folder("requests") as source, self._folder("claimed") as target:
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self.directory) from error
        return self._request("claimed", request_id)

    def release(self, request_id: str) -> None:
        """Put a claimed request back, undecided."""
        name = f"{check_reqid(request_id, 'id')}.json"
        with suppress(OSError), self._folder("requests") as target, self._folder("claimed") as source:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)

    def answer(self, answer: PairingAnswer) -> None:
        """Leave the decision for the agent and end the claim. Raises: StorageError."""
        self._write("answers", f"{check_reqid(answer.id)}.json", _encode(as_dict(answer)))
        self._remove("claimed", f"{answer.id}.json")

    def queue_decision(self, decision: QueuedDecision) -> None:
        """Leave a decision for the signer. Raises: StorageError."""
        self._write("decisions", f"{check_reqid(decision.id)}.json", _encode(as_dict(decision)))

    def take_decisions(self) -> list[QueuedDecision]:
        """The decisions that were queued, each given once."""
        found = []
        for request_id in self._ids("decisions"):
            content = self._read("decisions", f"{request_id}.json")
            if content is not None and self._remove("decisions", f"{request_id}.json"):
                with suppress(InvalidInputError):
                    decision = _decode(QueuedDecision, content)
                    if decision.id == request_id:
                        found.append(decision)
        return found

    def beat(self, now: int) -> None:
        """Say that a signer is at work. Raises: StorageError."""
        try:
            directory = files.open_dir(self.directory)
            try:
                document = _encode({"at": now, "pid": os.getpid()})
                files.write_atomic_at(directory, _HEARTBEAT, document, FILE_MODE, owner=self._owner)
            finally:
                os.close(directory)
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self.directory) from error

    def last_beat(self) -> int:
        """When a signer was last at work, epoch seconds; 0 when never."""
        try:
            directory = files.open_dir(self.directory)
            try:
                content = files.read_bounded(_HEARTBEAT, LIMIT_BYTES, dir_fd=directory)
            finally:
                os.close(directory)
            return integer_of(parse_object(content, "heartbeat"), "at", 0)
        except (OSError, StorageError, InvalidInputError):
            return 0

    # Files

    @contextmanager
    def _folder(self, folder: str) -> Iterator[int]:
        top = files.open_dir(self.directory)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        finally:
            os.close(top)
        try:
            yield fd
        finally:
            os.close(fd)

    def _names(self, folder: str) -> list[str]:
        try:
            with self._folder(folder) as fd:
                return os.listdir(fd)
        except FileNotFoundError:
            return []
        except OSError as error:
            path = os.path.join(self.directory, folder)
            raise StorageError(error.strerror or str(error), path=path) from error

    def _ids(self, folder: str) -> list[str]:
        names = (name for name in self._names(folder) if name.endswith(".json"))
        found = []
        for name in names:
            with suppress(InvalidInputError):
                found.append(check_reqid(name.removesuffix(".json")))
        return found

    def _read(self, folder: str, name: str) -> bytes | None:
        try:
            with self._folder(folder) as fd:
                return files.read_bounded(name, LIMIT_BYTES * 2, dir_fd=fd)
        except (OSError, StorageError):
            return None

    def _request(self, folder: str, request_id: str) -> PairingRequest | None:
        content = self._read(folder, f"{request_id}.json")
        if content is None:
            return None
        with suppress(InvalidInputError):
            found = decode_request(content)
            return found if found.id == request_id else None
        return None

    def _write(self, folder: str, name: str, content: bytes) -> None:
        try:
            with self._folder(folder) as fd:
                files.write_atomic_at(fd, name, content, FILE_MODE, owner=self._owner)
        except OSError as error:
            path = os.path.join(self.directory, folder)
            raise StorageError(error.strerror or str(error), path=path) from error

    def _remove(self, folder: str, name: str) -> bool:
        with suppress(OSError), self._folder(folder) as fd:
            os.unlink(name, dir_fd=fd)
            return True
        return False

    def _age(self, folder: str, name: str, now: float) -> float:
        with suppress(OSError), self._folder(folder) as fd:
            # ctime: a rename into another folder starts its time there
            return now - os.stat(name, dir_fd=fd, follow_symlinks=False).st_ctime
        return 0.0


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode("ascii")
