"""Everything that a script has started: finding it, also what left its group, and ending it.

Owns the child subreaper, which makes an orphan of the script a child of the process that carries it
instead of init's, and so findable. Signals go through pidfds: never to another process that has got
the number meanwhile. Knows nothing of what is run.
"""

from __future__ import annotations

import os
import signal

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Find = Callable[[], list["Process"]]

TERM_GRACE_S = 5.0
KILL_GRACE_S = 5.0  # a process that survives KILL this long hangs in the kernel: we do not
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.02, 0.16
_STOP_ROUNDS = 10
# prctl(2)
CHILD_SUBREAPER = 36
DUMPABLE = 4
_DEAD = (b"Z", b"X")


@value
class Process:
    """A process as /proc shows it; `started` (ticks since boot) tells it from a later one of its number."""

    pid: int
    parent: int
    group: int
    session: int
    started: int


def living(*, with_dead: bool = False) -> list[Process]:
    """All processes, zombies only where they are wanted."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{entry}/stat", "rb", buffering=0) as stat:
                    after_name = stat.read(4096).rpartition(b")")[2].split()
                if with_dead or after_name[0] not in _DEAD:
                    numbers = (int(after_name[place]) for place in (1, 2, 3, 19))
                    found.append(Process(int(entry), *numbers))
    return found


def children_of(pid: int) -> frozenset[int]:
    """The pids of its children, also of those that have ended and were not reaped."""
    return frozenset(each.pid for each in living(with_dead=True) if each.parent == pid)


def started_by(script: int, carrier: int, without: frozenset[int] = frozenset()) -> list[Process]:
    """What lives of the script: in its session or group, or below the carrier, save these children."""
    everything = living()
    below: dict[int, list[Process]] = {}
    for each in everything:
        below.setdefault(each.parent, []).append(each)
    found = {each.pid: each for each in everything if script in (each.pid, each.session, each.group)}
    unseen = [each for each in below.get(carrier, ()) if each.pid not in without] + list(found.values())
    while unseen:
        each = unseen.pop()
        found[each.pid] = each
        unseen += [child for child in below.get(each.pid, ()) if child.pid not in found]
    found.pop(os.getpid(), None)
    return list(found.values())


def of_session(session: int) -> list[Process]:
    """What lives in the session or group of that number, and below."""
    return started_by(session, carrier=-1)


def send_signal(target: Process, *numbers: int) -> None:
    """Send the signals to that very process, if it still lives and we may."""
    with suppress(OSError):
        fd = os.pidfd_open(target.pid)
        try:
            if _started(target.pid) == target.started:
                for number in numbers:
                    signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


def _started(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
        return int(stat.read(4096).rpartition(b")")[2].split()[19])


class Ending:
    """The end of some processes: TERM now, KILL after the grace, until none is left or KILL was in vain."""

    def __init__(self, find: Find, grace_s: float = TERM_GRACE_S) -> None:
        self._find = find
        self._kill_at = monotonic() + grace_s
        self._give_up_at = self._kill_at + KILL_GRACE_S
        self._look_s = _SHORTEST_LOOK_S
        self._kills = False
        self.has_given_up = False
        # to those of this moment only: what one of them starts to tidy up is left to do so
        signal_all(find(), signal.SIGTERM)

    def wait_s(self) -> float:
        """How long to wait before the next look."""
        due = self._look_s if self._kills else min(self._look_s, self._kill_at - monotonic())
        self._look_s = min(_LONGEST_LOOK_S, self._look_s * 2)
        return max(0.0, due)

    def is_over(self) -> bool:
        """Look again, and do what is due: whether nothing is left, or nothing more can be done."""
        left = self._find()
        now = monotonic()
        if left and now >= self._kill_at:
            if not self._kills:
                self._kills, self._look_s = True, _SHORTEST_LOOK_S
            left = _kill(left, self._find)
        self.has_given_up = bool(left) and now >= self._give_up_at
        return not left or self.has_given_up


def _kill(found: list[Process], find: Find) -> list[Process]:
    """KILL all of them, those first stopped that would go on multiplying meanwhile."""
    stopped: set[int] = set()
    for _ in range(_STOP_ROUNDS):
        new = [each for each in found if each.pid not in stopped]
        if not new:
            break
        for each in new:
            send_signal(each, signal.SIGSTOP)
            stopped.add(each.pid)
        found = find()
    for each in found:
        send_signal(each, signal.SIGKILL)
    return find()


def signal_all(targets: Iterable[Process], number: int) -> None:
    """Send the signal; one that is stopped takes it only when it goes on."""
    for each in targets:
        send_signal(each, number, signal.SIGCONT)


def reap_others(script: int | None) -> None:
    """Take the statuses of orphans that were given to us and ended; not the script's own."""
    with suppress(ChildProcessError):
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid == script:
                return
            os.waitpid(ended.si_pid, 0)


def has_children() -> bool:
    """Whether this process has any child, dead or alive; one system call where it has none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def started_at(pid: int) -> int:
    """When a process started, in ticks since boot; 0 if there is none. Source: proc(5)."""
    with suppress(OSError, ValueError, IndexError):
        return _started(pid)
    return 0


def find_prctl(option: int = CHILD_SUBREAPER) -> Callable[[int], bool]:
    """A function that makes this process a subreaper, or (0) no longer one; says whether it could.

    With another option of prctl(2) that takes a number, a function that sets this one.

    It costs 1.5 ms and 300 pages to load: a daemon does so before it forks. Without it what
    leaves both the session and the tree of the script is not found.
    """
    try:
        # the package around it would cost twice as much again
        import _ctypes

        address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        call: Callable[[int, tuple[int, ...]], int] = _ctypes.call_function
    except (ImportError, AttributeError, OSError):
        return lambda _wanted: False
    return lambda wanted: call(address, (option, wanted, 0, 0, 0)) == 0
