"""A hundred hosts, seven of which fail, rolled out; fifty that print at once; an agent's child that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.operations.follow import follow
from ctrl_exec.operations.rollout import Batch
from ctrl_exec.operations.run import RunRequest
from tests.integration.live.test_real_agents import (
    LINES,
    dispatcher,
    numbers,
    start,
    texts,
)
from tests.integration.runs.dispatching import CALLER, Bench, killed_at
from tests.support.emulated import Fleet as Emulated
from tests.support.fleet import Fleet
from tests.support.processes import request_children_of

HOSTS = tuple(f"web-{number:03d}" for number in range(100))
FAILING = (5, 18, 31, 47, 62, 78, 93)
PRINTERS = tuple(f"loud-{number:02d}" for number in range(50))
LINES_EACH = 40


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    """A hundred agents of which seven fail, and fifty that print a line each 100 ms."""
    fleet = Emulated(tmp_path_factory.mktemp("hundred"))
    for number, name in enumerate(HOSTS):
        fleet.add(name, exit=1 if number in FAILING else 0)
    for name in PRINTERS:
        fleet.add(name, stdout="", lines=LINES_EACH, line_every_s=0.1, delay_s=4.5, stamped=True)
    with fleet:
        yield fleet


@pytest.fixture
def site(tmp_path: Path, hundred: Emulated) -> Iterator[Bench]:
    """A dispatcher with a daemon's workers."""
    made = Bench(tmp_path, hundred, is_warm=True)
    try:
        yield made
    finally:
        made.close()


def had(site: Bench, reqid: str) -> list[str]:
    """The hosts that were sent the run, in order of their names."""
    found = {
        each["host"]
        for each in site.fleet.requests()
        if each["path"] == "/run" and each["body"].get("reqid") == reqid
    }
    return sorted(found)


def test_a_rollout_of_a_hundred_hosts_stops_where_it_was_told_to(site: Bench) -> None:
    """Ten at a time, three failures allowed: the fourth is in the fifth batch, and no sixth begins."""
    report = site.run(*HOSTS, batch=Batch("10%", max_failures=3))
    assert had(site, report.reqid) == list(HOSTS[:50])
    assert report.counts == {"ok": 46, "failed": 4, "cancelled": 50}
    assert [each.host for each in report.results if each.state == "cancelled"] == list(HOSTS[50:])
    whole = site.run(*HOSTS, batch=Batch("10%", max_failures="7%"))
    assert had(site, whole.reqid) == list(HOSTS)
    assert whole.counts == {"ok": 93, "failed": 7}


@pytest.mark.parametrize("count", [2, 4])
def test_a_carrier_killed_in_the_middle_leaves_the_same_truth(site: Bench, count: int) -> None:
    """Exactly the hosts of the batches that were begun had it; the others never will."""
    request = RunRequest(HOSTS, "job", batch=Batch("10%", max_failures=3))
    killed_at(site, "after journal.note_batch", request, count=count)
    [reqid] = site.reqids()
    site.status(reqid)
    done = site.wait_complete(reqid, ahead_s=15)
    begun = list(HOSTS[: 10 * count])
    sent = had(site, reqid)
    assert set(sent) <= set(begun)
    assert [each.host for each in done.results if each.state == "cancelled"] == list(HOSTS[10 * count :])
    assert {each.host for each in done.results if each.state in ("ok", "failed")} == set(sent)
    assert site.held() == ()


@pytest.mark.long
def test_fifty_hosts_are_heard_live_and_in_order(site: Bench) -> None:
    """A line each 100 ms on each of them: none lost, none twice, not all at the end.

    How soon is the bench's to say (`live-p95`): here the machine has other work.
    """
    started = site.run(*PRINTERS, is_async=True)
    texts: dict[str, list[str]] = {}
    for event in follow(site.dispatcher(), CALLER, started.reqid):
        if event.kind == "stdout":
            texts.setdefault(event.host, []).append(event.text)
    for name in PRINTERS:
        shown = [int(line.split()[1]) for line in "".join(texts[name]).splitlines()]
        assert shown == list(range(1, LINES_EACH + 1))
        assert len(texts[name]) > 1


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two real agents that print lines."""
    fleet = Fleet(tmp_path_factory.mktemp("two"))
    agents = [fleet.new_agent(f"host-{letter}", scripts={"lines": LINES}) for letter in "ab"]
    fleet.enrol(*agents)
    for agent in agents:
        fleet.start_agent(agent)
    fleet.start_api()
    yield fleet
    fleet.close()


def test_a_host_whose_agents_child_died_is_lost_with_its_lines(real: Fleet) -> None:
    """kill -9 of the child that carries it; the other host is whole."""
    reqid = start(real, "lines", "30", "0.05")
    events = []
    agent = real.agents["host-a"].running
    assert agent is not None
    for event in follow(dispatcher(real), CALLER, reqid):
        events.append(event)
        if agent is not None and len(texts(events).get("host-a", "").splitlines()) >= 5:
            for pid in request_children_of(agent.pid):
                os.kill(pid, signal.SIGKILL)
            agent = None
    record = dispatcher(real).results.load(reqid)
    assert record is not None
    by_host = {each.host: each for each in record.results}
    assert by_host["host-a"].state == "lost"
    seen = numbers(texts(events)["host-a"])
    assert len(seen) >= 5
    assert seen == list(range(1, len(seen) + 1))
    assert by_host["host-a"].stdout == texts(events)["host-a"]
    assert by_host["host-b"].state == "ok"
    assert numbers(by_host["host-b"].stdout) == list(range(1, 31))
