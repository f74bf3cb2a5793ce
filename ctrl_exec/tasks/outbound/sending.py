"""An outgoing request in a process of its own, which can be ended whatever it waits for.

Owns that process: it sends nothing before its maker has noted it, and its maker hears what came of it,
or ends it: by wish, or at the time limit. What is sent, and where it may go, is `outgoing`'s.
"""

from __future__ import annotations

import json
import os
import select

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.common.process import end_group, fork_child, wait_status
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.tasks.outbound.outgoing import OutgoingAnswer, OutgoingError, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.tasks.outbound.outgoing import Allowance, OutgoingRequest

LOOK_S = 0.5
"""So often it is asked whether somebody wants it to end."""
# the time limit is kept by whoever waits; the child's own ends it where nobody waits any more
_OWN_GRACE_S = 5.0
_PIECE_BYTES = 1 << 16


@value
class Sent:
    """What came of it: the answer, or none where it was ended by wish or else at its time limit."""

    answer: OutgoingAnswer | None = None
    was_ended: bool = False


def send_apart(
    request: OutgoingRequest,
    allowance: Allowance,
    *,
    timeout_s: float,
    wants_end: Callable[[], bool],
    before_send: Callable[[int], None] = lambda _: None,
) -> Sent:
    """Send it and wait for the answer. `before_send` is told the process group that will do it.

    Raises: OutgoingError; whatever `before_send` raises, and then nothing is sent.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    waiting, starting = os.pipe2(os.O_CLOEXEC)
    try:
        pid = fork_child(lambda: _send_here(request, allowance, timeout_s, (waiting, writing)))
    except OSError as error:
        for fd in (reading, writing, waiting, starting):
            os.close(fd)
        raise OutgoingError("there is no room for a process") from error
    os.close(writing)
    os.close(waiting)
    try:
        with suppress(OSError):  # by whoever of the two comes first
            os.setpgid(pid, pid)
        before_send(pid)
        with suppress(BrokenPipeError):
            os.write(starting, b".")
        return _hear(reading, monotonic() + timeout_s, wants_end)
    finally:
        os.close(reading)
        os.close(starting)
        end_group(pid, 0)
        wait_status(pid)


def _hear(reading: int, deadline: float, wants_end: Callable[[], bool]) -> Sent:
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    content = b""
    while True:
        left_s = deadline - monotonic()
        if poller.poll(max(0, int(min(LOOK_S, left_s) * 1000))):
            piece = os.read(reading, _PIECE_BYTES)
            if not piece:
                return Sent(_decode(content))
            content += piece
        elif wants_end():
            return Sent(was_ended=True)
        elif left_s <= 0:
            return Sent()


def _decode(content: bytes) -> OutgoingAnswer:
    head, _, body = content.partition(b"\n")
    if not head:
        raise OutgoingError("the process that sent it died")
    said = json.loads(head)
    if "error" in said:
        raise OutgoingError(said["error"])
    return OutgoingAnswer(said["status"], body, said["is_cut"])


def _send_here(request: OutgoingRequest, allowance: Allowance, timeout_s: float, fds: tuple[int, int]) -> int:
    """The child: nothing of its maker's but two pipes; a lock that it inherited would outlive that."""
    waiting, writing = fds
    with suppress(OSError):
        os.setpgid(0, 0)
    at = 3
    for fd in sorted(fds):
        os.closerange(at, fd)
        at = fd + 1
    os.closerange(at, 1 << 20)
    if not os.read(waiting, 1):
        return 1
    said: dict[str, object]
    body = b""
    try:
        answer = send(request, allowance, timeout_s=timeout_s + _OWN_GRACE_S)
        said, body = {"status": answer.status, "is_cut": answer.is_cut}, answer.body
    except CtrlExecError as error:
        said = {"error": str(error)}
    with open(writing, "wb") as pipe:
        pipe.write(json.dumps(said).encode() + b"\n" + body)
    return 0
