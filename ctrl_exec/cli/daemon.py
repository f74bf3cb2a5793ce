"""The API on its Unix socket, as the command line speaks to it: who listens, one request, its answer.

Owns the moment up to which nothing has been asked of the daemon: a body leaves only when the daemon has said
that it will read it (`Expect: 100-continue`), so that what does not answer has not been told anything, and
another way may be taken. The daemon learns the user's name from the kernel (SO_PEERCRED), asks the hook,
runs, locks and records as for HTTP. Imports neither `ssl` nor `socket`: this is the fast way in.
"""

from __future__ import annotations

import _socket
import os
import select
import sys
import time

from ctrl_exec.cli.documents import read_document, write_document
from ctrl_exec.common import errors
from ctrl_exec.common.responses import ResponseParser
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from ctrl_exec.cli.progress import Release

CONNECT_TIMEOUT_S = 3.0
# how long a daemon that lives may take to say that it reads: it only has to fork
WELCOME_TIMEOUT_S = 5.0
# beyond what the request itself may take: the answer's way back
GRACE_S = 60.0
# how long the answer to a request that was let go of may take: a carrier has to be made
FAREWELL_S = 15.0
_RECEIVE_BYTES = 1 << 18
_ENDLESS_BYTES = 1 << 62
# refusals that come before anything is done: another dispatcher's daemon, one with no room
_UNTOUCHED = (412, 503)


class UnsentError(errors.ServiceError):
    """Nothing was asked of the daemon, or it refused before it did anything: another way may be taken."""


class BrokenError(errors.ServiceError):
    """The daemon went away after it had been asked: what it did is not known here."""


@value
class Question:
    """One request: method, path, JSON body, how long its answer may take.

    `script` is whose lock a conflict is about, `reqid` whose record is asked for; errors name them. What
    `is_look` changes nothing and may be asked again.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    timeout_s: float = GRACE_S
    authorization: str = ""
    script: str = "the script"
    reqid: str = ""
    is_look: bool = False


@value
class Daemon:
    """Where the daemon listens, whether it may run as a user, and the state directory it must serve."""

    path: str
    trusts: Callable[[int], bool]
    state_dir: str
    limit_bytes: int

    def ask(self, question: Question, release: Release | None = None) -> dict[str, Any]:
        """Give the document of the answer. When the release is pressed, the daemon is told to let go.

        Raises: UnsentError; BrokenError; KeyboardInterrupt if there is no answer after letting go; else the
        error that a refusal stands for.
        """
        exchange = Exchange(self, question)
        try:
            status = exchange.status(release)
            for _ in exchange.pieces(release):
                pass
            body = exchange.parser.body
        finally:
            exchange.close()
        return checked(status, decoded(body), question)

    def lines(self, question: Question, release: Release | None = None) -> Iterator[dict[str, Any]]:
        """Give the documents of an answer that is a line of JSON each, as they come, until it ends.

        Raises: as `ask`; KeyboardInterrupt when the release is pressed.
        """
        exchange = Exchange(self, question, is_endless=True)
        try:
            status = exchange.status(release)
            if status >= 400:
                for _ in exchange.pieces(release):
                    pass
                checked(status, decoded(exchange.parser.body), question)
            rest = b""
            for piece in exchange.pieces(release, is_endless=True):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield decoded(line)
        finally:
            exchange.close()


class Exchange:
    """One request on a connection of its own. Raises: UnsentError where there is no daemon of ours."""

    def __init__(self, daemon: Daemon, question: Question, *, is_endless: bool = False) -> None:
        # output is text in JSON: what it quotes can be six times as long
        limit_bytes = daemon.limit_bytes * 6 + (1 << 24)
        self.parser = (
            ResponseParser(limit_bytes, _ENDLESS_BYTES) if is_endless else ResponseParser(limit_bytes)
        )
        self._path = daemon.path
        self._question = question
        self._has_let_go = False
        self._stream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._connect(daemon.trusts)
            self._send(daemon.state_dir)
        except BaseException:
            self._stream.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def _connect(self, trusts: Callable[[int], bool]) -> None:
        self._stream.settimeout(CONNECT_TIMEOUT_S)
        try:
            self._stream.connect(self._path)
            found = self._stream.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        except OSError as error:
            raise UnsentError(f"{self._path}: {_reason(error)}") from error
        # a token goes to nobody but the daemon: struct ucred is pid, uid, gid. Source: unix(7)
        uid = int.from_bytes(found[4:8], sys.byteorder)
        if not trusts(uid):
            raise UnsentError(f"{self._path}: user {uid} listens there, who is not the dispatcher's")

    def _send(self, state_dir: str) -> None:
        question = self._question
        body = b"" if question.body is None else write_document(question.body)
        head = (
            f"{question.method} {question.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"X-Ctrl-Exec-State: {os.fsencode(state_dir).hex()}\r\nContent-Length: {len(body)}\r\n"
        )
        if question.authorization:
            head += f"Authorization: {question.authorization}\r\n"
        if body:
            head += "Expect: 100-continue\r\n"
        try:
            self._stream.sendall(f"{head}\r\n".encode("ascii"))
            if not body:
                return
            self._await_welcome()
            if self.parser.status < 200:
                self._stream.settimeout(WELCOME_TIMEOUT_S)
                self._stream.sendall(body)
        except errors.PeerError as error:
            raise UnsentError(f"{self._path}: what answers there is not ctrl-exec-api") from error
        except OSError as error:
            raise UnsentError(f"{self._path}: {_reason(error)}") from error

    def _await_welcome(self) -> None:
        """Wait for the word that the body will be read, or for a refusal. Raises: OSError; PeerError."""
        deadline = time.monotonic() + WELCOME_TIMEOUT_S
        while not self.parser.status:
            if not self._receive(deadline):
                raise errors.PeerError("it closed the connection")

    def status(self, release: Release | None) -> int:
        """Read until the answer's status is known. Raises: UnsentError; BrokenError; KeyboardInterrupt."""
        deadline = time.monotonic() + self._question.timeout_s
        while self.parser.status < 200:
            deadline = self._turn(deadline, release)
        return self.parser.status

    def pieces(self, release: Release | None, *, is_endless: bool = False) -> Iterator[bytes]:
        """Read the body; with `is_endless` give it in pieces and keep none. Raises: as `status`."""
        deadline = time.monotonic() + self._question.timeout_s
        if is_endless:
            yield self.parser.drain()
        while not self.parser.is_done:
            if is_endless:
                if release is not None and release.is_pressed:
                    raise KeyboardInterrupt
                deadline = time.monotonic() + self._question.timeout_s
            deadline = self._turn(deadline, release)
            if is_endless:
                yield self.parser.drain()

    def _turn(self, deadline: float, release: Release | None) -> float:
        """Wait for one thing to happen; gives the deadline from then on."""
        try:
            if not self._receive(deadline, release):
                self.parser.end()
        except errors.PeerError as error:
            raise self._broken(error) from error
        except OSError as error:
            raise self._broken(error) from error
        if release is not None and release.is_pressed and not self._has_let_go:
            self._has_let_go = True
            # half-closed: the daemon takes it for a hang-up, lets go, and still answers with what it knows
            self._stream.shutdown(_socket.SHUT_WR)
            return time.monotonic() + FAREWELL_S
        return deadline

    def _receive(self, deadline: float, release: Release | None = None) -> bool:
        """Wait for bytes, or a press; False at the end of the stream. Raises: OSError, PeerError."""
        poller = select.poll()
        poller.register(self._stream.fileno(), select.POLLIN)
        if release is not None and not self._has_let_go:
            poller.register(release.fileno(), select.POLLIN)
        ready = [fd for fd, _ in poller.poll(max(0, int((deadline - time.monotonic()) * 1000)))]
        if self._stream.fileno() in ready:
            chunk = self._stream.recv(_RECEIVE_BYTES)
            self.parser.feed(chunk)
            return bool(chunk)
        if not ready:
            raise TimeoutError("no answer in time")
        return True

    def _broken(self, error: Exception) -> errors.CtrlExecError | KeyboardInterrupt:
        if self._has_let_go:
            return KeyboardInterrupt()
        if isinstance(error, errors.PeerError):
            has_begun = self.parser.has_started and self.parser.status != 100
            words = (
                "what answers there is not ctrl-exec-api" if has_begun else "it went away without an answer"
            )
        else:
            words = _reason(error)
        if self._question.is_look:
            return UnsentError(f"{self._path}: {words}")
        return BrokenError(f"{self._path}: {words}; what was begun goes on: `ctrl-exec runs` shows it")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def decoded(body: bytes) -> dict[str, Any]:
    """Give the JSON object of an answer. Raises: BrokenError."""
    try:
        document = read_document(body)
    except ValueError as error:
        raise BrokenError("the API answered something that is not JSON") from error
    if not isinstance(document, dict):
        raise BrokenError("the API answered something that is not an object")
    return document


