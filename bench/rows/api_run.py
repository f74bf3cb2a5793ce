"""`POST /run` on one real agent through the API, to what `/health` and the script take."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.row import FAILED, Group, Row, absent, compared
from bench.rows.scale import api_run_request, established
from bench.series import Series, at_most
from bench.timing import run_program

if TYPE_CHECKING:
    from bench.session import Session


def measure(session: Session) -> Iterable[Row]:
    """Latency of one run after another."""
    deployment = session.deployment
    agent = deployment.agent
    api = deployment.api("plain")
    request = api_run_request(api.port, ["real-01"])
    probe = session.module("bench.probes.spawn", "/bin/true", 100)
    session.generator.run(api.port, 1, seconds=0.5, request=request)
    runs, parts = [], []
    for _ in range(session.sizes.rounds):
        runs.append(
            session.generator.run(api.port, 1, seconds=session.sizes.load_s, request=request).p50_us / 1e3
        )
        health_ms = session.generator.run(api.port, 1, seconds=session.sizes.load_s / 2).p50_us / 1e3
        script_ms = json.loads(run_program(probe, env=session.environment).stdout)["each_ms"]
        parts.append(2 * health_ms + script_ms)
    ours, base = ("run ms", Series(tuple(runs))), ("2 × health + script ms", Series(tuple(parts)))
    what = "`POST /run` of `true` on one agent through the API, to 2 × `GET /health` + script"
    if established(agent.port):
        yield compared(
            "api-run-warm", f"{what}, kept connection", ours, base, at_most(1), floor=session.floor
        )
        return
    yield absent(
        "api-run-warm", f"{what}, kept connection", at_most(1),
        "the API's daemon kept no connection to the agent", FAILED,
    )  # fmt: skip
    yield compared("api-run-fresh", f"{what}, fresh connection", ours, base, floor=session.floor)


GROUP = Group("api-run", "POST /run on one agent through the API", measure)
