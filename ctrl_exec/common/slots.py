"""The block of memory a server shares with its children: one row of integers a live child.

Owns the rows, the application's counters and the count of long requests. The parent claims and frees
rows, and a child writes its own row only, without a lock; the counters and the count, which several
children may want to raise, are under one. Knows nothing of sockets.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

FREE, WORKING, READING, IDLE, SENDING, LEAVING = range(6)
"""States: no child; born or at work; waiting for bytes of a handshake, head or body; kept alive
between two requests; waiting for the client to take its answer; done, the process about to end."""

STATE_NAMES = ("free", "working", "reading", "idle", "sending", "leaving")
_STATE, _SINCE_MS, _IS_LONG, _ROUTE, _STATUS, _REQUESTS = range(6)
_WIDTH = 6
_NOTHING = memoryview(bytes(_WIDTH * 8)).cast("q")
_LIVE = 0
_HEADER = 1


@value
class SlotView:
    """What a row says at this moment; `since_ms` is on the monotonic clock."""

    index: int
    state: int
    since_ms: int
    is_long: bool
    route: int
    status: int
    requests: int


def now_ms() -> int:
    """The monotonic clock in whole milliseconds, as the rows have it."""
    return int(time.monotonic() * 1000)


class Slots:
    """Rows for up to `capacity` children, and `counter_count` counters of the application."""

    def __init__(self, capacity: int, counter_count: int = 0) -> None:
        # before the rows: a cell about all of them, and the counters
        self._first = _HEADER + counter_count
        self._memory = mmap.mmap(-1, (self._first + capacity * _WIDTH) * 8)
        self._cells = memoryview(self._memory).cast("q")
        self._free = list(range(capacity - 1, -1, -1))
        # a POSIX lock belongs to a process, so that parent and children exclude one another on
        # one inherited descriptor, and a killed child frees it
        self._lock_fd = os.memfd_create("slots", os.MFD_CLOEXEC)

    def claim(self) -> int | None:
        """A free row, now `WORKING`; None when all are taken. For the parent."""
        if not self._free:
            return None
        index = self._free.pop()
        self.set_state(index, WORKING)
        self._cells[_LIVE] += 1
        return index

    def release(self, index: int) -> None:
        """Free a row whose child was reaped. For the parent."""
        start = self._first + index * _WIDTH
        self._cells[start : start + _WIDTH] = _NOTHING
        self._cells[_LIVE] -= 1
        self._free.append(index)

    @property
    def live_count(self) -> int:
        """How many rows are taken."""
        found: int = self._cells[_LIVE]
        return found

    def _start(self, index: int) -> int:
        return self._first + index * _WIDTH

    def view(self, index: int) -> SlotView:
        """What the row says now."""
        start = self._start(index)
        cells = self._cells
        return SlotView(
            index,
            cells[start + _STATE],
            cells[start + _SINCE_MS],
            bool(cells[start + _IS_LONG]),
            cells[start + _ROUTE],
            cells[start + _STATUS],
            cells[start + _REQUESTS],
        )

    def state(self, index: int) -> int:
        """The row's state alone."""
        found: int = self._cells[self._start(index)]
        return found

    def since_ms(self, index: int) -> int:
        """When the row's state was entered."""
        found: int = self._cells[self._start(index) + _SINCE_MS]
        return found

    def set_state(self, index: int, state: int) -> None:
        """Enter a state now."""
        start = self._first + index * _WIDTH
        self._cells[start + _SINCE_MS] = time.monotonic_ns() // 1_000_000
        self._cells[start + _STATE] = state

    def note_answer(self, index: int, route: int, status: int) -> None:
        """Note what was answered last and count the request."""
        start = self._first + index * _WIDTH
        cells = self._cells
        cells[start + _ROUTE] = route
        cells[start + _STATUS] = status
        cells[start + _REQUESTS] += 1

    def add(self, amounts: Iterable[tuple[int, int]]) -> None:
        """Add to counters: each with its amount."""
        cells = self._cells
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
        try:
            for counter, amount in amounts:
                cells[_HEADER + counter] += amount
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)

    def views(self, indexes: Iterable[int]) -> Iterator[SlotView]:
        """What several rows say."""
        return (self.view(index) for index in indexes)

    def totals(self) -> list[int]:
        """The counters, all of one moment."""
        with self._locked():
            found: list[int] = self._cells[_HEADER : self._first].tolist()
        return found

    def enter_long(self, index: int, limit: int) -> bool:
        """Mark the row as long unless `limit` rows are already."""
        mark = self._start(index) + _IS_LONG
        if self._cells[mark]:
            return True
        with self._locked():
            if self.long_count() >= limit:
                return False
            self._cells[mark] = 1
        return True

    def leave_long(self, index: int) -> None:
        """Take the mark away."""
        self._cells[self._start(index) + _IS_LONG] = 0

    def long_count(self) -> int:
        """How many rows are marked as long."""
        marks: list[int] = self._cells[self._first + _IS_LONG :: _WIDTH].tolist()
        return sum(marks)

    def close(self) -> None:
        """Give the memory and the lock back."""
        self._cells.release()
        self._memory.close()
        os.close(self._lock_fd)

    def _locked(self) -> AbstractContextManager[None]:
        return _PosixLock(self._lock_fd)


class _PosixLock:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
