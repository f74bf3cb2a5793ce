"""A run watched from the side of whoever follows it through the API: how old a line is when it arrives.

Each line of the script ends with the time at which it was printed.

python -m bench.probes.live PORT HOSTS COUNT PAUSE_S     prints {"latencies_ms": […], "hosts": N, "wall_s"}
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from typing import Any


def start(port: int, hosts: str, count: int, pause_s: float) -> str:
    """Start the script `ticks` on the hosts and give the run's id."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    wanted = {"hosts": [hosts], "script": "ticks", "args": [str(count), f"{pause_s:g}"], "async": True}
    client.request("POST", "/run", json.dumps(wanted), {"Content-Type": "application/json"})
    response = client.getresponse()
    answer: dict[str, Any] = json.loads(response.read())
    client.close()
    if response.status != 202:
        raise SystemExit(f"POST /run: {response.status} {answer}")
    return str(answer["reqid"])


def main() -> None:
    """Follow it to its end, print how old each line was."""
    port, hosts, count, pause_s = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    begun = time.monotonic()
    reqid = start(port, hosts, count, pause_s)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    client.request("GET", f"/runs/{reqid}/output", headers={"Accept": "application/x-ndjson"})
    response = client.getresponse()
    latencies_ms, ended = [], 0
    for line in response:
        event = json.loads(line)
        if event["event"] == "stdout":
            now = time.time()
            latencies_ms += [(now - float(said.split()[-1])) * 1e3 for said in event["text"].splitlines()]
        elif event["event"] == "exit":
            ended += event["exit"] == 0
        elif event["event"] == "end":
            break
    client.close()
    wall_s = time.monotonic() - begun
    print(json.dumps({"latencies_ms": latencies_ms, "hosts": ended, "wall_s": wall_s}))


if __name__ == "__main__":
    main()
