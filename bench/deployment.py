"""A dispatcher, real agents, and APIs, all of ours, below one directory.

Owns their files and processes. The certificates come from the CA of the run, so that emulated agents
and real ones trust the same dispatcher. Must not know what is measured on them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.daemon import Daemon

if TYPE_CHECKING:
    from bench.session import Session
    from tests.support.emulator import Agent
    from tests.support.pki import TestCA

NETWORK = "127.78.0"
_OF_THE_UNIT = {"LD_BIND_NOW": "1"}
"""What the API's systemd unit adds to its environment."""
TICKS = Path(__file__).parent / "baselines" / "ticks.sh"
"""A script that says some times what time it is."""


@dataclass(frozen=True)
class Api:
    """A running API."""

    daemon: Daemon
    port: int


@dataclass(frozen=True)
class RealAgent:
    """A running agent."""

    daemon: Daemon
    ip: str
    port: int


class Deployment:
    """Everything of ours that runs on this machine."""

    def __init__(self, home: Path, authority: TestCA, session: Session) -> None:
        self.home, self.authority, self.session = home, authority, session
        self.etc, self.state = home / "etc", home / "state"
        self.identity = authority.dispatcher("bench")
        for each in (self.etc, self.state / "agents"):
            each.mkdir(parents=True)
        shutil.copy(authority.path, self.etc / "ca.crt")
        shutil.copy(self.identity.crt, self.etc / "dispatcher.crt")
        shutil.copy(self.identity.key_path, self.etc / "dispatcher.key")
        (self.etc / "dispatcher.key").chmod(0o600)
        self.conf = self.write_conf("ctrl-exec.conf")
        self._apis: dict[str, Api] = {}
        self._agents: list[RealAgent] = []

    def write_conf(self, name: str, **settings: object) -> Path:
        """A ctrl-exec.conf of this deployment with these settings besides."""
        base: dict[str, object] = {
            "etc_dir": self.etc,
            "state_dir": self.state,
            "api_port": 0,
            "api_auth_default": "allow",
            "api_socket": "",
            "log_target": "stderr",
            "dispatcher_id": "bench",
            "service_user": "",
        }
        path = self.etc / name
        path.write_text("".join(f"{key} = {each}\n" for key, each in (base | settings).items()))
        return path

    def register(self, name: str, ip: str, port: int, leaf: tuple[str, str]) -> None:
        """Write the registry's record of an agent whose key has that (fingerprint, serial)."""
        record = {
            "hostname": name,
            "ip": ip,
            "port": port,
            "lookup_by": "ip",
            "paired": "2026-01-01T00:00:00Z",
            "expiry": "Jan 15 12:00:00 2036 GMT",
            "reqid": "0" * 16,
            "fingerprint": leaf[0],
            "serial": leaf[1],
            "tags": {},
            "dispatcher_serial": self.identity.serial,
            "serial_status": "current",
        }
        (self.state / "agents" / f"{name}.json").write_text(json.dumps(record))

    def register_emulated(self, agents: list[Agent], leaves: dict[str, tuple[str, str]], port: int) -> None:
        """Write the records of emulated agents."""
        for agent in agents:
            self.register(agent.name, agent.ip, port, leaves[agent.name])

    # -- agents -----------------------------------------------------------------------------------

    @property
    def agent(self) -> RealAgent:
        """The first real agent, registered as real-01."""
        return self.agents(1)[0]

    def agents(self, count: int) -> list[RealAgent]:
        """So many real agents, registered as real-01, real-02, …, each at an address of its own."""
        while len(self._agents) < count:
            batch = [self._start_agent(number) for number in range(len(self._agents) + 1, count + 1)]
            for name, ip, daemon, leaf in batch:
                port = daemon.port()
                self.register(name, ip, port, leaf)
                self._agents.append(RealAgent(daemon, ip, port))
        return self._agents[:count]

    def _start_agent(self, number: int) -> tuple[str, str, Daemon, tuple[str, str]]:
        name, ip = f"real-{number:02d}", f"{NETWORK}.{number}"
        etc, state = self.home / name / "etc", self.home / name / "state"
        for each in (etc, state):
            each.mkdir(parents=True)
        leaf = self.authority.issue(name)
        shutil.copy(leaf.crt, etc / "agent.crt")
        shutil.copy(leaf.key_path, etc / "agent.key")
        shutil.copy(self.authority.path, etc / "ca.crt")
        (state / "ctrl-exec-dispatchers").write_text(f"{self.identity.serial} bench\n")
        (etc / "scripts.conf").write_text(f"true = /bin/true\nticks = {TICKS}\n")
        conf = etc / "agent.conf"
        conf.write_text(
            f"hostname = {name}\netc_dir = {etc}\nstate_dir = {state}\nbind = {ip}\nport = 0\n"
            "log_target = stderr\n"
        )
        argv = self.session.launcher("ctrl-exec-agent", "--config", conf, "serve")
        return name, ip, self.session.daemon(argv, name, announces=False), (leaf.fingerprint, leaf.serial)

    # -- APIs -------------------------------------------------------------------------------------

    def api(self, name: str, **settings: object) -> Api:
        """An API with these settings; one that runs under this name already is given again."""
        if name not in self._apis:
            conf = self.write_conf(f"api-{name}.conf", **settings)
            argv = self.session.launcher("ctrl-exec-api", "--config", conf)
            started = self.session.daemon(argv, f"api-{name}", announces=False, environment=_OF_THE_UNIT)
            self._apis[name] = Api(started, started.port())
        return self._apis[name]

    def end_api(self, name: str) -> None:
        """End an API before the session does."""
        ended = self._apis.pop(name, None)
        if ended is not None:
            ended.daemon.stop()

    def stop(self) -> None:
        """End everything."""
        for name in list(self._apis):
            self.end_api(name)
        for agent in self._agents:
            agent.daemon.stop()
