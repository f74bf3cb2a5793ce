"""A real `ctrl-exec-local` for a test: as another user where root runs the tests, else as ourselves."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ctrl_exec.local.client import LocalService
from ctrl_exec.local.order import SHELL, CommandEnd, CommandOrder
from tests.support.polling import eventually
from tests.support.processes import Running

OURS = pwd.getpwuid(os.geteuid()).pw_name
USER = "nobody" if os.geteuid() == 0 else OURS


class Works:
    """A service and what a scheduler would hear of the commands it executes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = home / "local.sock"
        self.client = LocalService(str(self.socket), USER)
        self.running: Running | None = None

    def start(self, *words: object) -> Running:
        """Start the service."""
        options = ("--as", USER, "--for", OURS, *words)
        log_path = self.home / "local.log"
        self.running = Running("ctrl-exec-local", "--socket", self.socket, *options, log_path=log_path)
        self.running.wait_for("ACTION=local-start")
        return self.running

    def log(self) -> str:
        """What service and keepers have said so far."""
        return (self.home / "local.log").read_text()


class Heard:
    """What came of a command that a service executes."""

    def __init__(self, works: Works) -> None:
        self.client = works.client
        self.output = {1: bytearray(), 2: bytearray()}
        self.group = (0, 0)

    def run(
        self,
        line: str,
        *,
        timeout_s: float | None = 60,
        wants_end: Callable[[], bool] = lambda: False,
        **variables: str,
    ) -> CommandEnd:
        """Have a line of shell executed."""
        order = CommandOrder((SHELL, "-c", line), variables, timeout_s)
        return self.execute(order, wants_end=wants_end)

    def execute(self, order: CommandOrder, *, wants_end: Callable[[], bool] = lambda: False) -> CommandEnd:
        """Have it executed."""
        return self.client.run_command(order, on_output=self.hear, wants_end=wants_end, before_exec=self.note)

    def hear(self, stream: int, chunk: bytes) -> None:
        """Keep output."""
        self.output[stream] += chunk

    def note(self, pid: int, started: int) -> None:
        """Keep the group."""
        self.group = pid, started

    def text(self) -> str:
        """Standard output."""
        return self.output[1].decode()


@contextmanager
def open_home() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="ctrl-exec-local-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def is_gone(mark: str) -> bool:
    """Whether no process lives that has the mark in its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "cmdline").read_bytes():
                    return False
            except OSError:
                continue
    return True


def keeper_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def seconds_of_sleep() -> Callable[[], str]:
    """Gives lengths of sleep that no other test uses: what is in `ps` tells whose it is."""
    numbers = iter(range(1000))
    return lambda: f"{os.getpid() + 100_000}.{next(numbers)}"


def wait_gone(mark: str) -> None:
    """Wait until nothing with the mark lives."""
    eventually(lambda: is_gone(mark), timeout_s=60, what=f"nothing of {mark}")
