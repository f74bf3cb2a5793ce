"""Exclusive locks on (host, script): one flock file each, held as long as the run lives.

Owns `locks/<host>/<script>`. A lock belongs to an open file description: it survives a fork, ends
with the last process that has it open, and so never outlives its carrier. The files are never
deleted, because a second file of the same name would be a second lock. It must not know what a run
is, nor who asks.
"""

from __future__ import annotations

import errno
import os
import resource

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import LockedError, StorageError
from ctrl_exec.common.files import make_dirs, open_lock, read_bounded, try_lock
from ctrl_exec.common.names import AGENT_NAME, SCRIPT, check_agent_name, check_script
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_DIRECTORY_MODE = 0o2770
_FILE_MODE = 0o660
_SPARE_DESCRIPTORS = 256  # what the rest of the process may need beside a lock for each host
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_KERNEL_TABLE_LIMIT_BYTES = 64 << 20


class HeldLocks:
    """Locks that are held until closed here and in every process that inherited them by fork."""

    def __init__(self, script: str, descriptors: dict[str, int]) -> None:
        self.script = script
        self._descriptors = descriptors

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors, for who passes them on by fork."""
        return tuple(self._descriptors.values())

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that are held, sorted."""
        return tuple(self._descriptors)

    def release(self, host: str) -> None:
        """Close the lock of one host; unknown ones are none of our business."""
        fd = self._descriptors.pop(host, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all; never LOCK_UN, which would also unlock for a detached carrier that inherited them."""
        for host in tuple(self._descriptors):
            self.release(host)

    def __enter__(self) -> HeldLocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ScriptLocks:
    """The lock files below one directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def hold(self, hosts: Iterable[str], script: str) -> HeldLocks:
        """All the locks or none, taken in sorted order without waiting.

        After the first conflict nothing more is taken, so that of two runs that meet one always
        wins; the other names in the error come from the kernel's table.

        Raises: LockedError with the hosts in conflict; StorageError.
        """
        check_script(script)
        wanted = sorted({check_agent_name(host) for host in hosts})
        _allow_descriptors(len(wanted))
        taken: dict[str, int] = {}
        try:
            for host in wanted:
                fd = self._take(host, script)
                if fd is None:
                    raise LockedError(script, self._conflicts(host, wanted, script, taken))
                taken[host] = fd
        except BaseException:
            HeldLocks(script, taken).close()
            raise
        return HeldLocks(script, taken)

    def hold_within(
        self, hosts: Iterable[str], script: str, wait_s: float, pause: Callable[[float], bool]
    ) -> HeldLocks:
        """As `hold`, tried again until `wait_s` is over, with nothing held between tries.

        `pause(seconds)` waits and says whether to give up (the caller hung up).

        Raises: LockedError when the time is over or `pause` gave up; StorageError.
        """
        wanted = tuple(hosts)
        deadline = monotonic() + wait_s
        longest_s = _FIRST_PAUSE_S
        while True:
            try:
                return self.hold(wanted, script)
            except LockedError:
                left_s = deadline - monotonic()
                # jitter: waiters that were refused together must not come back together
                if left_s <= 0 or pause(min(left_s, _jittered(longest_s))):
                    raise
            longest_s = min(longest_s * 1.5, _LONGEST_PAUSE_S)

    def held(self) -> tuple[tuple[str, str], ...]:
        """All (host, script) pairs that some process holds now, sorted.

        Read from the kernel's tables: a probe would itself take the lock for a moment and make an
        honest run fail.

        Raises: StorageError if the directory can't be read.
        """
        places = self._places()
        found = {places[place] for place in _kernel_table() if place in places}
        return tuple(sorted(found | self._held_by_descriptors()))

    def _path(self, host: str, script: str) -> str:
        return os.path.join(self._directory, check_agent_name(host), check_script(script))

    def _take(self, host: str, script: str) -> int | None:
        path = self._path(host, script)
        fd = self._open(path)
        try:
            if try_lock(fd):
                return fd
        except OSError as error:
            os.close(fd)
            raise StorageError(error.strerror or str(error), path=path) from error
        os.close(fd)
        return None

    def _open(self, path: str) -> int:
        parent = os.path.dirname(path)
        if os.path.islink(parent):
            raise StorageError("is a symbolic link, which is not followed here", path=parent)
        if not os.path.isdir(parent):
            make_dirs(parent, _DIRECTORY_MODE)
        return open_lock(path, _FILE_MODE)

    def _conflicts(
        self, first: str, wanted: list[str], script: str, taken: dict[str, int]
    ) -> tuple[str, ...]:
        locked = {first}
        with suppress(StorageError):
            others = set(wanted) - set(taken)
            locked |= {host for host, name in self.held() if name == script and host in others}
        return tuple(sorted(locked))

    def _places(self) -> dict[tuple[int, int], tuple[str, str]]:
        """(device, inode) of every lock file."""
        found = {}
        for host, script, path in self._files():
            with suppress(OSError):
                about = os.stat(path, follow_symlinks=False)
                found[about.st_dev, about.st_ino] = (host, script)
        return found

    def _files(self) -> Iterator[tuple[str, str, str]]:
        for host in _names(self._directory):
            if not AGENT_NAME.fullmatch(host):
                continue
            for script in _names(os.path.join(self._directory, host)):
                if SCRIPT.fullmatch(script):
                    yield host, script, os.path.join(self._directory, host, script)

    def _held_by_descriptors(self) -> set[tuple[str, str]]:
        """The pairs whose lock some process we may look into has open and locked.

        In a PID namespace (a container) /proc/locks leaves out a lock whose first taker is gone,
        as the request child is when its detached carrier goes on, and some file systems show it
        another device than stat(2) does; fdinfo knows better. Source: fs/locks.c of the kernel.
        """
        root = os.path.realpath(self._directory) + os.sep
        found = set()
        for process in filter(str.isdigit, _names("/proc")):
            for number in _names(f"/proc/{process}/fd"):
                target = _link_target(f"/proc/{process}/fd/{number}")
                if target.startswith(root) and _is_locked(f"/proc/{process}/fdinfo/{number}"):
                    host, _, script = target[len(root) :].partition(os.sep)
                    if AGENT_NAME.fullmatch(host) and SCRIPT.fullmatch(script):
                        found.add((host, script))
        return found


def _jittered(longest_s: float) -> float:
    """Between half of the time and all of it; `random` would cost its import for this one number."""
    return longest_s * (0.5 + int.from_bytes(os.urandom(2), "big") / 131_072)


def _allow_descriptors(count: int) -> None:
    """Raise the soft limit of open files where that many locks need it; the hard limit stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _kernel_table() -> set[tuple[int, int]]:
    """(device, inode) of every flock the kernel lists. Source: proc_locks(5)."""
    try:
        text = read_bounded("/proc/locks", _KERNEL_TABLE_LIMIT_BYTES).decode("ascii", "replace")
    except (FileNotFoundError, StorageError):
        return set()
    return {place for line in text.splitlines() for place in _place_of(line)}


def _place_of(line: str) -> Iterator[tuple[int, int]]:
    words = line.split()
    # a waiter's line has "->" in second place and is no lock
    if len(words) < 6 or words[1] != "FLOCK":
        return
    with suppress(ValueError):
        major, minor, inode = words[5].split(":")
        yield os.makedev(int(major, 16), int(minor, 16)), int(inode)


def _is_locked(path: str) -> bool:
    with suppress(FileNotFoundError, StorageError):
        return b"FLOCK" in read_bounded(path, 1 << 16)
    return False


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError, PermissionError, ProcessLookupError):
        return []
    except OSError as error:
        if error.errno == errno.ESRCH:
            return []
        raise StorageError(error.strerror or str(error), path=directory) from error


def _link_target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
