"""How long a program takes by itself, started by posix_spawn(3) from a small process.

python -m bench.probes.spawn PROGRAM COUNT      prints {"each_ms"}, the median
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Start it again and again."""
    program, count = sys.argv[1], int(sys.argv[2])
    found = []
    for _ in range(count):
        start = time.perf_counter()
        pid = os.posix_spawn(program, [program], {"PATH": "/usr/bin:/bin"}, setsid=True)
        os.waitpid(pid, 0)
        found.append(time.perf_counter() - start)
    print(json.dumps({"each_ms": sorted(found)[count // 2] * 1e3}))


if __name__ == "__main__":
    main()
