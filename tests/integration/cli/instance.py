"""A dispatcher of emulated agents for tests of the command line: fast to make, real on the wire."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.emulated import Fleet
from tests.support.processes import run


class Instance:
    """A private dispatcher below a directory, with emulated agents in its registry."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.fleet = Fleet(home)
        self.settings: dict[str, object] = {
            "etc_dir": home / "etc",
            "state_dir": home / "state",
            "cert": self.fleet.identity.pem,
            "key": self.fleet.identity.pem,
            "ca": self.fleet.ca,
            "api_port": 0,
            "pairing_port": 0,
            "log_target": "stderr",
            "connect_timeout": 30,
            "read_timeout": 30,
            "run_deadline": 60,
        }
        for name in ("etc", "state"):
            (home / name).mkdir(exist_ok=True)

    @property
    def conf(self) -> Path:
        """The configuration file."""
        return self.home / "etc" / "ctrl-exec.conf"

    def start(self) -> None:
        """Start the agents, register them and write the configuration."""
        self.fleet.start()
        self.fleet.register(self.home / "state" / "agents")
        self.configure()

    def configure(self, **changes: object) -> None:
        """Write the configuration with these settings changed."""
        self.settings |= changes
        self.conf.write_text("".join(f"{key} = {each}\n" for key, each in self.settings.items()))

    def cli(
        self, *words: object, env: Mapping[str, str] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `ctrl-exec` here."""
        return run("ctrl-exec", "--config", self.conf, *words, env=env, stdin=stdin)

    def document(self, *words: object, code: int = 0, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run `ctrl-exec --json` here; its one document, when exit code and shape are right."""
        ended = self.cli("--json", *words, env=env)
        assert ended.returncode == code, (ended.stdout, ended.stderr)
        assert ended.stdout.count("\n") == 1
        found = json.loads(ended.stdout)
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        """End the agents, and the detached carriers that would go on asking for them."""
        self.fleet.stop()
        for pid in processes_naming(str(self.conf)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_naming(word: str) -> list[int]:
    """The pids of all processes but this one that have the word on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found
