"""One request id is one run, however the network treats the bytes of its order."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import AgentHost, receive, send
from tests.support.fleet import Fleet
from tests.support.pki import TestCA
from tests.support.polling import eventually

REQID = "0123456789abcdef"
FIRST_RECORD_BYTES = 20_000  # the handshake and the order's beginning: the agent waits for the rest


class HoldingRelay:
    """Between dispatcher and agent: the first connection's order is held until `release`, the others pass.

    So a network that loses a segment looks: the sender is gone when its bytes arrive.
    """

    def __init__(self, ip: str, port: int) -> None:
        self._target = (ip, port)
        self._listener = socket.create_server((ip, 0))
        self.port = self._listener.getsockname()[1]
        self.release = threading.Event()
        self.holds = threading.Event()
        self._is_first = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            is_held, self._is_first = self._is_first, False
            threading.Thread(target=self._carry, args=(client, is_held), daemon=True).start()

    def _carry(self, client: socket.socket, is_held: bool) -> None:
        server = socket.create_connection(self._target)
        seen, is_open = 0, True
        with client, server, contextlib.suppress(OSError):
            while True:
                for source in select.select([client, server] if is_open else [server], [], [], 0.1)[0]:
                    chunk = source.recv(4096)
                    seen += len(chunk) if source is client else 0
                    if is_held and seen > FIRST_RECORD_BYTES:
                        self.holds.set()
                        self.release.wait(60)
                    if not chunk and source is server:
                        return
                    if not chunk:
                        is_open = False
                        server.shutdown(socket.SHUT_WR)
                    elif source is client:
                        server.sendall(chunk)
                    else:
                        client.sendall(chunk)

    def close(self) -> None:
        """Take no further connections."""
        self.release.set()
        self._listener.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    """An agent with a script that counts its runs in `count`."""
    made = AgentHost(tmp_path, TestCA(tmp_path / "pki"))
    made.script(
        "count",
        f'echo "$1" >>{tmp_path}/count; echo counted; [ -z "$2" ] || while [ ! -e "$2" ]; do sleep 0.05; done',
    )
    made.script("free", f"echo free >>{tmp_path}/count", "lock=no")
    yield made
    made.__exit__()


def counted(directory: Path) -> int:
    """How often the script was run."""
    path = directory / "count"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("script", ["count", "free"])
def test_an_order_that_comes_twice_is_answered_from_the_record(
    host: AgentHost, tmp_path: Path, script: str
) -> None:
    """The second one gets the answer of the first; nothing is run again."""
    with host.start():
        first = host.run(script, "a", reqid=REQID)
        assert first["exit"] == 0
        assert host.run(script, "a", reqid=REQID) == first
        body = {"script": script, "args": ["a"], "reqid": REQID, "async": True}
        assert host.ask("POST", "/run", body).status == 202
        assert host.result(REQID).json()["status"] == "done"
        assert counted(tmp_path) == 1
        other = {"count": "free", "free": "count"}[script]
        assert host.run(other, "a", reqid=REQID)["exit"] == 0
        assert counted(tmp_path) == 2


def test_an_order_that_comes_again_while_it_runs_says_so(host: AgentHost, tmp_path: Path) -> None:
    """It is not busy with another run: it is this very one."""
    with host.start(), host.connect() as connection:
        body = {"script": "count", "args": ["a", str(tmp_path / "go")], "reqid": REQID}
        send(connection, "POST", "/run", body)
        eventually(lambda: counted(tmp_path), what="the script runs")
        assert "with this reqid" in host.run("count", "a", reqid=REQID)["error"]
        assert host.run("count", "a", reqid=REQID[::-1])["error"] == "script already running"
        (tmp_path / "go").touch()
        assert receive(connection).json()["stdout"] == "counted\n"
    assert counted(tmp_path) == 1


@pytest.mark.long
def test_an_order_that_was_late_is_not_carried_out_a_second_time(own_fleet: Fleet, tmp_path: Path) -> None:
    """The dispatcher gives it again when the agent has not known it for long; both copies arrive."""
    agent = own_fleet.agents["host-a"]
    agent.script("count", f"#!/bin/sh\necho run >>{tmp_path}/count\n")
    assert agent.running is not None
    agent.running.stop()
    own_fleet.start_agent(agent)
    relay = HoldingRelay(agent.ip, agent.port)
    try:
        assert own_fleet.cli("edit-agent", "host-a", "--agent-port", relay.port).returncode == 0
        own_fleet.start_api()
        client = http.client.HTTPConnection("127.0.0.1", own_fleet.api_port, timeout=60)
        client.request(
            "POST", "/run", json.dumps({"hosts": ["host-a"], "script": "count", "args": ["x" * 60_000]})
        )
        assert relay.holds.wait(60)
        client.close()
        eventually(lambda: counted(tmp_path) == 1, timeout_s=60, what="the order is given again")
        eventually(lambda: own_fleet.records()[0]["complete"], timeout_s=60, what="the run is complete")
        relay.release.set()
        own_fleet.cli("ping", "host-a")
        own_fleet.cli("ping", "host-a")
        assert counted(tmp_path) == 1
    finally:
        relay.close()
