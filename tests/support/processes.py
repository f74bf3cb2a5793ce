"""Starting programs of ours as real processes, reading their log, ending them whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.evidence import note_log
from tests.support.polling import eventually

ROOT = Path(__file__).resolve().parents[2]
WORKER_NAME = "ctrl-exec-fan"
PROGRAMS = {
    "ctrl-exec": "ctrl_exec.cli.main",
    "ctrl-exec-api": "ctrl_exec.api.main",
    "ctrl-exec-scheduler": "ctrl_exec.scheduler.main",
    "ctrl-exec-local": "ctrl_exec.local.main",
    "ctrl-exec-agent": "ctrl_exec_agent.main",
}


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A built-up environment in which our packages are importable; coverage settings pass through."""
    built = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'agent'}",
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
    }
    built |= {name: text for name, text in os.environ.items() if name.startswith("COV")}
    return built | dict(extra or {})


def command(program: str, *arguments: object) -> list[str]:
    """argv that runs the program from this checkout with this Python."""
    module = PROGRAMS[program]
    start = f"import sys; from {module} import main; sys.argv[0] = {program!r}; sys.exit(main())"
    return [sys.executable, "-c", start, *map(str, arguments)]


def run(
    program: str,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, output captured as text."""
    return subprocess.run(
        command(program, *arguments),
        env=environment(env), input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


class Running:
    """A program that runs until `stop`; its stderr (where tests log to) goes to a file."""

    def __init__(
        self, program: str, *arguments: object, log_path: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.program = program
        self.log_path = log_path
        note_log(log_path, program)
        with log_path.open("ab") as log:
            self._offset = log.tell()
            self.process = subprocess.Popen(
                command(program, *arguments), env=environment(env),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The pid of the parent process."""
        return self.process.pid

    def log(self) -> str:
        """What this process has logged so far."""
        with self.log_path.open("rb") as log:
            log.seek(self._offset)
            return log.read().decode("utf-8", "replace")

    def wait_for(self, pattern: str, *, timeout_s: float = 60) -> re.Match[str]:
        """The first match of the pattern in the log; fails at once if the process has ended."""

        def probe() -> re.Match[str] | None:
            found = re.search(pattern, self.log())
            if found is None and self.process.poll() is not None:
                raise RuntimeError(f"{self.program} ended with {self.process.returncode}:\n{self.log()}")
            return found

        found = eventually(probe, timeout_s=timeout_s, what=f"{pattern!r} in the log of {self.program}")
        assert found is not None
        return found

    def port(self) -> int:
        """The port it listens on, from its start line."""
        return int(self.wait_for(r"ACTION=(?:api-)?start\b.*?ADDRESS=\S*?:(\d+)(?:[\s,]|$)")[1])

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = 60) -> int:
        """Send the signal and wait; killed with its group when it does not end. Gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.wait(timeout_s)
        return self.process.returncode

    def kill(self) -> None:
        """End the whole group at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def children_of(pid: int) -> Sequence[int]:
    """The pids of the direct children that live."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it ended before or while it was read
        return []


def workers_of(pid: int) -> Sequence[int]:
    """The pids of an API daemon's fan-out workers."""
    return [each for each in children_of(pid) if _name_of(each) == WORKER_NAME]


def request_children_of(pid: int) -> Sequence[int]:
    """The pids of an API daemon's children that serve a client."""
    return [each for each in children_of(pid) if _name_of(each) not in (WORKER_NAME, "")]


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _can_others_start_us() -> bool:
    """Whether another user could start our programs: a Python or a checkout below a home is closed to them."""
    if os.geteuid() != 0:
        return False
    try:
        made = subprocess.run(
            [sys.executable, "-c", "import ctrl_exec.common.errors"],
            env=environment(), user=65534, group=65534, extra_groups=[], cwd="/", capture_output=True, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return made.returncode == 0


needs_other_user = pytest.mark.skipif(
    not _can_others_start_us(), reason="needs root, and a Python and a checkout that other users may enter"
)
