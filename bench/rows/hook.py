"""What the auth hook adds to a request, beyond the time of its own process."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.row import Group, Row, measured
from bench.series import Series, at_most
from bench.timing import run_program

if TYPE_CHECKING:
    from bench.session import Session


def measure(session: Session) -> Iterable[Row]:
    """`GET /health` with and without a hook, and the hook started by itself."""
    hook = session.work / "hook"
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    ports = {
        "with": session.deployment.api("hook", auth_hook=hook).port,
        "without": session.deployment.api("plain").port,
    }
    probe = session.module("bench.probes.spawn", hook, 100)
    found: dict[str, list[float]] = {"with": [], "without": [], "alone": []}
    for port in ports.values():
        session.generator.run(port, 1, seconds=0.3)
    for _ in range(session.sizes.rounds):
        for name, port in ports.items():
            found[name].append(session.generator.run(port, 1, seconds=session.sizes.load_s / 2).p50_us / 1e3)
        found["alone"].append(json.loads(run_program(probe, env=session.environment).stdout)["each_ms"])
    added = Series(
        tuple(
            each - without - alone
            for each, without, alone in zip(found["with"], found["without"], found["alone"], strict=True)
        )
    )
    with_hook, without, alone = (Series(tuple(found[name])).median for name in ("with", "without", "alone"))
    yield measured(
        "hook",
        "auth hook: added to `GET /health` beyond the hook's own process time",
        ("added ms", added),
        "ms",
        at_most(1.5),
        floor=session.floor,
        note=f"{with_hook:.2f} ms with, {without:.2f} without, the hook alone {alone:.2f}",
    )


GROUP = Group("hook", "what the auth hook adds beyond its own process", measure)
