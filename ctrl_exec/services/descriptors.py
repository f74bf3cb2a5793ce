"""How many connections a process may hold: its limit of descriptors, raised where that is allowed.

Must not know what the descriptors are for.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress

_SPARE_FDS = 32


def room_for(connections: int) -> int:
    """How many connections this process may hold; raises its soft limit of descriptors if need be."""
    used = len(os.listdir("/proc/self/fd")) + _SPARE_FDS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < used + connections:
        wanted = used + connections if hard == resource.RLIM_INFINITY else min(hard, used + connections)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, connections if soft == resource.RLIM_INFINITY else min(connections, soft - used))
