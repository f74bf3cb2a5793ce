"""A fleet of emulated agents for a test: certificates, the process that plays them, calls to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctrl_exec.services.registry import AgentRecord
from ctrl_exec.services.transport import Call
from tests.support.emulator import Agent, addresses, register, write_agents
from tests.support.pki import Leaf, TestCA
from tests.support.processes import environment


@dataclass
class Made:
    """What `build` made: agents, (fingerprint, serial) by name, and the paths of CA and identity."""

    agents: list[Agent]
    leaves: dict[str, tuple[str, str]]
    ca: str
    identity: str


def build(directory: Path, count: int, behaviour: dict[str, Any]) -> Made:
    """A CA, a dispatcher identity and `count` agents `host-0001`, … below the directory."""
    authority = TestCA(directory)
    identity = authority.dispatcher()
    agents, leaves = [], {}
    for number, ip in zip(range(1, count + 1), addresses(), strict=False):
        name = f"host-{number:04d}"
        leaf = authority.issue(name)
        agents.append(Agent(name=name, ip=ip, pem=str(leaf.pem), ca=str(authority.path), **behaviour))
        leaves[name] = (leaf.fingerprint, leaf.serial)
    return Made(agents, leaves, str(authority.path), str(identity.pem))


class Fleet:
    """Emulated agents in one child process; use as a context manager."""

    def __init__(self, directory: Path, *, rsa_bits: int = 0, command_prefix: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self._prefix = command_prefix
        self.authority = TestCA(directory / "pki", rsa_bits=rsa_bits)
        self.identity = self.authority.dispatcher()
        self.agents: list[Agent] = []
        self.leaves: dict[str, Leaf] = {}
        self.port = 0
        self.log_path = directory / "requests.jsonl"
        self._addresses = addresses()
        self._process: subprocess.Popen[str] | None = None

    @property
    def ca(self) -> str:
        """The path of the CA certificate."""
        return str(self.authority.path)

    def add(self, name: str, leaf: Leaf | None = None, ip: str = "", **behaviour: Any) -> Agent:
        """One more agent; before the start."""
        self.leaves[name] = leaf or self.authority.issue(name)
        agent = Agent(
            name=name, ip=ip or next(self._addresses), pem=str(self.leaves[name].pem), ca=self.ca, **behaviour
        )
        self.agents.append(agent)
        return agent

    def add_many(self, count: int, **behaviour: Any) -> None:
        """`count` agents named host-0001 and so on."""
        for number in range(1, count + 1):
            self.add(f"host-{number:04d}", **behaviour)

    def start(self) -> Fleet:
        """Start the process and wait for its port."""
        listing = self.directory / "agents.json"
        write_agents(self.agents, listing)
        self._process = subprocess.Popen(
            [
                *self._prefix, sys.executable, "-m", "tests.support.emulator",
                "--agents", str(listing), "--log", str(self.log_path),
            ],
            env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = json.loads(self._process.stdout.readline())["port"]
        return self

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Fleet:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def agent(self, name: str) -> Agent:
        """The agent of that name."""
        return next(each for each in self.agents if each.name == name)

    def call(
        self, name: str, path: str = "/ping", body: dict[str, Any] | None = None, **options: Any
    ) -> Call:
        """A call to the agent, with its right fingerprint unless told otherwise."""
        payload = json.dumps({"reqid": "0123456789abcdef"} if body is None else body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        settings: dict[str, Any] = {
            "key": name, "host": self.agent(name).ip, "port": self.port, "request": head.encode() + payload,
            "fingerprint": self.leaves[name].fingerprint, "read_timeout_s": 20.0,
        }  # fmt: skip
        return Call(**(settings | options))

    def calls(self, **options: Any) -> list[Call]:
        """A ping to each."""
        return [self.call(each.name, **options) for each in self.agents]

    def record(self, name: str) -> AgentRecord:
        """The agent as the registry would know it."""
        leaf, agent = self.leaves[name], self.agent(name)
        return AgentRecord(
            hostname=name, ip=agent.ip, port=self.port, lookup_by="ip", fingerprint=leaf.fingerprint,
            serial=leaf.serial, expiry=agent.expiry, tags=tuple(sorted(agent.tags.items())),
        )  # fmt: skip

    def records(self) -> list[AgentRecord]:
        """All agents as the registry would know them."""
        return [self.record(each.name) for each in self.agents]

    def register(self, agents_dir: Path) -> None:
        """Write the records as the registry keeps them."""
        known = {name: (leaf.fingerprint, leaf.serial) for name, leaf in self.leaves.items()}
        register(self.agents, known, self.port, agents_dir)

    def requests(self, name: str | None = None) -> list[dict[str, Any]]:
        """The requests that have arrived, in order; of one agent or of all."""
        if not self.log_path.exists():
            return []
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines()]
        return [each for each in lines if name in (None, each["host"])]


@contextlib.contextmanager
def fleet_of(directory: Path, count: int, **behaviour: Any) -> Iterator[Fleet]:
    """A running fleet of that many agents that behave alike."""
    fleet = Fleet(directory)
    fleet.add_many(count, **behaviour)
    with fleet:
        yield fleet


def with_certificate_of(agent: Agent, other: Leaf) -> Agent:
    """The agent showing another one's certificate."""
    return replace(agent, pem=str(other.pem))
