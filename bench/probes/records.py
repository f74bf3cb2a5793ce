"""Our run records, durable at the start and at the end of a run.

    python -m bench.probes.records DIRECTORY write COUNT    prints {"rate": records a second}
    python -m bench.probes.records DIRECTORY purge NOW      prints {"scan_s", "wall_s", "removed"}

`scan_s` is a purge that finds nothing to remove: the reading of all names.
"""

from __future__ import annotations

import json
import sys
import time

from ctrl_exec.common.messages import HostResult
from ctrl_exec.services.records import new_record
from ctrl_exec.services.results import ResultStore


def write(store: ResultStore, count: int) -> dict[str, float]:
    """Begin and finish so many runs on one host."""
    base = time.monotonic_ns()
    start = time.perf_counter()
    for number in range(count):
        reqid = f"{base + number:016x}"
        record = new_record(
            reqid, "true", ("real-01",), created=1700000000, submitter="bench", submitter_ip="127.0.0.1"
        )
        journal = store.begin(record)
        journal.note(HostResult(host="real-01", script="true", state="ok", reqid=reqid, exit=0))
        journal.finish("completed")
    return {"rate": count / (time.perf_counter() - start)}


def purge(store: ResultStore, now: int) -> dict[str, float]:
    """Scan, then remove what is old at that moment."""
    start = time.perf_counter()
    store.purge(86_401)
    scan_s = time.perf_counter() - start
    removed = store.purge(now)
    return {"scan_s": scan_s, "wall_s": time.perf_counter() - start - scan_s, "removed": removed}


def main() -> None:
    """Do what is asked, print what it took."""
    directory, what, number = sys.argv[1:]
    store = ResultStore(directory)
    print(json.dumps((write if what == "write" else purge)(store, int(number))))


if __name__ == "__main__":
    main()
