"""Our fan-out engine on emulated agents: `AgentClient.run` of `true`, from targets to results.

python -m bench.probes.fanout LISTING PORT COUNT      prints {"wall_s", "cpu_s", "ok"}
"""

from __future__ import annotations

import json
import resource
import sys
import time

from ctrl_exec.common.messages import RunCommand
from ctrl_exec.common.names import new_reqid
from ctrl_exec.services.agent_client import AgentClient, ClientSettings
from ctrl_exec.services.fanout import FanOut, FanOutSettings
from ctrl_exec.services.registry import AgentRecord
from ctrl_exec.services.targets import Target


def cpu_s() -> float:
    """CPU seconds of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Ask all, print what it took."""
    with open(sys.argv[1]) as file:
        listing = json.load(file)
    port, count = int(sys.argv[2]), int(sys.argv[3])
    targets = [
        Target(
            each["name"],
            port,
            AgentRecord(
                hostname=each["name"], ip=each["ip"], port=port, lookup_by="ip",
                fingerprint=each["fingerprint"], serial=each["serial"],
            ),
        )
        for each in listing["agents"][:count]
    ]  # fmt: skip
    settings = FanOutSettings(identity=listing["identity"], ca=listing["ca"])
    del listing  # its memory is not what we measure
    transport = FanOut(settings)
    client = AgentClient(transport, ClientSettings(read_timeout_s=120))
    command = RunCommand(script="true", reqid=new_reqid())  # a fresh one: agents repeat what they know
    before_s, start = cpu_s(), time.perf_counter()
    ok = sum(result.exit == 0 for result in client.run(targets, command))
    wall_s = time.perf_counter() - start
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s() - before_s, "ok": ok}))


if __name__ == "__main__":
    main()
