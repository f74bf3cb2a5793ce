"""How often an address has shown bad credentials this minute, over all children.

Owns a small shared block made before the first fork. An address has its row by its hash; of two
that share a row the newer one counts, so that memory is bounded whatever comes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

from ctrl_exec.common.errors import ThrottledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ROWS = 4096
_KEY, _MINUTE, _COUNT = range(3)
_WIDTH = 3
_LATEST = _ROWS * _WIDTH
"""The cell behind the rows: the minute of the latest failure."""


class Throttle:
    """Refuses an address after `limit` failures until its minute is over."""

    def __init__(self, limit: int = 10, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._cells = memoryview(mmap.mmap(-1, (_ROWS * _WIDTH + 1) * 8)).cast("q")
        self._lock_fd = os.memfd_create("throttle", os.MFD_CLOEXEC)

    def has_noted(self) -> bool:
        """Whether any address has had a failure this minute."""
        return bool(self._cells[_LATEST] == int(self._clock()) // 60)

    def check(self, address: str) -> None:
        """Raises: ThrottledError if the address has had its failures for this minute."""
        row, key = _row(address)
        cells = self._cells
        if cells[row + _KEY] != key:
            return
        now = int(self._clock())
        if cells[row + _MINUTE] != now // 60:
            return
        if cells[row + _COUNT] >= self._limit:
            raise ThrottledError(
                "too many failed authorisations from this address", retry_after_s=60 - now % 60
            )

    def note(self, address: str) -> None:
        """Count a failure."""
        minute = int(self._clock()) // 60
        row, key = _row(address)
        cells = self._cells
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
        try:
            if (cells[row + _KEY], cells[row + _MINUTE]) != (key, minute):
                cells[row + _KEY], cells[row + _MINUTE], cells[row + _COUNT] = key, minute, 0
            cells[row + _COUNT] += 1
            cells[_LATEST] = minute
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)


def _row(address: str) -> tuple[int, int]:
    # Python's own hash: keyed anew for each server, the same in all its children
    key = hash(address)
    return key % _ROWS * _WIDTH, key
