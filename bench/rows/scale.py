"""Thousands of hosts at once, the whole CLI process: time against the script's own, memory, all answers.

The warm rows go through the API's daemon; that it really kept its connections to the agents is looked up
in the kernel's table after the first run.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bench.load import Load
from bench.row import FAILED, Group, Row, absent, compared, measured
from bench.series import Series, Target, at_least, at_most
from bench.timing import MIB, ProbeError, Usage, run_program, tree_bytes

if TYPE_CHECKING:
    from bench.deployment import Api
    from bench.session import Session

_USUAL_DESCRIPTORS = 1024  # the soft limit of a login
_WARM_NOTE = "the API's daemon kept no connections to these agents"


def established(port: int) -> int:
    """TCP connections of this machine whose far end is that port."""
    suffix = f":{port:04X}"
    with open("/proc/net/tcp") as table:
        lines = [line.split() for line in table.readlines()[1:]]
    return sum(line[2].endswith(suffix) and line[3] == "01" for line in lines)


def run_cli(session: Session, count: int, **options: Any) -> tuple[Usage, int]:
    """`ctrl-exec run` on that many emulated hosts, from a shell with the usual limits.

    Gives its usage and how many hosts succeeded.
    """
    last = session.emulated.names[count - 1].removeprefix("host-")
    argv = session.launcher(
        "ctrl-exec", "--config", session.deployment.conf, "--json", "run", f"host-[0001-{last}]", "true"
    )
    if shutil.which("prlimit"):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        argv = ["prlimit", f"--nofile={min(_USUAL_DESCRIPTORS, hard)}:{hard}", *argv]
    usage = run_program(argv, expects=None, **options)
    try:
        results = json.loads(usage.stdout)["results"]
    except (ValueError, KeyError):
        said = (usage.stderr or usage.stdout)[-500:].decode("utf-8", "replace")
        raise ProbeError(f"run on {count} hosts ended with {usage.exit_code}: {said}") from None
    return usage, sum(each["exit"] == 0 for each in results)


def measure(session: Session) -> Iterable[Row]:
    """1,000 hosts with a short script, 5,000 with a longer one, 5,000 held at once."""
    sizes, fleet = session.sizes, session.emulated
    yield from _fresh(session, sizes.many, sizes.many_s, f"hosts-{sizes.many}", at_most(2.6), at_most(60))
    yield from _fresh(session, sizes.most, sizes.most_s, f"hosts-{sizes.most}", None, None)
    session.deployment.register_emulated(fleet.agents, fleet.leaves, fleet.ports[sizes.hold_s])
    usage, ok = run_cli(session, sizes.most, samples_memory=True)
    what = f"{sizes.most} agents in flight at once, {sizes.hold_s} s script"
    yield measured(
        f"hosts-{sizes.most}-answers", f"{what}: hosts that succeeded", ("hosts", Series((float(ok),))),
        "hosts", at_least(sizes.most), note=f"{usage.wall_s:.1f} s wall",
    )  # fmt: skip
    yield measured(
        f"hosts-{sizes.most}-memory", f"{what}: peak memory", ("ours MiB", Series((usage.peak_bytes / MIB,))),
        "MiB", at_most(200),
    )  # fmt: skip
    yield from _warm(session)


def _fresh(
    session: Session, count: int, script_s: int, name: str, wall: Target | None, memory: Target | None
) -> Iterable[Row]:
    fleet = session.emulated
    session.deployment.register_emulated(fleet.agents, fleet.leaves, fleet.ports[script_s])
    run_cli(session, count)  # makes the lock files of these hosts, as the first run ever does
    walls, cpus = [], []
    rounds = session.sizes.rounds if wall is not None else min(3, session.sizes.rounds)
    for turn in range(rounds):
        usage, ok = run_cli(session, count)
        if ok != count:
            raise ProbeError(f"{ok} of {count} hosts succeeded")
        walls.append(usage.wall_s)
        cpus.append(usage.cpu_s)
        session.say(f"{name}: round {turn + 1} of {rounds}: {usage.wall_s:.2f} s")
    what = f"{count} agents, {script_s} s script, fresh connections, whole `ctrl-exec run`"
    yield compared(
        f"{name}-fresh", f"{what}, to the script's own time", ("ours s", Series(tuple(walls))),
        ("script s", Series((float(script_s),))), wall, floor=session.floor,
        note=f"{Series(tuple(cpus)).median:.2f} s CPU",
    )  # fmt: skip
    usage, _ = run_cli(session, count, samples_memory=True)
    yield measured(
        f"{name}-fresh-memory", f"{what}: peak memory", ("ours MiB", Series((usage.peak_bytes / MIB,))),
        "MiB", memory,
    )  # fmt: skip


def api_run_request(port: int, hosts: list[str], *, keep_alive: bool = False) -> bytes:
    """A whole `POST /run` of `true`."""
    body = json.dumps({"hosts": hosts, "script": "true"}).encode()
    head = [
        "POST /run HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json",
        f"Content-Length: {len(body)}", *([] if keep_alive else ["Connection: close"]),
    ]  # fmt: skip
    return "\r\n".join([*head, "", ""]).encode() + body


def run_api(session: Session, api: Api, hosts: list[str]) -> Load:
    """One run through the API."""
    request = api_run_request(api.port, hosts)
    return session.generator.run(api.port, 1, seconds=120, most=1, request=request)


def _warm(session: Session) -> Iterable[Row]:
    sizes, fleet = session.sizes, session.emulated
    api = session.deployment.api("plain")
    for count, script_s, limit in ((sizes.many, sizes.many_s, 1.15), (sizes.most, sizes.most_s, 1.1)):
        name, target = f"hosts-{count}-warm", at_most(limit)
        what = f"{count} agents, {script_s} s script, kept connections, to the script's own time"
        session.deployment.register_emulated(fleet.agents, fleet.leaves, fleet.ports[script_s])
        pattern = [f"host-[0001-{fleet.names[count - 1].removeprefix('host-')}]"]
        run_api(session, api, pattern)
        if established(fleet.ports[script_s]) < count // 2:
            yield absent(name, what, target, _WARM_NOTE, FAILED)
            continue
        walls = []
        peak = 0
        for _ in range(sizes.rounds):
            walls.append(run_api(session, api, pattern).max_us / 1e6)
            peak = max(peak, tree_bytes(api.daemon.pid))
            time.sleep(0.2)
        yield compared(
            name, what, ("ours s", Series(tuple(walls))), ("script s", Series((float(script_s),))), target,
            floor=session.floor, note=f"the daemon holds {peak / MIB:.0f} MiB",
        )  # fmt: skip


GROUP = Group("scale", "1,000 and 5,000 hosts at once, time, memory, all answers", measure)
