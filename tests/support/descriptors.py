"""What descriptors processes have open, for tests that nothing is left behind and nothing stuck."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable


def open_descriptors() -> dict[int, str]:
    """Number and target of each; what earlier tests left to the garbage collector is closed before."""
    gc.collect()
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # the descriptor that lists the directory is in the list, and closed by now
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}").removesuffix(" (deleted)")
    return found


def targets_of(pid: int) -> set[str]:
    """What the descriptors of a process lead to; those that are closed meanwhile hide none of the others."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def holders_of(is_it: Callable[[str], bool]) -> list[int]:
    """The processes, but for this one, with such a file open."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if any(map(is_it, targets_of(pid)))]


def kill_holders_of(is_it: Callable[[str], bool]) -> int:
    """kill -9 of them all; how many there were."""
    pids = holders_of(is_it)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)
