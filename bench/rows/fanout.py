"""Fan-out of `true` to emulated agents over fresh connections, beside a process for each host; growth."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bench.row import Group, Row, compared, measured
from bench.series import Series, at_least, at_most, straightness
from bench.timing import MIB, ProbeError, run_program

if TYPE_CHECKING:
    from bench.session import Session

_COUNT = 256


def ours_argv(session: Session, count: int) -> list[str]:
    """argv of our engine asking so many."""
    fleet = session.emulated
    return session.module("bench.probes.fanout", fleet.listing, fleet.ports[0], count)


def processes_argv(session: Session, count: int) -> list[str]:
    """argv of a process for each of so many."""
    fleet = session.emulated
    return session.baseline("process_per_host", fleet.listing, fleet.ports[0], count)


def ask(session: Session, argv: list[str], count: int) -> dict[str, Any]:
    """What the probe says of itself. Raises: ProbeError when not every host answered."""
    usage = run_program(argv, env=session.environment)
    found: dict[str, Any] = json.loads(usage.stdout)
    if found["ok"] != count:
        raise ProbeError(f"{argv[2]}: {found['ok']} of {count} hosts answered")
    return found


def peak_mib(session: Session, argv: list[str]) -> float:
    """The peak memory of the probe's process tree."""
    return run_program(argv, env=session.environment, samples_memory=True).peak_bytes / MIB


def measure_fanout(session: Session) -> Iterable[Row]:
    """256 hosts, both ways taking turns."""
    sides = {"ours": ours_argv(session, _COUNT), "process for each": processes_argv(session, _COUNT)}
    for argv in sides.values():
        ask(session, argv, _COUNT)  # warms caches on both sides
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(session.sizes.rounds):
        for name in sorted(sides, reverse=bool(turn % 2)):
            found[name].append(ask(session, sides[name], _COUNT))
    for key, limit in (("wall", 0.22), ("cpu", 0.15)):
        ours, base = (
            Series(tuple(one[f"{key}_s"] for one in found[name])) for name in ("ours", "process for each")
        )
        yield compared(
            f"fanout-256-{key}", f"`true` on 256 agents, fresh connections, {key}, to a process a host",
            (f"ours {key} s", ours), (f"process for each {key} s", base), at_most(limit), floor=session.floor,
        )  # fmt: skip
    memory = {name: Series((peak_mib(session, argv),)) for name, argv in sides.items()}
    yield compared(
        "fanout-256-memory", "peak memory of the same", ("ours MiB", memory["ours"]),
        ("process for each MiB", memory["process for each"]),
    )  # fmt: skip


def measure_growth(session: Session) -> Iterable[Row]:
    """Time and memory against the number of hosts."""
    sizes = session.sizes
    walls: dict[int, Series] = {}
    cpus: dict[int, Series] = {}
    memory = []
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in sizes.growth}
    ask(session, ours_argv(session, sizes.growth[0]), sizes.growth[0])
    for turn in range(sizes.rounds):
        for count in sizes.growth if turn % 2 == 0 else sizes.growth[::-1]:
            found[count].append(ask(session, ours_argv(session, count), count))
        session.say(f"growth: round {turn + 1} of {sizes.rounds}")
    for count in sizes.growth:
        walls[count] = Series(tuple(one["wall_s"] for one in found[count]))
        cpus[count] = Series(tuple(one["cpu_s"] for one in found[count]))
        memory.append((float(count), peak_mib(session, ours_argv(session, count))))
    others, other_memory = [], []
    for count in sizes.process_growth:
        argv = processes_argv(session, count)
        others.append((float(count), ask(session, argv, count)["wall_s"]))
        other_memory.append((float(count), peak_mib(session, argv)))
    session.curves["growth-time"] = {
        "ours": [(float(count), walls[count].median) for count in sizes.growth],
        "ours, CPU": [(float(count), cpus[count].median) for count in sizes.growth],
        "process for each": others,
    }
    session.curves["growth-memory"] = {"ours": memory, "process for each": other_memory}
    yield from _growth_rows(session, walls, cpus)


def _growth_rows(session: Session, walls: dict[int, Series], cpus: dict[int, Series]) -> Iterable[Row]:
    near = 256 if 256 in walls else min(walls)
    far = max(walls)
    for key, series in (("wall", walls), ("cpu", cpus)):
        each = {
            count: Series(tuple(one / count * 1e3 for one in series[count].values)) for count in (near, far)
        }
        yield compared(
            f"growth-{key}", f"{key} for each host, {far} hosts to {near}",
            (f"at {far} ms", each[far]), (f"at {near} ms", each[near]), at_most(1.2), floor=session.floor,
        )  # fmt: skip
        line = straightness([(float(count), series[count].median) for count in series])
        yield measured(
            f"growth-{key}-line", f"R² of a straight line through {key} against hosts",
            ("R²", Series((line,))), "", at_least(0.98),
        )  # fmt: skip


FANOUT = Group("fanout", "256 agents, fresh connections, beside a process for each host", measure_fanout)
GROWTH = Group("growth", "time and memory from 64 to 5,000 hosts", measure_growth)
