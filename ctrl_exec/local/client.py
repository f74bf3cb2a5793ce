"""Having local commands executed by `ctrl-exec-local`: the scheduler's side of its socket.

Owns one connection for each command, which the service takes for the command's leash: when it ends, so
does the command. Must not know tasks, logs or databases.
"""

from __future__ import annotations

import os
import socket

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import LostCommandError, MessageError, ProgramError, ServiceError
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.local.channel import Channel
from ctrl_exec.local.messages import ABOUT, END_GROUP, read_end, read_process, run_message
from ctrl_exec.local.outputs import ASK_EVERY_S, Outputs, Wish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ctrl_exec.local.order import CommandEnd, CommandOrder

REMEDY = "`systemctl enable --now ctrl-exec-local.socket` starts it"
_HELD_S = 30.0
_END_GROUP_S = 60.0
_LATE_S = 60.0
"""How much longer than its time limit, or the wish that it end, a command's end may be waited for."""


@value
class LocalService:
    """The service at a socket, and whom it is expected to run commands as."""

    path: str
    user: str

    def run_command(
        self,
        order: CommandOrder,
        *,
        on_output: Callable[[int, bytes], None],
        wants_end: Callable[[], bool],
        before_exec: Callable[[int, int], object],
    ) -> CommandEnd:
        """Have it run; what it leaves in its group is ended with it.

        As `in_place.run_command`; `before_exec` gets when the pid started, too.

        Raises: ServiceError if there is no service; ProgramError if it is not executed; LostCommandError
        if the service died meanwhile; whatever `before_exec` and `on_output` raise, the command being ended.
        """
        self._check_owner()
        channel = self._connect()
        outputs: Outputs | None = None
        try:
            pid, started, pipes = self._held(channel, order)
            outputs = Outputs(pipes, on_output)
            before_exec(pid, started)
            watch = _Watch(channel, outputs, order.timeout_s)
            try:
                channel.send({"go": True})
                answer = watch.follow(Wish(wants_end))
                if "failure" not in answer:
                    return read_end(answer)
            except (ServiceError, MessageError) as error:
                words = f"ctrl-exec-local did not say how it ended: {error}"
                raise LostCommandError(words, pid=pid, started=started) from error
            raise ProgramError(str(answer["failure"]))
        finally:
            channel.close()
            if outputs is not None:
                outputs.close()

    def _held(self, channel: Channel, order: CommandOrder) -> tuple[int, int, dict[int, int]]:
        """Pid and start of the process that waits to be let go, and its pipes."""
        answer = self._answer(channel, run_message(order, self.user), _HELD_S)
        if "failure" in answer:
            raise ProgramError(str(answer["failure"]))
        fds = channel.take_fds()
        try:
            if len(fds) != 2:
                raise MessageError("without the command's output")
            pid, started = read_process(answer)
        except MessageError as error:
            for fd in fds:
                os.close(fd)
            raise ServiceError(f"ctrl-exec-local at {self.path} answered wrongly: {error}") from error
        return pid, started, {1: fds[0], 2: fds[1]}

    def end_group(self, pid: int, started: int) -> bool:
        """End what a command left whose carrier died; whether nothing of it lives. Raises: ServiceError."""
        answer = self._ask({"ask": END_GROUP, "pid": pid, "started": started}, _END_GROUP_S)
        return answer.get("gone") is True

    def about(self) -> str:
        """The name of the user it runs commands as. Raises: ServiceError."""
        return str(self._ask({"ask": ABOUT}).get("user"))

    def _ask(self, message: dict[str, Any], patience_s: float = _HELD_S) -> dict[str, Any]:
        channel = self._connect()
        try:
            answer = self._answer(channel, message, patience_s)
        finally:
            channel.close()
        if "failure" in answer:
            raise ServiceError(f"ctrl-exec-local at {self.path}: {answer['failure']}")
        return answer

    def _answer(self, channel: Channel, message: dict[str, Any], patience_s: float) -> dict[str, Any]:
        try:
            channel.send(message)
            return channel.receive(patience_s)
        except ServiceError as error:
            raise ServiceError(f"ctrl-exec-local at {self.path}: {error}") from error

    def _connect(self) -> Channel:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            stream.settimeout(_HELD_S)
            stream.connect(self.path)
        except OSError as error:
            stream.close()
            raise self._missing(error) from error
        return Channel(stream)

    def _check_owner(self) -> None:
        """Nobody but us and root can have put the socket there: a command may hold secrets."""
        try:
            owner = os.lstat(self.path).st_uid
        except OSError as error:
            raise self._missing(error) from error
        if owner not in (0, os.geteuid()):
            raise ServiceError(f"{self.path}: belongs to another user than the scheduler's")

    def _missing(self, error: OSError) -> ServiceError:
        reason = error.strerror or str(error)
        return ServiceError(f"ctrl-exec-local is not to be reached at {self.path} ({reason}): {REMEDY}")


class _Watch:
    """Follows one command: its output, its end, the wish that it end."""

    def __init__(self, channel: Channel, outputs: Outputs, timeout_s: float | None) -> None:
        self._channel = channel
        self._outputs = outputs
        self._late_at = None if timeout_s is None else monotonic() + timeout_s + _LATE_S

    def follow(self, wish: Wish) -> dict[str, Any]:
        """What the service says at the end. Raises: ServiceError."""
        while self._channel.fileno() not in self._outputs.turn((self._channel.fileno(),), ASK_EVERY_S):
            if wish.comes():
                with suppress(ServiceError):  # gone this moment: what it has said of the end is still there
                    self._channel.send({"end": True})
                self._late_at = monotonic() + _LATE_S
            if self._late_at is not None and monotonic() >= self._late_at:
                raise ServiceError("its end is overdue")
        answer = self._channel.receive()
        self._outputs.drain()
        return answer
