"""State files: whole or absent, with their mode from the first byte, never through a link.

Owns how bytes reach the disk. Knows nothing of what is in them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from ctrl_exec.common import json_text
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Any

_TEMPORARY = ".tmp-"
_READ_BYTES = 1 << 16
_encoded = json_text.encoder(ensure_ascii=False)


def write_atomic(
    path: str,
    payload: bytes | Iterable[bytes],
    mode: int = 0o640,
    *,
    owner: tuple[int, int] | None = None,
    exclusive: bool = False,
    durable: bool = True,
) -> None:
    """Replace the file by the payload, whole or in pieces: a reader sees the old or the new, never a part.

    The temporary is made with O_EXCL in the same directory, gets mode and owner on its descriptor,
    is fsynced, renamed, and the directory is fsynced; without `durable` nothing is fsynced, for what
    may be forgotten in a crash. With `exclusive` an existing file is left alone and FileExistsError
    raised.

    Raises: StorageError (disk full, read-only, no such directory); FileExistsError with `exclusive`.
    """
    directory, slash, name = path.rpartition("/")
    try:
        dir_fd = open_dir(directory or slash or ".")
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    try:
        write_atomic_at(dir_fd, name, payload, mode, owner=owner, exclusive=exclusive, durable=durable)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    finally:
        os.close(dir_fd)


def write_atomic_at(
    dir_fd: int,
    name: str,
    payload: bytes | Iterable[bytes],
    mode: int,
    *,
    owner: tuple[int, int] | None = None,
    exclusive: bool = False,
    durable: bool = True,
) -> None:
    """As `write_atomic`, below a directory that is already open. Raises: OSError."""
    temporary = f"{_TEMPORARY}{os.getpid():x}-{os.urandom(6).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=dir_fd)
    try:
        try:
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            for piece in (payload,) if isinstance(payload, bytes) else payload:
                write_all(fd, piece)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        if exclusive:
            os.link(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            os.unlink(temporary, dir_fd=dir_fd)
        else:
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        if durable:
            os.fsync(dir_fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise


def is_temporary(name: str) -> bool:
    """Whether the name is a half-written file of `write_atomic`, which readers of folders skip."""
    return name.startswith(_TEMPORARY)


def write_all(fd: int, payload: bytes) -> None:
    """Write every byte. Raises: OSError."""
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view) :]


def read_bounded(path: str, limit_bytes: int, *, dir_fd: int | None = None, follow: bool = False) -> bytes:
    """The bytes of a regular file.

    Raises: FileNotFoundError if there is none; StorageError if it is larger than the limit, no
    regular file, a link (unless `follow`), or unreadable.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, dir_fd=dir_fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(_open_reason(error), path=path) from error
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise StorageError("not a regular file", path=path)
        if about.st_size > limit_bytes:
            raise StorageError(f"larger than {limit_bytes} bytes", path=path)
        # room for what there is and a byte more: fewer came, and it was all (/proc says 0 of its files)
        chunk = os.read(fd, about.st_size + 1) if about.st_size else b""
        if about.st_size and len(chunk) <= about.st_size:
            return chunk
        return _read_on(fd, chunk, limit_bytes, path)
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    finally:
        os.close(fd)


def _read_on(fd: int, begun: bytes, limit_bytes: int, path: str) -> bytes:
    """What was read, with the rest of a file that grows or has no size."""
    chunks = [begun]
    left = limit_bytes + 1 - len(begun)
    while left > 0 and (chunk := os.read(fd, min(left, _READ_BYTES))):
        chunks.append(chunk)
        left -= len(chunk)
    if left <= 0:
        raise StorageError(f"larger than {limit_bytes} bytes", path=path)
    return b"".join(chunks)


def _open_reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link, which is not followed here"
    return error.strerror or str(error)


def read_json(path: str, limit_bytes: int = 1 << 20, *, follow: bool = False) -> Any:
    """The JSON document of a file, or None if there is no file.

    Raises: StorageError if it can't be read or is no JSON.
    """
    try:
        content = read_bounded(path, limit_bytes, follow=follow)
    except FileNotFoundError:
        return None
    try:
        return json_text.loads(content)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"is not JSON ({error})", path=path) from error


def write_json(
    path: str,
    document: Any,
    mode: int = 0o640,
    *,
    owner: tuple[int, int] | None = None,
    exclusive: bool = False,
    durable: bool = True,
) -> None:
    """Write the document as JSON, a key of an object a line, atomically. Raises: as `write_atomic`."""
    text = _encoded(document)
    if isinstance(document, dict):
        lines = (f"{_encoded(key)}: {_encoded(each)}" for key, each in document.items())
        text = "{\n " + ",\n ".join(lines) + "\n}"
    text += "\n"
    write_atomic(
        path, text.encode("utf-8", "surrogatepass"), mode, owner=owner, exclusive=exclusive, durable=durable
    )


def open_dir(path: str) -> int:
    """A descriptor of a directory, not through a link at its last part. Raises: OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def make_dirs(path: str, mode: int = 0o750, *, owner: tuple[int, int] | None = None) -> None:
    """Make the directory and its parents; only those made here get mode and owner.

    Raises: StorageError.
    """
    if os.path.isdir(path):
        return
    path = os.path.abspath(path)
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for each in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(each, 0o700)
                _set_owner_and_mode(each, mode, owner)
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=missing[0]) from error


def _set_owner_and_mode(path: str, mode: int, owner: tuple[int, int] | None) -> None:
    fd = open_dir(path)
    try:
        if owner is not None:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def remove(path: str) -> bool:
    """Remove a file; False if there was none. Raises: StorageError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    return True


def open_lock(path: str, mode: int = 0o660) -> int:
    """A descriptor of a lock file, made if missing, never through a link, closed on exec.

    Raises: StorageError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except OSError as error:
        raise StorageError(_open_reason(error), path=path) from error
    with suppress(OSError):  # the umask took bits away; only the owner may give them back
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            os.fchmod(fd, mode)
    return fd


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the flock on the descriptor without waiting; False if someone else holds it. Source: flock(2)."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class held_lock:  # noqa: N801 - a function to its callers; `contextmanager` would cost them 3 ms
    """Hold the exclusive flock of a file while one small step is taken.

    Raises: StorageError if it can't be opened, or someone else holds it for longer than the time.
    """

    def __init__(self, path: str, mode: int = 0o660, *, timeout_s: float = 10.0) -> None:
        self._path = path
        self._mode = mode
        self._timeout_s = timeout_s
        self._fd = -1

    def __enter__(self) -> None:
        fd = open_lock(self._path, self._mode)
        try:
            self._wait_for(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _wait_for(self, fd: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not try_lock(fd):
            if time.monotonic() > deadline:
                words = f"another process has held the lock for {self._timeout_s:g} s"
                raise StorageError(words, path=self._path)
            time.sleep(0.01)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        os.close(self._fd)


def is_writable_by_others(about: os.stat_result, trusted_uid: int) -> bool:
    """Whether someone besides root and the trusted user may write the file or directory."""
    if about.st_uid not in (0, trusted_uid):
        return True
    return bool(about.st_mode & 0o022)
