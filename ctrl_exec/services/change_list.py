"""The list of run records that changed: one short line a change, appended by whoever changed it.

Owns one file that carriers append to and the index of runs reads from a position on. It says only
that something happened to a record; what, is in the record. Losing it costs a look at all names.

    #<16 hex>    first line: which list this is; a file made anew has another one
    <reqid>      every other line that is not empty
"""

from __future__ import annotations

import os
import time

from ctrl_exec.common import files
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.names import REQID
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_DIRECTORY_MODE = 0o2770
_FILE_MODE = 0o660
_LONGEST_LINE_BYTES = 34
HEADER_BYTES = 18
# who begins anew looks at all names anyway; the latest runs are to be there at once
_TAIL_BYTES = 1 << 14
# the reader holds the file for itself only while it cuts off what it has read
_PATIENCE_S = 1.0
_ATTEMPTS = 4


@value
class Position:
    """How far a reader has come in which list; `list_id` is empty before the first reading."""

    list_id: str = ""
    offset: int = HEADER_BYTES


@value
class Changes:
    """What was read: the ids, each once, in the order of their first change, and where it ended.

    `is_continued` is False if this is another list than the position was of, or a shorter one:
    changes may have been missed, and only the end of a long list was read.
    """

    reqids: tuple[str, ...]
    position: Position
    has_more: bool
    is_continued: bool


def change_list_of(runs_dir: str) -> ChangeList:
    """The list of the run records below a directory."""
    return ChangeList(os.path.join(runs_dir, "index", "changes"))


class ChangeList:
    """The list at a path; whoever appends first makes it and its directory."""

    def __init__(self, path: str) -> None:
        self.path = path

    def note(self, reqids: Sequence[str]) -> None:
        """Append the ids. Never fails: a line that could not be written is found by a look at all names."""
        if not reqids:
            return
        # a line end before them too: what a full disk tore must not become one with them
        lines = ("\n" + "".join(f"{reqid}\n" for reqid in reqids)).encode("ascii")
        with suppress(OSError, StorageError):
            for _ in range(_ATTEMPTS):
                fd = self._open()
                try:
                    _lock_shared(fd)
                    files.write_all(fd, lines)
                    if os.fstat(fd).st_nlink:  # else it was removed meanwhile, and nobody reads this one
                        return
                finally:
                    os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self.path, flags)
        except FileNotFoundError:
            directory = os.path.dirname(self.path)
            files.make_dirs(directory, _DIRECTORY_MODE)
            header = f"#{os.urandom(8).hex()}\n".encode("ascii")
            with suppress(FileExistsError):
                files.write_atomic(self.path, header, _FILE_MODE, exclusive=True, durable=False)
            return os.open(self.path, flags)

    def read(self, after: Position, limit: int) -> Changes:
        """At most `limit` changes after the position. Raises: StorageError."""
        try:
            fd = self._open()
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self.path) from error
        try:
            return _read(fd, after, limit)
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self.path) from error
        finally:
            os.close(fd)

    def is_at(self, position: Position) -> bool:
        """Whether there is nothing to read after the position."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return _list_id(fd) == position.list_id and os.fstat(fd).st_size == position.offset
        except OSError:
            return False
        finally:
            os.close(fd)

    def cutting(self, position: Position) -> _Cut:
        """Cut off all lines if they have been read to the position, when the block has noted the new one.

        None where somebody appends at this moment or has appended since; nothing is cut then.
        """
        return _Cut(self.path, position)


class _Cut:
    """The block of `cutting`; one that ends with an exception cuts nothing."""

    def __init__(self, path: str, position: Position) -> None:
        self._path, self._position = path, position
        self._fd = -1

    def __enter__(self) -> Position | None:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            is_ours = files.try_lock(fd) and _list_id(fd) == self._position.list_id
            is_read = is_ours and os.fstat(fd).st_size == self._position.offset
        except BaseException:
            os.close(fd)
            raise
        if not is_read:
            os.close(fd)
            return None
        self._fd = fd
        return Position(self._position.list_id, HEADER_BYTES)

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        if self._fd < 0:
            return
        try:
            if kind is None:
                with suppress(OSError):
                    os.ftruncate(self._fd, HEADER_BYTES)
        finally:
            os.close(self._fd)


def _lock_shared(fd: int) -> None:
    """Keep the reader from cutting while we append; without it a line may be lost, which is healed."""
    deadline = time.monotonic() + _PATIENCE_S
    while not files.try_lock(fd, shared=True) and time.monotonic() < deadline:
        time.sleep(0.002)


def _list_id(fd: int) -> str:
    return os.pread(fd, HEADER_BYTES, 0).decode("ascii", "replace").strip("#\n")


def _read(fd: int, after: Position, limit: int) -> Changes:
    list_id, size = _list_id(fd), os.fstat(fd).st_size
    is_continued = list_id == after.list_id and after.offset <= size
    start = after.offset if is_continued else max(HEADER_BYTES, size - _TAIL_BYTES)
    content = os.pread(fd, limit * _LONGEST_LINE_BYTES, start)
    whole = content[: content.rfind(b"\n") + 1]
    lines = (line.decode("ascii", "replace") for line in whole.split(b"\n"))
    found = tuple(dict.fromkeys(line for line in lines if REQID.fullmatch(line)))
    is_full = len(content) == limit * _LONGEST_LINE_BYTES
    # with no line end in all of it there is nothing of ours in it
    end = start + (len(content) if is_full and not whole else len(whole))
    return Changes(found, Position(list_id, end), is_full, is_continued)
