"""Starting, waiting for and ending other processes; the one module that does.

Programs are started with posix_spawn (vfork inside: no copy of our page tables): a list from end
to end, never a shell of ours, own session, default signals, a built-up environment. A status that
we did not read ourselves counts as death by a signal: an inherited SIG_IGN or a foreign reaper must
never turn a failure into an exit code 0 (safety §1.17).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows `signal` only
import os
import select
import sys
import time

from ctrl_exec.common.errors import ConfigError, ProgramError
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import NoReturn

# what a started program must not inherit as ignored: Python itself ignores SIGPIPE and SIGXFSZ
_TO_DEFAULT = tuple(_signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP})
# what a forked child of ours must not keep of its parent's handlers
_CHILD_DEFAULT = (
    _signal.SIGCHLD, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT, _signal.SIGUSR1,
    _signal.SIGUSR2, _signal.SIGALRM,
)  # fmt: skip
# plain numbers, as handlers are called with
SIGHUP, SIGTERM, SIGUSR1 = _signal.SIGHUP, _signal.SIGTERM, _signal.SIGUSR1
_POLL_S = 0.01
KILL_GRACE_S = 5.0
STOLEN_STATUS = _signal.SIGKILL
"""The signal a program is said to have died of when its status was read by someone else."""


def use_default_sigchld() -> None:
    """Undo an inherited SIG_IGN or handler; every program of ours calls it first in its `main`."""
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGCHLD])


def seal_descriptors() -> None:
    """Close on exec what whoever started us left open; programs that start others call it in `main`."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(name), False)


def reset_child_signals() -> None:
    """Give a freshly forked child default signals; the first thing each does."""
    _signal.set_wakeup_fd(-1)
    for number in _CHILD_DEFAULT:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def leave_wakeups() -> None:
    """For a server's child: what it is signalled is not to be told to its parent."""
    _signal.set_wakeup_fd(-1)


def die_of(number: int) -> None:
    """End as if there were no handler of the signal."""
    _signal.signal(number, _signal.SIG_DFL)
    os.kill(os.getpid(), number)


def set_handler(number: int, handler: Callable[[int, object], None] | None) -> None:
    """As `signal.signal`, None to ignore; without its enums, which cost a forked child many copied pages."""
    _signal.signal(number, _signal.SIG_IGN if handler is None else handler)


def spawn(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    stdin: int,
    stdout: int,
    stderr: int,
    keep: Mapping[int, int] | None = None,
) -> int:
    """Start the program in a session of its own; gives its pid, which is its group too.

    `keep` maps further descriptors of the program to ours. All others are closed on exec
    (`seal_descriptors`).

    Raises: ProgramError if it cannot be executed.
    """
    wanted = {0: stdin, 1: stdout, 2: stderr} | dict(keep or {})
    # lift ours above all targets first, so that no dup2 overwrites a source still needed
    floor = max(wanted) + 1
    lifted: dict[int, int] = {}
    try:
        for target, source in wanted.items():
            lifted[target] = _duplicate(source, floor)
        actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in lifted.items()]
        return os.posix_spawn(
            argv[0], list(argv), dict(environment), file_actions=actions, setsid=True,
            setsigdef=_TO_DEFAULT, setsigmask=(),
        )  # fmt: skip
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ProgramError(f"cannot be executed ({reason})", program=argv[0]) from error
    finally:
        for source in lifted.values():
            os.close(source)


def spawn_held(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    streams: tuple[int, int, int],
    before_exec: Callable[[int], object],
) -> int:
    """As `spawn`, but the program is executed only once `before_exec` was told its pid and returned.

    So its group can be on record before it does anything. Where `before_exec` raises, or this process
    dies in it, nothing is executed.

    Raises: ProgramError if it cannot be executed, or there is no room for a process.
    """
    held, release = os.pipe2(os.O_CLOEXEC)
    report, failing = os.pipe2(os.O_CLOEXEC)
    _flush()
    try:
        pid = os.fork()
        if pid == 0:
            _execute_held(argv, environment, streams, (held, release, failing))
        os.close(failing)
        failing = -1
        try:
            before_exec(pid)
            os.write(release, b"\0")
        except BaseException:
            os.close(release)
            release = -1
            wait_status(pid)
            raise
        reason = os.read(report, 256)
    except OSError as error:
        raise ProgramError(f"cannot be started ({error.strerror})", program=argv[0]) from error
    finally:
        for fd in (held, release, report, failing):
            if fd >= 0:
                os.close(fd)
    if reason:
        wait_status(pid)
        raise ProgramError(f"cannot be executed ({reason.decode('utf-8', 'replace')})", program=argv[0])
    return pid


