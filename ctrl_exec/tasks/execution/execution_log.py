"""The log of one execution: what its command printed, on disk, its head and its tail when it is long.

Owns the files `<id>.log` and, beyond half of the limit, the segments `<id>.log.1` and `.2` that take
turns, and how they are read as one text with a word on what is missing. Written by the execution's
carrier alone, read by anybody at any time. Knows nothing of secrets: they are masked before.

    head          bytes [0, limit/2)
    segments      the file that began at offset o is named by it in its first line, `<o>\\n`
"""

from __future__ import annotations

import os
from contextlib import suppress

from ctrl_exec.common import files
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MODE = 0o640
_PIECE_BYTES = 1 << 16
_SEGMENTS = (".1", ".2")


class ExecutionLog:
    """The log, open for writing. `limit_bytes` bounds what the disk holds of it."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        self._path = path
        self._head_bytes = limit_bytes // 2
        self._segment_bytes = max(1, limit_bytes // 4)
        self._at = 0
        self._fd = -1
        self._room = self._head_bytes
        self._turn = 0

    def write(self, chunk: bytes) -> None:
        """Add to the log. Raises: StorageError; what was added before stays."""
        try:
            if self._fd < 0:
                self._fd = _create(self._path)
            rest = memoryview(chunk)
            while rest:
                if not self._room:
                    self._next_segment()
                files.write_all(self._fd, bytes(rest[: self._room]))
                taken = min(self._room, len(rest))
                self._room -= taken
                self._at += taken
                rest = rest[taken:]
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self._path) from error

    def _next_segment(self) -> None:
        fd = _create(self._path + _SEGMENTS[self._turn])
        os.close(self._fd)
        self._fd = fd
        self._turn = 1 - self._turn
        files.write_all(fd, f"{self._at}\n".encode())
        self._room = self._segment_bytes

    def close(self) -> None:
        """Make what was written durable and let it go."""
        if self._fd >= 0:
            with suppress(OSError):
                os.fdatasync(self._fd)
            os.close(self._fd)
            self._fd = -1


def _create(path: str) -> int:
    # a new file rather than the old one emptied: whoever reads the old segment reads it to its end
    temporary = f"{path}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, flags, _MODE)
    os.rename(temporary, path)
    return fd


@value
class _Part:
    """Bytes [start, end) of the log, at `skip` in a file."""

    path: str
    start: int
    end: int
    skip: int


def log_parts(path: str) -> tuple[_Part, ...]:
    """The parts that are there, in order; none if nothing was printed."""
    found = []
    with suppress(OSError):
        found.append(_Part(path, 0, os.stat(path).st_size, 0))
        for ending in _SEGMENTS:
            part = _segment(path + ending)
            if part is not None:
                found.append(part)
    return tuple(sorted(found, key=lambda part: part.start))


def _segment(path: str) -> _Part | None:
    with suppress(OSError, ValueError), open(path, "rb") as segment:
        line = segment.readline(32)
        start = int(line)
        return _Part(path, start, start + os.fstat(segment.fileno()).st_size - len(line), len(line))
    return None


def read_log(path: str, after: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset of its end, bytes) from the offset `after` on; a gap is one piece that says what is missing."""
    at = after
    for part in log_parts(path):
        if part.end <= at:
            continue
        if part.start > at:
            yield part.start, f"\n[{part.start - at} bytes left out]\n".encode()
            at = part.start
        with suppress(FileNotFoundError), open(part.path, "rb") as file:
            if part.skip and file.readline(32) != f"{part.start}\n".encode():
                continue  # its turn came again meanwhile
            file.seek(part.skip + at - part.start)
            while piece := file.read(min(_PIECE_BYTES, part.end - at)):
                at += len(piece)
                yield at, piece


def remove_log(path: str) -> None:
    """Delete all of it."""
    for ending in ("", *_SEGMENTS):
        with suppress(OSError):
            os.unlink(path + ending)
