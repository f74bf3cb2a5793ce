"""Running one script: its process, its three streams, its time limit, its end.

Owns everything between the exec and the outcome. The caller decides what may run and holds the
lock; this module only hands the lock's descriptor to the script's session, so that the lock
outlives a caller that is killed.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from ctrl_exec.common import process
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import ProgramError
from ctrl_exec.common.value import field, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_VARIABLES = ("HOME", "LANG", "LC_ALL", "TZ", "TERM", "USER", "LOGNAME")
UMASK = 0o022
COULD_NOT_RUN = 126  # killed by a signal, or not executable
TIMED_OUT = -1
LOCK_DESCRIPTOR = 99  # above what shell scripts redirect, below bash's own 255
TERM_GRACE_S = 5.0
KILL_GRACE_S = 5.0  # a process that survives KILL this long hangs in the kernel: we do not
_CHUNK_BYTES = 1 << 16
_LEFT_IN_PIPE_BYTES = 1 << 20  # the largest pipe an unprivileged script can make
_LOOK_S = 0.02


@value
class Job:
    """What to run. `timeout_s` None is no limit; `lock` is a descriptor the script's session keeps."""

    path: str
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    timeout_s: float | None = None
    stdin_timeout_s: float = 10.0
    limit_bytes: int = 10 << 20
    lock: int | None = None
    term_grace_s: float = TERM_GRACE_S


@value
class Outcome:
    """How it ended. `exit` is the script's code, 126 or -1 (`timed_out`); `error` says why if it is ours.

    `dropped_stdout` and `dropped_stderr` count the bytes beyond the limit. `is_group_gone` is false
    where something of it outlived KILL.
    """

    exit: int
    stdout: bytes = b""
    stderr: bytes = b""
    dropped_stdout: int = 0
    dropped_stderr: int = 0
    error: str = ""
    timed_out: bool = False
    is_group_gone: bool = True


def script_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of every script, built up from nothing: a fixed PATH and a few of our variables."""
    return {"PATH": PATH} | {name: ours[name] for name in PASSED_VARIABLES if name in ours}


def run_script(job: Job) -> Outcome:
    """Run the script to its end, and its whole process group to theirs."""
    streams = _Streams(job)
    try:
        streams.open()
        pid = _start(job, streams)
        streams.close_theirs()
        watch = _watch(pid, job, streams)
        try:
            ended = watch.follow()
        finally:
            watch.close()
        streams.drain()
        return _outcome(job, streams, ended, watch)
    except ProgramError as error:
        return Outcome(COULD_NOT_RUN, error=str(error))
    except OSError as error:  # no descriptor or memory left for it
        return Outcome(COULD_NOT_RUN, error=f"{job.path}: cannot be executed ({error.strerror})")
    finally:
        streams.close()


def _watch(pid: int, job: Job, streams: _Streams) -> _Watch:
    """A watch on the script that was started, which is ended at once if it can't be watched."""
    try:
        return _Watch(pid, job, streams)
    except OSError:
        process.end_group(pid, 0)
        process.wait_status(pid)
        raise


def _start(job: Job, streams: _Streams) -> int:
    os.chdir("/")
    before = os.umask(UMASK)
    try:
        return process.spawn(
            [job.path, *job.args],
            environment=job.environment,
            stdin=streams.theirs[0],
            stdout=streams.theirs[1],
            stderr=streams.theirs[2],
            keep=None if job.lock is None else {LOCK_DESCRIPTOR: job.lock},
        )
    finally:
        os.umask(before)


