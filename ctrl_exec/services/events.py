"""Reading the event log of a run from any place on, while it grows.

Owns what a place is: the byte offset of the end of a line. Reads whole lines in bounded pieces, never
the whole file, and goes on reading a log whose name is gone. Must not know what a line means.
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 1 << 18
_LINE_LIMIT_BYTES = 1 << 30


class EventLog:
    """The lines of one log; `close` it in the end."""

    def __init__(self, path: str, after: int = 0) -> None:
        """Stand at the beginning of the line that the byte at `after` is in.

        Raises: FileNotFoundError; StorageError.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=path) from error
        try:
            self._at = self._border_before(after)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def at(self) -> int:
        """The place up to which lines were given."""
        return self._at

    @property
    def has_more(self) -> bool:
        """Whether there is anything behind that place."""
        return os.fstat(self._fd).st_size > self._at

    def _border_before(self, place: int) -> int:
        end = min(max(0, place), os.fstat(self._fd).st_size)
        while end > 0:
            start = max(0, end - _CHUNK_BYTES)
            newline = self._read(start, end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The whole lines that are there now, each with its place. Raises: StorageError."""
        size = _CHUNK_BYTES
        while True:
            chunk = self._read(self._at, size)
            whole = chunk.rfind(b"\n") + 1
            if not whole:
                if len(chunk) < size or size > _LINE_LIMIT_BYTES:
                    return
                size *= 4  # a line longer than the chunk
                continue
            yield from self._cut(chunk[:whole])
            if whole == len(chunk) < size:
                return
            size = _CHUNK_BYTES

    def _cut(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        base, start = self._at, 0
        while start < len(chunk):
            end = chunk.index(b"\n", start) + 1
            self._at = base + end
            yield self._at, chunk[start:end]
            start = end

    def _read(self, start: int, size: int) -> bytes:
        try:
            return os.pread(self._fd, size, start)
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self._path) from error

    def close(self) -> None:
        """Let it go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
