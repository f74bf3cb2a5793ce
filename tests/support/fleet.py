"""A whole private fleet for a test: CA, dispatcher, paired agents, API, scheduler, all real processes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctrl_exec.ca.authority import load_authority, new_key_pem, spki_of_key
from ctrl_exec.ca.identity import load_identity
from ctrl_exec.common.clock import iso_z, openssl_time, utc_now
from ctrl_exec.common.names import new_reqid
from ctrl_exec.config import load_config
from ctrl_exec.operations.pairing import open_registry
from ctrl_exec.operations.setup import setup_ca, setup_identity
from ctrl_exec.services.registry import AgentRecord
from ctrl_exec_agent.config import load_agent_config
from ctrl_exec_agent.pairing_store import Enrolled, store
from tests.support.addresses import own_ip
from tests.support.contract import check_answer
from tests.support.descriptors import kill_holders_of
from tests.support.polling import eventually
from tests.support.processes import Running, run

SCRIPTS = {
    "hello": '#!/bin/sh\necho "hello $*"\n',
    "fail": "#!/bin/sh\necho out\necho wrong >&2\nexit 3\n",
    "stdin": "#!/bin/sh\ncat\n",
    "sleep": '#!/bin/sh\nexec sleep "${1:-1000}"\n',
    "environment": "#!/bin/sh\nenv\n",
    "killed": "#!/bin/sh\nkill -9 $$\n",
}


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> dict[str, object]:
        """The body as an object."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@dataclass
class FleetAgent:
    """One agent of the fleet."""

    name: str
    home: Path
    ip: str
    port: int
    running: Running | None = None

    @property
    def conf(self) -> Path:
        """Its agent.conf."""
        return self.home / "etc" / "agent.conf"

    def script(self, name: str, text: str, options: str = "") -> None:
        """Put a script on the allowlist; a running agent needs a SIGHUP to see it."""
        path = self.home / "scripts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        with (self.home / "etc" / "scripts.conf").open("a") as listing:
            listing.write(f"{name} = {path} {options}".rstrip() + "\n")