def _outcome(job: Job, streams: _Streams, ended: tuple[int, int], watch: _Watch) -> Outcome:
    code, died_of = ended
    error = ""
    if watch.timed_out:
        code, error = TIMED_OUT, f"script timed out after {job.timeout_s:g}s"
    elif died_of:
        code, error = COULD_NOT_RUN, f"script was killed by signal {died_of} ({_signal_name(died_of)})"
    return Outcome(
        code,
        bytes(streams.kept[1]),
        bytes(streams.kept[2]),
        streams.dropped[1],
        streams.dropped[2],
        error,
        watch.timed_out,
        not watch.has_given_up,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


class _Streams:
    """Our ends of the script's standard streams, none of which ever blocks."""

    def __init__(self, job: Job) -> None:
        self._unsent = memoryview(job.stdin)
        self._limit_bytes = job.limit_bytes
        self.kept = {1: bytearray(), 2: bytearray()}
        self.dropped = {1: 0, 2: 0}
        self.ours: dict[int, int] = {}
        self.theirs: dict[int, int] = {}

    def open(self) -> None:
        """Make the pipes. Raises: OSError."""
        for stream in (0, 1, 2):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            ends = (reading, writing) if stream == 0 else (writing, reading)
            self.theirs[stream], self.ours[stream] = ends
            os.set_blocking(self.ours[stream], False)

    def move(self, stream: int) -> bool:
        """Write or read one chunk; False if nothing moved, for now or for good."""
        return self._feed() if stream == 0 else self._read(stream)

    def _feed(self) -> bool:
        try:
            written = os.write(self.ours[0], self._unsent[:_CHUNK_BYTES])
        except BlockingIOError:
            return False
        except OSError:  # it closed its stdin unread, which is its right
            self.shut(0)
            return False
        self._unsent = self._unsent[written:]
        if not self._unsent:
            self.shut(0)
        return True

    def _read(self, stream: int) -> bool:
        try:
            chunk = os.read(self.ours[stream], _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self.shut(stream)
            return False
        kept = self.kept[stream]
        room = max(0, self._limit_bytes - len(kept))
        kept += chunk[:room]
        self.dropped[stream] += max(0, len(chunk) - room)
        return True

    def drain(self) -> None:
        """Take what the ended script left in its pipes; not what an escaped descendant goes on writing."""
        for stream in (1, 2):
            for _ in range(_LEFT_IN_PIPE_BYTES // _CHUNK_BYTES):
                if stream not in self.ours or not self._read(stream):
                    break

    def shut(self, stream: int) -> None:
        os.close(self.ours.pop(stream))

    def close_theirs(self) -> None:
        while self.theirs:
            os.close(self.theirs.popitem()[1])

    def close(self) -> None:
        self.close_theirs()
        while self.ours:
            os.close(self.ours.popitem()[1])


class _Watch:
    """Follows one running script: moves its streams, keeps its deadlines, ends its group."""

    def __init__(self, pid: int, job: Job, streams: _Streams) -> None:
        self._pid = pid
        self._job = job
        self._streams = streams
        now = monotonic()
        self._expires_at = None if job.timeout_s is None else now + job.timeout_s
        self._kill_at: float | None = None
        self._give_up_at: float | None = None
        self._stdin_ends_at = now + job.stdin_timeout_s
        self._ended: tuple[int, int] | None = None
        self.timed_out = False
        self.has_given_up = False
        self._pidfd = os.pidfd_open(pid)

    def close(self) -> None:
        os.close(self._pidfd)

    def follow(self) -> tuple[int, int]:
        """(exit code, 0) or (-1, signal) of the main process, once nothing of its group is left."""
        while True:
            if self._turn(self._wait()):
                self._ended = process.wait_status(self._pid)
                if not self._is_ending() and self._group_lives():
                    self._terminate()
            if self._ended is not None and not self._group_lives():
                return self._ended
            self._keep_deadlines(monotonic())
            if self.has_given_up:
                return self._ended or (-1, process.STOLEN_STATUS)

    def _wait(self) -> set[int]:
        poller = select.poll()
        if self._ended is None:
            poller.register(self._pidfd, select.POLLIN)
        for stream, fd in self._streams.ours.items():
            poller.register(fd, select.POLLOUT if stream == 0 else select.POLLIN)
        return {fd for fd, _ in poller.poll(self._wait_ms())}

    def _wait_ms(self) -> int | None:
        if self._ended is not None:
            return int(_LOOK_S * 1000)  # nothing announces the end of a group: look
        expires_at = self._expires_at if not self.timed_out else None
        stdin_ends_at = self._stdin_ends_at if 0 in self._streams.ours else None
        deadlines = (expires_at, stdin_ends_at, self._kill_at, self._give_up_at)
        known = [deadline for deadline in deadlines if deadline is not None]
        return max(0, int((min(known) - monotonic()) * 1000) + 1) if known else None

    def _turn(self, ready: set[int]) -> bool:
        """Move what can be moved; whether the main process ended."""
        for stream, fd in list(self._streams.ours.items()):
            if fd in ready and self._streams.move(stream) and stream == 0:
                self._stdin_ends_at = monotonic() + self._job.stdin_timeout_s
        return self._pidfd in ready

    def _group_lives(self) -> bool:
        # the usual answer is one system call; /proc is read only to tell zombies from the living
        try:
            os.killpg(self._pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return process.is_group_alive(self._pid)

    def _keep_deadlines(self, now: float) -> None:
        if 0 in self._streams.ours and now >= self._stdin_ends_at:
            self._streams.shut(0)
        is_running = self._ended is None and not self.timed_out
        if is_running and self._expires_at is not None and now >= self._expires_at:
            self.timed_out = True
            self._terminate()
        if self._kill_at is not None and now >= self._kill_at:
            self._signal(signal.SIGKILL)
            self._kill_at, self._give_up_at = None, now + KILL_GRACE_S
        self.has_given_up = self._give_up_at is not None and now >= self._give_up_at

    def _is_ending(self) -> bool:
        return self._kill_at is not None or self._give_up_at is not None

    def _terminate(self) -> None:
        self._signal(signal.SIGTERM)
        # a stopped group takes TERM only when it goes on
        self._signal(signal.SIGCONT)
        self._kill_at = monotonic() + self._job.term_grace_s

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)
