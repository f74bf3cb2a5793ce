"""Live runs on real agents through the real API: watched, killed at, cancelled."""

from __future__ import annotations

import io
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ctrl_exec.common.log import Log
from ctrl_exec.config import load_config
from ctrl_exec.dispatcher import Dispatcher, open_dispatcher
from ctrl_exec.operations.cancel import cancel
from ctrl_exec.operations.follow import RunEvent, follow
from tests.integration.runs.dispatching import CALLER
from tests.support.descriptors import kill_holders_of
from tests.support.fleet import Fleet
from tests.support.polling import eventually
from tests.support.processes import Running, workers_of

LINES = """#!/bin/sh
n=0
while [ $n -lt "$1" ]; do n=$((n+1)); echo "$(date +%s.%N) $n"; echo "e$n" >&2; sleep "$2"; done
"""
FORKS = """#!/bin/sh
trap '' TERM
(trap '' TERM; setsid sleep 1000 & sleep 1000) &
echo begun
sleep 1000
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three agents with a script that prints lines and one that will not end, and the API."""
    fleet = Fleet(tmp_path_factory.mktemp("real"))
    agents = [fleet.new_agent(f"host-{letter}", scripts={"lines": LINES, "forks": FORKS}) for letter in "abc"]
    fleet.enrol(*agents)
    for agent in agents:
        fleet.start_agent(agent)
    fleet.start_api()
    yield fleet
    fleet.close()


def dispatcher(real: Fleet) -> Dispatcher:
    return open_dispatcher(load_config(str(real.conf)), Log("test", stream=io.StringIO()))


def start(real: Fleet, script: str, *args: str) -> str:
    answer = real.http(
        "POST",
        "/run",
        {"hosts": ["@all"], "script": script, "args": list(args), "async": True, "lock_wait": 30},
    )
    assert answer.status == 202, answer.body
    return str(answer.json["reqid"])


def texts(events: list[RunEvent], stream: str = "stdout") -> dict[str, str]:
    found: dict[str, str] = {}
    for each in events:
        if each.kind == stream:
            found[each.host] = found.get(each.host, "") + each.text
    return found


def numbers(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines()]


def assert_whole(real: Fleet, reqid: str, events: list[RunEvent], count: int) -> None:
    """Every line of every host was told once, in order, and is on record."""
    record = dispatcher(real).results.load(reqid)
    assert record is not None
    assert {each.host: each.state for each in record.results} == dict.fromkeys(real.agents, "ok")
    for result in record.results:
        assert numbers(result.stdout) == list(range(1, count + 1))
        assert result.stdout == texts(events)[result.host]
        assert result.stderr == texts(events, "stderr")[result.host]


def test_a_run_is_watched_line_by_line(real: Fleet) -> None:
    """Each line long before the end, whole, once, in order."""
    reqid = start(real, "lines", "20", "0.05")
    events = list(follow(dispatcher(real), CALLER, reqid))
    assert_whole(real, reqid, events, 20)
    assert all(each.text.endswith("\n") for each in events if each.kind == "stdout")
    assert len([each for each in events if each.kind == "stdout"]) > 3 * 5


@pytest.mark.long
def test_what_a_cancelled_run_started_is_gone(real: Fleet) -> None:
    """Also what ignores TERM, left its group and its parent."""
    reqid = start(real, "forks")
    events = follow(dispatcher(real), CALLER, reqid)
    seen: set[str] = set()
    while seen < set(real.agents):
        seen |= {each.host for each in [next(events)] if each.kind == "stdout"}
    report = cancel(dispatcher(real), CALLER, reqid)
    assert [(each.ended, each.error) for each in report.hosts] == [(True, "")] * 3
    last = list(events)
    assert last[-1].facts["counts"] == {"cancelled": 3}
    assert last[-1].facts["state"] == "cancelled"


class Killer:
    """Kills what carries a run, of one kind after the other, at random moments."""

    def __init__(self, real: Fleet, seed: int) -> None:
        self._real = real
        self._random = random.Random(seed)
        self.kills = 0

    def work(self, is_over: threading.Event) -> None:
        """Until then."""
        while not is_over.wait(self._random.uniform(0.05, 0.4)):
            if self._random.random() < 0.2:
                self._kill_api()
            else:
                self._kill_worker()

    def _kill_worker(self) -> None:
        assert self._real.api is not None
        for pid in workers_of(self._real.api.pid):
            if self._random.random() < 0.6:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1

    def _kill_api(self) -> None:
        api = self._real.api
        assert isinstance(api, Running)
        api.process.send_signal(signal.SIGKILL)
        api.process.wait(60)
        self.kills += 1
        self._real.start_api()


@pytest.mark.long
def test_a_hundred_kills_lose_and_double_no_line(real: Fleet) -> None:
    """Workers and daemon die at random while runs are watched: every line comes once, in order."""
    killer = Killer(real, seed=4)
    deadline = time.monotonic() + 400
    while killer.kills < 100 and time.monotonic() < deadline:
        reqid = start(real, "lines", "50", "0.1")
        is_over = threading.Event()
        thread = threading.Thread(target=killer.work, args=(is_over,))
        thread.start()
        try:
            events = list(follow(dispatcher(real), CALLER, reqid))
        finally:
            is_over.set()
            thread.join()
        assert_whole(real, reqid, events, 50)
    assert killer.kills >= 100


@pytest.mark.long
def test_carriers_killed_at_random_lose_and_double_no_line(real: Fleet) -> None:
    """The watcher itself takes the run over, again and again."""
    chance = random.Random(5)
    for _ in range(5):
        reqid = start(real, "lines", "40", "0.1")
        events: list[RunEvent] = []
        moment = time.monotonic() + chance.uniform(0.3, 2.0)
        killed = False
        for event in follow(dispatcher(real), CALLER, reqid, idle_s=0.1):
            events.append(event)
            if not killed and time.monotonic() >= moment:
                killed = True
                kill_carriers(real, reqid)
        assert_whole(real, reqid, events, 40)


def kill_carriers(real: Fleet, reqid: str) -> None:
    """kill -9 of whoever writes the record."""
    log = str(real.state / "runs" / f"{reqid}.events")
    assert kill_holders_of(lambda target: target == log)
    eventually(lambda: not dispatcher(real).results.is_carried(reqid))


@pytest.mark.long
def test_lines_come_soon(real: Fleet) -> None:
    """From the printing to the watcher: a small part of a second, by the script's own clock."""
    reqid = start(real, "lines", "50", "0.1")
    late = []
    for event in follow(dispatcher(real), CALLER, reqid):
        if event.kind == "stdout":
            now = time.time()
            late += [now - float(line.split()[0]) for line in event.text.splitlines()]
    assert len(late) == 150
    # the run takes five seconds: they do not come at its end, however busy the machine is elsewhere
    assert statistics.median(late) < 2
