"""Running one script: its process, its streams, its time limit, its end.

Owns everything between the exec and the outcome. The caller decides what may run and holds the
lock; this module only hands the lock's descriptor to the script's session, so that the lock
outlives a caller that is killed.
"""

from __future__ import annotations

import os
import select
import signal

from ctrl_exec.common import process
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.descendants import (
    TERM_GRACE_S,
    Ending,
    Process,
    children_of,
    find_prctl,
    has_children,
    living,
    reap_others,
    started_by,
)
from ctrl_exec.common.errors import ProgramError
from ctrl_exec.common.value import field, replace, value
from ctrl_exec_agent.kept_output import KeptOutput
from ctrl_exec_agent.pipes import Pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_VARIABLES = ("HOME", "LANG", "LC_ALL", "TZ", "TERM", "USER", "LOGNAME")
UMASK = 0o022
COULD_NOT_RUN = 126  # killed by a signal, not executable, or cancelled
TIMED_OUT = -1
CANCELLED = "cancelled"
LOCK_DESCRIPTOR = 99  # above what shell scripts redirect, below bash's own 255
GATHER_S = 0.05
"""How long a little output waits for more of it before it is written to its file."""
_REAP_EVERY_S = 2.0

_set_subreaper = find_prctl()


@value
class Job:
    """What to run. `timeout_s` None is no limit; `lock` is a descriptor the script's session keeps.

    `secrets` are masked in the output.
    """

    path: str
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    secrets: tuple[str, ...] = ()
    timeout_s: float | None = None
    stdin_timeout_s: float = 10.0
    limit_bytes: int = 10 << 20
    lock: int | None = None
    term_grace_s: float = TERM_GRACE_S


@value
class Outcome:
    """How it ended. `exit` is the script's code, 126 or -1 (`timed_out`); `error` says why if it is ours.

    `dropped_stdout` and `dropped_stderr` count the bytes beyond the limit. `is_gone` is false where
    something of it outlived KILL. The output itself is filled in by `run_script` only.
    """

    exit: int
    stdout: bytes = b""
    stderr: bytes = b""
    dropped_stdout: int = 0
    dropped_stderr: int = 0
    error: str = ""
    timed_out: bool = False
    is_gone: bool = True


def script_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of every script, built up from nothing: a fixed PATH and a few of our variables."""
    return {"PATH": PATH} | {name: ours[name] for name in PASSED_VARIABLES if name in ours}


def run_script(job: Job) -> Outcome:
    """Run the script to its end, and its whole process group to theirs; its output in memory."""
    stdout, stderr = (kept_output(None, job) for _ in (1, 2))
    run = ScriptRun(job, stdout, stderr)
    try:
        run.start()
        while not run.is_over:
            run.turn()
    finally:
        run.close()
    outputs = (each.read(0, each.size()) for each in (stdout, stderr))
    return replace(run.outcome(), stdout=next(outputs), stderr=next(outputs))


def kept_output(path: str | None, job: Job) -> KeptOutput:
    """Where one of the script's streams is kept."""
    if not job.secrets:
        return KeptOutput(path, job.limit_bytes)
    from ctrl_exec.common.masking import Masker

    return KeptOutput(path, job.limit_bytes, Masker(job.secrets))


