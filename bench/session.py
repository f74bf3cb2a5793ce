"""One run of the benches: sizes, working directory, certificates, emulated agents, a real agent and API.

Owns what rows share and its ending, in reverse order. Everything is made when it is first asked for.
Must not know any row.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType

from bench.daemon import Daemon
from bench.deployment import Deployment
from bench.load import Generator
from bench.row import SKIPPED, Row, absent
from bench.series import Series
from bench.timing import spin
from tests.support.emulator import Agent, addresses, write_agents
from tests.support.pki import TestCA

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    `rounds` for costly things, `repeats` for cheap ones; `load_s` for one load on a server; `growth`
    host counts; `many` and `most` hosts with a script of `many_s` and `most_s` seconds, `hold_s` where
    all are to be in flight at once; `real` hosts that run scripts; `purged` of `records`; `requests` for
    the memory of the API; `listed` runs to choose from.
    """

    rounds: int = 5
    repeats: int = 15
    load_s: float = 2.0
    growth: tuple[int, ...] = (64, 256, 1000, 2500, 5000)
    process_growth: tuple[int, ...] = (64, 256, 500, 1000)
    many: int = 1000
    many_s: int = 1
    most: int = 5000
    most_s: int = 5
    hold_s: int = 15
    real: int = 50
    records: int = 1_000_000
    purged: int = 20_000
    requests: int = 100_000
    listed: int = 100_000


QUICK = Sizes(
    rounds=3,
    repeats=5,
    load_s=0.5,
    growth=(64, 128, 256),
    process_growth=(64, 128),
    many=128,
    most=256,
    most_s=2,
    hold_s=3,
    real=8,
    records=20_000,
    purged=2_000,
    requests=1_000,
    listed=5_000,
)


@dataclass
class EmulatedFleet:
    """Running emulated agents: the listing the probes read, and a port for each delay in seconds."""

    listing: Path
    names: list[str]
    ports: dict[int, int]
    leaves: dict[str, tuple[str, str]]
    agents: list[Agent]


@dataclass
class Session:
    """What rows work with; use as a context manager."""

    work: Path
    sizes: Sizes
    python: str
    server_python: str
    say: Callable[[str], None]
    is_quick: bool = False
    curves: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    calibration: list[float] = field(default_factory=list)
    _ending: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    # -- noise ------------------------------------------------------------------------------------

    def calibrate(self) -> None:
        """Time a fixed piece of computing once more."""
        self.calibration += [spin() for _ in range(5)]

    @property
    def floor(self) -> float:
        """The machine's own noise, which no figure is more exact than."""
        return max(0.02, Series(tuple(self.calibration)).spread) if self.calibration else 0.02

    # -- programs ---------------------------------------------------------------------------------

    def daemon(
        self,
        argv: list[str],
        name: str,
        *,
        announces: bool = True,
        module: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Daemon:
        """A program that is ended with the session at the latest; `environment` is added to ours."""
        started = Daemon(
            argv,
            self.work / f"{name}.log",
            announces=announces,
            directory=ROOT,
            env=self.environment if module else {**os.environ, **(environment or {})},
        )
        self._ending.callback(started.stop)
        return started

    @property
    def environment(self) -> Mapping[str, str]:
        """An environment in which our packages, tests and benches are importable."""
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(self.work),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'agent'}",
        }

    @cached_property
    def installed_python(self) -> str:
        """The interpreter of daemons: a virtual environment like the one `make install-system` makes.

        It finds what we depend on where the benches found it, by a path alone: the finder and the hooks of
        a development's environment would bring some forty modules that no installed daemon has.
        """
        home = self.work / "python"
        subprocess.run([self.python, "-m", "venv", "--without-pip", str(home)], check=True)
        (packages,) = home.glob("lib/python*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return str(home / "bin" / "python")

    def launcher(self, program: str, *arguments: object) -> list[str]:
        """argv of a program of ours, as its launcher in bin/ starts it."""
        is_daemon = program in ("ctrl-exec-api", "ctrl-exec-scheduler")
        python = self.installed_python if is_daemon else self.python
        bare = ["-S"] if program == "ctrl-exec-agent" else []  # as the first lines of the launchers say
        return [python, "-I", *bare, str(ROOT / "bin" / program), *map(str, arguments)]

    def module(self, name: str, *arguments: object) -> list[str]:
        """argv of a module of the benches."""
        return [self.server_python, "-m", name, *map(str, arguments)]

    def baseline(self, name: str, *arguments: object) -> list[str]:
        """argv of a baseline in Python, with an interpreter that loads nothing of ours."""
        return [self.python, "-I", str(ROOT / "bench" / "baselines" / f"{name}.py"), *map(str, arguments)]

    def compiled(self, source: str) -> Path:
        """A C program of the benches, compiled now. Raises: RuntimeError without a compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise RuntimeError("no C compiler (cc)")
        program = self.work / Path(source).stem
        if not program.exists():
            subprocess.run([compiler, "-O2", "-o", str(program), str(ROOT / "bench" / source)], check=True)
        return program

    @cached_property
    def generator(self) -> Generator:
        """The HTTP load generator."""
        return Generator(self.compiled("load.c"), self.work)

    # -- fleets -----------------------------------------------------------------------------------

    @cached_property
    def authority(self) -> TestCA:
        """The CA of this run."""
        return TestCA(self.work / "pki")

    @cached_property
    def deployment(self) -> Deployment:
        """Our own dispatcher, agent and API."""
        made = Deployment(self.work / "deployment", self.authority, self)
        self._ending.callback(made.stop)
        return made

    @cached_property
    def emulated(self) -> EmulatedFleet:
        """The emulated agents, as many as the largest size, serving."""
        count = max(*self.sizes.growth, self.sizes.most, self.sizes.many)
        self.say(f"making {count} emulated agents")
        agents, leaves = [], {}
        for number, ip in zip(range(1, count + 1), addresses(), strict=False):
            leaf = self.authority.issue(f"host-{number:04d}")
            agent = Agent(f"host-{number:04d}", ip, str(leaf.pem), str(self.authority.path), stdout="")
            agents.append(agent)
            leaves[agent.name] = (leaf.fingerprint, leaf.serial)
        write_agents(agents, self.work / "agents.json")
        delays = sorted({0, self.sizes.many_s, self.sizes.most_s, self.sizes.hold_s})
        processes = len(os.sched_getaffinity(0))
        started = self.daemon(
            self.module("bench.probes.agents", self.work / "agents.json", processes, *delays),
            "agents",
            module=True,
        )
        ports = {int(delay): port for delay, port in started.announcement()["ports"].items()}
        listing = self.work / "listing.json"
        shown = [
            {
                "name": each.name,
                "ip": each.ip,
                "fingerprint": leaves[each.name][0],
                "serial": leaves[each.name][1],
            }
            for each in agents
        ]
        identity = str(self.deployment.identity.pem)
        listing.write_text(
            json.dumps({"identity": identity, "ca": str(self.authority.path), "agents": shown})
        )
        return EmulatedFleet(listing, [each.name for each in agents], ports, leaves, agents)


def interpreter() -> str:
    """The Python under the virtual environment we run in: what a system's launcher would find."""
    return os.path.realpath(sys.executable)


def skipped(name: str, what: str, why: str) -> Row:
    """The row of what can't be had here."""
    return absent(name, what, None, why, SKIPPED)
