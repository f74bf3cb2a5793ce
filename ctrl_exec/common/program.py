"""Running one program to its end, its output in memory: for hooks, helpers and other small things.

Owns the exchange with its three streams, its time limit and the end of its group. How a program is
started and waited for is `process`'s.
"""

from __future__ import annotations

import os
import select
import time

from ctrl_exec.common.process import STOLEN_STATUS, end_group, spawn, wait_status
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@value
class ProgramResult:
    """How a program ended: `exit_code` is -1 when `signal` (its number) ended it."""

    exit_code: int
    signal: int
    stdout: bytes
    stderr: bytes
    timed_out: bool

    @property
    def succeeded(self) -> bool:
        """Whether it exited by itself with code 0, in time."""
        return self.exit_code == 0 and self.signal == 0 and not self.timed_out


def run_program(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout_s: float,
    stdin: bytes = b"",
    limit_bytes: int = 1 << 20,
) -> ProgramResult:
    """Run the program to its end; its whole group is ended at the time limit and when it exits.

    It need not read its stdin. Of each output stream `limit_bytes` are kept, the rest is read and
    dropped; with 0 both go to /dev/null. A descendant that keeps the pipes open is not waited for.

    Raises: ProgramError if it cannot be executed.
    """
    exchange = _Exchange(stdin, limit_bytes)
    try:
        pid = spawn(
            argv,
            environment=environment,
            stdin=exchange.theirs[0],
            stdout=exchange.theirs[1],
            stderr=exchange.theirs[2],
        )
    except BaseException:
        exchange.close()
        raise
    try:
        exchange.started()
        timed_out = not exchange.carry(pid, time.monotonic() + timeout_s)
        end_group(pid, None)
        ended = wait_status(pid)
        exchange.drain()
    finally:
        exchange.close()
    exit_code, died_of = ended if ended is not None else (-1, STOLEN_STATUS)
    return ProgramResult(exit_code, died_of, exchange.kept(1), exchange.kept(2), timed_out)


class _Exchange:
    """The three standard streams of one running program."""

    def __init__(self, stdin: bytes, limit_bytes: int) -> None:
        self._unsent = memoryview(stdin)
        self._limit_bytes = limit_bytes
        self._chunks: dict[int, list[bytes]] = {1: [], 2: []}
        self._sizes = {1: 0, 2: 0}
        self._ours: dict[int, int] = {}
        self.theirs: dict[int, int] = {}
        for stream in (0, 1, 2):
            self._open(stream, is_null=not (stdin if stream == 0 else limit_bytes))

    def _open(self, stream: int, *, is_null: bool) -> None:
        if is_null:
            self.theirs[stream] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self.theirs[stream], ours = (reading, writing) if stream == 0 else (writing, reading)
        os.set_blocking(ours, False)
        self._ours[stream] = ours

    def started(self) -> None:
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}

    def carry(self, pid: int, deadline: float) -> bool:
        """Feed and read until the program ends (True) or the deadline passes (False)."""
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                ready = self._poll(watched, left_s)
                self._turn(ready)
                if watched in ready:
                    return True
            return False
        finally:
            os.close(watched)

    def _poll(self, watched: int, left_s: float) -> set[int]:
        poller = select.poll()
        poller.register(watched, select.POLLIN)
        for stream, fd in self._ours.items():
            poller.register(fd, select.POLLOUT if stream == 0 else select.POLLIN)
        return {fd for fd, _ in poller.poll(max(1, int(left_s * 1000)))}

    def _turn(self, ready: set[int]) -> None:
        for stream, fd in list(self._ours.items()):
            if fd in ready:
                self._feed(fd) if stream == 0 else self._read(stream, fd)

    def _feed(self, fd: int) -> None:
        try:
            self._unsent = self._unsent[os.write(fd, self._unsent[:65536]) :]
        except BlockingIOError:
            return
        except OSError:  # it closed its stdin: its right
            self._unsent = self._unsent[:0]
        if not self._unsent:
            os.close(self._ours.pop(0))

    def _read(self, stream: int, fd: int) -> bool:
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return False
        if not chunk:
            os.close(self._ours.pop(stream))
            return False
        room = self._limit_bytes - self._sizes[stream]
        if room > 0:
            self._chunks[stream].append(chunk[:room])
            self._sizes[stream] += min(room, len(chunk))
        return True

    def drain(self) -> None:
        """Take what is left in the pipes without waiting, a bounded amount of it."""
        for stream in (1, 2):
            for _ in range(64):
                if stream not in self._ours or not self._read(stream, self._ours[stream]):
                    break

    def kept(self, stream: int) -> bytes:
        return b"".join(self._chunks[stream])

    def close(self) -> None:
        self.started()
        for fd in self._ours.values():
            os.close(fd)
        self._ours = {}
