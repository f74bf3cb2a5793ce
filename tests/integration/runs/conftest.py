"""Emulated agents for all tests of one process; a dispatcher for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runs.dispatching import Bench
from tests.support.emulated import Fleet


@pytest.fixture(scope="session")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Five that answer, three that take 2, 4 and 1000 seconds, one that cuts its answers, one that fails."""
    fleet = Fleet(tmp_path_factory.mktemp("agents"))
    fleet.add_many(5, tags={"role": "web"})
    fleet.add("slow", delay_s=2.0, stdout="slow\n")
    fleet.add("slower", delay_s=4.0, stdout="slow\n")
    fleet.add("endless", delay_s=1000.0)
    fleet.add("cut", lie="cut")
    fleet.add("bad", exit=3, stderr="wrong\n")
    fleet.add("large", stdout_bytes=300_000)
    fleet.add("older", older=True)
    with fleet:
        yield fleet


@pytest.fixture(params=["fresh", "warm"])
def bench(tmp_path: Path, agents: Fleet, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A dispatcher that connects anew for each call, and one with a daemon's fan-out workers."""
    made = Bench(tmp_path, agents, is_warm=request.param == "warm")
    try:
        yield made
    finally:
        made.close()