@dataclass
class Fleet:
    """A dispatcher with its agents below `home`; close it at the end."""

    home: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    agents: dict[str, FleetAgent] = field(default_factory=dict)
    api: Running | None = None
    scheduler: Running | None = None
    api_port: int = 0

    def __post_init__(self) -> None:
        # an address of our own, so that nobody takes the port between two starts
        self.pairing_ip, self.pairing_port = own_ip(), 7444
        self.write_conf({})
        config = load_config(str(self.conf))
        setup_ca(config)
        setup_identity(config)

    @property
    def conf(self) -> Path:
        """The dispatcher's ctrl-exec.conf."""
        return self.home / "etc" / "ctrl-exec.conf"

    @property
    def state(self) -> Path:
        """The dispatcher's state directory."""
        return self.home / "state"

    def write_conf(self, changes: Mapping[str, object]) -> None:
        """Write ctrl-exec.conf: the base, the fleet's settings, the changes; None leaves a key out."""
        base: dict[str, object] = {
            "etc_dir": self.home / "etc", "state_dir": self.state, "api_port": 0, "api_auth_default": "allow",
            "pairing_bind": self.pairing_ip, "pairing_port": self.pairing_port, "log_target": "stderr",
            "dispatcher_id": "test",
        }  # fmt: skip
        merged = base | dict(self.settings) | dict(changes)
        self.conf.parent.mkdir(parents=True, exist_ok=True)
        self.conf.write_text("".join(f"{key} = {each}\n" for key, each in merged.items() if each is not None))

    def cli(
        self, *words: object, env: Mapping[str, str] | None = None, timeout_s: float = 120, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `ctrl-exec` on this fleet."""
        return run("ctrl-exec", "--config", self.conf, *words, env=env, timeout_s=timeout_s, stdin=stdin)

    def cli_json(self, *words: object, env: Mapping[str, str] | None = None) -> dict[str, object]:
        """Run `ctrl-exec --json` and give its document."""
        made = self.cli("--json", *words, env=env)
        found = json.loads(made.stdout)
        assert isinstance(found, dict)
        return found

    def new_agent(self, name: str, extra: str = "", scripts: Mapping[str, str] | None = None) -> FleetAgent:
        """The files of an agent, not yet paired."""
        home = self.home / name
        agent = FleetAgent(name, home, own_ip(), 7443)
        (home / "etc").mkdir(parents=True)
        agent.conf.write_text(
            f"hostname = {name}\netc_dir = {home}/etc\nstate_dir = {home}/state\nbind = {agent.ip}\n"
            f"port = {agent.port}\nlog_target = stderr\n{extra}\n"
        )
        (home / "etc" / "scripts.conf").write_text("")
        for script, text in (SCRIPTS if scripts is None else scripts).items():
            agent.script(script, text)
        self.agents[name] = agent
        return agent

    @contextlib.contextmanager
    def pairing_mode(self) -> Iterator[Running]:
        """Pairing mode, running."""
        with Running(
            "ctrl-exec", "--config", self.conf, "pairing-mode", log_path=self.home / "pairing.log"
        ) as mode:
            eventually(
                lambda: self._is_listening(self.pairing_ip, self.pairing_port), what="pairing mode listens"
            )
            yield mode

    @staticmethod
    def _is_listening(ip: str, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((ip, port)) == 0

    def request_pairing(self, agent: FleetAgent, *words: object) -> Running:
        """The agent's pairing request, waiting for the decision."""
        return Running(
            "ctrl-exec-agent", "--config", agent.conf, "request-pairing", "--dispatcher", self.pairing_ip,
            "--port", self.pairing_port, *words, log_path=agent.home / "pairing.log",
        )  # fmt: skip

    def waiting_request(self, name: str) -> dict[str, str]:
        """The request of that name once it waits with its code."""

        def probe() -> dict[str, str] | None:
            listed = self.cli_json("list-requests")["requests"]
            assert isinstance(listed, list)
            return next((each for each in listed if each["hostname"] == name and each.get("code")), None)

        found = eventually(probe, what=f"the request of {name}")
        assert found is not None
        return found

    def pair(self, *agents: FleetAgent, tags: Sequence[str] = ()) -> None:
        """Pair the agents through a real exchange."""
        with self.pairing_mode():
            for agent in agents:
                with self.request_pairing(agent) as request:
                    waiting = self.waiting_request(agent.name)
                    made = self.cli(
                        "approve",
                        waiting["id"],
                        "--ip",
                        agent.ip,
                        "--agent-port",
                        agent.port,
                        "--lookup-by",
                        "ip",
                    )
                    assert made.returncode == 0, made.stderr
                    assert request.process.wait(60) == 0, request.log()
                for tag in tags:
                    assert self.cli("edit-agent", agent.name, "--tags", tag).returncode == 0

    def enrol(self, *agents: FleetAgent) -> None:
        """What a pairing leaves on both sides, without the exchange and its processes."""
        config = load_config(str(self.conf))
        authority = load_authority(config.ca_key_path, config.ca_cert_path)
        identity = load_identity(config.cert_path)
        now = utc_now()
        for agent in agents:
            key = agent.home / "etc" / "new.key"
            key.write_bytes(new_key_pem())
            issued = authority.issue_agent(spki_of_key(key.read_bytes()), agent.name, days=365, now=now)
            enrolled = Enrolled(issued.pem, authority.pem, identity.serial, identity.dispatcher_id("test"))
            store(load_agent_config(str(agent.conf)), str(key), enrolled)
            key.unlink()
            record = AgentRecord(
                hostname=agent.name, ip=agent.ip, port=agent.port, lookup_by="ip", paired=iso_z(now),
                expiry=openssl_time(issued.not_after), reqid=new_reqid(), fingerprint=issued.fingerprint,
                serial=issued.serial, dispatcher_serial=identity.serial, serial_status="current",
            )  # fmt: skip
            open_registry(config).save(record)

    def start_agent(self, agent: FleetAgent) -> Running:
        """Start (again) the agent's daemon and wait until it listens."""
        agent.running = Running(
            "ctrl-exec-agent", "--config", agent.conf, "serve", log_path=agent.home / "agent.log"
        )
        agent.running.port()
        return agent.running

    def add(self, *names: str, extra: str = "", scripts: Mapping[str, str] | None = None) -> None:
        """Make, enrol and start agents."""
        agents = [self.new_agent(name, extra, scripts) for name in names]
        self.enrol(*agents)
        for agent in agents:
            self.start_agent(agent)

    def start_api(self, env: Mapping[str, str] | None = None) -> Running:
        """Start (again) the API and note its port."""
        self.api = Running("ctrl-exec-api", "--config", self.conf, log_path=self.home / "api.log", env=env)
        self.api_port = self.api.port()
        return self.api

    def start_scheduler(self) -> Running:
        """Start the scheduler."""
        self.scheduler = Running(
            "ctrl-exec-scheduler", "--config", self.conf, log_path=self.home / "scheduler.log"
        )
        return self.scheduler

    def http(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Answer:
        """One request to the API over plain HTTP; bytes are sent as they are, all else as JSON.

        The answer is one that openapi.json promises, or the test fails.
        """
        payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api_port}{path}",
            data=payload,
            method=method,
            headers=dict(headers or {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                found = Answer(answer.status, answer.read(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            with error:
                found = Answer(error.code, error.read(), dict(error.headers))
        check_answer(method, path, found.status, found.headers, found.body)
        return found

    def records(self) -> list[dict[str, object]]:
        """All run records on disk."""
        return [json.loads(path.read_text()) for path in sorted((self.state / "runs").glob("*.json"))]

    def close(self) -> None:
        """End everything."""
        for each in [self.api, self.scheduler, *(agent.running for agent in self.agents.values())]:
            if each is not None:
                each.__exit__()
        if any((self.state / "runs").glob("*.lock")):
            # detached carriers of runs that a test left would go on for good
            kill_holders_of(lambda target: target.startswith(f"{self.state / 'runs'}/"))
