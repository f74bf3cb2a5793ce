"""Running one local command to its end: its group, its streams, its time limit, its abort.

Owns everything between the exec and the end; the group is on record before the exec. Output goes to
the caller as it comes. Must not know tasks, logs or databases.
"""

from __future__ import annotations

import os
import select

from ctrl_exec.common import process
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import ProgramError
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = "/bin/bash"
_ASK_EVERY_S = 0.5
_CHUNK_BYTES = 1 << 16
_MOST_LEFT_IN_PIPES = 64  # chunks; a pipe holds one, more than that is written by what outlived KILL


@value
class CommandOrder:
    """What to execute: argv with an absolute program, its whole environment, its time."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    timeout_s: float | None = None


@value
class CommandEnd:
    """How it ended: `exit_code` is -1 when `signal` ended it. `timed_out` and `was_ended` say why."""

    exit_code: int
    signal: int = 0
    timed_out: bool = False
    was_ended: bool = False


def find_program(name: str, path: str = PATH) -> str:
    """The absolute path of a program. Raises: ProgramError if it is not to be found."""
    if "/" in name:
        if not name.startswith("/"):
            raise ProgramError("expected an absolute path, or a name to be found in PATH", program=name)
        return name
    for directory in path.split(":"):
        found = f"{directory}/{name}"
        if os.path.isfile(found) and os.access(found, os.X_OK):
            return found
    raise ProgramError(f"is not to be found in {path}", program=name)


def run_command(
    order: CommandOrder,
    *,
    on_output: Callable[[int, bytes], None],
    wants_end: Callable[[], bool],
    before_exec: Callable[[int], object],
) -> CommandEnd:
    """Run it; what it leaves in its group is ended with it.

    `on_output` gets (1 or 2, bytes) as they come; `wants_end` is asked twice a second; `before_exec` gets
    the pid, which is its group too, before anything is executed.

    Raises: ProgramError if it cannot be executed; whatever `before_exec` and `on_output` raise, the group
    being gone then.
    """
    pipes = {stream: os.pipe2(os.O_CLOEXEC) for stream in (1, 2)}
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid = process.spawn_held(
            order.argv,
            environment=order.environment,
            streams=(null, pipes[1][1], pipes[2][1]),
            before_exec=before_exec,
        )
    except BaseException:
        for reading, _ in pipes.values():
            os.close(reading)
        raise
    finally:
        os.close(null)
        for _, writing in pipes.values():
            os.close(writing)
    run = _Run(pid, {reading: stream for stream, (reading, _) in pipes.items()}, on_output)
    try:
        return run.watch(order.timeout_s, wants_end)
    finally:
        run.close()


class _Run:
    def __init__(self, pid: int, streams: dict[int, int], on_output: Callable[[int, bytes], None]) -> None:
        self._pid = pid
        self._streams = streams
        self._on_output = on_output
        self._ended = False
        for fd in streams:
            os.set_blocking(fd, False)
        self._pidfd = os.pidfd_open(pid)

    def watch(self, timeout_s: float | None, wants_end: Callable[[], bool]) -> CommandEnd:
        deadline = None if timeout_s is None else monotonic() + timeout_s
        timed_out = was_ended = False
        kill_at: float | None = None
        while not self._turn(_wait_s(kill_at or deadline)):
            now = monotonic()
            if kill_at is not None:
                if now >= kill_at:
                    process.end_group(self._pid, None)
                continue
            timed_out = deadline is not None and now >= deadline
            was_ended = not timed_out and wants_end()
            if timed_out or was_ended:
                kill_at = now + process.KILL_GRACE_S
                process.send_term(self._pid)
        self._end_leftovers()
        self._drain()
        self._ended = True
        exit_code, signal = process.wait_status(self._pid) or (-1, process.STOLEN_STATUS)
        return CommandEnd(exit_code, signal, timed_out, was_ended)

    def _turn(self, wait_s: float) -> bool:
        """Pass output on for at most so long; gives whether the command's own process has ended."""
        poller = select.poll()
        for fd in (self._pidfd, *self._streams):
            poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(int(wait_s * 1000) + 1)}
        for fd in ready & set(self._streams):
            self._pass_on(fd)
        return self._pidfd in ready

    def _pass_on(self, fd: int) -> bool:
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            os.close(fd)
            del self._streams[fd]
            return False
        self._on_output(self._streams[fd], chunk)
        return True

    def _end_leftovers(self) -> None:
        # the leader is a zombie that we have not read: its number, the group's, is not another's yet
        if process.is_group_alive(self._pid):
            process.end_group(self._pid)

    def _drain(self) -> None:
        for fd in tuple(self._streams):
            for _ in range(_MOST_LEFT_IN_PIPES):
                if fd not in self._streams or not self._pass_on(fd):
                    break

    def close(self) -> None:
        if not self._ended:
            process.end_group(self._pid, None)
            process.wait_status(self._pid)
        for fd in (self._pidfd, *self._streams):
            with suppress(OSError):
                os.close(fd)
        self._streams = {}


def _wait_s(until: float | None) -> float:
    return _ASK_EVERY_S if until is None else min(_ASK_EVERY_S, max(0.0, until - monotonic()))
