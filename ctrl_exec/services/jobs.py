"""How calls reach a fan-out worker over a Unix socket, and answers come back.

Owns the bytes between the two, their bounds, and whom either side takes them from. It must not know
how either side waits.

    worker  HELLO
    carrier head, groups of calls as JSON, requests      and with the first byte a descriptor: the marks
    worker  a frame an answer, before it one a part of what streams; at last, if asked to stop, one
            with what had not left

The marks are a file of one byte a call, not 0 from the moment on at which the call's first byte may
have left: so a carrier knows what to repeat of a worker that died without a word.
"""

from __future__ import annotations

import os
import socket
import struct
from datetime import UTC, datetime

from ctrl_exec.common import json_text
from ctrl_exec.common.certificate import Certificate
from ctrl_exec.common.errors import MessageError
from ctrl_exec.services.transport import Answer, Call, Failure, Part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

HELLO = b"ctrl-exec fan-out 3\n"
UNSENT = 0xFFFFFFFF  # in place of a call's number: the numbers of those of which nothing had left
REFUSED = 0xFFFFFFFE  # the worker cannot serve the job; nothing has left
_HEAD = struct.Struct("!II")  # bytes of JSON, bytes of requests
_FRAME = struct.Struct("!III")  # number of the call, bytes of what is known of it (0: a part), of the body
_JSON_LIMIT_BYTES = 64 << 20
_REQUESTS_LIMIT_BYTES = 64 << 20
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid. Source: unix(7)
_encoded = json_text.encoder(separators=(",", ":"))


def is_own(peer: socket.socket) -> bool:
    """Whether the other end of a Unix socket is a process of our own user."""
    found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(found)[1]
    return uid == os.geteuid()


# Marks


def new_marks(count: int) -> int:
    """A descriptor of the marks for so many calls."""
    marks = os.memfd_create("ctrl-exec marks", os.MFD_CLOEXEC)
    os.ftruncate(marks, count)
    return marks


def set_mark(marks: int, number: int) -> None:
    """Say that the call's first byte leaves now."""
    os.pwrite(marks, b"\1", number)


def is_marked(marks: int, number: int) -> bool:
    """Whether the call's first byte may have left."""
    return os.pread(marks, 1, number) != b"\0"


# A job


def encode_job(calls: Iterable[tuple[int, Call]]) -> bytes:
    """The job with the numbered calls; what calls have in common goes once.

    Raises: MessageError if that is more than a worker takes.
    """
    groups: dict[tuple[object, ...], list[list[object]]] = {}
    for number, call in calls:
        common = (
            call.request, call.limit_bytes, call.read_timeout_s, call.deadline, call.revoked, call.foreign,
            call.wants_certificate, call.streams, call.stream_limit_bytes,
        )  # fmt: skip
        groups.setdefault(common, []).append([number, call.host, call.port, call.fingerprint])
    listed, requests = [], []
    for (request, limit, patience, deadline, revoked, foreign, *others), members in groups.items():
        assert isinstance(request, bytes)
        assert isinstance(revoked, frozenset)
        assert isinstance(foreign, frozenset)
        requests.append(request)
        listed.append(
            [len(request), limit, patience, deadline, list(revoked), list(foreign), *others, members]
        )
    text = _encoded(listed).encode()
    blob = b"".join(requests)
    _check_bounds(len(text), len(blob))
    return _HEAD.pack(len(text), len(blob)) + text + blob


def _check_bounds(json_bytes: int, request_bytes: int) -> None:
    if json_bytes > _JSON_LIMIT_BYTES or request_bytes > _REQUESTS_LIMIT_BYTES:
        raise MessageError("job: too large for a worker", field="job")


