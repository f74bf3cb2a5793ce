"""Keys that make a request one request, however often it is sent.

Owns one file a key below its directory: which run (or execution) the key began, for which body. A
key is claimed before anything is begun and settled when that is on record, so that whoever finds a
claim without a holder and without a record knows that nothing was ever begun. Must not know what
is begun.

    claim:     write the entry into a locked temporary file → link it to its name, fsynced
    settle:    rewrite it in place as settled → let the lock go
    withdraw:  unlink it (nothing was begun, and the same key may try again) → let the lock go

A process that dies lets its lock go. The name is a keyed hash: neither keys nor tokens can be read
from it, or tried out against it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from contextlib import suppress

from ctrl_exec.common import files
from ctrl_exec.common.errors import BusyError, ConflictError, InvalidInputError, SpentKeyError, StorageError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LIFE_S = 86_400
MAX_KEY_LENGTH = 255
_DIRECTORY_MODE = 0o2770
_FILE_MODE = 0o660
_SECRET_MODE = 0o600
_IDENTITY = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?", re.ASCII)
_ENTRY = re.compile(r"([cs]) ([0-9a-f]{8,12}) ([A-Za-z0-9_-]{1,64}) ([0-9a-f]{64}) *\n", re.ASCII)
_ENTRY_BYTES = 160
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25


def check_key(key: str) -> str:
    """The key itself. Raises: InvalidInputError unless it is 1 to 255 printable ASCII characters."""
    if not _KEY.fullmatch(key):
        raise InvalidInputError(
            f"Idempotency-Key: expected 1 to {MAX_KEY_LENGTH} printable ASCII characters",
            field="Idempotency-Key",
        )
    return key


@value
class KeyUse:
    """A key as it was used: by whom (name and credential), on which method and path, for which body."""

    key: str
    username: str
    token: str
    method: str
    path: str
    body: bytes

    def __repr__(self) -> str:  # no credential may get into a log or a traceback by it
        return f"KeyUse(method={self.method!r}, path={self.path!r})"


@value
class _Entry:
    is_settled: bool
    created: int
    identity: str
    digest: str

    def encode(self) -> bytes:
        mark = "s" if self.is_settled else "c"
        line = f"{mark} {self.created:08x} {self.identity} {self.digest}"
        # always of one length, so that one write in place replaces all of it
        return f"{line:<{_ENTRY_BYTES - 1}}\n".encode("ascii")


class Claim:
    """What a key stands for; the one who may begin it holds the entry until it settles or withdraws.

    `identity` names what was begun, or is to be begun by this process if `is_ours`.
    """

    def __init__(self, path: str, entry: _Entry, fd: int = -1) -> None:
        self._path = path
        self._entry = entry
        self._fd = fd

    @property
    def identity(self) -> str:
        """The id of the run or execution."""
        return self._entry.identity

    @property
    def is_ours(self) -> bool:
        """Whether this process is the one that begins it."""
        return self._fd >= 0

    def settle(self) -> None:
        """It is on record now. Never fails: where this can't be written, the record itself tells it."""
        with suppress(OSError):
            _rewrite(self._fd, _Entry(True, self._entry.created, self._entry.identity, self._entry.digest))
        self.close()

    def withdraw(self) -> None:
        """Nothing was begun: the key is as if it had never been used."""
        with suppress(OSError):
            os.unlink(self._path)
        self.close()

    def close(self) -> None:
        """Let the entry go."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class IdempotencyKeys:
    """The keys below one directory; `clock` gives the epoch second."""

    def __init__(self, directory: str, clock: Callable[[], int]) -> None:
        self._directory = directory
        self._clock = clock

    def claim(
        self,
        use: KeyUse,
        identity: str,
        *,
        exists: Callable[[str], bool],
        wait: Callable[[float], bool],
    ) -> Claim:
        """Become the one who begins what the key stands for, as `identity`; or learn what was begun.

        `exists` tells whether something is on record; `wait` waits some seconds, and is true where
        there is no more time: while another process is about to begin it nobody else knows more.

        Raises: ConflictError if the key stands for another body; SpentKeyError if what it began is on
        record no more; BusyError if the wait was over; StorageError.
        """
        if not _IDENTITY.fullmatch(identity):
            raise InvalidInputError("identity: expected 1 to 64 letters, digits, '_' or '-'")
        entry = _Entry(False, self._clock(), identity, self._digest_of(use))
        path = os.path.join(self._directory, self._name_of(use))
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                found = self._try(path, entry, exists)
            except OSError as error:
                raise StorageError(error.strerror or str(error), path=path) from error
            if found is not None:
                return found
            if wait(pause_s):
                raise BusyError("another request with this key is about to begin; ask again")
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _try(self, path: str, entry: _Entry, exists: Callable[[str], bool]) -> Claim | None:
        """The claim, ours or another's; None while another process holds it, or just let it go.

        Raises: OSError; ConflictError; SpentKeyError; StorageError.
        """
        fd = _create(path, entry)
        if fd >= 0:
            return Claim(path, entry, fd)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        is_kept = False
        try:
            self._is_current(_read(fd, path), entry)  # another body need not wait to be refused
            if not files.try_lock(fd) or not _is_named(fd, path):
                return None
            known = _read(fd, path)
            if self._is_current(known, entry) and (known.is_settled or exists(known.identity)):
                return _join(path, known, fd, exists)
            # held by nobody, and nothing on record: its claimant died before it began anything
            _rewrite(fd, entry)
            os.fsync(fd)
            is_kept = True
            return Claim(path, entry, fd)
        finally:
            if not is_kept:
                os.close(fd)

    def _is_current(self, known: _Entry, entry: _Entry) -> bool:
        """Whether the key's time is not over. Raises: ConflictError if it then stands for another body."""
        is_current = self._clock() - known.created < LIFE_S
        if is_current and not hmac.compare_digest(known.digest, entry.digest):
            raise ConflictError("this Idempotency-Key was used with another body")
        return is_current

    def _name_of(self, use: KeyUse) -> str:
        parts = (use.username, use.token, use.method, use.path, use.key)
        # each with its length: no two uses may run into one text
        text = "".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")
        return hmac.new(self._secret(), text, hashlib.sha256).hexdigest()

    def _digest_of(self, use: KeyUse) -> str:
        # keyed like the name: a body may hold a short secret, which must not be tried out against it
        return hmac.new(self._secret(), use.body, hashlib.sha256).hexdigest()

    def _secret(self) -> bytes:
        """What the names are keyed with, made at the first use. Raises: StorageError."""
        path = os.path.join(self._directory, "secret")
        try:
            return files.read_bounded(path, 64)
        except FileNotFoundError:
            files.make_dirs(self._directory, _DIRECTORY_MODE)
            with suppress(FileExistsError):
                files.write_atomic(path, os.urandom(32), _SECRET_MODE, exclusive=True)
            return files.read_bounded(path, 64)

    def settle_all(self, exists: Callable[[str], bool]) -> None:
        """Note of every claim without a holder whether it was begun: before records are purged.

        Raises: StorageError.
        """
        for path in self._paths():
            with suppress(OSError, StorageError):
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    known = _read(fd, path)
                    if not known.is_settled and files.try_lock(fd) and exists(known.identity):
                        _rewrite(fd, _Entry(True, known.created, known.identity, known.digest))
                finally:
                    os.close(fd)

    def purge(self) -> int:
        """Remove the keys whose time is over; gives how many. Raises: StorageError."""
        now, count = self._clock(), 0
        for path in self._paths():
            with suppress(OSError, StorageError):
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if now - _read(fd, path).created >= LIFE_S and files.try_lock(fd) and _is_named(fd, path):
                        os.unlink(path)
                        count += 1
                finally:
                    os.close(fd)
        return count + self._remove_temporaries(now)

    def _remove_temporaries(self, now: int) -> int:
        count = 0
        for path in self._paths(".tmp-"):
            with suppress(OSError):
                if now - os.stat(path, follow_symlinks=False).st_mtime >= LIFE_S:
                    os.unlink(path)
                    count += 1
        return count

    def _paths(self, prefix: str = "") -> list[str]:
        """The entries, or what has that prefix. Raises: StorageError."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self._directory) from error
        wanted = (name for name in names if (name.startswith(prefix) if prefix else len(name) == 64))
        return [os.path.join(self._directory, name) for name in wanted]


def _join(path: str, known: _Entry, fd: int, exists: Callable[[str], bool]) -> Claim:
    """What the key began. Raises: SpentKeyError, OSError."""
    if not exists(known.identity):
        raise SpentKeyError(known.identity)
    if not known.is_settled:
        _rewrite(fd, _Entry(True, known.created, known.identity, known.digest))
    return Claim(path, known)


def _create(path: str, entry: _Entry) -> int:
    """A descriptor of the new entry, locked; -1 if there is one already. Raises: OSError."""
    if os.path.lexists(path):
        return -1
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".tmp-{name[:16]}-{os.urandom(6).hex()}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, _FILE_MODE)
        # locked before it has its name: nobody may find it without its holder
        files.try_lock(fd)
        _rewrite(fd, entry)
        os.fsync(fd)
        try:
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            os.close(fd)
            return -1
        directory_fd = files.open_dir(directory)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)
        return fd
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.unlink(temporary)


def _rewrite(fd: int, entry: _Entry) -> None:
    os.pwrite(fd, entry.encode(), 0)


def _read(fd: int, path: str) -> _Entry:
    """Raises: StorageError if it is no entry."""
    found = _ENTRY.fullmatch(os.pread(fd, _ENTRY_BYTES + 1, 0).decode("ascii", "replace"))
    if found is None:
        raise StorageError("is no entry of an idempotency key", path=path)
    return _Entry(found[1] == "s", int(found[2], 16), found[3], found[4])


def _is_named(fd: int, path: str) -> bool:
    """Whether the file that was locked still has the name: it may have been withdrawn meanwhile."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    return False
