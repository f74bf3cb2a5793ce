"""A whole private fleet for a test: CA, dispatcher, paired agents, API, scheduler, all real processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.contract import check_answer
from tests.support.polling import eventually
from tests.support.processes import Running, run

_numbers = itertools.count(1)

SCRIPTS = {
    "hello": '#!/bin/sh\necho "hello $*"\n',
    "fail": "#!/bin/sh\necho out\necho wrong >&2\nexit 3\n",
    "stdin": "#!/bin/sh\ncat\n",
    "sleep": '#!/bin/sh\nexec sleep "${1:-1000}"\n',
    "environment": "#!/bin/sh\nenv\n",
    "killed": "#!/bin/sh\nkill -9 $$\n",
}


def own_ip() -> str:
    """A loopback address no other test process uses at this moment."""
    pid = os.getpid()
    return f"127.{20 + (pid >> 8) % 200}.{pid % 256}.{next(_numbers) % 250 + 1}"


def free_port(ip: str = "127.0.0.1") -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


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
        self.pairing_port = free_port()
        self.write_conf({})
        for command in ("setup-ca", "setup-ctrl-exec"):
            made = self.cli(command)
            assert made.returncode == 0, made.stderr

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
            "pairing_bind": "127.0.0.1", "pairing_port": self.pairing_port, "log_target": "stderr",
            "dispatcher_id": "test",
        }  # fmt: skip
        merged = base | dict(self.settings) | dict(changes)
        self.conf.parent.mkdir(parents=True, exist_ok=True)
        self.conf.write_text("".join(f"{key} = {each}\n" for key, each in merged.items() if each is not None))

    def cli(
        self, *words: object, env: Mapping[str, str] | None = None, timeout_s: float = 60, stdin: str = ""
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
                lambda: self._is_listening("127.0.0.1", self.pairing_port), what="pairing mode listens"
            )
            yield mode

    @staticmethod
    def _is_listening(ip: str, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((ip, port)) == 0

    def request_pairing(self, agent: FleetAgent, *words: object) -> Running:
        """The agent's pairing request, waiting for the decision."""
        return Running(
            "ctrl-exec-agent", "--config", agent.conf, "request-pairing", "--dispatcher", "127.0.0.1",
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
                    assert request.process.wait(30) == 0, request.log()
                for tag in tags:
                    assert self.cli("edit-agent", agent.name, "--tags", tag).returncode == 0

    def start_agent(self, agent: FleetAgent) -> Running:
        """Start (again) the agent's daemon and wait until it listens."""
        agent.running = Running(
            "ctrl-exec-agent", "--config", agent.conf, "serve", log_path=agent.home / "agent.log"
        )
        agent.running.port()
        return agent.running

    def add(self, *names: str, extra: str = "") -> None:
        """Make, pair and start agents."""
        agents = [self.new_agent(name, extra) for name in names]
        self.pair(*agents)
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
