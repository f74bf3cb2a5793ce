"""What comes of a command while it runs: its output as it comes, and the wish that it end.

Owns the reading ends of its streams. Must not know how it was started, nor what becomes of its output.
"""

from __future__ import annotations

import os
import select

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ASK_EVERY_S = 0.5
_CHUNK_BYTES = 1 << 16
_MOST_LEFT_IN_PIPES = 64  # chunks; a pipe holds one, more than that is written by what outlived KILL


class Outputs:
    """The streams of a command by their reading ends, which are ours to close."""

    def __init__(self, outputs: Mapping[int, int], on_output: Callable[[int, bytes], None]) -> None:
        self._streams = {fd: stream for stream, fd in outputs.items()}
        self._on_output = on_output
        for fd in self._streams:
            os.set_blocking(fd, False)

    def turn(self, others: Iterable[int], wait_s: float) -> set[int]:
        """Wait for at most so long, pass on what has come; gives which of the others are ready."""
        poller = select.poll()
        for fd in (*others, *self._streams):
            poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(int(wait_s * 1000) + 1)}
        for fd in ready & set(self._streams):
            self._pass_on(fd)
        return ready

    def drain(self) -> None:
        """Pass on what is left in the pipes, without waiting for more."""
        for fd in tuple(self._streams):
            for _ in range(_MOST_LEFT_IN_PIPES):
                if fd not in self._streams or not self._pass_on(fd):
                    break

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

    def close(self) -> None:
        """Close the pipes."""
        for fd in self._streams:
            with suppress(OSError):
                os.close(fd)
        self._streams = {}


class Wish:
    """Asks twice a second whether somebody wants the command to end, until one does."""

    def __init__(self, wants_end: Callable[[], bool]) -> None:
        self._wants_end = wants_end
        self._ask_at = monotonic() + ASK_EVERY_S
        self._has_come = False

    def comes(self) -> bool:
        """Whether it has come, said once."""
        now = monotonic()
        if self._has_come or now < self._ask_at:
            return False
        self._ask_at = now + ASK_EVERY_S
        self._has_come = self._wants_end()
        return self._has_come
