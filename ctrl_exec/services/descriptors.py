"""How many connections a process may hold: its limit of descriptors, raised where that is allowed.

Must not know what the descriptors are for.
"""

from __future__ import annotations

import os
import resource
import sys

from ctrl_exec.common.suppression import suppress

SPARE_FDS = 32  # for what is no connection


def most_connections() -> int:
    """How many connections a process of ours may be given at most; huge where there is no limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else max(1, hard - SPARE_FDS)


def room_for(connections: int) -> int:
    """How many connections this process may hold; raises its soft limit of descriptors if need be."""
    used = len(os.listdir("/proc/self/fd")) + SPARE_FDS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < used + connections:
        wanted = used + connections if hard == resource.RLIM_INFINITY else min(hard, used + connections)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, connections if soft == resource.RLIM_INFINITY else min(connections, soft - used))
