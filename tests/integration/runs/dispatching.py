"""A dispatcher for a test, with a state of its own over shared emulated agents."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ctrl_exec.common.log import Log
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.config import Config, parse_config
from ctrl_exec.dispatcher import Dispatcher, open_crew, warm_settings, warm_transport
from ctrl_exec.operations.run import RunReport, RunRequest, run
from ctrl_exec.operations.status import status
from ctrl_exec.services.authority import Caller
from tests.support.descriptors import kill_holders_of
from tests.support.emulated import Fleet
from tests.support.polling import eventually

CALLER = Caller("tester", via="cli", auth="claimed")


class Bench:
    """One dispatcher's directories and what tests do with them."""

    def __init__(self, home: Path, fleet: Fleet, *, is_warm: bool = False) -> None:
        self.home = home
        self.fleet = fleet
        self.lines = io.StringIO()
        self.settings: dict[str, object] = {
            "etc_dir": home / "etc", "state_dir": home / "state", "cert": fleet.identity.pem,
            "key": fleet.identity.pem, "ca": fleet.ca, "log_target": "stderr", "connect_timeout": 30,
        }  # fmt: skip
        for name in ("etc", "state"):
            (home / name).mkdir(exist_ok=True)
        fleet.register(home / "state" / "agents")
        self.pids: tuple[int, ...] = ()
        self.crew = open_crew(self.config, Log("test", stream=io.StringIO())) if is_warm else None
        if self.crew is not None:
            self.crew.start(warm_settings(self.config))

    def reload(self) -> None:
        """Have the daemon's workers, if there are any, follow the settings."""
        if self.crew is not None:
            self.pids += self.crew.retire()
            self.crew.start(warm_settings(self.config))

    def close(self) -> None:
        """End the carriers that a test left, which would go on for good, and the workers."""
        if any(self.runs.glob("*.lock")):
            kill_holders_of(lambda target: target.startswith(f"{self.runs}/"))
        if self.crew is None:
            return
        self.pids += self.crew.retire()
        self.crew.leave()
        for pid in self.pids:  # a job that a test left would keep them
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_status(pid)

    @property
    def text(self) -> str:
        return "".join(f"{key} = {each}\n" for key, each in self.settings.items())

    @property
    def conf(self) -> Path:
        """The configuration as a file."""
        path = self.home / "etc" / "ctrl-exec.conf"
        path.write_text(self.text)
        return path

    @property
    def config(self) -> Config:
        return parse_config(self.text)

    @property
    def runs(self) -> Path:
        return self.home / "state" / "runs"

    def dispatcher(self, *, ahead_s: int = 0, **parts: Any) -> Dispatcher:
        """A dispatcher whose clock is ahead of the world's."""
        import time

        if self.crew is not None:
            parts.setdefault("transport", warm_transport(self.config))
        return Dispatcher(
            self.config,
            Log("test", stream=self.lines),
            environment={},
            clock=lambda: int(time.time()) + ahead_s,
            **parts,
        )

    def run(self, *hosts: str, script: str = "job", **facts: Any) -> RunReport:
        return run(self.dispatcher(), CALLER, RunRequest(hosts, script, **facts))

    def status(self, reqid: str, *, ahead_s: int = 0) -> RunReport:
        return status(self.dispatcher(ahead_s=ahead_s), CALLER, reqid)

    def wait_complete(self, reqid: str, *, ahead_s: int = 0) -> RunReport:
        def probe() -> RunReport | None:
            found = self.status(reqid, ahead_s=ahead_s)
            return found if found.complete else None

        found = eventually(probe, timeout_s=60, what=f"{reqid} complete")
        assert found is not None
        return found

    def held(self) -> tuple[tuple[str, str], ...]:
        return self.dispatcher().locks.held()

    def reqids(self) -> list[str]:
        return sorted(path.stem for path in self.runs.glob("*.json"))


class Stopping:
    """Stands before a part and stops its process at one point: `before begin`, `after begin`, `in run`."""

    def __init__(
        self, inner: Any, name: str, stop: Callable[[str], None], wrap: tuple[str, ...] = ()
    ) -> None:
        self._inner = inner
        self._name = name
        self._stop = stop
        self._wrap = wrap

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)
        if not callable(found):
            return found

        def call(*positional: Any, **named: Any) -> Any:
            self._stop(f"before {self._name}.{attribute}")
            given = found(*positional, **named)
            if isinstance(given, Iterator):
                return self._each(attribute, given)
            self._stop(f"after {self._name}.{attribute}")
            return Stopping(given, "journal", self._stop) if attribute in self._wrap else given

        return call

    def _each(self, attribute: str, given: Iterator[Any]) -> Iterator[Any]:
        for each in given:
            self._stop(f"in {self._name}.{attribute}")
            yield each


class StoppingDispatcher(Dispatcher):
    """A dispatcher that stops for good at a point, telling so on a descriptor."""

    stop: Callable[[str], None]

    @property
    def locks(self) -> Any:
        return Stopping(super().locks, "locks", self.stop)

    @property
    def results(self) -> Any:
        return Stopping(super().results, "results", self.stop, wrap=("begin",))

    @property
    def agents(self) -> Any:
        return Stopping(super().agents, "agents", self.stop)


def killed_at(bench: Bench, point: str, request: RunRequest, *, count: int = 1) -> None:
    """Run the request in a process of its own that is killed with -9 at the count-th time it gets there."""
    import time

    reading, writing = os.pipe()

    def work() -> None:
        os.close(reading)
        seen = [0]

        def stop(at: str) -> None:
            if at == point:
                seen[0] += 1
                if seen[0] == count:
                    os.write(writing, b"1")
                    signal.pause()

        dispatcher = StoppingDispatcher(
            bench.config, Log("test", stream=io.StringIO()), environment={}, clock=lambda: int(time.time())
        )
        dispatcher.stop = stop
        run(dispatcher, CALLER, request)

    pid = fork_child(work)
    os.close(writing)
    arrived = os.read(reading, 1)
    os.close(reading)
    assert arrived == b"1", f"the run ended before {point}"
    os.kill(pid, signal.SIGKILL)
    assert wait_status(pid) == (-1, signal.SIGKILL)