class ScriptRun:
    """One run of a script, a step a call, so that its carrier can do other things meanwhile.

    In a process whose children are all of its runs (`is_alone`), those that earlier ones left are reaped too.
    """

    def __init__(self, job: Job, stdout: KeptOutput, stderr: KeptOutput, *, is_alone: bool = False) -> None:
        self._job = job
        self._is_alone = is_alone
        self._outputs = {1: stdout, 2: stderr}
        self._pipes = Pipes(job.stdin, self._outputs)
        self._watch: _Watch | None = None
        self._failure = ""
        self._is_subreaper = False
        self.is_over = False

    @property
    def pid(self) -> int | None:
        """The script's process, which is also its session and its group."""
        return self._watch.pid if self._watch is not None else None

    def start(self) -> None:
        """Start the script; where that can't be done, it is over at once and the outcome says why."""
        try:
            self._pipes.open()
            if self._is_alone:
                reap_others(None)
            earlier = children_of(os.getpid()) if has_children() else frozenset()
            self._is_subreaper = _set_subreaper(1)
            pid = self._spawn()
            self._pipes.close_theirs()
            self._watch = _watch(pid, self._job, self._pipes, earlier, is_alone=self._is_alone)
        except ProgramError as error:
            self._fail(str(error))
        except OSError as error:  # no descriptor or memory left for it
            self._fail(f"{self._job.path}: cannot be executed ({error.strerror})")

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self.is_over = True
        self._pipes.close()

    def _spawn(self) -> int:
        os.chdir("/")
        before = os.umask(UMASK)
        job, theirs = self._job, self._pipes.theirs
        try:
            return process.spawn(
                [job.path, *job.args],
                environment=job.environment,
                stdin=theirs[0],
                stdout=theirs[1],
                stderr=theirs[2],
                keep=None if job.lock is None else {LOCK_DESCRIPTOR: job.lock},
            )
        finally:
            os.umask(before)

    def turn(self, guests: Mapping[int, int] | None = None, wait_s: float | None = None) -> set[int]:
        """Wait once, at most so long, and do what is due; gives which guests (fd: event) are ready.

        Where the script has ended by itself, its output is whole.
        """
        watch = self._watch
        if watch is None or self.is_over:
            return set()
        ready = watch.turn(guests or {}, wait_s)
        if watch.is_over():
            self._pipes.drain()
            for output in self._outputs.values():
                output.end()
            self.is_over = True
            self.close()
        return ready

    def cancel(self) -> None:
        """End everything it has started; one that has ended already is no error."""
        if self._watch is not None and not self.is_over:
            self._watch.cancel()

    def outcome(self) -> Outcome:
        """How it ended, once it is over; without its output."""
        watch = self._watch
        if watch is None:
            return Outcome(COULD_NOT_RUN, error=self._failure)
        code, error = watch.verdict()
        return Outcome(
            code,
            dropped_stdout=self._outputs[1].dropped,
            dropped_stderr=self._outputs[2].dropped,
            error=error,
            timed_out=watch.timed_out,
            is_gone=not watch.has_given_up,
        )

    def close(self) -> None:
        """Let go of its streams and of what was needed to watch it."""
        self._pipes.close()
        if self._watch is not None:
            self._watch.close()
        if self._is_subreaper:
            self._is_subreaper = not _set_subreaper(0)


def _watch(pid: int, job: Job, pipes: Pipes, earlier: frozenset[int], *, is_alone: bool) -> _Watch:
    """A watch on the script that was started, which is ended at once if it can't be watched."""
    try:
        return _Watch(pid, job, pipes, earlier, is_alone=is_alone)
    except OSError:
        process.end_group(pid, 0)
        process.wait_status(pid)
        raise


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


