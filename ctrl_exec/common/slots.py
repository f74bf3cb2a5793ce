"""The block of memory a server shares with its children: one row of integers a live child.

Owns the rows and the count of long requests. The parent claims and frees rows; a child writes its
own row only, so no lock is needed save for the count, which several children may want to raise.
Knows nothing of sockets.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

FREE, WORKING, READING, IDLE, SENDING, LEAVING = range(6)
"""States: no child; born or at work; waiting for bytes of a handshake, head or body; kept alive
between two requests; waiting for the client to take its answer; done, the process about to end."""

STATE_NAMES = ("free", "working", "reading", "idle", "sending", "leaving")
_STATE, _SINCE_MS, _IS_LONG, _ROUTE, _STATUS, _REQUESTS = range(6)
_FIXED = 6
_LIVE, _SEQUENCE = range(2)
_HEADER = 2
_RETRIES = 1000


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
    """Rows for up to `capacity` children, each with `counter_count` counters of the application."""

    def __init__(self, capacity: int, counter_count: int = 0) -> None:
        self.counter_count = counter_count
        self._width = _FIXED + counter_count
        # before the rows: two cells about all of them, and the counters of children that ended
        self._first = _HEADER + counter_count
        self._memory = mmap.mmap(-1, (self._first + capacity * self._width) * 8)
        self._cells = memoryview(self._memory).cast("q")
        self._zeros = memoryview(bytes(self._width * 8)).cast("q")
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
        """Free a row whose child was reaped; its counters go to the totals. For the parent."""
        start = self._start(index)
        cells = self._cells
        cells[_SEQUENCE] += 1  # odd: a reader of the totals must look again
        for counter, amount in enumerate(cells[start + _FIXED : start + self._width].tolist()):
            if amount:
                cells[_HEADER + counter] += amount
        cells[start : start + self._width] = self._zeros
        cells[_SEQUENCE] += 1
        cells[_LIVE] -= 1
        self._free.append(index)

    @property
    def live_count(self) -> int:
        """How many rows are taken."""
        found: int = self._cells[_LIVE]
        return found

    def _start(self, index: int) -> int:
        return self._first + index * self._width

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
        start = self._first + index * self._width
        self._cells[start + _SINCE_MS] = time.monotonic_ns() // 1_000_000
        self._cells[start + _STATE] = state

    def note_answer(self, index: int, route: int, status: int) -> None:
        """Note what was answered last and count the request."""
        start = self._first + index * self._width
        self._cells[start + _ROUTE] = route
        self._cells[start + _STATUS] = status
        self._cells[start + _REQUESTS] += 1

    def add(self, index: int, counter: int, amount: int) -> None:
        """Add to a counter of the row."""
        self._cells[self._first + index * self._width + _FIXED + counter] += amount

    def views(self, indexes: Iterable[int]) -> Iterator[SlotView]:
        """What several rows say."""
        return (self.view(index) for index in indexes)

    def totals(self, indexes: Sequence[int]) -> list[int]:
        """The counters of all children that ended plus those of the rows named."""
        found: list[int] = []
        for _ in range(_RETRIES):
            before = self._cells[_SEQUENCE]
            found = self._cells[_HEADER : self._first].tolist()
            for index in indexes:
                start = self._start(index) + _FIXED
                for counter, amount in enumerate(self._cells[start : start + self.counter_count]):
                    found[counter] += amount
            if before % 2 == 0 and before == self._cells[_SEQUENCE]:
                break
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
        marks: list[int] = self._cells[self._first + _IS_LONG :: self._width].tolist()
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
