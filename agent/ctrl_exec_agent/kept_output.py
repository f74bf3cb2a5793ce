"""What a script prints, kept up to a limit: the newest bytes in memory, all others in a file.

Owns one output stream of one run, while it grows (`KeptOutput`) and when it lies there (`FiledOutput`,
`TextOutput`). The file is what others follow, and what is left when this process is killed.
"""

from __future__ import annotations

import os

from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from ctrl_exec.common.masking import Masker

    class Output(Protocol):
        """Bytes that can be read in pieces."""

        def size(self) -> int: ...
        def settled(self) -> int: ...
        def read(self, at: int, limit_bytes: int) -> bytes: ...
        def close(self) -> None: ...


MEMORY_BYTES = 1 << 16
_FILE_MODE = 0o640


class KeptOutput:
    """One stream of a run that goes on. Without a path, or when the disk fails it, it keeps to memory.

    What the masker masks is nowhere: neither kept, nor shown, nor counted.
    """

    def __init__(self, path: str | None, limit_bytes: int, masker: Masker | None = None) -> None:
        self._path = path
        self._masker = masker
        self._limit_bytes = limit_bytes
        self._fd: int | None = None
        self._filed = 0
        self._fresh = bytearray()
        self.dropped = 0

    @property
    def is_filed(self) -> bool:
        """Whether any of it is in the file."""
        return self._filed > 0

    @property
    def has_fresh(self) -> bool:
        """Whether something waits to be written to the file."""
        return bool(self._fresh) and self._path is not None

    def size(self) -> int:
        """How many bytes are kept."""
        return self._filed + len(self._fresh)

    def settled(self) -> int:
        """How many bytes may be shown while the run goes on: what is in the file."""
        return self._filed if self._path is not None else self.size()

    def append(self, chunk: bytes) -> None:
        """Keep what there is room for, count the rest."""
        self._keep(chunk if self._masker is None else self._masker.feed(chunk))

    def end(self) -> None:
        """No more comes: keep what the masker held back."""
        if self._masker is not None:
            self._keep(self._masker.flush())

    def _keep(self, chunk: bytes) -> None:
        room = max(0, self._limit_bytes - self.size())
        self._fresh += chunk[:room]
        self.dropped += max(0, len(chunk) - room)
        if len(self._fresh) >= MEMORY_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits to the file."""
        if not self.has_fresh:
            return
        try:
            if self._fd is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(str(self._path), flags, _FILE_MODE)
            while self._fresh:
                written = os.write(self._fd, self._fresh)
                self._filed += written
                del self._fresh[:written]
        except OSError:
            self._fall_back()

    def _fall_back(self) -> None:
        """Do without the file: the disk has no room, and what is in it must not be lost."""
        if self._fd is not None:
            filed = bytearray()
            while chunk := os.pread(self._fd, 1 << 20, len(filed)):
                filed += chunk
            self._fresh = filed[: self._filed] + self._fresh
            self.close()
            with suppress(OSError):
                os.unlink(str(self._path))
        self._path, self._filed = None, 0

    def read(self, at: int, limit_bytes: int) -> bytes:
        """The bytes from there on, at most so many."""
        if at < self._filed and self._fd is not None:
            return os.pread(self._fd, min(limit_bytes, self._filed - at), at)
        at -= self._filed
        return bytes(self._fresh[at : at + limit_bytes])

    def sync(self) -> None:
        """Have the file survive a crash of the machine."""
        self.flush()
        if self._fd is not None:
            with suppress(OSError):
                os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class FiledOutput:
    """The file of a stream, of which somebody else may still be writing the end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None

    def __del__(self) -> None:
        self.close()  # of an answer that nobody began to read

    def _open(self) -> int | None:
        if self._fd is None:
            with suppress(OSError):
                self._fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self._fd

    def size(self) -> int:
        """How many bytes it holds by now; there is no file before there is output."""
        fd = self._open()
        return 0 if fd is None else os.fstat(fd).st_size

    def settled(self) -> int:
        """As `size`."""
        return self.size()

    def read(self, at: int, limit_bytes: int) -> bytes:
        """The bytes from there on, at most so many."""
        fd = self._open()
        return b"" if fd is None else os.pread(fd, limit_bytes, at)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class TextOutput:
    """Output that a record holds as text."""

    def __init__(self, text: str, encoding: str | None) -> None:
        self._text = text
        self._encoding = encoding
        self._decoded: bytes | None = None

    @property
    def _raw(self) -> bytes:
        if self._decoded is None:
            if self._encoding == "base64":
                from binascii import a2b_base64

                self._decoded = a2b_base64(self._text)
            else:
                self._decoded = self._text.encode("utf-8", "replace")
        return self._decoded

    def size(self) -> int:
        """How many bytes it is."""
        return len(self._raw)

    def settled(self) -> int:
        """As `size`."""
        return self.size()

    def read(self, at: int, limit_bytes: int) -> bytes:
        """The bytes from there on, at most so many."""
        return self._raw[at : at + limit_bytes]

    def close(self) -> None:
        """Nothing is open."""


@value
class Outputs:
    """Both streams of a run, and the encoding their bytes are shown in."""

    stdout: Output
    stderr: Output
    encoding: str | None = None

    def of(self, stream: str) -> Output:
        """The stream of that name."""
        return self.stdout if stream == "stdout" else self.stderr

    def close(self) -> None:
        """Close what is open of both."""
        self.stdout.close()
        self.stderr.close()