class _Watch:
    """Follows one running script: moves its streams, keeps its deadlines, ends what it started.

    `earlier` are children this process had before, and has nothing to do with.
    """

    def __init__(self, pid: int, job: Job, pipes: Pipes, earlier: frozenset[int], *, is_alone: bool) -> None:
        self.pid = pid
        self._is_alone = is_alone
        self._job = job
        self._pipes = pipes
        self._earlier = earlier
        now = monotonic()
        self._expires_at = None if job.timeout_s is None else now + job.timeout_s
        self._stdin_ends_at = now + job.stdin_timeout_s
        self._reap_at = now + _REAP_EVERY_S
        self._ended: tuple[int, int] | None = None
        self._ending: Ending | None = None
        self._is_ending_all = False
        self._look_at = 0.0
        self._is_all_gone = False
        self.timed_out = False
        self._is_cancelled = False
        self.has_given_up = False
        self._pidfd: int | None = os.pidfd_open(pid)

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def verdict(self) -> tuple[int, str]:
        """The exit code to tell, and why it is not the script's own."""
        code, died_of = self._ended or (-1, process.STOLEN_STATUS)
        if self.timed_out:
            return TIMED_OUT, f"script timed out after {self._job.timeout_s:g}s"
        if self._is_cancelled:
            return COULD_NOT_RUN, CANCELLED
        if died_of:
            return COULD_NOT_RUN, f"script was killed by signal {died_of} ({_signal_name(died_of)})"
        return code, ""

    def is_over(self) -> bool:
        """Whether nothing of it is left, or nothing more can be done about it."""
        return self.has_given_up or (self._ended is not None and self._is_all_gone)

    def turn(self, guests: Mapping[int, int], wait_s: float | None) -> set[int]:
        ready = self._wait(guests, wait_s)
        for stream, fd in list(self._pipes.ours.items()):
            if fd in ready and self._pipes.move(stream) and stream == 0:
                self._stdin_ends_at = monotonic() + self._job.stdin_timeout_s
        if self._pidfd in ready and self._ended is None:
            self._note_end()
        self._keep_deadlines(monotonic())
        return ready

    def _wait(self, guests: Mapping[int, int], wait_s: float | None) -> set[int]:
        poller = select.poll()
        if self._ended is None and self._pidfd is not None:
            poller.register(self._pidfd, select.POLLIN)
        for stream, fd in self._pipes.ours.items():
            poller.register(fd, select.POLLOUT if stream == 0 else select.POLLIN)
        for fd, event in guests.items():
            poller.register(fd, event)
        return {fd for fd, _ in poller.poll(self._wait_ms(wait_s))}

    def _wait_ms(self, wait_s: float | None) -> int:
        deadlines = [self._reap_at]
        if self._expires_at is not None and self._ending is None:
            deadlines.append(self._expires_at)
        if 0 in self._pipes.ours:
            deadlines.append(self._stdin_ends_at)
        if self._ending is not None:
            deadlines.append(self._look_at)
        left_s = min(deadlines) - monotonic()
        return max(0, int((left_s if wait_s is None else min(left_s, wait_s)) * 1000) + 1)

    def _note_end(self) -> None:
        """The main process ended: what it left of its group ends with it."""
        self._ended = process.wait_status(self.pid)
        if self._ending is not None:
            self._look_at = 0.0  # what was seen before says nothing of orphans that came to us only now
            self._is_all_gone = False
        elif self._group_lives():
            self._end(self._find_group)
        else:
            self._is_all_gone = True

    def _group_lives(self) -> bool:
        # the usual answer is one system call; /proc is read only to tell zombies from the living
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return bool(self._find_group())

    def _find_group(self) -> list[Process]:
        return [each for each in living() if each.group == self.pid]

    def _find_all(self) -> list[Process]:
        return started_by(self.pid, os.getpid(), self._earlier)

    def _end(self, find: Callable[[], list[Process]]) -> None:
        self._ending = Ending(find, self._job.term_grace_s)
        self._look_at = monotonic() + self._ending.wait_s()

    def _end_all(self) -> None:
        self._is_ending_all = True
        self._end(self._find_all)

    def cancel(self) -> None:
        """End everything; it counts as cancelled unless its main process had ended."""
        if self.timed_out or self._is_cancelled:
            return
        self._is_cancelled = self._ended is None
        self._end_all()

    def _keep_deadlines(self, now: float) -> None:
        if 0 in self._pipes.ours and now >= self._stdin_ends_at:
            self._pipes.shut(0)
        is_running = self._ended is None and self._ending is None
        if is_running and self._expires_at is not None and now >= self._expires_at:
            self.timed_out = True
            self._end_all()
        if now >= self._reap_at:
            self._reap()
            self._reap_at = now + _REAP_EVERY_S
        if self._ending is not None and now >= self._look_at:
            self._look(self._ending)

    def _look(self, ending: Ending) -> None:
        is_over = ending.is_over()
        self._reap()
        self.has_given_up = ending.has_given_up
        self._is_all_gone = is_over and not ending.has_given_up and not self._may_have_missed_some()
        self._look_at = monotonic() + ending.wait_s()

    def _reap(self) -> None:
        if self._is_alone or not self._earlier:  # else one of them might be somebody else's to reap
            reap_others(self.pid)

    def _may_have_missed_some(self) -> bool:
        """Whether one may live that no look found, because it forks and ends faster than /proc is read.

        It would be our child, or a child's; who left the group before the script's own end is not meant.
        """
        return self._is_ending_all and not self._earlier and self._ended is not None and has_children()
