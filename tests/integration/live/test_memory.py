"""A gigabyte of output from ten hosts: on record, watched, and never held."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.operations.follow import follow
from tests.integration.runs.dispatching import CALLER, Bench
from tests.support.descriptors import holders_of
from tests.support.emulated import Fleet

HOSTS, EACH = 10, 107_000_000
LIMIT_KB = 64 * 1024
LINES = 100_000  # one each 20 µs


@pytest.fixture
def flood(tmp_path: Path) -> Iterator[Bench]:
    """Ten agents that print 107 MB each, and a run that may keep all of it."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "home").mkdir()
    fleet = Fleet(tmp_path / "agents")
    for number in range(HOSTS):
        fleet.add(f"flood-{number}", stdout="", lines=LINES, line_every_s=2e-5, line_bytes=EACH // LINES)
    with fleet:
        made = Bench(tmp_path / "home", fleet)
        made.settings["max_run_output"] = 2 << 30
        yield made
        made.close()


def peak_kb(pid: int) -> int:
    """The most memory a process has had."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) if found else 0
    return 0


def carrier_of(bench: Bench, reqid: str) -> int:
    log = str(bench.runs / f"{reqid}.events")
    return next(iter(holders_of(lambda target: target == log)), 0)


@pytest.mark.long
def test_a_gigabyte_is_passed_on_in_little_memory(flood: Bench) -> None:
    """Neither the carrier nor a watcher grows beyond 64 MB, also while the record is composed."""
    bare = peak_kb(os.getpid())
    started = flood.run(*(f"flood-{number}" for number in range(HOSTS)), is_async=True)
    carrier = carrier_of(flood, started.reqid)
    assert carrier

    def watch() -> int:
        told = 0
        most = 0
        for event in follow(flood.dispatcher(), CALLER, started.reqid, idle_s=0.2):
            told += len(event.text)
            most = max(most, peak_kb(carrier))
        held = max(most, peak_kb(os.getpid()))
        (flood.home / "seen").write_text(f"{told} {most} {peak_kb(os.getpid())}")
        # this process began as a copy of one that has run other tests
        return int(held > max(LIMIT_KB, bare + 24_000))

    assert wait_status(fork_child(watch), timeout_s=800) == (0, 0), (flood.home / "seen").read_text()
    told = int((flood.home / "seen").read_text().split()[0])
    assert told == HOSTS * (EACH // LINES) * LINES