def _execute_held(
    argv: Sequence[str], environment: Mapping[str, str], streams: tuple[int, ...], pipes: tuple[int, int, int]
) -> NoReturn:
    held, release, failing = pipes
    try:
        os.setsid()
        os.close(release)
        for number in _TO_DEFAULT:
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        for target, source in enumerate([_duplicate(fd, 3) for fd in streams]):
            os.dup2(source, target)
        if os.read(held, 1):
            os.execve(argv[0], list(argv), dict(environment))  # noqa: S606 - a list; a shell is asked for by name
    except Exception as error:  # noqa: BLE001 - a process border: what is not said here would be an exit code
        os.write(failing, (getattr(error, "strerror", None) or str(error)).encode()[:256])
    finally:
        os._exit(127)


def _duplicate(source: int, floor: int) -> int:
    import fcntl

    return fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, floor)


def wait_status(pid: int, *, timeout_s: float | None = None) -> tuple[int, int] | None:
    """(exit code, 0) or (-1, signal) of a child of ours; None if it still runs after the time.

    A status that someone else took is (-1, SIGKILL): unknown is never success.
    """
    if timeout_s is not None and not _has_ended(pid, timeout_s):
        return None
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return -1, STOLEN_STATUS
    if os.WIFSIGNALED(status):
        return -1, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), 0


def _has_ended(pid: int, timeout_s: float) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(max(0, int(timeout_s * 1000))))
    finally:
        os.close(fd)


def end_group(pgid: int, grace_s: float | None = KILL_GRACE_S) -> None:
    """End every process of the group: TERM, then KILL after the grace; None sends KILL at once.

    Does not reap the leader, so that its number is not another's before its parent has read it.
    """
    if grace_s is None or grace_s <= 0:
        _signal_group(pgid, _signal.SIGKILL)
        return
    _signal_group(pgid, _signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        if not is_group_alive(pgid):
            return
        time.sleep(_POLL_S)
    _signal_group(pgid, _signal.SIGKILL)


def send_term(pgid: int) -> None:
    """Ask every process of the group to end."""
    _signal_group(pgid, _signal.SIGTERM)


def _signal_group(pgid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)


def is_group_alive(pgid: int) -> bool:
    """Whether some process of the group still runs; zombies do not count."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{entry}/stat", "rb") as stat:
                after_name = stat.read(4096).rpartition(b")")[2].split()
            if int(after_name[2]) == pgid and after_name[0] not in (b"Z", b"X"):
                return True
    return False


def fork_child(work: Callable[[], int | None]) -> int:
    """Fork a child that runs the work with default signals and ends with its code; gives the pid.

    A signal that it gets before it has done away with our handlers waits until it has.
    """
    _flush()
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _CHILD_DEFAULT)
    try:
        pid = os.fork()
        if pid == 0:
            _run_and_leave(work)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    return pid


def detach(work: Callable[[], int | None], *, close: Iterable[int] = (), keep_stderr: bool = False) -> int:
    """Start the work in a process that outlives this one; gives its pid, which we need not reap.

    Own session, default signals, stdin and stdout (and stderr unless kept) on /dev/null. It inherits
    every other open descriptor, save those in `close`: a flock held here is held there too.

    Raises: ProgramError if the system has no room for a process.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    _flush()
    try:
        middle = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        raise ProgramError(f"cannot fork ({error.strerror})") from error
    if middle == 0:
        _detach_in_child(work, writing, [reading, *close], keep_stderr)
    os.close(writing)
    try:
        answer = os.read(reading, 32)
    finally:
        os.close(reading)
    wait_status(middle)
    if not answer:
        raise ProgramError("cannot fork a detached process")
    return int(answer)


def _detach_in_child(
    work: Callable[[], int | None], report: int, close: Sequence[int], keep_stderr: bool
) -> NoReturn:
    try:
        reset_child_signals()
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(report, str(pid).encode())
            os._exit(0)
        for fd in (report, *close):
            with suppress(OSError):
                os.close(fd)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for stream in (0, 1) if keep_stderr else (0, 1, 2):
            os.dup2(null, stream)
        if null > 2:
            os.close(null)
    except BaseException:  # noqa: BLE001 - whatever it was, this copy of the caller must not go on
        os._exit(70)
    _run_and_leave(work)


def _run_and_leave(work: Callable[[], int | None]) -> NoReturn:
    code = 70
    try:
        reset_child_signals()
        code = work() or 0
    except BaseException as error:  # noqa: BLE001 - the border of a process: say it and end
        with suppress(Exception):
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        with suppress(Exception):
            _flush()
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


def account_of(user: str, group: str) -> tuple[int, int]:
    """(uid, gid) of the names; an empty group means the user's own.

    Raises: ConfigError if there is no such user or group.
    """
    import grp
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise ConfigError(f"there is no user {user!r} on this machine") from error
    try:
        return entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError as error:
        raise ConfigError(f"there is no group {group!r} on this machine") from error


def drop_privileges(user: str, group: str = "") -> None:
    """Become the user for good, when root; nothing to do for anyone else or without a user.

    Raises: ConfigError if there is no such user or group.
    """
    if not user or os.geteuid() != 0:
        return
    uid, gid = account_of(user, group)
    if uid == 0:
        return
    os.initgroups(user, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