def checked(status: int, document: dict[str, Any], question: Question) -> dict[str, Any]:
    """Give the document of an answer that is none of an error.

    Raises: UnsentError for a refusal before anything was done; else the error that the answer stands for.
    """
    if status < 400:
        return document
    word, detail = str(document.get("error", "")), str(document.get("detail", ""))
    # a daemon that was not restarted after an upgrade knows neither new routes nor new keys
    is_older = status in (404, 405) and ("there is nothing at" in detail or "is not available on" in detail)
    if is_older or (status == 400 and detail.startswith("unknown key")):
        raise UnsentError(f"the daemon is older than this ctrl-exec ({detail}); restart it")
    if status in _UNTOUCHED:
        raise UnsentError(detail or word)
    raise error_of(status, document, question)


def error_of(status: int, document: Mapping[str, Any], question: Question) -> errors.CtrlExecError:
    """Give the error that an answer of the API stands for, as the operation raised it."""
    word, detail = str(document.get("error", "")), str(document.get("detail", ""))
    if word == "locked":
        return errors.LockedError(question.script, [str(each) for each in document.get("conflicts", ())])
    if word == "unknown agent":
        return errors.UnknownAgentError([str(each) for each in document.get("agents", ())])
    if status == 403 and "code" in document:
        return errors.DeniedError(int(document["code"]), word, detail)
    if status == 429:
        return errors.ThrottledError(detail, retry_after_s=60)
    if status == 404 and question.reqid:
        return errors.UnknownRunError(question.reqid)
    kinds: dict[int, type[errors.CtrlExecError]] = {
        400: errors.InvalidInputError,
        403: errors.ForbiddenError,
        404: errors.NotFoundError,
        409: errors.ConflictError,
        413: errors.PayloadError,
    }
    kind = kinds.get(status)
    return (
        kind(detail)
        if kind is not None
        else errors.ServiceError(f"the API answered {status}: {detail or word}")
    )
