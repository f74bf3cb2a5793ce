"""One local command from its exec to its end: its group, its time limit, whatever it has started.

Owns the process and how it is ended, a step a call, so that whoever started it can do other things
meanwhile. Its output is two pipes for others to read. Must not know who wants it, nor where its output
goes.
"""

from __future__ import annotations

import os
import select
import time

from ctrl_exec.common import process
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.descendants import (
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
from ctrl_exec.common.suppression import suppress
from ctrl_exec.local.order import CommandEnd, find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.local.order import CommandOrder

_REAP_EVERY_S = 2.0

_set_subreaper = find_prctl()


class Command:
    """A command that runs. In a process whose children are all of it (`is_alone`), orphans are reaped.

    `outputs` are the pipes to read its streams 1 and 2 from, whose owner takes them with `take_outputs`.
    """

    def __init__(self, order: CommandOrder, *, is_alone: bool = False) -> None:
        self._order = order
        self._is_alone = is_alone
        self.outputs: dict[int, int] = {}
        self._pid = 0
        self._pidfd = -1
        self._earlier: frozenset[int] = frozenset()
        self._is_subreaper = False
        self._ended: tuple[int, int] | None = None
        self._ending: Ending | None = None
        self._is_ending_all = False
        self._is_all_gone = False
        self._timed_out = False
        self._was_ended = False
        self._look_at = self._reap_at = 0.0
        self._expires_at: float | None = None

    def start(self, before_exec: Callable[[int], object]) -> None:
        """Execute it once `before_exec` was told its pid, which is its group too, and returned.

        Raises: ProgramError if it can't be executed; whatever `before_exec` raises. Nothing is executed then.
        """
        argv = (find_program(self._order.argv[0]), *self._order.argv[1:])
        if has_children():
            self._earlier = children_of(os.getpid())
        self._is_subreaper = _set_subreaper(1)
        theirs: list[int] = []
        try:
            self._open_streams(theirs)
            self._pid = process.spawn_held(
                argv,
                environment=self._order.environment,
                streams=(theirs[0], theirs[1], theirs[2]),
                before_exec=before_exec,
            )
            self._pidfd = _watch(self._pid)
        except OSError as error:  # no descriptor left for it
            raise ProgramError(f"cannot be executed ({error.strerror})", program=argv[0]) from error
        finally:
            for fd in theirs:
                os.close(fd)
        now = monotonic()
        self._reap_at = now + _REAP_EVERY_S
        if self._order.timeout_s is not None:
            self._expires_at = now + self._order.timeout_s

    def _open_streams(self, theirs: list[int]) -> None:
        theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for stream in (1, 2):
            self.outputs[stream], writing = os.pipe2(os.O_CLOEXEC)
            theirs.append(writing)

    def take_outputs(self) -> dict[int, int]:
        """The pipes by their stream; they are the caller's to close from now on."""
        taken, self.outputs = self.outputs, {}
        return taken

    def fds(self) -> tuple[int, ...]:
        """What becomes readable when there is something to do."""
        return (self._pidfd,) if self._ended is None else ()

    def wait_s(self) -> float:
        """How long nothing is due by itself."""
        due = [self._reap_at]
        if self._ending is not None:
            due.append(self._look_at)
        elif self._expires_at is not None:
            due.append(self._expires_at)
        return max(0.0, min(due) - monotonic())

    def end(self) -> None:
        """Have everything of it end; it counts as ended by us unless it has ended by itself."""
        if not self._timed_out and not self._was_ended:
            self._was_ended = self._ended is None
            self._end_all()

    def is_over(self) -> bool:
        """Do what is due: whether nothing of it is left, or nothing more can be done about it."""
        now = monotonic()
        if self._ended is None and _is_readable(self._pidfd):
            self._note_end()
        elif self._ending is None and self._expires_at is not None and now >= self._expires_at:
            self._timed_out = True
            self._end_all()
        if now >= self._reap_at:
            self._reap()
            self._reap_at = now + _REAP_EVERY_S
        if self._ending is not None and now >= self._look_at:
            self._look(self._ending)
        return self._has_given_up() or (self._ended is not None and self._is_all_gone)

    def outcome(self) -> CommandEnd:
        """How it ended, once it is over."""
        exit_code, signal = self._ended or (-1, process.STOLEN_STATUS)
        return CommandEnd(exit_code, signal, self._timed_out, self._was_ended, not self._has_given_up())

    def close(self) -> None:
        """Let go of it; what of it still runs is killed."""
        if self._pidfd >= 0:
            if not (self._is_all_gone or self._has_given_up()):
                self._kill()
            os.close(self._pidfd)
            self._pidfd = -1
        for fd in self.take_outputs().values():
            os.close(fd)
        if self._is_subreaper:
            self._is_subreaper = not _set_subreaper(0)

    def _kill(self) -> None:
        ending = Ending(self._find_all, 0.0)
        while not ending.is_over():
            time.sleep(ending.wait_s())
        if self._ended is None:
            process.wait_status(self._pid, timeout_s=0)
        self._reap()

    def _note_end(self) -> None:
        """Its own process ended: what it left in its group ends with it."""
        self._ended = process.wait_status(self._pid)
        if self._ending is not None:
            self._look_at = 0.0  # what was seen before says nothing of orphans that came to us only now
        elif self._find_group():
            self._start_ending(self._find_group)
        else:
            self._is_all_gone = True

    def _end_all(self) -> None:
        self._is_ending_all = True
        self._is_all_gone = False
        self._start_ending(self._find_all)

    def _start_ending(self, find: Callable[[], list[Process]]) -> None:
        self._ending = Ending(find)
        self._look_at = monotonic() + self._ending.wait_s()

    def _find_group(self) -> list[Process]:
        # the usual answer is one system call; /proc is read only to tell zombies from the living
        with suppress(PermissionError):
            try:
                os.killpg(self._pid, 0)
            except ProcessLookupError:
                return []
        return [each for each in living() if each.group == self._pid]

    def _find_all(self) -> list[Process]:
        return started_by(self._pid, os.getpid(), self._earlier)

    def _look(self, ending: Ending) -> None:
        is_over = ending.is_over()
        self._reap()
        self._is_all_gone = is_over and not ending.has_given_up and not self._may_have_missed_some()
        self._look_at = monotonic() + ending.wait_s()

    def _has_given_up(self) -> bool:
        return self._ending is not None and self._ending.has_given_up

    def _reap(self) -> None:
        if self._is_alone or not self._earlier:  # else one of them might be somebody else's to reap
            reap_others(self._pid if self._ended is None else None)

    def _may_have_missed_some(self) -> bool:
        """Whether one may live that no look found, because it forks and ends faster than /proc is read."""
        return self._is_ending_all and not self._earlier and self._ended is not None and has_children()


def _watch(pid: int) -> int:
    """A descriptor that tells the end of the process, which is ended at once where there is none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        process.end_group(pid, None)
        process.wait_status(pid)
        raise


def _is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
