"""The purge of the task layer, in a process of its own as the scheduler has it.

    python -m bench.probes.purge_tasks DATABASE DIRECTORY DAYS

Prints {"executions", "wall_s"}.
"""

from __future__ import annotations

import json
import sys
import time

from ctrl_exec.tasks.execution.carriage import ExecutionFiles
from ctrl_exec.tasks.purge import purge
from ctrl_exec.tasks.store import Store


def main() -> None:
    """Remove what is old, print how much that was."""
    database, directory, days = sys.argv[1:]
    start = time.perf_counter()
    with Store(database) as store:
        found = purge(store, ExecutionFiles(directory), int(days))
    print(json.dumps({"executions": found.executions, "wall_s": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
