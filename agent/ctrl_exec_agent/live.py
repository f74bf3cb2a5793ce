"""Bodies of streamed answers: a run that is carried here and shown meanwhile, and one that others carry.

Owns the order of their lines. A peer that is slow, or gone, neither slows nor ends a script.
"""

from __future__ import annotations

import time

from ctrl_exec_agent.output_answers import LiveLines
from ctrl_exec_agent.spool import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ctrl_exec.common.connection import Connection
    from ctrl_exec_agent.carried import Carried
    from ctrl_exec_agent.spool import Found

_LOOK_S = 0.05


class ShownRun:
    """A run of this process, line by line; it goes on while a line waits to be taken, and without a peer."""

    def __init__(self, carried: Carried, ids: dict[str, Any], connection: Connection) -> None:
        self._carried = carried
        self._ids = ids
        self._lines = LiveLines(carried.outputs)
        self._connection = connection
        self._has_begun = self._has_ended = False
        connection.beside = self._wait_beside

    def __iter__(self) -> ShownRun:
        return self

    def __next__(self) -> bytes:
        while not self._has_ended:
            if self._carried.is_over and self._lines.is_rest_small():
                return self._end()
            lines = self._opening() + self._lines.next_lines()
            if lines:
                return lines
            if self._carried.is_over:  # nothing but half a character is left
                return self._end()
            self._carried.turn()
        raise StopIteration

    def _opening(self) -> bytes:
        has_begun, self._has_begun = self._has_begun, True
        return b"" if has_begun else self._lines.first_line()

    def _end(self) -> bytes:
        self._has_ended = True
        return self._lines.last_line(self._ids | self._carried.answer, has_sent=True)

    def _wait_beside(self, fd: int, event: int, deadline: float) -> bool:
        """Wait for the peer until the deadline, the run going on: whether the peer was ready in time."""
        while not self._carried.is_over:
            left_s = deadline - time.monotonic()
            if fd in self._carried.turn({fd: event}, max(0.0, left_s)):
                return True
            if left_s <= 0:
                return False
        return self._connection.wait_alone(event, deadline)

    def close(self) -> None:
        """The peer has all lines, or has gone: then the run goes on without it."""
        self._connection.beside = None
        if not self._has_ended:
            self._connection.hang_up()
            self._carried.carry_on()


class FollowedRun:
    """A run that another process carries, or carried, from these offsets on."""

    def __init__(
        self, found: Found, find: Callable[[], Found | None], at: dict[str, int], connection: Connection
    ) -> None:
        self._found = found
        self._find = find
        self._lines = LiveLines(found.outputs, at)
        self._connection = connection
        self._has_begun = self._has_ended = False

    def __iter__(self) -> FollowedRun:
        return self

    def __next__(self) -> bytes:
        while not self._has_ended:
            # first the state, then the output: what was done then has all its output there
            found = self._look()
            is_over = found.status != RUNNING
            if is_over and self._lines.is_rest_small():
                return self._end(found)
            lines = self._opening(is_over=is_over) + self._lines.next_lines()
            if lines:
                return lines
            if is_over:
                return self._end(found)
            time.sleep(_LOOK_S)
        raise StopIteration

    def _opening(self, *, is_over: bool) -> bytes:
        has_begun, self._has_begun = self._has_begun, True
        return b"" if has_begun or is_over else self._lines.first_line()

    def _look(self) -> Found:
        """The run as it stands now; its files stay open."""
        if self._found.status == RUNNING:
            if self._connection.has_hung_up():
                raise ConnectionResetError("the peer has gone")
            found = self._find()
            if found is not None and found.status != RUNNING:
                self._found.outputs.close()
                self._found = found
                self._lines = LiveLines(found.outputs, self._lines.at)
        return self._found

    def _end(self, found: Found) -> bytes:
        self._has_ended = True
        return self._lines.last_line(found.about(), has_sent=True)

    def close(self) -> None:
        """No more is wanted."""
        self._found.outputs.close()
