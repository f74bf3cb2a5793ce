"""Emulated agents that print over time, fail, break and are cancelled; a dispatcher for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runs.conftest import agents, bench
from tests.integration.runs.dispatching import Bench
from tests.support.emulated import Fleet

__all__ = ["agents", "bench"]

OLDER = ["async", "timeout", "keepalive", "result", "base64"]  # of the version before streams


@pytest.fixture(scope="session")
def printers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Agents by what they do; `tick-N` print 40 lines in two seconds, `break-N` cut their streams."""
    fleet = Fleet(tmp_path_factory.mktemp("printers"))
    for number in range(3):
        fleet.add(f"tick-{number}", stdout="", lines=40, line_every_s=0.05, delay_s=2.1)
        fleet.add(
            f"break-{number}", stdout="", lines=40, line_every_s=0.05, delay_s=2.1, stream_breaks_after=7
        )
    fleet.add(
        "endless", stdout="begun\n", lines=100_000, line_every_s=0.1, delay_s=1000.0, cancel_takes_s=0.2
    )
    fleet.add("begun", stdout="begun\n", delay_s=1000.0)
    fleet.add("silent", stdout="", delay_s=1000.0)
    fleet.add("elder", features=list(OLDER), stdout="late\n", delay_s=1.5)
    fleet.add("late", features=list(OLDER), stdout="late\n", delay_s=0.3)
    fleet.add("late-silent", features=list(OLDER), stdout="", delay_s=0.3)
    fleet.add("late-older", older=True, delay_s=0.3)
    fleet.add("quiet", stdout="", delay_s=1.8)
    fleet.add("brief", stdout="", lines=4, line_every_s=0.1, delay_s=1.8)
    fleet.add("refuses", refuse="script not permitted")
    fleet.add("older", older=True, delay_s=1.5)
    fleet.add("much", stdout="", stdout_bytes=3_000_000, lines=3, line_every_s=0.1)
    for number in range(20):
        fleet.add(f"node-{number:02d}", exit=1 if number in (7, 12) else 0)
    with fleet:
        yield fleet


@pytest.fixture(params=["fresh", "warm"])
def live(tmp_path: Path, printers: Fleet, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A dispatcher that connects anew for each call, and one with a daemon's fan-out workers."""
    made = Bench(tmp_path, printers, is_warm=request.param == "warm")
    try:
        yield made
    finally:
        made.close()
