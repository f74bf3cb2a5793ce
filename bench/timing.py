"""What a program costs: wall time, CPU time of it and its children, memory of its whole process tree.

Owns the starting and waiting for measured programs, by wait4(2) and /proc alone. Must not know what
they do. Memory is the sum of PSS (pages shared by n processes count 1/n in each), because the sum
of RSS counts the pages of a forking program many times over.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.series import Series

MIB = 1 << 20
_SAMPLE_S = 0.02


@dataclass(frozen=True)
class Usage:
    """One run of a program; `cpu_s` is user and system time of it and all children it waited for."""

    wall_s: float
    cpu_s: float
    exit_code: int
    stdout: bytes
    stderr: bytes
    peak_bytes: int = 0


class ProbeError(Exception):
    """A measured program did not do its work."""


def run_program(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 300,
    samples_memory: bool = False, expects: int | None = 0,
) -> Usage:  # fmt: skip
    """Run it to its end; with `samples_memory` the peak of its tree too, which slows it a little.

    Raises: ProbeError when it ends with another code than `expects` (None: any) or not in time.
    """
    out, err = os.memfd_create("stdout"), os.memfd_create("stderr")
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, out, 1),
            (os.POSIX_SPAWN_DUP2, err, 2),
        ]
        start = time.perf_counter()
        pid = os.posix_spawnp(argv[0], list(argv), dict(os.environ if env is None else env),
                              file_actions=actions, setsid=True)  # fmt: skip
        try:
            peak = _watch(pid, start + timeout_s, samples_memory)
        except BaseException:  # the bench is ended, or its time is over
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        _, status, used = os.wait4(pid, 0)
        wall_s = time.perf_counter() - start
        usage = Usage(
            wall_s, used.ru_utime + used.ru_stime, os.waitstatus_to_exitcode(status),
            _text(out), _text(err), peak,
        )  # fmt: skip
    finally:
        os.close(out)
        os.close(err)
    if expects is not None and usage.exit_code != expects:
        said = (usage.stderr or usage.stdout)[-2000:].decode("utf-8", "replace")
        raise ProbeError(f"{argv[0]} {' '.join(argv[1:6])} … ended with {usage.exit_code}: {said}")
    return usage


def _watch(pid: int, deadline: float, samples_memory: bool) -> int:
    """Wait until it has ended; gives the peak of its memory."""
    fd = os.pidfd_open(pid)
    peak = 0
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while True:
            left_s = deadline - time.perf_counter()
            if left_s <= 0:
                os.killpg(pid, signal.SIGKILL)
                left_s = 60
            if poller.poll((_SAMPLE_S if samples_memory else left_s) * 1000):
                return peak
            if samples_memory:
                peak = max(peak, tree_bytes(pid))
    finally:
        os.close(fd)


def _text(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def descendants(pid: int) -> list[int]:
    """The process and all below it that live."""
    found, frontier = [pid], [pid]
    while frontier:
        parent = frontier.pop()
        try:
            with open(f"/proc/{parent}/task/{parent}/children") as listing:
                children = [int(each) for each in listing.read().split()]
        except OSError:
            continue
        found += children
        frontier += children
    return found


def tree_bytes(pid: int) -> int:
    """PSS of the process and all below it."""
    return sum(_kilobytes(f"/proc/{each}/smaps_rollup", "Pss:") for each in descendants(pid)) * 1024


def rss_bytes(pid: int) -> int:
    """What `ps` shows as RSS."""
    return _kilobytes(f"/proc/{pid}/status", "VmRSS:") * 1024


def private_bytes(pid: int) -> int:
    """Anonymous memory of the process: what it allocated, without the files it maps."""
    return _kilobytes(f"/proc/{pid}/status", "RssAnon:") * 1024


def _kilobytes(path: str, label: str) -> int:
    try:
        with open(path) as table:
            for line in table:
                if line.startswith(label):
                    return int(line.split()[1])
    except OSError:
        pass  # it has ended
    return 0


def cpu_of_tree_s(pid: int) -> float:
    """CPU seconds of a process and the children it has waited for, so far."""
    with open(f"/proc/{pid}/stat") as table:
        fields = table.read().rpartition(")")[2].split()
    return sum(int(each) for each in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def alternate(rounds: int, **works: Callable[[], float]) -> dict[str, Series]:
    """Each work's figure `rounds` times, taking turns, so that a slow moment hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        order = list(works.items())
        for name, work in order if turn % 2 == 0 else reversed(order):
            found[name].append(work())
    return {name: Series(tuple(values)) for name, values in found.items()}


def timed(work: Callable[[], object]) -> float:
    """Seconds the work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spin() -> float:
    """Seconds of a fixed piece of pure computing; how it varies is the machine's own noise."""
    return timed(lambda: sum(number * number for number in range(200_000)))


def allow_descriptors() -> int:
    """Raise the soft limit of descriptors to the hard one; gives it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