class JobReader:
    """Takes the bytes of one job as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[tuple[int, Call]] | None:
        """The numbered calls once they are whole. Raises: MessageError."""
        self._buffer += chunk
        if len(self._buffer) < _HEAD.size:
            return None
        json_bytes, request_bytes = _HEAD.unpack_from(self._buffer)
        _check_bounds(json_bytes, request_bytes)
        end = _HEAD.size + json_bytes + request_bytes
        if len(self._buffer) < end:
            return None
        if len(self._buffer) > end:
            raise MessageError("job: bytes after its end", field="job")
        whole = bytes(self._buffer)
        self._buffer.clear()
        try:
            groups = json_text.loads(whole[_HEAD.size : _HEAD.size + json_bytes])
            return list(_calls_of(groups, memoryview(whole)[_HEAD.size + json_bytes :]))
        except (ValueError, TypeError, RecursionError) as error:
            raise MessageError(f"job: {error}", field="job") from error


def _calls_of(groups: Any, requests: memoryview) -> Iterator[tuple[int, Call]]:
    at = 0
    for length, limit, patience, deadline, revoked, foreign, shows, streams, stream_limit, members in groups:
        request = bytes(requests[at : at + length])
        at += length
        until = None if deadline is None else float(deadline)
        without, others = frozenset(revoked), frozenset(foreign)
        for number, host, port, fingerprint in members:
            call = Call(
                "", host, int(port), request, fingerprint, int(limit), float(patience), until,
                without, others, bool(streams), int(stream_limit), bool(shows),
            )  # fmt: skip
            yield int(number), call


# Answers


def encode_answer(number: int, answer: Answer) -> bytes:
    """The frame of one answer."""
    failure, shown = answer.failure, answer.certificate
    known = [
        answer.status,
        answer.rtt_s,
        None if failure is None else [failure.kind, failure.reason, failure.sent],
        None if shown is None else _listed(shown),
    ]
    return _frame(number, known, answer.body)


def encode_part(number: int, part: Part) -> bytes:
    """The frame of one part of a stream."""
    return _FRAME.pack(number, 0, len(part.chunk)) + part.chunk


def encode_unsent(numbers: list[int]) -> bytes:
    """The frame that says of which calls nothing has left."""
    return _frame(UNSENT, numbers)


def encode_refusal(reason: str) -> bytes:
    """The frame that says that nothing will be done."""
    return _frame(REFUSED, reason)


def _frame(number: int, known: object, body: bytes = b"") -> bytes:
    text = _encoded(known).encode()
    return _FRAME.pack(number, len(text), len(body)) + text + body


class FrameReader:
    """Takes a worker's bytes as they come; gives (number, what is known, body) of whole frames.

    Of a part nothing is known: None.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[tuple[int, Any, bytes]]:
        """The frames that are whole now. Raises: MessageError."""
        buffer = self._buffer
        buffer += chunk
        while len(buffer) >= _FRAME.size:
            number, known_bytes, body_bytes = _FRAME.unpack_from(buffer)
            body_at = _FRAME.size + known_bytes
            end = body_at + body_bytes
            if len(buffer) < end:
                return
            try:
                known = json_text.loads(bytes(buffer[_FRAME.size : body_at])) if known_bytes else None
            except ValueError as error:
                raise MessageError(f"answer of a worker: {error}", field="answer") from error
            body = bytes(memoryview(buffer)[body_at:end])
            del buffer[:end]
            yield number, known, body


def decode_answer(key: str, known: Any, body: bytes) -> Answer:
    """The answer to the call of that key. Raises: MessageError."""
    try:
        status, rtt_s, failure, shown = known
        return Answer(
            key,
            status,
            body,
            rtt_s,
            None if shown is None else _certificate(shown),
            None if failure is None else Failure(*failure),
        )
    except (ValueError, TypeError) as error:
        raise MessageError(f"answer of a worker: {error}", field="answer") from error


def _listed(shown: Certificate) -> list[object]:
    return [
        shown.version, shown.serial, shown.not_before.timestamp(), shown.not_after.timestamp(),
        shown.fingerprint, shown.common_name, shown.uris, shown.dns_names, shown.extended_usages,
    ]  # fmt: skip


def _certificate(listed: Any) -> Certificate:
    version, serial, not_before, not_after, fingerprint, common_name, uris, dns_names, usages = listed
    return Certificate(
        version,
        serial,
        datetime.fromtimestamp(not_before, UTC),
        datetime.fromtimestamp(not_after, UTC),
        fingerprint,
        common_name,
        tuple(uris),
        tuple(dns_names),
        None if usages is None else tuple(usages),
    )


# Sockets


def open_listener(directory: str, number: int, backlog: int) -> socket.socket:
    """Listen as worker of that number; whoever did so before is no longer found. Raises: OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    temporary = f"{number}.{os.getpid()}"
    try:
        # bound under another name and renamed: nobody can connect before the mode is right
        listener.bind(_path(folder, temporary))
        os.chmod(temporary, 0o600, dir_fd=folder)
        listener.listen(backlog)
        os.rename(temporary, f"{number}.sock", src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def connect(directory: str, number: int) -> socket.socket:
    """A connection to the worker of that number, a process of our own user. Raises: OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    folder = -1
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        link.connect(_path(folder, f"{number}.sock"))  # a full backlog is an error, not a wait
        if not is_own(link):
            raise PermissionError("the worker belongs to another user")
    except BaseException:
        link.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return link


def _path(folder: int, name: str) -> str:
    # the path itself may be longer than an address holds
    return f"/proc/self/fd/{folder}/{name}"


def send_job(link: socket.socket, job: bytes, marks: int) -> None:
    """Send all of it and the marks; blocks as long as the socket's timeout says. Raises: OSError."""
    sent = socket.send_fds(link, [job[:65536]], [marks])
    link.sendall(memoryview(job)[sent:])


def receive_job(link: socket.socket, limit_bytes: int) -> tuple[bytes, list[int]]:
    """Bytes of a job, and descriptors that came with them. Raises: OSError."""
    chunk, fds, _, _ = socket.recv_fds(link, limit_bytes, 1)
    for fd in fds:
        os.set_inheritable(fd, False)  # recv_fds passes no flags on
    return chunk, list(fds)
