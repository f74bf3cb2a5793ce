"""Thousands of emulated agents, their certificates loaded before the first connection.

    python -m bench.probes.agents AGENTS_FILE PROCESSES DELAY_S...    prints {"ports": {"0": N, "1": N, …}}

For each delay (what every script takes there) one port, served by that many processes; all share the
memory of the loaded certificates. Ends when its stdin is closed.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys

from bench.timing import allow_descriptors
from tests.support.emulator import Emulator, agents_from


class ReadyEmulator(Emulator):
    """An emulator whose TLS contexts exist before it serves, and which may serve in several processes."""

    def load(self, contexts: dict[str, object] | None = None) -> dict[str, object]:
        """Make the context of every agent, or take those made before."""
        if contexts is None:
            for agent in self.agents.values():
                self.context(agent)
        else:
            self._contexts.update(contexts)  # type: ignore[arg-type]  # what `_contexts` gave
        return dict(self._contexts)

    def serve_in_child(self) -> None:
        """Fork a process that serves, with an epoll of its own."""
        if os.fork() == 0:
            self._epoll.close()
            self._epoll = select.epoll()
            self.run()
            os._exit(1)


def main() -> None:
    """Serve until stdin ends, then take all processes down."""
    path, processes, *delays = sys.argv[1:]
    allow_descriptors()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    ports, contexts = {}, None
    emulators = []
    for delay in delays:
        agents = agents_from(path)
        for agent in agents:
            agent.delay_s = float(delay)
        emulator = ReadyEmulator(agents)
        contexts = emulator.load(contexts)
        ports[delay] = emulator.port
        emulators.append(emulator)
    gc.freeze()
    for emulator in emulators:
        for _ in range(int(processes)):
            emulator.serve_in_child()
        emulator.listener.close()
    print(json.dumps({"ports": ports}), flush=True)
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
